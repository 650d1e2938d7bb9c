"""Interactive generation at a real pseudo-terminal, as a person meets it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import signals
from tests.generation_runs import write_run, write_talking_model

ROOT = Path(__file__).resolve().parents[3]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
NUM_TOKENS = 300

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's pseudo-terminals")


class Terminal:
    """A program whose controlling terminal this is."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "200"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.screen = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str, *, timeout_s: float = 40.0) -> str:
        """Waits until something new matches; returns the new text up to the end of the match."""
        end = time.monotonic() + timeout_s
        while True:
            match = re.search(pattern, self.screen[self._seen :])
            if match:
                text = self.screen[self._seen : self._seen + match.end()]
                self._seen += match.end()
                return text
            assert time.monotonic() < end, f"no {pattern!r} in:\n{self.screen[-3000:]}"
            assert self._read(0.1), f"ended without {pattern!r}:\n{self.screen[-3000:]}"

    def wait_for_end(self, *, timeout_s: float = 30.0) -> int:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self._read(0.1):
            pass
        return self.process.wait(timeout=max(0.1, end - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)

    def _read(self, seconds: float) -> bool:
        """Reads what is there; False once the program has left the terminal."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            block = os.read(self._ours, 65536)
        except OSError:  # Linux: nobody holds the other end
            return False
        self.screen += block.decode(errors="replace")
        return bool(block)


def _take_terminal() -> None:
    import fcntl
    import termios

    signals.take_defaults()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_talking_model(folder)
    return folder


@pytest.mark.parametrize(
    ("program", "cut"),
    [
        (["generate.py"], 1),
        pytest.param(["deepy.py", "generate.py"], 2, marks=pytest.mark.distributed),
    ],
    ids=["alone", "launcher, tp2"],
)
def test_two_turns_a_stopped_sample_and_the_end_of_input(program, cut, model, tmp_path):
    config = write_run(
        tmp_path,
        model,
        processes=cut,
        model_parallel_size=cut,
        text_gen_type="interactive",
        maximum_tokens=NUM_TOKENS,
    )
    terminal = Terminal(*program, str(config))
    try:
        terminal.wait_for("Ctrl-C stops a sample, Ctrl-D ends the program")
        terminal.wait_for("prompt> ")

        terminal.type("first\n")
        assert "first" in terminal.wait_for(r"\n")
        text = terminal.wait_for(r"\nprompt> ").removesuffix("prompt> ").strip()
        assert len(text) == NUM_TOKENS  # one character a token, and nothing else
        assert text.isascii()

        terminal.type(UP + " again\n")  # the line before, from the history
        assert "first again" in terminal.wait_for(r"\n")
        terminal.wait_for(r"[ -~]{5}")  # text comes while the sample is made
        terminal.type(CTRL_C)
        text = terminal.wait_for(r"\nprompt> ")
        stopped = re.search(r"\[stopped after (\d+) tokens\]", text)
        assert stopped is not None
        assert 5 <= int(stopped[1]) < NUM_TOKENS

        terminal.type("not meant")
        terminal.wait_for("not meant")
        # Python looks for signals, then waits for a key: a signal in between waits for the next key
        time.sleep(0.5)
        terminal.type(CTRL_C)  # clears the line
        terminal.wait_for("prompt> ")
        terminal.type("third\n")
        terminal.wait_for(r"third\r?\n")
        terminal.wait_for(r"[ -~]{5}")
        terminal.type(CTRL_C)
        terminal.wait_for(r"\[stopped after \d+ tokens\]\r?\n.*prompt> ")

        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
        assert "3 samples" in terminal.screen
        assert "Traceback" not in terminal.screen
    finally:
        terminal.close()
