"""Task names of lm-eval up to version 0.3, which scripts for GPT-NeoX still use."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["current_name"]

_RENAMED = (
    (r"hendrycksTest(-.*[*?[].*|-?)", "mmlu"),  # a pattern means several subjects
    (r"hendrycksTest-(\w+)", r"mmlu_\1"),
    (r"math_(\w+)", r"hendrycks_math_\1"),
    (r"lambada_mt_(\w+)", r"lambada_openai_mt_\1"),
    (r"(lambada_\w+_cloze)", r"\1_yaml"),
    (r"truthfulqa_mc", "truthfulqa_mc2"),
    (r"pawsx_(\w+)", r"paws_\1"),
    (r"mgsm_(\w\w)", r"mgsm_direct_\1"),
    (r"xstory_cloze_(\w+)", r"xstorycloze_\1"),
    (r"mnli_mismatched", "mnli_mismatch"),
    (r"iwslt17-(\w+-\w+)", r"iwslt2017-\1"),
    (r"bigbench_(\w+)", r"bigbench_\1_multiple_choice"),
    (r"bigbench_causal_judgement", "bigbench_causal_judgment_multiple_choice"),
    (r"squad2", "squadv2"),
    (r"sst", "sst2"),
)
"""Old names, as regular expressions, and the names that replaced them."""


def current_name(request: str, known: Collection[str]) -> str | None:
    """Returns lm-eval's present name of a task or pattern with an old name, if it is ``known``."""
    for old, new in _RENAMED:
        found = re.fullmatch(old, request)
        if found and (name := found.expand(new)) in known:
            return name
    return None
