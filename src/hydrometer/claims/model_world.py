"""Claims' worlds of a language model: its answers to instructions that ship, and laws along them."""

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
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from hydrometer.models.causal_lm.inference.whole_laws import WholeLaws
    from hydrometer.models.rows.sequences import Sequences

__all__ = ["Along", "Answers", "CutModelWorld", "ModelWorld", "along_answers", "answers_of", "asked", "spaced"]

_TOGETHER = 8  # answers, whose whole laws are in memory
_PROMPTS = "user-instructions.jsonl"


class ModelWorld(Strict):
    """A language model as it is, and answers that it draws.

    Attributes
    ----------
    source : alias, folder or hub id.
    prompts : how many instructions of the recipe `instruct` it answers: the first ones of at most `longest` tokens.
        Errors are over prompts, or over groups of them; a claim's seeds are not of this world.
    longest : tokens of a prompt, the chat template's among them.
    max_new_tokens : of an answer, drawn at temperature 1.
    """

    source: str = Field(default="smollm2-135m-instruct", min_length=1)
    prompts: int = Field(default=64, ge=2, le=252)
    longest: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=24, ge=1)

    def check(self) -> None:
        """Refuse a model that is not there, without opening it. Raises MissingDependencyError, ModelError."""
        from hydrometer.models.causal_lm.loading.libraries import needs_torch

        needs_torch()
        from hydrometer.models.causal_lm.loading.load import locate

        locate(self.source)


class CutModelWorld(ModelWorld):
    """A language model as it is, answers that it draws, and students that are the model without some of its layers.

    Attributes
    ----------
    positions : of an answer, evenly spaced; all of a shorter one.
    left_out : layers that each student lacks, counted from 0; nothing is trained.
    """

    positions: int = Field(default=8, ge=1)
    left_out: Annotated[tuple[tuple[int, ...], ...], BeforeValidator(as_tuples)] = Field(min_length=1)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """A language model, asked, and one answer to each prompt.

    Attributes
    ----------
    lm : the model, frozen. law : of its answers. rows : drawn, one for each prompt, in order.
    """

    lm: CausalLM
    law: CausalLaw
    rows: Sequences


@dataclass(frozen=True, slots=True, eq=False)
class Along:
    """Next-token laws at some positions of one answer.

    Attributes
    ----------
    teacher : the model's. students : each student's, in the order of `left_out`.
    """

    teacher: WholeLaws
    students: tuple[WholeLaws, ...]


def answers_of(world: ModelWorld, stream: Stream) -> Answers:
    """Open the model, and draw an answer to each prompt. Raises as `asked` does."""
    lm, law = asked(world)
    doing("drawing answers")
    return Answers(lm, law, law.sample(law.n_prompts, seed=stream))


def asked(world: ModelWorld) -> tuple[CausalLM, CausalLaw]:
    """Open the model, and return it with the law of its answers to the world's prompts.

    Raises
    ------
    MissingDependencyError : torch, or the model's package, is not installed.
    InputError : fewer prompts are short enough.
    """
    world.check()
    from hydrometer.models.causal_lm.data.prompts import read_prompts
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from hydrometer.models.causal_lm.truth_spec import PromptsFile

    doing(f"opening {world.source}")
    lm = CausalLM.from_pretrained(world.source, dtype="float32")
    lm.frozen = True
    shipped = PromptsFile(file=str(files("hydrometer.recipes").joinpath(_PROMPTS)), chat=True)
    every = read_prompts(shipped, lm.tokenizer)
    short = [i for i, ids in enumerate(every.ids) if len(ids) <= world.longest][: world.prompts]
    if len(short) < world.prompts:
        fix = f"set prompts to {len(short)}, or raise longest"
        raise InputError(f"too few prompts of at most {world.longest} tokens", got=world.prompts, fix=fix)
    return lm, lm.law(every.take(short), max_new_tokens=world.max_new_tokens)


def along_answers(world: CutModelWorld, stream: Stream) -> Iterator[Along]:
    """Draw an answer to each prompt, and yield the laws along it.

    Raises
    ------
    MissingDependencyError : torch, or the model's package, is not installed.
    InputError : fewer prompts are short enough, or the model has fewer layers.
    """
    found = answers_of(world, stream)
    from hydrometer.models.causal_lm.inference.whole_laws import WholeLaws, whole_laws
    from hydrometer.models.causal_lm.training.layers import without_layers

    students = [without_layers(found.lm, layers) for layers in world.left_out]
    for model in students:
        model.frozen = True
    laws = [found.law, *(m.law(found.law.prompts, max_new_tokens=world.max_new_tokens) for m in students)]
    x = found.rows
    for start in range(0, len(x), _TOGETHER):
        doing(f"answers {start + 1} of {len(x)} and on")
        rows = x.take(slice(start, start + _TOGETHER))
        each = [whole_laws(law, rows) for law in laws]
        ends = np.cumsum(rows.lengths)
        for end, n in zip(ends.tolist(), rows.lengths.tolist(), strict=True):
            at = end - n + spaced(n, world.positions)
            own, *theirs = (WholeLaws(f.log_p[at], f.states[at]) for f in each)
            yield Along(own, tuple(theirs))


def spaced(n: int, positions: int) -> Ints:
    """Positions of n, evenly spaced from first to last; all where n are no more."""
    return np.unique(np.rint(np.linspace(0, n - 1, min(n, positions))).astype(np.int64))
