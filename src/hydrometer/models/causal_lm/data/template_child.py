"""Renders chat templates in a separate process, for `templates`; a script, never imported.

Reads and writes lines of JSON, one conversation with its template each. The kernel limits memory, and processor time
for each conversation.
"""

from __future__ import annotations

import datetime
import json
import math
import random
import resource
import sys
from typing import Any, Self

MEMORY = 1 << 30
MOST_CHARACTERS = 4_000_000


def _lower(what: int, value: float) -> None:
    """Set a soft limit, at most the hard one."""
    hard = resource.getrlimit(what)[1]
    wanted = math.ceil(value)
    resource.setrlimit(what, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _answer(render: Any, asked: dict[str, Any]) -> dict[str, str]:
    try:
        rendered = render(
            conversations=[asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=asked["opened"],
            **asked["special"],
        )[0][0]
    except MemoryError:
        return {"error": f"it takes more than {MEMORY >> 20} MiB"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as e:  # a template is a program of the model's author and may raise anything
        return {"error": (str(e) or type(e).__name__)[:500]}
    if len(rendered) > MOST_CHARACTERS:
        return {"error": f"it makes more than {MOST_CHARACTERS} characters of a conversation"}
    return {"text": rendered}


class _Clock(datetime.datetime):
    """A clock that can be stopped."""

    stands: str | None = None

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        return super().now(tz) if cls.stands is None else cls.fromisoformat(cls.stands).replace(tzinfo=tz)


def main() -> None:
    """Answer until the input ends."""
    from transformers.utils import chat_template_utils

    render_jinja_template = chat_template_utils.render_jinja_template
    names: dict[str, Any] = sys.modules[chat_template_utils.__name__].__dict__
    names["datetime"] = _Clock  # where its strftime_now looks

    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    if held:
        _lower(resource.RLIMIT_AS, held + MEMORY)
    for line in sys.stdin:
        asked = json.loads(line)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        _Clock.stands = asked["at"]
        random.seed(asked["at"])
        _lower(resource.RLIMIT_CPU, spent.ru_utime + spent.ru_stime + asked["seconds"] + 1)
        sys.stdout.write(json.dumps(_answer(render_jinja_template, asked)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
