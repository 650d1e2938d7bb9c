"""Chat templates, read from the folder that a tokenizer was saved in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from megatron.neox_arguments import ConfigError, RunConfig

__all__ = ["ChatTemplate", "template_folder"]

_FILES = ("tokenizer_config.json", "chat_template.jinja")


def template_folder(config: RunConfig) -> Path | None:
    """Folder where a run's chat template may be; None if the tokenizer is a name on the Hub."""
    path = Path(config.data.vocab_file or "")
    if not config.data.vocab_file or not path.exists():
        return None
    return path if path.is_dir() else path.parent


class ChatTemplate:
    """The chat template in a folder that `transformers` can load as a tokenizer.

    Args:
        folder: Contains ``tokenizer.json``, and the template in ``tokenizer_config.json`` or in
            ``chat_template.jinja``; None if there is no such folder.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._tokenizer: Any = None

    def apply(self, history: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Writes a conversation as one text.

        Args:
            history: ``{"role": ..., "content": ...}``, oldest first.
            add_generation_prompt: Whether to end with the start of an answer; otherwise the text
                ends inside the last message, to be continued.

        Raises:
            ConfigError: If there is no template.
        """
        text: str = self._load().apply_chat_template(
            history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    @property
    def text(self) -> str:
        """The template itself.

        Raises:
            ConfigError: If there is none.
        """
        template = self._load().chat_template
        return template if isinstance(template, str) else repr(template)

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the template; empty if there is none."""
        if self._folder is None:
            return ""
        paths = [self._folder / name for name in _FILES if (self._folder / name).is_file()]
        contents = b"".join(path.read_bytes() for path in paths)
        return hashlib.sha256(contents).hexdigest()[:12] if paths else ""

    def _load(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = self._read()
        return self._tokenizer

    def _read(self) -> Any:
        if not self.fingerprint:
            raise ConfigError(
                "eval_apply_chat_template: the tokenizer has no chat template; use a "
                "tokenizer.json whose folder contains tokenizer_config.json or "
                "chat_template.jinja, or switch it off"
            )
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
        if not tokenizer.chat_template:
            raise ConfigError(
                f"eval_apply_chat_template: the tokenizer in {self._folder} has no chat_template; "
                "add one to its tokenizer_config.json, or switch it off"
            )
        return tokenizer
