"""The pieces of a stream are the text of all tokens at once, whatever tokenizer and sizes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from megatron.generation.text_stream import StoppableText, TextStream
from megatron.tokenizer import AbstractTokenizer, TokenizerError
from megatron.tokenizer.byte_pair import GPT2BPETokenizer, HFTokenizer
from megatron.tokenizer.character_level import CharLevelTokenizer
from megatron.tokenizer.sentence_piece import SPMTokenizer
from megatron.tokenizer.tik_token import TiktokenTokenizer

END = "<|endoftext|>"
SAMPLES = [
    "the cat sat on the mat, and it didn't  do much.",
    "cat \u65e5\u672c mat",  # two characters of three bytes
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd!",  # a family, joined, and a skin colour
    "e\u0301a\u0308 \u0e01\u0e33\u0e49 \u1112\u1161\u11ab",  # marks that combine
    "\u4e2d\u6587\u3002\nEND",
    "END \U0001f600END\U0001f600\n\n",
    "\ufffd \ufffd\ufffd\ufffd\ufffd a\ufffd",
]
BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}
CHARACTERS = pre_tokenizers.ByteLevel.alphabet()


def with_pieces(vocab: dict[str, int], *pieces: str) -> dict[str, int]:
    """Adds pieces and the end of a document behind the ids that there are."""
    return vocab | {piece: len(vocab) + n for n, piece in enumerate((*pieces, END))}


WORDS = ("\u2581the", "\u2581cat", "\u2581mat", "\u2581", "a", "END", "EN", "D", "\u65e5")


def byte_level(*steps: decoders.Decoder) -> Callable[[Path], AbstractTokenizer]:
    def build(folder: Path) -> AbstractTokenizer:
        tokenizer = Tokenizer(models.BPE(*byte_level_model()))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *steps])
        tokenizer.add_tokens(["\u65e5\u672c", "<tool>"])  # whole texts among tokens of bytes
        return saved(tokenizer, folder)

    return build


def byte_level_model() -> tuple[dict[str, int], list[tuple[str, str]]]:
    alphabet = {character: n for n, character in enumerate(sorted(CHARACTERS))}
    merges = [("\u00e6", "\u0139"), ("E", "N"), ("\u0120", "c")]  # half a character is a token too
    return with_pieces(alphabet, *(one + other for one, other in merges)), merges


SPACE = decoders.Replace("\u2581", " ")


def byte_fallback(
    *steps: decoders.Decoder, first: decoders.Decoder = SPACE
) -> Callable[[Path], AbstractTokenizer]:
    def build(folder: Path) -> AbstractTokenizer:
        model = models.BPE(with_pieces(BYTE_TOKENS, *WORDS), [], byte_fallback=True)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.decoder = decoders.Sequence([first, decoders.ByteFallback(), *steps])
        return saved(tokenizer, folder)

    return build


def words(decoder: decoders.Decoder | None) -> Callable[[Path], AbstractTokenizer]:
    def build(folder: Path) -> AbstractTokenizer:
        pieces = ("do", "n't", "##s", "##n't", ".", "'", "the</w>", "cat</w>", " ", "END", "[UNK]")
        vocab = with_pieces({}, *pieces, "not", "\u65e5", "##\u672c", "\u2581the", "\u2581")
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if decoder is not None:
            tokenizer.decoder = decoder
        return saved(tokenizer, folder)

    return build


def unigram(folder: Path) -> AbstractTokenizer:
    pieces = ["<unk>", END, *WORDS, *"thecamt,.!\n\u4e2d\u6587\u3002"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return saved(tokenizer, folder)


def saved(tokenizer: Tokenizer, folder: Path) -> AbstractTokenizer:
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    return HFTokenizer(str(folder / "tokenizer.json"))


def gpt2(folder: Path) -> AbstractTokenizer:
    vocab, merges = byte_level_model()
    models.BPE(vocab, merges).save(str(folder))
    return GPT2BPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def sentence_piece(model_type: str, **options: object) -> Callable[[Path], AbstractTokenizer]:
    def build(folder: Path) -> AbstractTokenizer:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SAMPLES[:1] * 50),
            model_writer=model,
            model_type=model_type,
            hard_vocab_limit=False,
            user_defined_symbols=[END, "END"],
            minloglevel=2,
            **options,
        )
        (folder / "a.model").write_bytes(model.getvalue())
        return SPMTokenizer(str(folder / "a.model"))

    return build


def tiktoken(folder: Path) -> AbstractTokenizer:
    pieces = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" c", b"\xe6\x97", b"EN"]
    lines = (f"{base64.b64encode(p).decode()} {rank}\n" for rank, p in enumerate(pieces))
    (folder / "cl100k_base.tiktoken").write_text("".join(lines))
    return TiktokenTokenizer(str(folder / "cl100k_base.tiktoken"))


FAMILIES: dict[str, Callable[[Path], AbstractTokenizer]] = {
    "byte_level": byte_level(),
    "replaces_parts_of_characters": byte_level(decoders.Replace("\ufffd", "?")),
    "gpt2": gpt2,
    "gemma": byte_fallback(decoders.Fuse()),
    "llama": byte_fallback(decoders.Fuse(), decoders.Strip(" ", 1, 0)),
    "fallback_not_fused": byte_fallback(),
    "strips_letters": byte_fallback(decoders.Fuse(), decoders.Strip("a", 3, 0)),
    "makes_bytes": byte_fallback(first=decoders.Replace("\u2581", "<0x20>")),
    "finds_bytes": byte_fallback(first=decoders.Replace(Regex("\u2581"), "<0x20>")),
    "rewrites": byte_fallback(decoders.Fuse(), decoders.Replace(Regex("a+|the END"), "xy")),
    "word_piece": words(decoders.WordPiece()),
    "suffix": words(decoders.BPEDecoder()),
    "no_suffix": words(decoders.BPEDecoder(suffix="")),
    "no_decoder": words(None),
    "repeats_are_one": words(decoders.CTC(pad_token="[UNK]")),
    "unigram": unigram,
    "sentence_piece_bpe": sentence_piece("bpe", vocab_size=300, byte_fallback=True),
    "sentence_piece_unigram": sentence_piece("unigram", vocab_size=40),
    "tiktoken": tiktoken,
    "characters": lambda folder: CharLevelTokenizer(),
}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request, tmp_path_factory) -> AbstractTokenizer:
    try:
        return FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    except TokenizerError as error:
        pytest.skip(str(error))


TEXT = st.sampled_from(SAMPLES) | st.text(max_size=12)
RUNS = st.sampled_from(
    [
        b"\xe6\x97\xa5",
        b"\xe6\x97",
        b"\xff",
        b"\x80" * 9,
        b"\xf0\x9f\x98",
        b"\xed\xa0\x80",
        b"\n",
        b"A",
    ]
)
PARTS = st.lists(TEXT | RUNS | st.lists(st.integers(0, 10**6), max_size=6), max_size=6)
SIZES = st.lists(st.integers(0, 40), max_size=20)
ANY_TOKENIZER = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@lru_cache
def byte_tokens(tokenizer: AbstractTokenizer) -> list[int]:
    vocab = tokenizer.vocab
    return [vocab.get(f"<0x{byte:02X}>", byte) for byte in range(256)]


def tokens_of(tokenizer: AbstractTokenizer, parts: Sequence[str | bytes | list[int]]) -> list[int]:
    """Texts as tokens, bytes as byte tokens where there are such, and whatever a model chooses."""
    alphabet = byte_tokens(tokenizer)
    tokens: list[int] = []
    for part in parts:
        if isinstance(part, str):
            tokens += tokenizer.tokenize(part)
        elif isinstance(part, bytes):
            tokens += (alphabet[byte] for byte in part)
        else:
            tokens += (number % tokenizer.vocab_size for number in part)
    return [token for token in tokens if token < tokenizer.vocab_size]


def in_groups(tokens: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """The tokens in groups of these sizes, then one by one."""
    ends = [0]
    for size in sizes:
        ends.append(min(len(tokens), ends[-1] + size))
    ends += range(ends[-1] + 1, len(tokens) + 1)
    return [tokens[start:end] for start, end in pairwise(ends)]


@ANY_TOKENIZER
@given(parts=PARTS, sizes=SIZES, before=st.lists(TEXT, max_size=3))
def test_all_pieces_are_the_text_of_all_tokens(tokenizer, parts, sizes, before):
    tokens = tokens_of(tokenizer, parts)
    stream = TextStream(tokenizer.detokenize)
    pieces = [stream.add(group) for group in in_groups(tokens, sizes)]
    assert "".join([*pieces, stream.finish()]) == tokenizer.detokenize(tokens)

    context = tokens_of(tokenizer, before)
    prompt, whole = tokenizer.detokenize(context), tokenizer.detokenize(context + tokens)
    assume(whole.startswith(prompt))
    stream = TextStream(tokenizer.detokenize, context)
    pieces = [stream.add(group) for group in in_groups(tokens, sizes)]
    assert "".join([*pieces, stream.finish()]) == whole[len(prompt) :]


@ANY_TOKENIZER
@given(
    parts=PARTS,
    sizes=SIZES,
    stops=st.lists(st.sampled_from(["END", "\n", "a", "\u672c", "\U0001f600"])),
)
def test_a_stop_string_ends_the_text_with_the_token_that_completes_it(
    tokenizer, parts, sizes, stops
):
    tokens = tokens_of(tokenizer, parts)
    texts = (tokenizer.detokenize(tokens[:end]) for end in range(len(tokens) + 1))
    whole = tokenizer.detokenize(tokens)
    ending = next((text for text in texts if any(s in text.rstrip("\ufffd") for s in stops)), None)
    wanted = whole if ending is None else ending[: min(ending.find(s) % 10**9 for s in stops)]
    stream = StoppableText(TextStream(tokenizer.detokenize), stops)
    shown = [stream.add(group) for group in in_groups(tokens, sizes)]
    shown.append(stream.finish())
    assert (stream.text, stream.stopped_by is None) == (wanted, ending is None)
    assert "".join(shown) == wanted


def test_a_stop_string_behind_a_character_of_byte_tokens_is_found_at_once(tmp_path):
    llama = FAMILIES["llama"](tmp_path)
    vocab = llama.vocab
    smile = [vocab[f"<0x{byte:02X}>"] for byte in "\U0001f600".encode()]
    text = StoppableText(TextStream(llama.detokenize), ["END", "\n"])
    assert [text.add([token]) for token in [vocab["\u2581cat"], *smile]] == ["cat", "", "", "", ""]
    assert text.add([vocab["<0x0A>"]]) == "\U0001f600"
    assert (text.text, text.stopped_by) == ("cat\U0001f600", "\n")
    assert text.add([vocab["\u2581the"]]) + text.finish() == ""


def test_a_run_of_bytes_that_turns_out_to_be_no_text_was_not_given_out(tmp_path):
    gemma = FAMILIES["gemma"](tmp_path)
    good, bad = list("\u65e5\u672c".encode()), [0xFF]
    stream = TextStream(gemma.detokenize)
    assert [stream.add([token]) for token in good + bad] == [""] * 7
    assert stream.add([gemma.vocab["\u2581cat"]]) == "\ufffd" * 7 + " cat"


def test_a_run_of_bytes_goes_on_behind_the_context_that_it_began_in(tmp_path):
    gemma = FAMILIES["gemma"](tmp_path)
    cat, run = gemma.vocab["\u2581cat"], [0xFF, *b"abcdefgh"]  # whose end would be text by itself
    stream = TextStream(gemma.detokenize, [cat] * 40 + run)
    assert stream.add(list(b"i")) == ""
    assert stream.add([cat]) == "\ufffd cat"


def test_what_a_decoder_does_at_the_start_of_a_text_is_done_there_alone(tmp_path):
    strips = byte_fallback(decoders.Fuse(), decoders.Strip(" ", 20, 0))(tmp_path)
    the, space = strips.vocab["\u2581the"], strips.vocab["\u2581"]
    assert TextStream(strips.detokenize, [space] * 12).add([the]) == "the"
    assert TextStream(strips.detokenize, [the] + [space] * 12).add([the]) == " the"


def test_long_texts_are_not_decoded_again_and_again(tokenizer):
    decode, decoded = tokenizer.detokenize, 0

    class Spy:
        open_tokens = decode.open_tokens

        def __call__(self, tokens: Sequence[int]) -> str:
            nonlocal decoded
            decoded += len(tokens)
            return decode(tokens)

    tokens = tokens_of(tokenizer, SAMPLES * 40)
    stream = TextStream(Spy(), tokens)
    pieces = [stream.add([token]) for token in tokens]
    assert "".join([*pieces, stream.finish()])
    assert decoded < 100 * len(tokens)
