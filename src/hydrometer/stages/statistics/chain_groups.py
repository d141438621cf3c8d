"""The groups of one chain by what they are, and their differences: what the summary is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from hydrometer.core.distillation import Distillation, Objective, Prefixes, TeacherLaw
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.estimate import Contrast
from hydrometer.models.finite_selectivity import canonical
from hydrometer.stages.cells import Cell
from hydrometer.stages.statistics.contrasts import as_contrast, combine, contrast, group_figure
from hydrometer.stages.statistics.groups import Figure, Group, Judged

__all__ = ["ChainFacts", "ChainGroups", "gather", "matched"]

Json = dict[str, Any]

LIKELIHOOD = ("precision", "recall", "recall_on_support", "entropy", "kl_student_truth", "kl_truth_student")
BY_REFERENCE = ("precision_reference", "kl_student_reference")
"""What stands for precision and KL where the truth is texts."""
PER_BYTE = ("precision_per_byte", "recall_per_byte", "precision_reference_per_byte")
"""What models of different tokenizers are compared by."""
MATCHED = ("precision", "recall", "recall_on_support", "kl_student_truth", "kl_truth_student")
TEXT = ("length", "eos_rate", "repetition", "distinct_1", "distinct_2", "distinct_3")
BROUGHT = ("user_", "lm_eval_")
"""What begins the names of figures that a user brought."""


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What the summary needs to know of a chain besides its cells.

    Attributes
    ----------
    last : level of its students.
    reference : what precision is measured under where the truth is texts.
    as_texts : whether the teacher is of another tokenizer than the students.
    is_whole : whether no more of it is to be judged.
    """

    name: str
    family: str
    truth: str
    sequences: bool
    controls: tuple[Selectivity, ...]
    last: int
    is_whole: bool = True
    reference: str | None = None
    as_texts: bool = False


def gather(
    cells: list[Cell], judged: Callable[[Cell], Judged | None]
) -> tuple[dict[str, Group], dict[str, Cell], dict[str, int]]:
    """Group cells by what they are without their seed.

    Returns
    -------
    groups of judged cells, one cell that stands for each group, failed cells per group.
    """
    shared = all(c.seed is None for c in cells if c.role == "truth" and c.decoding is None)
    members: dict[str, dict[int | None, Judged]] = {}
    example: dict[str, Cell] = {}
    failed: dict[str, int] = {}
    for cell in cells:
        example.setdefault(cell.group, cell)
        failed.setdefault(cell.group, 0)
        members.setdefault(cell.group, {})
        found = judged(cell)
        if found is None:
            failed[cell.group] += 1
        else:
            members[cell.group][cell.seed] = found
    groups = {name: Group(name, by_seed, shared) for name, by_seed in members.items() if by_seed}
    return groups, example, failed


class ChainGroups:
    """One chain's groups by what they are, and the differences between them."""

    def __init__(self, facts: ChainFacts, groups: dict[str, Group], example: dict[str, Cell]) -> None:
        self.facts, self.groups, self.example = facts, groups, example
        self.pairs: dict[tuple[str, str], dict[str, Contrast]] = {}
        self.metrics = [*LIKELIHOOD] if facts.reference is None else [*LIKELIHOOD, *BY_REFERENCE]
        if facts.sequences:
            self.metrics += [f"{m}_per_token" for m in self.metrics] + list(TEXT)
        if facts.as_texts:
            self.metrics += PER_BYTE
        mine = {n: c for n, c in example.items() if c.level == facts.last and c.training}
        self.adopted = {n: c for n, c in mine.items() if c.origin is not None}
        at_end = {n: c for n, c in mine.items() if c.origin is None}
        plain = {n: c for n, c in at_end.items() if c.decoding is None}
        self.direct = next((n for n, c in plain.items() if c.training == "direct"), None)
        self.baselines = [n for n, c in plain.items() if c.baseline is not None]
        self.distilled = {c.distillation: n for n, c in plain.items() if c.distillation is not None}
        self.neutrals: dict[tuple[Objective, Prefixes, TeacherLaw], str] = {}
        for d, name in self.distilled.items():
            if canonical(d.selectivity) is None:
                self.neutrals.setdefault(d.method, name)
        self.neutral = next(iter(self.neutrals.values()), None)
        self.decoded: dict[Selectivity, str] = {
            c.decoding: n for n, c in at_end.items() if c.training == "direct" and c.decoding is not None
        }
        self.truth = next((n for n, c in example.items() if c.role == "truth" and c.decoding is None), None)
        self.teacher = next((n for n, c in example.items() if c.role == "teacher" and c.decoding is None), None)

    def neutral_of(self, d: Distillation | None) -> str | None:
        """The student of the same method that was distilled from the unselected teacher; of None the first of all."""
        return self.neutral if d is None else self.neutrals.get(d.method)

    def neutral_decoded(self, d: Distillation) -> str | None:
        """The student of the same method of the unselected teacher, decoded at this one's setting."""
        alike = (
            n
            for n, c in self.example.items()
            if c.decoding == d.selectivity and c.distillation is not None and c.origin is None
            and canonical(c.selectivity) is None and c.distillation.method == d.method
            and c.level == self.example[self.distilled[d]].level
        )  # fmt: skip
        return next(alike, None)

    def has(self, *names: str | None) -> bool:
        """Whether all of these groups have judged cells."""
        return all(n is not None and n in self.groups for n in names)

    def pair(self, a: str | None, b: str | None) -> dict[str, Contrast]:
        """Contrasts of two groups, ``a - b``, by metric; none where one of them is missing."""
        if a is None or b is None or a == b or not self.has(a, b):
            return {}
        one, other = self.example[a], self.example[b]
        if one.point is None and one.judge == other.judge:  # the same weights under two names
            return {}
        if (a, b) not in self.pairs:
            self.pairs[a, b] = self._contrasts(a, b)
        return self.pairs[a, b]

    def differences(self, a: str | None, b: str | None) -> Json:
        """The same as results.json holds them."""
        return {metric: asdict(x) for metric, x in self.pair(a, b).items()}

    def _contrasts(self, a: str, b: str) -> dict[str, Contrast]:
        one, two = self.groups[a], self.groups[b]
        out: dict[str, Contrast] = {}
        first, second = one.metrics, two.metrics
        wanted = self.metrics
        if self.facts.as_texts and "teacher" in (self.example[a].role, self.example[b].role):
            wanted = [m for m in wanted if m not in TEXT and not m.endswith("_per_token")]  # tokens of two kinds
        for metric in [*wanted, *(m for m in first if m.startswith(BROUGHT))]:
            if metric in first and metric in second:
                out[metric] = contrast(one, two, metric)
        return out


def matched(c: ChainGroups, distilled: str) -> Json:
    """Compare with the direct student decoded to the same entropy, linearly between the settings decoded.

    Returns
    -------
    ``matched_entropy`` as results.json holds it; where that is None, ``matched_reason`` too.
    """
    found = _matched(c, distilled) if distilled in c.groups and c.direct is not None else "no direct student"
    return {"matched_entropy": None, "matched_reason": found} if isinstance(found, str) else {"matched_entropy": found}


def _matched(c: ChainGroups, distilled: str) -> Json | str:
    if (s := c.example[distilled].selectivity) is not None and s.tilt is not None:
        return "a tilt is for a reward, not for a lower entropy, and is compared at its own setting"
    untilted = (n for s, n in c.decoded.items() if s.tilt is None)
    path = [n for n in (c.direct, *untilted) if n is not None and n in c.groups]
    entropies = {n: group_figure(c.groups[n], "entropy").value for n in path}
    known = sorted((h, n) for n, h in entropies.items() if h is not None)
    target = group_figure(c.groups[distilled], "entropy").value
    if len(known) < 2 and any(x.chooses for x in c.decoded):
        return "what chooses among candidates has no entropy to match, and fewer than two other settings do"
    if target is None or len(known) < 2:
        return "fewer than two decoded settings with a finite entropy"
    brackets = [(low, high) for low, high in pairwise(known) if low[0] <= target <= high[0]]
    if not brackets or brackets[0][0][0] == brackets[0][1][0]:
        return "no two decoded settings bracket its entropy, and nothing is extrapolated"
    (h0, n0), (h1, n1) = brackets[0]
    w = (target - h0) / (h1 - h0)
    terms = [(1.0, c.groups[distilled]), (-(1 - w), c.groups[n0]), (-w, c.groups[n1])]
    label = f"{c.direct} decoded to equal entropy"
    out: Json = {"entropy": target}
    metrics = (*BY_REFERENCE, "recall") if c.facts.reference is not None else MATCHED
    for metric in metrics:
        ends = [group_figure(c.groups[n], metric).value for n in (n0, n1)]
        if ends[0] is None or ends[1] is None:
            figure = Figure(None, None, None)
        else:
            figure = combine(terms, metric, slope=(ends[0] - ends[1]) / (h1 - h0))
        out[metric] = asdict(as_contrast(distilled, label, metric, figure))
    return out
