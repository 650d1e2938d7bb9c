"""The message about tokens that transformers adds to each text."""

from megatron.tokenizer.abstract import AbstractTokenizer


def added_tokens_lines(tokenizer: AbstractTokenizer) -> list[str]:
    """Returns a message about tokens that a tokenizer's file adds to a text, if there are any."""
    told = tokenizer.describe_own_added()
    if not told:
        return []
    if tokenizer.added:
        return [f"{told} each text, as transformers adds them"]
    return [
        f"transformers adds {told} each text; training here does so only if the data are prepared "
        "with --add-special-tokens and the YAML has tokenizer_adds_special_tokens: true"
    ]
