"""Advice: which of the candidates to take, given a need, or that the data do not decide.

A candidate is named only if it is shown to meet every constraint, and to lead by more than the margin every candidate
that is not shown to break one, each at one-sided error ``0.05 / (2 + number of constraints)``. It must lead all others
at once, so no further correction for their number is needed: of several equal ones the first is rarely far ahead of the
second (Gutmann and Maymin, "Is the selected population the best?", Annals of Statistics 15, 1987). What can go wrong is
that the best one is shown beaten, that it is shown to break a constraint, or that the one named breaks one: their
levels add to 5 %. docs, Advice.

Pure arithmetic on figures by seed; nothing is read or drawn here but posterior draws for `p_best`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from hydrometer.core.arguments import number
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.seeds import skew_of_mean
from hydrometer.stages.statistics.covariance import Arm, Design, Joint, Linear

__all__ = ["ERROR", "Candidate", "Decision", "More", "Need", "Problem", "Reason", "confirmed", "decide", "left_out"]

Feasible = Literal["met", "open", "violated"]
Reason = Literal["one_seed", "constraint", "close", "equivalent", "unconfirmed", "partial"]

ERROR = 0.05
"""Largest probability of a confident answer that is wrong."""

MARGIN = {"token": 0.02, "sequence": 0.5}
"""Differences up to this size do not matter unless another margin is given; nats."""

PRECISION, RECALL, SCORE = 0, 1, 2
_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Need:
    """What is wanted of a student. One objective is maximised under the constraints.

    Parameters
    ----------
    max_recall_loss : recall may fall by at most this against the baseline, in the unit of the figures (nats per token,
        sequence or point). Alone, it leaves precision to be maximised.
    min_precision_gain : precision must rise by at least this against the baseline. Without `max_recall_loss` and
        `weight`, recall is maximised.
    weight : W in ``W precision + (1 - W) recall``, which is then maximised.
    score, min_score : a metric of the cells, and the least it must be. Without others, recall is maximised.
    per : what a nat is counted per, where outcomes are sequences; points have one unit.
    margin : differences of the objective up to this size do not matter. None takes 0.02 nats per token or point, 0.5
        per sequence.

    Examples
    --------
    >>> Need(max_recall_loss=0.1).objective, Need(min_precision_gain=0.5).objective, Need(weight=0.3).objective
    ('precision', 'recall', 'utility')
    """

    max_recall_loss: float | None = None
    min_precision_gain: float | None = None
    weight: float | None = None
    score: str | None = None
    min_score: float | None = None
    per: Literal["token", "sequence"] = "token"
    margin: float | None = None

    def __post_init__(self) -> None:
        named = ("max_recall_loss", "min_precision_gain", "margin")
        for name in named:
            value: float | None = getattr(self, name)
            if value is not None:
                number(value, f"{name}, in nats,")
        if self.per not in MARGIN:
            raise InputError("nats are counted per token or per sequence", got=self.per)
        if self.score is not None and not isinstance(self.score, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError("score is the name of a metric", got=self.score)
        if self.weight is not None:
            number(self.weight, "weight, between 0 (recall alone) and 1 (precision alone),", most=1.0)
        if (self.score is None) != (self.min_score is None):
            raise InputError(
                "score and min_score belong together", got=self.score or self.min_score, fix="give both or neither"
            )
        if self.min_score is not None:
            number(self.min_score, "min_score", -math.inf)
        if self.weight == 1 and self.max_recall_loss is None:
            what = "weight 1 ignores recall, and precision alone is largest for a model that repeats itself"
            raise InputError(what, got=1, fix="lower weight, or give max_recall_loss")

    @property
    def objective(self) -> Literal["precision", "recall", "utility"]:
        """What is maximised."""
        if self.weight is not None:
            return "utility"
        return "recall" if self.max_recall_loss is None else "precision"

    @property
    def states_something(self) -> bool:
        """Whether anything is wanted at all."""
        return self.weight is not None or bool(self.constraints)

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the constraints."""
        return tuple(n for n in ("max_recall_loss", "min_precision_gain", "min_score") if getattr(self, n) is not None)

    @property
    def indifference(self) -> float:
        """The margin, or what stands for it where none is given."""
        return MARGIN[self.per] if self.margin is None else self.margin

    @property
    def level(self) -> float:
        """One-sided error of each statement that a confident answer is made of."""
        return ERROR / (2 + len(self.constraints))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was found of one candidate.

    Attributes
    ----------
    objective : what is maximised.
    gain, loss : precision gained and recall lost against the baseline.
    slack : by constraint, how far it is met; negative where it is not.
    feasible : "met" where all constraints are shown to be met, "violated" where one is shown not to be.
    p_best : posterior probability of being the best of those tried that meet the need.
    """

    objective: Linear
    gain: Linear
    loss: Linear
    score: Linear | None
    slack: dict[str, Linear]
    feasible: Feasible
    p_best: float


@dataclass(frozen=True, slots=True)
class More:
    """What would decide, if estimates stayed as they are: so many seeds in all, or so many rows; None: none would.

    `together` holds the fewest `seeds` that would with `rows` grown in proportion; None where that is not needed.
    """

    seeds: int | None
    rows: int | None
    together: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer; indices are of the candidates as given.

    Attributes
    ----------
    status : "decided"; "undecided", for `reason`; "none" where every candidate is shown to break a constraint.
    leader : the candidate that leads by estimates; where status is "none", the one nearest to the need.
    runner_up : the closest rival that may meet the need, or None.
    lead : the objective of the leader minus that of the runner-up.
    contenders : candidates that may be best: the leader and what it is not shown to lead by more than the margin.
    cheaper : where all contenders are equivalent within the margin, the one that costs least.
    more : where undecided.
    """

    status: Literal["decided", "undecided", "none"]
    reason: Reason | None
    leader: int
    runner_up: int | None
    lead: Linear | None
    contenders: tuple[int, ...]
    cheaper: int | None
    more: More | None
    candidates: tuple[Candidate, ...] = field(repr=False)


class Problem:
    """Candidates, the covariance of their figures, and a need.

    Parameters
    ----------
    arms : figures are precision, recall and, where the need names one, the score.
    baseline : index of the candidate that gains and losses are counted from.
    """

    def __init__(self, arms: Sequence[Arm], design: Design, need: Need, baseline: int) -> None:
        self.arms, self.need, self.baseline = tuple(arms), need, baseline
        self.joint = Joint(arms, design)

    def _unit(self, g: int, figure: int) -> Floats:
        c = np.zeros(self.joint.mean.size)
        c[g * self.joint.q + figure] = 1.0
        return c

    def objective(self, g: int) -> Floats:
        """Return the objective of a candidate as a combination of figures, (K,)."""
        match self.need.objective:
            case "precision":
                return self._unit(g, PRECISION)
            case "recall":
                return self._unit(g, RECALL)
            case "utility":
                w = self.need.weight or 0.0
                return w * self._unit(g, PRECISION) + (1 - w) * self._unit(g, RECALL)

    def gain(self, g: int, figure: int = PRECISION) -> Floats:
        """Return a candidate's figure minus the baseline's."""
        return self._unit(g, figure) - self._unit(self.baseline, figure)

    def slack(self, g: int) -> dict[str, tuple[Floats, float]]:
        """By constraint, the combination and constant that must not be negative."""
        need, out = self.need, dict[str, tuple[Floats, float]]()
        if need.max_recall_loss is not None:
            out["max_recall_loss"] = self.gain(g, RECALL), need.max_recall_loss
        if need.min_precision_gain is not None:
            out["min_precision_gain"] = self.gain(g), -need.min_precision_gain
        if need.min_score is not None:
            out["min_score"] = self._unit(g, SCORE), -need.min_score
        return out

    def feasible(self, slack: dict[str, Linear]) -> Feasible:
        """Whether all constraints are shown to be met, or one not to be."""
        bounds = [x.bounds(self.need.level) for x in slack.values()]
        if any(high < 0 for _, high in bounds):
            return "violated"
        return "met" if all(low >= 0 for low, _ in bounds) else "open"

    def p_best(self) -> Floats:
        """Posterior probability of each candidate to be the best that meets the need, (G,)."""
        x = self.joint.draws(_DRAWS, Stream(0, ("advise", "posterior")))
        n = len(self.arms)
        values = np.stack([x @ self.objective(g) for g in range(n)], axis=1)
        for g in range(n):
            for c, constant in self.slack(g).values():
                values[x @ c + constant < 0, g] = -np.inf
        best = np.argmax(values, axis=1)[np.isfinite(values.max(axis=1))]
        return np.bincount(best, minlength=n) / _DRAWS

    def candidates(self) -> tuple[Candidate, ...]:
        """Figures of all candidates."""
        p, out = self.p_best(), list[Candidate]()
        for g in range(len(self.arms)):
            slack = {name: self.joint.linear(c, constant) for name, (c, constant) in self.slack(g).items()}
            score = None if self.need.score is None else self.joint.linear(self._unit(g, SCORE))
            gain, loss = self.joint.linear(self.gain(g)), self.joint.linear(-self.gain(g, RECALL))
            objective = self.joint.linear(self.objective(g))
            out.append(Candidate(objective, gain, loss, score, slack, self.feasible(slack), float(p[g])))
        return tuple(out)

    def lead(self, g: int, h: int) -> Linear:
        """The objective of one candidate minus that of another."""
        return self.joint.linear(self.objective(g) - self.objective(h))

    def leader(self) -> int:
        """The candidate that is best by estimates; where none meets the need by estimate, the one nearest to it."""

        def place(g: int) -> tuple[bool, float]:
            worst = min((float(c @ self.joint.mean) + k for c, k in self.slack(g).values()), default=0.0)
            return worst >= 0, float(self.objective(g) @ self.joint.mean) if worst >= 0 else worst

        return max(range(len(self.arms)), key=place)


def decide(arms: Sequence[Arm], design: Design, need: Need, baseline: int) -> Decision:
    """Say which candidate to take, or that the data do not decide.

    Parameters
    ----------
    arms : at least one; see `Problem`.
    design : how rows were drawn.
    need : what is wanted.
    baseline : index of the candidate that gains and losses are counted from.

    Examples
    --------
    Two candidates, three seeds; the second gains 1 nat per token and loses 0.05 of recall.

    >>> noise = np.array([[0.01, 0.02], [-0.02, 0.01], [0.01, -0.03]])
    >>> def arm(name, precision, recall, sign):
    ...     values = np.array([precision, recall]) + sign * noise
    ...     return Arm(name, values, np.full((3, 2), 1e-4), np.tile(values[:, 1:], (1, 50)))
    >>> made = [arm("tau 1", -4.0, -3.0, 1), arm("tau 0.8", -3.0, -3.05, -1)]
    >>> d = decide(made, Design(50, rows_shared=True), Need(max_recall_loss=0.3), baseline=0)
    >>> d.status, made[d.leader].id
    ('decided', 'tau 0.8')
    """
    problem = Problem(arms, design, need, baseline)
    found = problem.candidates()
    leader = problem.leader()
    possible = [h for h, c in enumerate(found) if h != leader and c.feasible != "violated"]
    leads = {h: problem.lead(leader, h) for h in possible}
    lower = {h: x.bounds(need.level)[0] for h, x in leads.items()}
    rival = min(possible, key=lambda h: lower[h], default=None)
    close = [h for h in possible if lower[h] <= need.indifference]
    answer = Decision(
        "undecided", None, leader, rival, None if rival is None else leads[rival], (leader, *close), None, None, found
    )
    if found[leader].feasible == "violated" and not possible:
        return replace(answer, status="none", contenders=())
    if problem.joint.seeds == 1:
        return replace(answer, reason="one_seed")
    met = found[leader].feasible == "met"
    if met and not close:
        return replace(answer, status="decided")
    if met and all(found[h].feasible == "met" and _within(leads[h], need) for h in close):
        cheaper = min(answer.contenders, key=lambda g: (arms[g].cost, g))
        return replace(answer, reason="equivalent", cheaper=cheaper)
    reason: Reason = "close" if met and all(found[h].feasible == "met" for h in close) else "constraint"
    return replace(answer, reason=reason, more=_more(problem, answer))


def _within(x: Linear, need: Need) -> bool:
    low, high = x.bounds(need.level)
    return -need.indifference < low and high < need.indifference


def _more(problem: Problem, answer: Decision) -> More:
    """Seeds or rows, or else both, that would settle every open question, each in the way that takes least."""
    need, joint, g = problem.need, problem.joint, answer.leader

    def settle(c: Floats, constant: float) -> tuple[int | None, int | None, int | None]:
        gap = float(c @ joint.mean) + constant
        return joint.needed(math.copysign(1.0, gap) * c, abs(gap), need.level)

    open_leader = [n for n, x in answer.candidates[g].slack.items() if x.bounds(need.level)[0] < 0]
    questions = [[settle(*problem.slack(g)[n])] for n in open_leader]
    for h in answer.contenders[1:]:
        broken = [n for n, x in answer.candidates[h].slack.items() if x.value < 0]
        ways = [settle(*problem.slack(h)[n]) for n in broken]
        if not broken or problem.lead(g, h).value > need.indifference:
            # The leader is ahead by more than the margin, or the two are within it.
            ways.append(settle(problem.objective(g) - problem.objective(h), -need.indifference))
        questions.append(ways)

    def most(which: Literal[0, 1, 2]) -> int | None:
        least: list[int] = []
        for ways in questions:
            known = [n for w in ways if (n := w[which]) is not None]
            if not known:
                return None
            least.append(min(known))
        return max(least, default=None)

    seeds, rows, both = most(0), most(1), most(2)
    if seeds is not None or rows is not None or both is None:
        return More(seeds, rows)
    return More(None, None, {"seeds": both, "rows": math.ceil(joint.design.n * both / joint.seeds)})


def confirmed(problem: Problem, leader: int, runner_up: int | None) -> bool:
    """Whether fresh rows, too, show the leader to meet the need and to lead the runner-up by more than the margin.

    Fresh candidates may be fewer: what the run's own rows showed beaten, or to break a constraint, stays so.
    """
    need = problem.need
    slack = {n: problem.joint.linear(c, k) for n, (c, k) in problem.slack(leader).items()}
    if problem.feasible(slack) != "met":
        return False
    return runner_up is None or problem.lead(leader, runner_up).bounds(need.level)[0] > need.indifference


def left_out(arms: Sequence[Arm], design: Design, need: Need, baseline: int) -> tuple[Linear, Linear, int] | None:
    """Gain and loss of the leader, each seed's read where that seed took no part in choosing it.

    Returns
    -------
    (gain, loss, agreeing) : precision gained and recall lost against the baseline, and how many of the choices are the
        leader of all seeds. None for one seed.
    """
    whole = Problem(arms, design, need, baseline)
    s = whole.joint.seeds
    if s < 2:
        return None
    chosen: list[int] = []
    values = np.zeros((s, 2))
    for x in range(s):
        others = [y for y in range(s) if y != x]
        kept = [replace(a, values=a.values[others], own=a.own[others], rows=a.rows[others]) for a in arms]
        g = Problem(kept, design, need, baseline).leader()
        chosen.append(g)
        values[x] = arms[g].values[x, :2] - arms[baseline].values[x, :2]
    leader = whole.leader()

    def over_seeds(figure: int, sign: float) -> Linear:
        c = whole.gain(leader, figure)
        shared = max(float(c @ whole.joint.shared @ c), 0.0)  # rows that all seeds share are in every seed's figure
        x = sign * values[:, figure]
        between = float(x.var(ddof=1)) / s
        total = between + shared
        skew = skew_of_mean(x, between / total) if total > 0 else 0.0
        return Linear(float(x.mean()), math.sqrt(total), s - 1.0, skew)

    return over_seeds(PRECISION, 1.0), over_seeds(RECALL, -1.0), chosen.count(leader)
