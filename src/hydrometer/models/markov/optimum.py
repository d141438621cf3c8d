"""The chain of a given order that an objective between next-id laws is least for: exact, no gradient descent.

In a student's context c the objective is the mean of D(p_i, q) over the prefixes i that end in c, where p_i is the
teacher's next-id law there and q the student's, one for all of them. Every D of `models.objectives` is a sum over ids
of a function convex in q's probability, so contexts are solved apart, and with a multiplier ids are, too:

    d/dq_v sum_i w_i D(p_i, q) = multiplier where q_v > 0,  sum_v q_v = 1

| objective | optimum |
|---|---|
| `kl_teacher_student`, and `mle` of unlimited rows | sum w_i p_i, normalised |
| `kl_student_teacher` | exp(sum w_i log p_i / sum w_i), normalised |
| `total_variation` | of every id the weighted quantile of its p_i, at the one level at which they sum to 1 |
| `jsd`, skew ones, and mixes with `mle` | Newton's method: each id's equation for a multiplier, then the multiplier |
| `skew_kl_student_teacher_detached` | that of `jsd(weight=1-w)`, of which it is the gradient, divided by w |
| `adaptive_kl` | of its shares h, held fixed, the optimum; and these h its own: a fixed point |
| `generalised_kl`, two mixes with `mle` | `by_multiplier` |
| `policy_gradient_token` | `kl_student_teacher`, on the student's own prefixes |
| `policy_gradient_reward_to_go` | of whole rows: `row_optimum` |

Prefixes have the probability that the law which says them gives them, by dynamic programming. Additive smoothing is
that many prefixes more, times V, at which the teacher's law is uniform: of `mle` it is the usual one.

Shapes: S contexts of the student, A prefixes that end in each, V ids. float64.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.distillation import Objective
from hydrometer.core.errors import FitError, SpecError
from hydrometer.core.spec import Selectivity
from hydrometer.models.markov.by_multiplier import least_absolute, least_generalised, least_tempered
from hydrometer.models.markov.law import Markov, reached, refuse_large, selected
from hydrometer.models.markov.ngram_fit import MarkovFit
from hydrometer.models.markov.row_optimum import RowsKL, descend
from hydrometer.models.objectives import WEIGHTS, Divergence, PolicyGradient, divergence_of

__all__ = ["KINDS", "fit_objective", "nearest", "prefixes_of", "refuse_inexact"]

KINDS = tuple(WEIGHTS)
_ROUNDS = 1000
_STILL = 1e-12
_LEAST_RATE = 0.05
_NEVER = 1e-100
_LAST = 1e-13
_RARE = 1e-30


def refuse_inexact(objective: Objective) -> None:
    """Refuse an objective that there is not, or that has no exact optimum here. Raises SpecError."""
    d = divergence_of(objective)
    if isinstance(d, PolicyGradient) and d.length_normalised:
        what = "a chain has no exact optimum of what is the gradient of no divergence"
        raise SpecError(what, got=objective.to_json(), fix="leave out length_normalised")
    if isinstance(d, Divergence) and d.mle > 0 and d.temperature != 1 and d.kind != "kl_teacher_student":
        what = "a chain has no exact optimum of this mix with mle"
        fix = "leave out mle, or temperature, or take kl_teacher_student"
        raise SpecError(what, got=objective.to_json(), fix=fix)


def fit_objective(
    teacher: Markov,
    source: Markov | None,
    d: Divergence | PolicyGradient,
    order: int,
    smoothing: float = 0.0,
    own: float = 0.0,
    undropped: Markov | None = None,
) -> MarkovFit:
    """Fit the chain that an objective is least for.

    Parameters
    ----------
    teacher : the law that is matched. source : the law that says the prefixes; None for the student itself, whose
        prefixes are those at which it stays the optimum: training on its own rows stands still there.
    smoothing : >= 0, in expected visits of a row.
    own : share of the tokens that are on the student's own rows, with a source for the others.
    undropped : the teacher before it drops ids, which `generalised_kl` sees; the teacher, if it drops none.

    Returns
    -------
    The chain; where its own prefixes have a share, of ``info`` ``rounds``, and ``fixed_points``, how many were found
    from the teacher's prefixes and from the uniform student's, if the second search ends: the first is returned. Of
    `policy_gradient_reward_to_go` ``value``, the KL between laws of rows, nats, and the lower of the two is returned.

    Raises
    ------
    FitError : an objective that is infinite for every student; prefixes that do not come to rest.
    InputError : too many prefixes.
    """
    if isinstance(d, PolicyGradient):
        if d.to_go:
            return _of_rows(teacher, order, smoothing)
        d, source = Divergence("kl_student_teacher"), None
    matched = teacher
    if d.kind == "generalised_kl":
        matched = (undropped or teacher).select(Selectivity(temperature=d.temperature))

    def chain(log_table: Floats) -> Markov:
        return Markov(log_table, order=order, max_new_tokens=teacher.max_new_tokens)

    def best(*sources: Markov) -> Markov:
        met = [prefixes_of(on, teacher, order, matched) for on in sources]
        if len(met) > 1:  # tokens of either, in units of a row of the first
            tokens = [w.sum() for w, _, _ in met]
            scales = 1 - own, own * tokens[0] / tokens[1]
            met = [(w * x, p, ids * x) for (w, p, ids), x in zip(met, scales, strict=True)]
        weight, p = (np.concatenate([m[i] for m in met]) for i in range(2))
        return chain(nearest(weight, p, np.sum([m[2] for m in met], axis=0), d, smoothing))

    if source is not None and own == 0:
        return MarkovFit(best(source), {})
    given = () if source is None else (source,)
    found, rounds = _at_rest(lambda q: best(*given, q), best(teacher), d)
    info = {"rounds": float(rounds)}
    with suppress(FitError):  # from the uniform student there may be no way to a second one
        other, _ = _at_rest(lambda q: best(*given, q), chain(_uniform(teacher.vocabulary, order)), d)
        info["fixed_points"] = _apart(found.log_table, other.log_table)
    return MarkovFit(found, info)


def _uniform(v: int, order: int) -> Floats:
    return np.full(((v + 1) ** order, v), -np.log(v))


def _apart(one: Floats, other: Floats) -> float:
    return 1.0 if float(np.abs(np.exp(one) - np.exp(other)).max()) < 1e-6 else 2.0


def _of_rows(teacher: Markov, order: int, smoothing: float) -> MarkovFit:
    """Fit the chain Q of the least KL(Q, P)."""
    token = fit_objective(teacher, teacher, Divergence("kl_student_teacher"), order, smoothing).model.log_table
    everywhere = np.where(np.isfinite(token), 0.0, -np.inf)  # what any teacher drops costs without end
    everywhere = everywhere - np.logaddexp.reduce(everywhere, axis=-1, keepdims=True)
    kl = RowsKL(teacher, order, smoothing)
    found = [descend(kl, start) for start in (token, everywhere)]
    value, log_q, rounds = min(found, key=lambda x: x[0])
    info = {"rounds": float(rounds), "fixed_points": _apart(found[0][1], found[1][1]), "value": value}
    return MarkovFit(Markov(log_q, order=order, max_new_tokens=teacher.max_new_tokens), info)


def _at_rest(best: Callable[[Markov], Markov], start: Markov, d: Divergence) -> tuple[Markov, int]:
    """Return the student that is the optimum on its own prefixes, and after how many rounds: damped if need be."""
    moved = np.inf
    for damped in (False, True):
        q, rate = start, 1.0
        for rounds in range(1, _ROUNDS + 1):
            after = best(q)
            before, moved = moved, float(np.abs(np.exp(after.log_table) - np.exp(q.log_table)).max())
            if moved < _STILL:
                return after, rounds
            if damped:
                rate = max(rate / 2, _LEAST_RATE) if moved > before else min(1.0, 1.05 * rate)
                with np.errstate(divide="ignore"):
                    table = np.log((1 - rate) * np.exp(q.log_table) + rate * np.exp(after.log_table))
                after = Markov(table, order=q.order, max_new_tokens=q.max_new_tokens)
            q = after
    what = f"the student of {d.kind} on its own prefixes does not come to rest"
    raise FitError(what, got=f"{moved:.1e} a round", fix="take the teacher's prefixes or the truth's")


def prefixes_of(
    source: Markov, teacher: Markov, order: int, matched: Markov | None = None
) -> tuple[Floats, Floats, Floats]:
    """Return what a student of that order meets on the source's rows.

    Parameters
    ----------
    matched : in the place of the teacher, whose ids it has, dropped ones with their probability of before.

    Returns
    -------
    weight : (A, S) how often a row of the source is expected to meet each prefix.
    p : (A, S, V) the teacher's laws there, 0 for what it drops.
    own : (S, V) how often the source says each id in a student's context.

    Raises
    ------
    InputError : too many prefixes.
    """
    base, v = teacher.vocabulary + 1, teacher.vocabulary
    matched = teacher if matched is None else matched
    told = max(teacher.order, order)
    longest = max(source.order, told)
    steps = max((x.max_new_tokens for x in (source, teacher) if x.log_table.ndim == 3), default=1)
    refuse_large(steps * base**longest * v, "the laws of all prefixes have", "lower the orders or max_new_tokens")
    alive = reached(source, longest)
    if steps == 1:
        alive = alive.sum(axis=0, keepdims=True)

    def laws(x: Markov, of: int) -> Floats:
        table = x.log_table[None] if x.log_table.ndim == 2 else x.log_table
        every: NDArray[np.int64] = np.arange(base**of, dtype=np.int64)
        return np.exp(np.broadcast_to(table[:, every % base**x.order], (steps, len(every), v)))

    own = (alive[..., None] * laws(source, longest)).reshape(-1, base**order, v).sum(axis=0)
    weight = alive.reshape(steps, -1, base**told).sum(axis=1)  # what the teacher does not tell apart
    p = laws(teacher, told)
    if matched is not teacher:
        p = np.where(p > 0, laws(matched, told), 0.0)
    return weight.reshape(-1, base**order), p.reshape(-1, base**order, v), own


def nearest(weight: Floats, p: Floats, own: Floats, d: Divergence, smoothing: float = 0.0) -> Floats:
    """Return the log-table (S, V) that the objective is least for; a context that is never met is uniform.

    Parameters
    ----------
    weight : (A, S) of the prefixes. p : (A, S, V), of `generalised_kl` at the loss temperature already.
    own : (S, V) expected ids of the rows, for a share of `mle`.
    smoothing : >= 0, in the unit of the weights.

    Raises
    ------
    FitError : an objective that is infinite for every student.
    """
    v = p.shape[-1]
    visits = weight.sum(axis=0)
    met = visits > _NEVER
    uniform = np.where(met, smoothing * v, 1.0)
    total = visits * met + uniform
    weight = np.concatenate([weight * met, uniform[None]]) / total
    weight[weight < _RARE] = 0.0  # what would not change a digit would keep ids alive for which no float stands
    tempered = p if d.temperature == 1 or d.kind == "generalised_kl" else _normal(p ** (1 / d.temperature))
    p = np.concatenate([tempered, np.full((1, *p.shape[1:]), 1 / v)])
    own = (own * met[:, None] + uniform[:, None] / v) / total[:, None]
    match d.kind:
        case "total_variation":
            q = _quantiles(weight, p) if d.mle == 0 else least_absolute((1 - d.mle) * weight, p, d.mle * own)
        case "generalised_kl":
            q = least_generalised((1 - d.mle) * weight, p, d.mle * own)
        case "adaptive_kl":
            q = _adaptive(weight, p, own, d)
        case "skew_kl_teacher_student" if d.weight == 0 and d.mle == 0:
            q = np.einsum("as,asv->sv", weight, p)
        case "kl_teacher_student" if d.temperature != 1 and d.mle > 0:
            q = least_tempered((1 - d.mle) * np.einsum("as,asv->sv", weight, p), d.mle * own, d.temperature)
        case "kl_teacher_student":
            q = (1 - d.mle) * d.factor * np.einsum("as,asv->sv", weight, p) + d.mle * own
        case "kl_student_teacher" if d.mle == 0:
            q = _geometric(weight, p)
        case _:
            q = _Separable(weight, p, own, d).solve()
    with np.errstate(divide="ignore"):
        log_q = d.temperature * np.log(_normal(q))
    return log_q - np.logaddexp.reduce(log_q, axis=-1, keepdims=True)


def _normal(x: Floats) -> Floats:
    return x / x.sum(axis=-1, keepdims=True)


def _infinite(kind: str, laws: str = "without a common id") -> FitError:
    what = f"{kind} is infinite for every student: its contexts hold teachers' laws {laws}"
    return FitError(what, fix="give the teacher smoothing, or take jsd or a skew_kl")


def _geometric(weight: Floats, p: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        log_p = np.log(np.where(weight[..., None] > 0, p, 1.0))
    mean = np.einsum("as,asv->sv", weight, log_p)
    top = mean.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise _infinite("kl_student_teacher")
    return np.exp(mean - top)


def _adaptive(weight: Floats, p: Floats, own: Floats, d: Divergence) -> Floats:
    """Of shares h of the heads, the optimum is that of KL(q, p) with more of `mle`; its own h are then taken."""
    with np.errstate(divide="ignore"):
        in_head = selected(np.log(p), Selectivity(top_p=d.weight)) > -np.inf
    fixed = replace(d, kind="kl_student_teacher", weight=0.5, temperature=1.0, mle=0.5)  # halves: of what it is given
    scale = (1 - d.mle) * d.factor
    q, h, moved, rate = np.einsum("as,asv->sv", weight, p), None, np.inf, 1.0
    for _ in range(_ROUNDS):
        gap = np.abs(p - q)
        whole = gap.sum(axis=-1)
        head = np.where(in_head, gap, 0.0).sum(axis=-1)
        share = np.divide(head, whole, out=np.full_like(whole, 0.5), where=whole > 0)  # equal laws have none
        h = share if h is None else (1 - rate) * h + rate * share
        rest = np.clip(1 - h, _STILL, None)  # of a head of all ids too: KL(q, p) is infinite where p drops one
        said = scale * np.einsum("as,asv->sv", weight * h, p) + d.mle * own
        if (said[~np.where(weight[..., None] > 0, p > 0, True).all(axis=0)] > 0).any():
            raise _infinite("adaptive_kl", "that do not keep the same ids")
        new = _Separable(scale * weight * rest, p, said, fixed).solve()
        before, moved = moved, float(np.abs(new - q).max())
        rate = rate / 2 if moved > before else rate
        q = new
        if moved < _STILL:
            return q
    raise FitError("the shares of adaptive_kl do not come to rest", got=f"{moved:.1e} a round", fix="take jsd")


def _quantiles(weight: Floats, p: Floats) -> Floats:
    """All ids' quantiles rise with the level from their least p to their largest: stop where they sum to 1."""
    weight = np.broadcast_to(weight[..., None], p.shape)
    order = np.argsort(np.where(weight > 0, p, np.inf), axis=0, kind="stable")
    p, weight = np.take_along_axis(p, order, 0), np.take_along_axis(weight, order, 0)
    p = np.where(weight > 0, p, -np.inf)
    p = np.maximum.accumulate(p, axis=0)  # what has no weight stands last, and adds no rise
    rises, levels = np.diff(p, axis=0), np.cumsum(weight, axis=0)[:-1]
    s, v = p.shape[1:]
    rises, levels = (x.transpose(1, 2, 0).reshape(s, -1) for x in (rises, levels))
    order = np.argsort(levels, axis=1, kind="stable")
    rising = np.take_along_axis(rises, order, 1)
    before = p[0].sum(axis=1, keepdims=True) + np.cumsum(rising, axis=1) - rising
    taken = np.empty_like(rises)
    np.put_along_axis(taken, order, np.clip(1 - before, 0.0, rising), 1)
    return p[0] + taken.reshape(s, v, -1).sum(axis=-1)


class _Separable:
    """Contexts whose ids each have a slope that grows with their probability x, and one multiplier.

    A slope is concave and growing in log x (in x for `skew_kl_teacher_student`, whose ids may reach 0). So Newton's
    method for an id goes up to its root from below, whatever its start, after one step; and the sum of the roots is
    convex and growing in the multiplier, for which it comes down from above.
    """

    def __init__(self, weight: Floats, p: Floats, own: Floats, d: Divergence) -> None:
        met = weight[..., None] > 0
        if d.kind == "kl_student_teacher" or (d.kind.startswith("skew_kl_student_teacher") and d.weight == 0):
            self.alive = np.where(met, p > 0, True).all(axis=0)
            if (self.alive.sum(axis=1) == 0).any() or (own[~self.alive] > 0).any():
                raise _infinite(d.kind)
        else:
            self.alive = ((p > 0) & met).any(axis=0) | ((own > 0) & (d.mle > 0))
        self.p = np.where(met & self.alive, p, 1.0)
        self.weight, self.d, self.own = weight * (1 - d.mle) * d.factor, d, own * d.mle
        self.in_logs = d.kind != "skew_kl_teacher_student"

    def slopes(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the objective's slope in x, and what it rises by in log x (in x, where ids may reach 0), (S, V) each.

        Up to a constant: less what it tends to, so that it keeps its digits where x is far above p.
        """
        p, w = self.p, self.d.weight
        match self.d.kind:
            case "jsd" | "jsd_scaled":
                odds = w * p / ((1 - w) * x)
                value, rise = -(1 - w) * np.log1p(odds), (1 - w) * odds / (1 + odds)
            case "skew_kl_student_teacher_detached" if w > 0:
                odds = (1 - w) * p / (w * x)
                value, rise = -np.log1p(odds), odds / (1 + odds)
            case "skew_kl_teacher_student":
                ratio = np.divide((1 - w) * p, w * p + (1 - w) * x, out=np.zeros_like(p), where=p > 0)
                value, rise = -ratio, np.divide(ratio**2, p, out=np.zeros_like(p), where=p > 0)
            case "skew_kl_student_teacher" if w > 0:
                odds = (1 - w) * p / (w * x)
                share = odds / (1 + odds)
                few = share**2 * (1 / 2 + share * (1 / 3 + share * (1 / 4 + share * (1 / 5 + share / 6))))
                value, rise = -np.where(share < 1e-3, few, np.log1p(odds) - share), share**2
            case _:
                value, rise = np.log(x) - np.log(p), np.ones_like(p)
        slope, rises = (np.einsum("as,asv->sv", self.weight, y) for y in (value, rise))
        if self.d.mle > 0:
            share = np.divide(self.own, x, out=np.zeros_like(x), where=self.own > 0)
            slope, rises = slope - share, rises + (share if self.in_logs else share / np.where(share > 0, x, 1.0))
        return slope, rises

    def roots(self, x: Floats, multiplier: Floats, near: float) -> tuple[Floats, Floats]:
        """Return each id's x at which its slope is the multiplier, 0 where it is never below, and dx / d multiplier.

        `near` : to which share of x.
        """
        # Where ids may reach 0, a share of mle alone puts them here, below the root.
        least = 0.0 if self.in_logs else self.own / -multiplier
        rises = x
        for _ in range(_ROUNDS):
            slope, rises = self.slopes(x)
            step = np.where(self.alive, (multiplier - slope) / rises, 0.0)
            new = x * np.exp(np.clip(step, -50.0, 50.0)) if self.in_logs else np.maximum(x + step, least)
            moved, x = np.abs(new - x), np.maximum(new, 1e-300) if self.in_logs else new
            if (moved <= 1e-15 + near * x).all():
                break
        return x, np.where(self.alive & (x > 0), (x if self.in_logs else 1.0) / rises, 0.0)

    def solve(self) -> Floats:
        """Return the probabilities, (S, V)."""
        one = np.ones_like(self.own)
        most = np.where(self.alive, self.slopes(one)[0], np.inf).min(axis=1, keepdims=True)  # the roots sum to >= 1
        multiplier, x, excess, near = most, one, most, 1e-2
        for _ in range(_ROUNDS):
            x, gain = self.roots(x, multiplier, near)
            excess = np.where(self.alive, x, 0.0).sum(axis=1, keepdims=True) - 1
            if near == _LAST and (np.abs(excess) <= 1e-12).all():
                return np.where(self.alive, x, 0.0)
            near = max(_LAST, min(near, 1e-2 * float(np.abs(excess).max())))
            multiplier = np.minimum(multiplier - excess / gain.sum(axis=1, keepdims=True), most)
        raise FitError("the optimum was not found", got=f"probabilities that sum to 1 plus {np.abs(excess).max():.1e}")
