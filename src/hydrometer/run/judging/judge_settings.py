"""What a judgement of models that exist is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hydrometer.core.errors import InputError
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.finite_selectivity import NO_TILT
from hydrometer.models.finite_selectivity import canonical as neutral_is_none

__all__ = ["JudgeSettings"]

MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """What is asked; fields as in `judge_models`. Without students it is the anchor alone."""

    students: tuple[str, ...]
    truth: str | None = None
    truth_text: str | None = None
    reference: str | None = None
    prompts: str | None = None
    chat: bool | None = None
    prompts_are: PromptsAre | None = None
    answers_per_prompt: int | None = None
    max_new_tokens: int | None = None
    decodings: tuple[Selectivity, ...] = field(default=())
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    base: str | None = None

    def __post_init__(self) -> None:
        if (self.truth is None) == (self.truth_text is None):
            got = "both" if self.truth is not None else "neither"
            raise InputError("the truth is a model or a text", got=got, fix="give one of --truth and --truth-text")
        if self.truth is not None and self.reference is not None:
            fix = "leave --reference out: the truth itself can be asked"
            raise InputError("a reference goes with --truth-text only", got=self.reference, fix=fix)
        if self.truth_text is not None and self.prompts is not None:
            fix = "leave --prompts out: the text brings its own"
            raise InputError("prompts come from --truth-text", got=self.prompts, fix=fix)
        for name in ("answers_per_prompt", "max_new_tokens"):
            value: int | None = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise InputError(f"{_flag(name)} must lie between 1 and {MOST}", got=value)
            if value is not None and self.truth_text is not None and self.reference is None:
                fix = f"give --reference, or leave {_flag(name)} out"
                raise InputError("nothing is drawn where there is text and no reference", got=value, fix=fix)
        if self.seed < 0:
            raise InputError("the seed must not be negative", got=self.seed)
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError("no such dtype", got=self.dtype, fix="use float32 or bfloat16")
        if self.prompts_are not in (None, "fixed", "sample"):
            raise InputError("prompts are fixed or a sample", got=self.prompts_are, fix="use fixed or sample")
        for s in self.decodings:
            if s.tilt is not None:
                raise InputError(NO_TILT, got=s.label)
            if not s.is_token:
                raise InputError("a language model is decoded by temperature, top_k, top_p, min_p", got=s.label)
        if len({s.slug for s in self.decodings}) < len(self.decodings):
            raise InputError("a decoding is given twice", got=[s.label for s in self.decodings], fix="keep one of them")

    @property
    def settings(self) -> list[Selectivity | None]:
        """How every student is decoded: as it is, and at each setting that changes something."""
        return [None, *(s for s in self.decodings if neutral_is_none(s) is not None)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
