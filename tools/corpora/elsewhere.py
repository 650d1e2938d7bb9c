"""Datasets of GPT-NeoX's `prepare_data.py` that are not downloaded here, and where to get text."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "elsewhere_problem"]

_EYE = "the-eye.eu, which has removed it"
_BMK = "eaidata.bmk.sh, which is no longer maintained"
_LOCAL = "download it and run prepare_data.py local --input FILE"
_PILE = "prepare_data.py common_pile gathers openly licensed text of many domains"

ELSEWHERE = {
    "enron": (_BMK, _PILE),
    "pile_subset": (_EYE, _PILE),
    "pile": (_EYE, _PILE),
    "github": (_BMK, f"{_PILE}, code too"),
    "arxiv": (_EYE, f"{_PILE}, arXiv too"),
    "europarl": (_EYE, "prepare_data.py common_corpus gathers open text, European law too"),
    "freelaw": (_EYE, f"{_PILE}, court decisions too"),
    "nih": (_EYE, f"{_PILE}, medical papers too"),
    "pubmed": (_EYE, f"{_PILE}, PubMed too"),
    "books1": (_EYE, f"{_PILE}, books out of copyright too"),
    "books3": (_EYE, f"{_PILE}, books out of copyright too"),
    "hackernews": (_EYE, f"{_PILE}, forums too"),
    "openwebtext2": (
        "the dataset segyges/OpenWebText2 of the Hugging Face hub",
        f"{_LOCAL} (unpack the archive first)",
    ),
    "stackexchange": (_EYE, f"{_PILE}, Stack Exchange too"),
    "ubuntu_irc": (_EYE, f"{_PILE}, Ubuntu's chat too"),
    "youtube_subtitles": (_EYE, f"{_PILE}, transcripts of videos too"),
    "c4": (_EYE, f"the dataset allenai/c4 of the Hugging Face hub has it: {_LOCAL}"),
    "c4_openwebtext": (
        _EYE,
        f"the dataset allenai/c4 of the Hugging Face hub has it as realnewslike: {_LOCAL}",
    ),
    "enwik8": (
        "http://mattmahoney.net/dc/enwik8.zip",
        "download and unpack it, name it enwik8.txt, and run prepare_data.py local --input "
        "enwik8.txt -t CharLevelTokenizer",
    ),
}
"""Name in GPT-NeoX's registry -> (its source, what to do instead)."""


def elsewhere_problem(name: str) -> str:
    """The answer for a dataset that GPT-NeoX downloads, in one line."""
    source, instead = ELSEWHERE[name]
    return f"{name}: is not downloaded here; GPT-NeoX takes it from {source}; {instead}"
