"""Chat templates, rendered where they can do no harm.

A template is a Jinja program that came with a model. transformers runs it in Jinja's sandbox, which keeps it from
Python's objects but bounds neither time nor memory: nested loops run for years, ``"x" * 10**10`` takes 10 GB. So it is
rendered by transformers in a process of its own, under limits, and that process is ended where it does not answer.
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
"""Processor time that a template may take for one conversation."""
_WAIT = 120.0  # seconds of the clock for an answer, on a machine that is busy with other work
_CHILD = Path(__file__).with_name("template_child.py")
_MOST_BYTES = 64_000_000


class _Child:
    """A process that renders templates."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        # -P: the folder of the script holds modules that others' imports must not find.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, value: object) -> dict[str, Any] | None:
        """Send a conversation; None where no answer came."""
        asked, told = self.process.stdin, self.process.stdout
        assert asked is not None
        assert told is not None
        late = threading.Timer(_WAIT, self.process.kill)
        late.start()
        try:
            asked.write(json.dumps(value).encode() + b"\n")
            asked.flush()
            answer: dict[str, Any] = json.loads(told.readline(_MOST_BYTES))
        except (OSError, ValueError):  # nothing, or half a line
            return None
        finally:
            late.cancel()
        return answer

    def end(self) -> None:
        """End the process; it holds nothing."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet sent
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
    where : the conversation stands, for messages.
    opened : whether the assistant's turn is opened at the end.
    at : the time that the template is told, in ISO format, which also seeds what it draws at random; None for now.

    Raises
    ------
    DataError : the template refuses the conversation, or takes too much time or memory for it.
    """
    from transformers import PreTrainedTokenizerBase

    messages = [{"role": role, "content": content} for role, content in turns]
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        # A tokenizer with a method of its own has no template: no text of the model's runs.
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
    if _kept and _kept[0].owner != os.getpid():  # a fork's own, not its parent's
        _kept.clear()
    if not _kept:
        _kept.append(_Child())
    return _kept[0]


@atexit.register
def _end() -> None:
    for child in _kept:
        if child.owner == os.getpid():
            child.end()
