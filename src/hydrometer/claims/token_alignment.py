"""Align and distil, in either order, a language model's next tokens: softmax regressions on states, aligned in weights.

Both ways from samples move the logits of all contexts by ``states W``, W (D, K), and nothing else. States have a
constant, so the exact tilt of a law, 1 / b more on the logits of wanted ids, is one of these moves: unlimited samples
lead to it, as those of chains do.

Shapes: C contexts, K ids, D directions of states and a constant, G groups of g rows. float64, nats.
"""

# scipy leaves the type of what it finds open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from scipy import sparse
from scipy.special import expit, log_softmax

from hydrometer.claims.aligning import WAYS, Figures, Order, Pairs, Way, least_held_out, split
from hydrometer.claims.next_tokens import (
    Contexts,
    TokenWorld,
    at_temperature,
    drawn,
    fitted,
    token_figures,
    token_worlds,
)
from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import as_tuple
from hydrometer.core.watching import doing

__all__ = [
    "SELDOM", "TokenEnds", "TokenRun", "TokenSetting", "Tokens", "dpo_tokens", "group_gradient",
    "policy_gradient_tokens", "token_ends", "token_pairs",
]  # fmt: skip

SELDOM = 0.001
"""A share of the wanted kind in a context below which the truth hardly has it there."""
Kind = Literal["number", "bracket", "capital", "line break"]
_KINDS: dict[Kind, Callable[[str], bool]] = {
    "number": lambda text: any(c.isdigit() for c in text),
    "bracket": lambda text: "(" in text or "[" in text,
    "capital": lambda text: text.strip()[:1].isupper(),
    "line break": lambda text: "\n" in text,
}


class TokenSetting(NamedTuple):
    """A setting; see `Tokens`."""

    kind: Kind
    rows: int
    strength: float
    temperature: float


class Tokens(TokenWorld):
    """A language model's next tokens: teachers and students are regressions on its states, aligned in their weights.

    The reward is 1 for a token of a kind and 0 for others. The target is the truth's tilt, p exp(reward / b) / Z in
    each context. The teacher is fitted to rows of the truth, the student to rows of the teacher, aligned or not; a row
    is a context, each as likely, and a token of a law there. The exact tilt is done of the base alone. Policy gradients
    and DPO add states W to the logits of their reference, states and constant of its own layers, W 0 at first: a step
    of a policy gradient is rate / b times the gradient of E[r] - b KL in W, and DPO fits W to its pairs. Of the tuples
    the first is the base; the others are varied alone.

    Attributes
    ----------
    layers : of the student, and of the teacher.
    kinds : by a token's text: `number` has a digit, `bracket` has ( or [, `capital` begins with a capital letter, after
        blanks or not, `line break` has one.
    rows : of the teacher's law that the student is fitted to.
    strengths : b. temperatures : T of the laws p^(1 / T) / Z that these rows are drawn from.
    drawn : rows that a policy gradient or DPO sees in all; of DPO two of one context are a pair.
    batch, group, rate : of a policy gradient: own rows a step, `group` of one context, each against the mean of the
        others of its group.
    sharpness : of DPO's annotator, as of chains; and its fit ends as theirs.
    train : rows of the teacher.
    """

    layers: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = Field(default=(3, 30), min_length=2, max_length=2)
    kinds: Annotated[tuple[Kind, ...], BeforeValidator(as_tuple)] = Field(default=("number", "bracket"), min_length=1)
    rows: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = Field(default=(300, 100, 3000), min_length=1)
    strengths: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = Field(default=(0.2, 1.0), min_length=1)
    temperatures: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = Field(default=(1.0, 0.7), min_length=1)
    drawn: int = Field(default=20_000, ge=10)
    batch: int = Field(default=100, ge=2)
    group: int = Field(default=4, ge=2)
    rate: float = Field(default=2.0, gt=0)
    sharpness: float = Field(default=2.0, gt=0)
    train: int = Field(default=20_000, ge=1)

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.batch % self.group or self.batch > self.drawn:
            raise PydanticCustomError("batch", "a batch is whole groups, and at most the rows drawn")
        return self

    def settings(self) -> dict[str, TokenSetting]:
        """Return the settings, the base first, by what is changed in them."""
        base = TokenSetting(self.kinds[0], self.rows[0], self.strengths[0], self.temperatures[0])
        out = {"next tokens": base}
        out |= {f"next tokens, kind {x}": base._replace(kind=x) for x in self.kinds[1:]}
        out |= {f"next tokens, {x:,} rows": base._replace(rows=x) for x in self.rows[1:]}
        out |= {f"next tokens, b {x:g}": base._replace(strength=x) for x in self.strengths[1:]}
        return out | {f"next tokens, temperature {x:g}": base._replace(temperature=x) for x in self.temperatures[1:]}


def _chosen(log_q: Floats, uniforms: Floats) -> Ints:
    """Tokens (G, g) of laws (G, K)."""
    below = np.cumsum(np.exp(log_q), axis=1)
    return (below[:, :-1, None] <= uniforms[:, None] * below[:, -1:, None]).sum(axis=1)


def group_gradient(log_q: Floats, log_p: Floats, ids: Ints, reward: Floats, strength: float) -> Floats:
    """Estimate the gradient of E[r] - b KL(q, p) in the logits of each group's context, (G, K), from rows q drew.

    As `policy_gradient_of`, but each row stands against the mean of the others of its own context. These weights sum to
    0 in a group, so that no normaliser is left in the gradient.

    Parameters
    ----------
    log_q, log_p : (G, K) laws. ids : (G, g) drawn of q. reward : (K,).
    """
    groups, own = ids.shape
    value = reward[ids] - strength * np.take_along_axis(log_q - log_p, ids, axis=1)
    better = (value - value.mean(axis=1, keepdims=True)) / ((own - 1) * groups)
    said = np.zeros_like(log_q)
    np.add.at(said, (np.arange(groups)[:, None], ids), better)
    return said


def policy_gradient_tokens(
    log_p: Floats, states: Floats, reward: Floats, world: Tokens, strength: float, stream: Stream
) -> Floats:
    """Align laws (C, K) by policy gradients in weights on the states (C, D), from own rows; return laws."""
    groups = world.batch // world.group
    weights = np.zeros((states.shape[1], log_p.shape[1]))
    uniforms = stream.uniforms(0, world.drawn // world.batch * groups, 1 + world.group)
    for u in uniforms.reshape(-1, groups, 1 + world.group):
        at = (u[:, 0] * len(log_p)).astype(np.int64)
        log_q = np.asarray(log_softmax(log_p[at] + states[at] @ weights, axis=1), np.float64)
        ascent = group_gradient(log_q, log_p[at], _chosen(log_q, u[:, 1:]), reward, strength)
        weights += world.rate / strength * (states[at].T @ ascent)
    return np.asarray(log_softmax(log_p + states @ weights, axis=1), np.float64)


def dpo_tokens(log_p: Floats, states: Floats, reward: Floats, world: Tokens, strength: float, stream: Stream) -> Floats:
    """Align laws (C, K) by DPO in weights on the states (C, D), stopped early as `dpo`; return laws."""
    pairs = token_pairs(log_p, reward, world, strength, stream)
    parts = split(pairs)
    if parts is None:
        return log_p
    shape = states.shape[1], log_p.shape[1]

    def loss(some: Pairs, flat: NDArray[np.float64]) -> tuple[float, Floats]:
        value, slope = some((log_p + states @ flat.reshape(shape)).ravel())
        return value, (states.T @ slope.reshape(log_p.shape)).ravel()

    train, test = (partial(loss, part) for part in parts)
    weights = least_held_out(train, test, np.zeros(shape[0] * shape[1])).reshape(shape)
    return np.asarray(log_softmax(log_p + states @ weights, axis=1), np.float64)


def token_pairs(log_p: Floats, reward: Floats, world: Tokens, strength: float, stream: Stream) -> Pairs:
    """Draw pairs of rows of one context each, and an annotator's preferences, as `Pairs.drawn` does."""
    n, (contexts, ids) = world.drawn // 2, log_p.shape
    u = stream.uniforms(0, n, 4)
    at = (u[:, 0] * contexts).astype(np.int64)
    both = np.zeros((n, 2), np.int64)
    for c in range(contexts):
        here = at == c
        both[here] = _chosen(log_p[[c]], u[here, 1:3].reshape(1, -1)).reshape(-1, 2)
    better = reward[both[:, 0]] - reward[both[:, 1]]
    sign = np.where(u[:, 3] < expit(world.sharpness * better), 1.0, -1.0)
    row = np.repeat(np.arange(n), 2)
    column = (at[:, None] * ids + both).ravel()
    gap = sparse.csr_array((np.column_stack([sign, -sign]).ravel(), (row, column)), shape=(n, contexts * ids))
    return Pairs(gap[better != 0], log_p, world.sharpness * strength)


class TokenRun:
    """One world: its contexts, their teachers and what is made of them."""

    def __init__(self, world: Tokens, contexts: Contexts, stream: Stream) -> None:
        self.world, self.contexts, self.stream = world, contexts, stream
        rows = drawn(contexts.log_p, world.train, stream.child("train"))
        self.teacher = fitted(contexts.states[1], rows, world.penalty)
        self._aligned: dict[tuple[Way, Kind, float], Floats] = {}
        self._students: dict[tuple[int, float], tuple[Floats, Floats]] = {}

    def reward(self, kind: Kind) -> Floats:
        """Return the reward of each id, (K,)."""
        reward = np.array([_KINDS[kind](text) for text in self.contexts.texts], np.float64)
        if not reward.any():
            raise InputError("no id of a world is of this kind", got=kind, fix="raise ids, or lower worlds")
        return reward

    def aligned(self, log_p: Floats, states: Floats, s: TokenSetting, way: Way) -> Floats:
        """Align laws (C, K)."""
        reward, stream = self.reward(s.kind), self.stream.child(way)
        match way:
            case "exact tilt":
                return at_temperature(log_p + reward / s.strength, 1.0)
            case "policy gradient":
                return policy_gradient_tokens(log_p, states, reward, self.world, s.strength, stream)
            case "DPO":
                return dpo_tokens(log_p, states, reward, self.world, s.strength, stream)

    def aligned_teacher(self, s: TokenSetting, way: Way) -> Floats:
        """Align the teacher."""
        key = way, s.kind, s.strength
        if key not in self._aligned:
            self._aligned[key] = self.aligned(self.teacher, self.contexts.states[1], s, way)
        return self._aligned[key]

    def distilled(self, log_p: Floats, s: TokenSetting) -> tuple[Floats, Floats]:
        """Fit a student to rows of laws; and how often each id is among these, (K,)."""
        rows = drawn(at_temperature(log_p, s.temperature), s.rows, self.stream.child("distill"))
        return fitted(self.contexts.states[0], rows, self.world.penalty), rows.sum(axis=0)

    def student(self, s: TokenSetting) -> tuple[Floats, Floats]:
        """Distil the teacher as it is."""
        key = s.rows, s.temperature
        if key not in self._students:
            self._students[key] = self.distilled(self.teacher, s)
        return self._students[key]

    def target(self, s: TokenSetting) -> Floats:
        """Return the truth's tilt."""
        return at_temperature(self.contexts.log_p + self.reward(s.kind) / s.strength, 1.0)

    def laws(self, s: TokenSetting, way: Way) -> dict[Order, tuple[Floats, Floats]]:
        """Go both ways; and how often each id is among the rows that were distilled, (K,)."""
        student, seen = self.student(s)
        last = self.aligned(student, self.contexts.states[0], s, way)
        return {"first": self.distilled(self.aligned_teacher(s, way), s), "last": (last, seen)}

    def ends(self, s: TokenSetting, way: Way) -> dict[Order, Figures]:
        """Judge both ways."""
        target, reward = self.target(s), self.reward(s.kind)
        return {
            order: _figures(target, law, reward, int(reward @ seen)) for order, (law, seen) in self.laws(s, way).items()
        }


def _figures(target: Floats, law: Floats, reward: Floats, rare_rows: int) -> Figures:
    f = token_figures(target, law)
    return Figures(
        reward=float((np.exp(law) @ reward).sum() / (np.exp(target) @ reward).sum()),
        precision=f["precision"],
        recall=f["recall"],
        kl_student_target=f["kl_student_truth"],
        kl_target_student=f["kl_truth_student"],
        rare_rows=rare_rows,
    )


@dataclass(frozen=True, slots=True)
class TokenEnds:
    """What was found of next tokens.

    Attributes
    ----------
    ends : by setting, way and order: over worlds. The exact tilt is of the base alone.
    shares : of the base's kind before aligning, over worlds, of truth, teacher and student: in all contexts, and what
        of it is in those where the truth gives it less than `SELDOM`, (W, 2, 3). seldom : (W,) share of these contexts.
    by_context : of the first world's base by exact tilt, the kind's share of target, first and last, (3, C).
    """

    ends: dict[tuple[str, Way, Order], list[Figures]]
    shares: Floats
    seldom: Floats
    by_context: Floats


def token_ends(world: Tokens, seed: int) -> TokenEnds:
    """Go both ways by every setting and way, over worlds."""
    ends: dict[tuple[str, Way, Order], list[Figures]] = {}
    shares, seldom, by_context = np.zeros((world.worlds, 2, 3)), np.zeros(world.worlds), np.zeros((0, 0))
    stream = Stream(seed).child("align-first", "tokens")
    base = next(iter(world.settings().values()))
    for w, contexts in enumerate(token_worlds(world, stream.child("answers"))):
        doing(f"next tokens {w + 1} of {world.worlds}")
        run = TokenRun(world, contexts, stream.child(str(w)))
        for (name, setting), way in product(world.settings().items(), WAYS):
            if setting == base or way != "exact tilt":
                for order, figures in run.ends(setting, way).items():
                    ends.setdefault((name, way, order), []).append(figures)
        reward = run.reward(base.kind)
        before = np.array([np.exp(x) @ reward for x in (contexts.log_p, run.teacher, run.student(base)[0])])
        here = before[0] < SELDOM
        shares[w], seldom[w] = (before.mean(axis=1), (before * here).mean(axis=1)), here.mean()
        if w == 0:
            ends_of_base = [law for law, _ in run.laws(base, "exact tilt").values()]
            by_context = np.array([np.exp(x) @ reward for x in (run.target(base), *ends_of_base)])
    return TokenEnds(ends, shares, seldom, by_context)
