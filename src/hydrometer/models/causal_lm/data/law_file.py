"""law.json, beside the weights of a fitted model: its prompts, stop set and max_new_tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrometer.core.errors import DataError
from hydrometer.models.causal_lm.data.prompts import Prompts, prompts_written

__all__ = ["LAW_FILE", "LawFile"]

LAW_FILE = "law.json"


@dataclass(frozen=True, slots=True)
class LawFile:
    """Content of a law.json.

    Attributes
    ----------
    prompts : P prompts, without their turns.
    stop_ids : E, the stop set.
    max_new_tokens : L, tokens after which an answer is cut.
    """

    prompts: Prompts
    stop_ids: tuple[int, ...]
    max_new_tokens: int

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        prompts = self.prompts
        parts = {
            "version": 1,
            "prompt_ids": prompts.ids,
            "prompt_texts": prompts.texts,
            **({} if prompts.written is None else {"prompts_written": prompts.written}),
            "stop_ids": self.stop_ids,
            "max_new_tokens": self.max_new_tokens,
            **({} if prompts.are == "fixed" else {"prompts_are": prompts.are}),
        }
        (folder / LAW_FILE).write_text(json.dumps(parts), encoding="utf-8")

    @classmethod
    def from_json(cls, parts: Mapping[str, Any]) -> LawFile:
        """Parse the file's JSON. Raises ValueError."""
        try:
            ids = tuple(tuple(int(t) for t in p) for p in parts["prompt_ids"])
            texts = tuple(str(t) for t in parts["prompt_texts"])
            are = parts.get("prompts_are", "fixed")
            if are not in ("fixed", "sample"):
                raise ValueError("prompts_are is neither fixed nor sample")
            prompts = Prompts(ids, texts, are, prompts_written(parts))
            return cls(prompts, tuple(int(t) for t in parts["stop_ids"]), int(parts["max_new_tokens"]))
        except KeyError as e:
            raise ValueError(f"no key {e}") from None
        except (TypeError, AttributeError, OverflowError, DataError) as e:
            raise ValueError(str(e)) from None
