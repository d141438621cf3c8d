"""A claim's world of a language model: its answers to instructions that ship, and students made of its own layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from hydrometer.core.array_types import Ints
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict, as_tuples
from hydrometer.core.watching import doing

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.whole_laws import WholeLaws

__all__ = ["Along", "ModelWorld", "along_answers"]

_TOGETHER = 8  # answers, whose whole laws are in memory
_PROMPTS = "user-instructions.jsonl"


class ModelWorld(Strict):
    """A language model as it is, answers that it draws, and students that are the model without some of its layers.

    Attributes
    ----------
    source : alias, folder or hub id.
    prompts : how many instructions of the recipe `instruct` it answers: the first ones of at most `longest` tokens.
        Errors are over prompts, or over batches of them; a claim's seeds are not of this world.
    longest : tokens of a prompt, the chat template's among them.
    max_new_tokens : of an answer, drawn at temperature 1.
    positions : of an answer, evenly spaced; all of a shorter one.
    left_out : layers that each student lacks, counted from 0; nothing is trained.
    """

    source: str = Field(default="smollm2-135m-instruct", min_length=1)
    prompts: int = Field(default=64, ge=2, le=252)
    longest: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=24, ge=1)
    positions: int = Field(default=8, ge=1)
    left_out: Annotated[tuple[tuple[int, ...], ...], BeforeValidator(as_tuples)] = Field(min_length=1)


@dataclass(frozen=True, slots=True, eq=False)
class Along:
    """Next-token laws at some positions of one answer.

    Attributes
    ----------
    teacher : the model's. students : each student's, in the order of `left_out`.
    """

    teacher: WholeLaws
    students: tuple[WholeLaws, ...]


def along_answers(world: ModelWorld, stream: Stream) -> Iterator[Along]:
    """Draw an answer to each prompt, and yield the laws along it.

    Raises
    ------
    MissingDependencyError : torch, or the model's package, is not installed.
    InputError : fewer prompts are short enough, or the model has fewer layers.
    """
    from hydrometer.models.causal_lm.loading.libraries import needs_torch

    needs_torch()
    from hydrometer.models.causal_lm.data.prompts import read_prompts
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from hydrometer.models.causal_lm.inference.whole_laws import WholeLaws, whole_laws
    from hydrometer.models.causal_lm.training.layers import without_layers
    from hydrometer.models.causal_lm.truth_spec import PromptsFile

    doing(f"opening {world.source}")
    lm = CausalLM.from_pretrained(world.source, dtype="float32")
    shipped = PromptsFile(file=str(files("hydrometer.recipes").joinpath(_PROMPTS)), chat=True)
    every = read_prompts(shipped, lm.tokenizer)
    short = [i for i, ids in enumerate(every.ids) if len(ids) <= world.longest][: world.prompts]
    if len(short) < world.prompts:
        fix = f"set prompts to {len(short)}, or raise longest"
        raise InputError(f"too few prompts of at most {world.longest} tokens", got=world.prompts, fix=fix)
    prompts = every.take(short)
    students = [without_layers(lm, layers) for layers in world.left_out]
    for model in (lm, *students):
        model.frozen = True
    laws = [m.law(prompts, max_new_tokens=world.max_new_tokens) for m in (lm, *students)]
    doing("drawing answers")
    x = laws[0].sample(len(short), seed=stream)
    for start in range(0, len(x), _TOGETHER):
        doing(f"answers {start + 1} of {len(x)} and on")
        rows = x.take(slice(start, start + _TOGETHER))
        found = [whole_laws(law, rows) for law in laws]
        ends = np.cumsum(rows.lengths)
        for end, n in zip(ends.tolist(), rows.lengths.tolist(), strict=True):
            at = end - n + _spaced(n, world.positions)
            own, *theirs = (WholeLaws(f.log_p[at], f.states[at]) for f in found)
            yield Along(own, tuple(theirs))


def _spaced(n: int, positions: int) -> Ints:
    """Positions of n, evenly spaced from first to last; all where n are no more."""
    return np.unique(np.rint(np.linspace(0, n - 1, min(n, positions))).astype(np.int64))
