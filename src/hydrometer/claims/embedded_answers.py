"""Claims' worlds of a language model's whole answers, embedded: sets of points, and what the laws themselves are.

    alpha(1) = 1 - TV(p, q) = E_p min(1, q/p) = E_q min(1, p/q)

An answer's probability under a law is exact, that of its tokens. What the laws are is therefore a mean over answers
(`claims.mauve` has MAUVE's), and has an error, which goes with the figures' own into intervals over sets.

Shapes: S sets, n points of a set, D numbers of an embedding. Nats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.claims.model_world import ModelWorld, asked
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, as_tuple
from hydrometer.core.watching import doing

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.rows.sequences import Sequences

__all__ = ["AnswerSets", "AnswerWorld", "answer_sets", "pseudo_values", "shared_mass"]

_TOGETHER = 256  # answers drawn together, whose logits are in memory


class AnswerWorld(ModelWorld):
    """Whole answers of a language model, embedded, as points: of equal laws, and of its own law and a colder one.

    A point is a prompt, each as likely, and an answer to it; both are drawn anew for every point, so that points of a
    set are independent, and sets are. Real ones, p, are the model's at temperature 1; generated ones are the same
    again, or q, those at `temperature`. An answer is embedded as the mean over its tokens of the model's last hidden
    states, after the final norm (`CausalLaw.embed`): all numbers of it, or their products with a matrix of standard
    normal numbers, one for all sets. Points are as they are, not scaled.

    alpha(1), the mean of its two forms, and MAUVE of p and q are of means over all real answers and all of q, whose
    probabilities under both laws are exact. A set's own are S times these less S - 1 times those of the other sets (the
    jackknife's pseudo-values), and stand beside the set's figures, so that intervals over sets hold both errors.

    Attributes
    ----------
    source, prompts, longest : the model, and the instructions it answers: the first ones of the recipe `instruct` of at
        most `longest` tokens, the chat template's among them.
    max_new_tokens : of an answer, which ends with the stop token or is cut.
    temperature : of the colder law.
    sets : S, of each of the three; a claim's seeds are not of this world.
    points : fewest and most, of a set of either law; the fewest are parts of the most, and their figures means over the
        parts.
    directions : numbers of which a point is made beside the whole embedding; the first is checked, and the whole.
    """

    prompts: int = Field(default=48, ge=2, le=252)
    longest: int = Field(default=48, ge=1)
    max_new_tokens: int = Field(default=6, ge=1)
    temperature: float = Field(default=0.7, gt=0, lt=1)
    sets: int = Field(default=8, ge=2)
    points: Annotated[tuple[int, int], BeforeValidator(as_tuple)] = (32, 128)
    directions: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = Field(default=(2, 8, 32), min_length=1)

    @model_validator(mode="after")
    def _parts(self) -> Self:
        few, many = self.points
        if few < 2 or few >= many or many % few:
            raise PydanticCustomError("points", "the most points are twice the fewest, or more times, in whole parts")
        if min(self.directions) < 1:
            raise PydanticCustomError("directions", "a point is made of a number or more")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class AnswerSets:
    """Sets of embedded answers, and their log-probabilities.

    Attributes
    ----------
    real, again, colder : (S, n, D): of p, of p once more, of q.
    of_real, of_colder : (S, n) log p - log q of the real and of the colder answers.
    alike : of all real and of all colder answers, the share that another of their own equals, prompt and all.
    """

    real: Floats
    again: Floats
    colder: Floats
    of_real: Floats
    of_colder: Floats
    alike: tuple[float, float]

    def projected(self, directions: int, stream: Stream) -> AnswerSets:
        """Return the sets with points of so many numbers: products with normal ones."""
        width = self.real.shape[-1]
        matrix = np.random.default_rng(stream.integer()).standard_normal((width, directions))
        real, again, colder = (x @ matrix for x in (self.real, self.again, self.colder))
        return replace(self, real=real, again=again, colder=colder)

    def own(self, figure: Callable[[Floats, Floats], float]) -> Floats:
        """Return pseudo-values of a figure of the laws, (S,): of `shared_mass`, or of `claims.mauve.mauve_of_rows`."""
        return pseudo_values(figure, self.of_real, self.of_colder)


def answer_sets(world: AnswerWorld, stream: Stream) -> AnswerSets:
    """Draw the answers, score and embed them.

    Raises
    ------
    MissingDependencyError : torch, or the model's package, is not installed.
    InputError : fewer prompts are short enough, or points are made of more numbers than an embedding has.
    """
    _, law = asked(world)
    cold = law.select(Selectivity(temperature=world.temperature))
    sets, n = world.sets, max(world.points)
    doing("drawing answers")
    both = _drawn(law, 2 * sets * n, stream.child("real"))
    colder = _drawn(cold, sets * n, stream.child("colder"))
    real = both.take(slice(0, sets * n))
    doing("scoring answers")
    of_real = real.log_prob - cold.log_prob(real)
    warm = colder.token_log_prob_unselected
    assert warm is not None
    of_colder = warm.sum(axis=1, dtype=np.float64) - colder.log_prob
    doing("embedding answers")
    states = law.embed(type(both).concatenate([both, colder])).astype(np.float64).reshape(3, sets, n, -1)
    if max(world.directions) > states.shape[-1]:
        raise InputError(
            "an embedding has fewer numbers", got=list(world.directions), fix=f"{states.shape[-1]} or fewer"
        )
    gaps = of_real.reshape(sets, n), of_colder.reshape(sets, n)
    return AnswerSets(states[0], states[1], states[2], *gaps, (_alike(real), _alike(colder)))


def _alike(x: Sequences) -> float:
    """Share of answers that another one equals, prompt and all."""
    told = Counter((int(p), x.row(i).tobytes()) for i, p in enumerate(x.prompt_index))
    return sum(n for n in told.values() if n > 1) / len(x)


def _drawn(law: CausalLaw, rows: int, stream: Stream) -> Sequences:
    """Draw answers to prompts that are drawn too. Those of equal prompts run together, which reads a prompt once."""
    prompt_n = np.random.default_rng(stream.child("prompts").integer()).integers(0, law.n_prompts, rows)
    uniforms = stream.child("answers").uniforms(0, rows, law.max_new_tokens)
    order = np.argsort(prompt_n, kind="stable")
    parts = [order[at : at + _TOGETHER] for at in range(0, rows, _TOGETHER)]
    drawn = [law.draw(uniforms[part], prompt_n[part]) for part in parts]
    return type(drawn[0]).concatenate(drawn).take(np.argsort(order, kind="stable"))


def shared_mass(of_real: Floats, of_colder: Floats) -> float:
    """Return alpha(1) of two laws, the mean of both of its forms, from log p - log q of rows of p and of rows of q.

    Examples
    --------
    >>> shared_mass(np.log([2.0, 0.5]), np.log([2.0, 0.5]))
    0.75
    """
    return float(np.exp(-np.maximum(of_real, 0)).mean() + np.exp(np.minimum(of_colder, 0)).mean()) / 2


def pseudo_values(figure: Callable[[Floats, Floats], float], of_real: Floats, of_colder: Floats) -> Floats:
    """Return the jackknife's pseudo-values of a figure of two columns of rows, a set left out at a time, (S,).

    Parameters
    ----------
    of_real, of_colder : (S, n).

    Examples
    --------
    >>> pseudo_values(lambda a, b: a.mean() + b.mean(), np.array([[1.0], [3.0]]), np.zeros((2, 1))).tolist()
    [1.0, 3.0]
    """
    sets = len(of_real)
    whole = figure(of_real.ravel(), of_colder.ravel())
    left = [figure(np.delete(of_real, s, 0).ravel(), np.delete(of_colder, s, 0).ravel()) for s in range(sets)]
    return sets * whole - (sets - 1) * np.array(left)
