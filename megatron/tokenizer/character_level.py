"""Bytes as tokens: needs no file and no library."""

from megatron.tokenizer.abstract import AbstractTokenizer, sha256_of

NUM_BYTES = 256
EOD, PAD = 0, 1


class CharLevelTokenizer(AbstractTokenizer):
    """The bytes of the UTF-8 text; 512 ids, of which 0 ends a document and 1 is padding.

    Detokenizing leaves out 0 and 1, keeps every other byte and shows the replacement character for
    bytes that are not UTF-8 and for ids from 256 on, which no text produces.
    """

    def __init__(self, vocab_size: int = 512):
        super().__init__(
            "CharLevelTokenizer",
            vocab_size=vocab_size,
            eod=EOD,
            pad=PAD,
            fingerprint=sha256_of(f"CharLevelTokenizer {vocab_size}".encode()),
        )

    def _read_vocab(self) -> dict[str, int]:
        return {f"<0x{index:02X}>": index for index in range(self.vocab_size)}

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def _decode(self, token_ids: list[int]) -> str:
        never_in_utf8 = 0xFF
        kept = (
            index if index < NUM_BYTES else never_in_utf8
            for index in token_ids
            if index not in (EOD, PAD)
        )
        return bytes(kept).decode(errors="replace")
