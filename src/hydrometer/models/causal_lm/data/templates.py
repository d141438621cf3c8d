"""Chat templates, rendered in a sandboxed process.

A template is a Jinja program from the model's author. transformers runs it in Jinja's sandbox, which protects Python's
objects but bounds neither time nor memory: nested loops run for years, ``"x" * 10**10`` takes 10 GB. So transformers
renders it in a separate process with limits, which is killed if it does not answer.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import DataError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SECONDS", "render_chat"]

SECONDS = 20
"""Limit of processor time for one conversation."""
_WAIT = 120.0  # seconds of wall clock for an answer, on a busy machine
_CHILD = Path(__file__).with_name("template_child.py")
_MOST_BYTES = 64_000_000


class _Child:
    """A process that renders templates."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        # -P: modules in the script's folder must not shadow other imports.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, value: object) -> dict[str, Any] | None:
        """Send a conversation; return None without an answer."""
        asked, told = self.process.stdin, self.process.stdout
        assert asked is not None
        assert told is not None
        late = threading.Timer(_WAIT, self.process.kill)
        late.start()
        try:
            asked.write(json.dumps(value).encode() + b"\n")
            asked.flush()
            answer: dict[str, Any] = json.loads(told.readline(_MOST_BYTES))
        except (OSError, ValueError):  # no or half a line
            return None
        finally:
            late.cancel()
        return answer

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent data
                    pipe.close()
        self.process.wait()


_kept: list[_Child] = []
_lock = threading.Lock()


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
    where: str,
    *,
    opened: bool,
    at: str | None = None,
) -> str:
    """Return a conversation as the tokenizer's chat template writes it.

    Parameters
    ----------
    turns : (role, content) of each message.
    where : the conversation's location, for messages.
    opened : whether the assistant's turn is opened at the end.
    at : the template's clock, in ISO format, which also seeds its random numbers; None for now.

    Raises
    ------
    DataError : the template raises an error, or exceeds the limits of time or memory.
    """
    from transformers import PreTrainedTokenizerBase

    messages = [{"role": role, "content": content} for role, content in turns]
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        # A tokenizer with its own method runs no template.
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False))
    template = tokenizer.get_chat_template()
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    asked = {
        "template": template,
        "special": special,
        "messages": messages,
        "opened": opened,
        "seconds": SECONDS,
        "at": at,
    }
    with _lock:
        answer = _child().ask(asked)
        if answer is None:
            _kept.pop().end()
    if answer is None:
        what = f"{where}: the chat template does not end within {SECONDS} s of processor time, or its process died"
        raise DataError(what, got=template, fix="use another tokenizer, or prompts without the template")
    if "error" in answer:
        what = f"{where}: the chat template refuses it: {one_line(str(answer['error']), 200)}"
        raise DataError(what, got=turns[-1][1], fix="leave the row out, or use no template")
    return str(answer["text"])


def _child() -> _Child:
    if _kept and _kept[0].owner != os.getpid():  # a fork needs its own
        _kept.clear()
    if not _kept:
        _kept.append(_Child())
    return _kept[0]


@atexit.register
def _end() -> None:
    for child in _kept:
        if child.owner == os.getpid():
            child.end()
