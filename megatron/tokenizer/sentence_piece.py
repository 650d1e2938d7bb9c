"""Sentencepiece models."""

from megatron.tokenizer.abstract import (
    END_OF_DOCUMENT,
    PADDING,
    AbstractTokenizer,
    existing_file,
    fingerprint_of,
    import_library,
)
from megatron.tokenizer.errors import TokenizerError


class SPMTokenizer(AbstractTokenizer):
    """A sentencepiece model; the end of a document is its ``<|endoftext|>`` or its own eos."""

    def __init__(self, vocab_file: str | None):
        path = existing_file(
            vocab_file, "SPMTokenizer", wanted="the path of a sentencepiece .model"
        )
        library = import_library("sentencepiece", "SPMTokenizer")
        try:
            self.tokenizer = library.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise TokenizerError(
                f"vocab_file: {path} is not a sentencepiece model ({error}); give the .model file"
            ) from error
        eod = self._special_id(END_OF_DOCUMENT, otherwise=self.tokenizer.eos_id())
        if eod < 0:
            raise TokenizerError(
                f"vocab_file: {path} has neither the piece {END_OF_DOCUMENT!r} nor an eos id; train"
                f" the model with user_defined_symbols={END_OF_DOCUMENT} or without eos_id=-1"
            )
        pad = self._special_id(PADDING, otherwise=self.tokenizer.pad_id())
        super().__init__(
            "SPMTokenizer",
            vocab_size=self.tokenizer.get_piece_size(),
            eod=eod,
            pad=pad if pad >= 0 else eod,
            fingerprint=fingerprint_of(path),
        )

    def _special_id(self, piece: str, *, otherwise: int) -> int:
        index = self.tokenizer.piece_to_id(piece)  # an unknown piece gives the id of <unk>
        return index if self.tokenizer.id_to_piece(index) == piece else otherwise

    def _read_vocab(self) -> dict[str, int]:
        return {self.tokenizer.id_to_piece(index): index for index in range(self.vocab_size)}

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer.encode(texts, num_threads=1)

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids)
