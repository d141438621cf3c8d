"""The verdict for a map in words: counts over points and settings, each decided at 95 %; and the capacity gap.

As in `verdict`, a rise or fall counts only if its interval excludes zero; the rest is undecided.
"""

from __future__ import annotations

from hydrometer.report.data.capacity_gap import Correlation, correlation, gap_points
from hydrometer.report.data.grid_data import Place, counted, places, tile
from hydrometer.report.typed_results import Chain, Run
from hydrometer.report.wording import (
    KL,
    Sentence,
    Tone,
    difference,
    is_neutral,
    num,
    per,
    recall_of,
    setting,
    span,
    where,
)

__all__ = ["capacity_sentence", "map_sentences"]


def map_sentences(chain: Chain) -> list[Sentence]:
    """Write a map's gate (where its points have one), trade-off and control."""
    return [*_gate(chain), _tradeoff(chain), _control(chain)]


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _gate(chain: Chain) -> list[Sentence]:
    if not any(p.gate.diff for p in chain.points):
        return []
    found = counted([tile(p.gate.diff) for p in chain.points])
    n = len(chain.points)
    missing = f"; {found['none']} could not be compared" if found["none"] else ""
    tone: Tone = "yes" if found["up"] == n else "no" if found["down"] == n else "note"
    words = (
        f"The teacher gate holds at {found['up']} of {_plural(n, 'point')} and fails at {found['down']}, decided at "
        f"95 %; undecided at {found['open']}{missing}."
    )
    if found["down"]:
        words += " Where it fails the teacher had nothing to teach, and a gain is cooling only."
    return [Sentence("gate", tone, words)]


def _best(chain: Chain, found: list[Place]) -> str:
    """Return the largest decided gain in precision, and its cost in recall."""
    best, size = None, 0.0
    for place in found:
        diff = place.step.vs_direct.get("precision")
        if diff is not None and diff.sign == 1 and diff.value is not None and diff.value > size:
            best, size = place, diff.value
    if best is None:
        return ""
    gain, cost = best.step.vs_direct["precision"], recall_of(best.step.vs_direct)
    at = ", ".join(w for w in (where(best.point.point), setting(best.step.selectivity)) if w)
    words = f" The most is {num(gain.value, gain.se)} {chain.unit} per {per(chain)} ({span(gain)}), at {at}"
    if cost is None or cost.value is None:
        return words + "."
    return f"{words}, with recall {difference(cost)}."


def _tradeoff(chain: Chain) -> Sentence:
    every = places(chain)
    found = [p for p in every if not is_neutral(p.step.selectivity)]
    if not found:
        return Sentence("trade-off", "note", "There is no trade-off to show: no student was distilled selectively.")
    n = len(found)
    precision = [tile(p.step.vs_direct.get("precision")) for p in found]
    recall = [tile(recall_of(p.step.vs_direct)) for p in found]
    up, fell = counted(precision), counted(recall)
    pairs = zip(precision, recall, strict=True)
    both = sum(a.state == b.state == "decided" and (a.value or 0) > 0 > (b.value or 0) for a, b in pairs)
    words = (
        f"Against the direct student, distilling selectively raises precision at {up['up']} of {n} points and settings "
        f"and lowers it at {up['down']}, decided at 95 %; undecided at {up['open']}{_missing(up['none'])}. It lowers "
        f"recall at {fell['down']} of {n} and raises it at {fell['up']}; undecided at {fell['open']}"
        f"{_missing(fell['none'])}."
    )
    if up["up"]:
        words += f" Of the {up['up']} gains in precision, {both} come with a decided loss of recall."
    words += _best(chain, found)
    neutral = [p for p in every if is_neutral(p.step.selectivity)]
    if neutral:
        at = counted([tile(p.step.vs_direct.get("precision")) for p in neutral])
        words += (
            f" Distilled from the teacher as it is, precision rises at {at['up']} of {_plural(len(neutral), 'point')} "
            f"and falls at {at['down']}."
        )
    return Sentence("trade-off", "note" if up["up"] or up["down"] else "open", words)


def _missing(n: int) -> str:
    return f", without an interval at {n}" if n else ""


def _ahead(found: dict[str, int], n: int) -> str:
    return (
        f"distilling is ahead at {found['up']} of {n} and decoding the direct student at {found['down']}, decided at "
        f"95 %; undecided at {found['open']}{_missing(found['none'])}"
    )


def _control(chain: Chain) -> Sentence:
    selective = [p for p in places(chain) if not is_neutral(p.step.selectivity)]
    controls = [p.control for p in selective if p.control]
    if not controls:
        return Sentence(
            "control",
            "open",
            "No control was run: whether decoding the direct student selectively does as well as distilling is open.",
        )
    matched = [c.matched for c in controls if c.matched]
    bare, missed = len(selective) - len(controls), len(controls) - len(matched)
    rest = f" At {missed} no two decoded settings bracket the distilled student’s entropy." if missed else ""
    rest += f" At {bare} the direct student was not decoded; one of a single component has nothing to sharpen."
    if not bare:
        rest = rest[: rest.index(" At 0 ")]
    if not matched:
        return Sentence("control", "open", "The control is undecided at equal entropy." + rest)
    n = len(matched)
    recall = counted([tile(recall_of(m)) for m in matched])
    fit = counted([tile(m.get("kl_student_truth"), -1.0) for m in matched])
    up, down = recall["up"] + fit["up"], recall["down"] + fit["down"]
    tone: Tone = "open" if not up + down else "yes" if not down else "no" if not up else "note"
    words = f"The control, at equal entropy: on recall, {_ahead(recall, n)}. On {KL}, {_ahead(fit, n)}."
    return Sentence("control", tone, words + rest)


def _decides(found: Correlation) -> int | None:
    """Return the sign of a correlation, 0 where its interval holds zero, None where there is no interval."""
    if found.ci95 is None:
        return None
    return 1 if found.ci95[0] > 0 else -1 if found.ci95[1] < 0 else 0


def _correlation(found: Correlation) -> str:
    if found.value is None:
        return "cannot be told"
    if found.n == 1:
        return f"{_two(found.value)} (one point)"
    ends = f", 95 % interval {_two(found.ci95[0])} to {_two(found.ci95[1])}" if found.ci95 else ""
    rest = found.n - found.negative - found.positive
    counts = f"{found.negative} negative, {found.positive} positive" + (f", {rest} zero" if rest else "")
    return f"{_two(found.value)} (mean over {found.n} points{ends}; {counts})"


def _two(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def capacity_sentence(run: Run, chain: Chain) -> list[Sentence]:
    """Say what the data say on the claim that easier tasks, of a smaller capacity gap, are why precision rises.

    Returns
    -------
    One sentence; none where no student has a capacity gap.
    """
    found = gap_points(run, chain)
    if not found:
        return []
    claim = "The paper’s claim that precision rises because a selective teacher makes the task easier"
    hard, soft = correlation(found), correlation(found, soft=True)
    if hard.value is None:
        why = "the capacity gap does not vary with the setting" if hard.flat else "there are too few settings"
        return [Sentence("capacity", "open", f"{claim} cannot be tested here: {why}.")]
    sign = _decides(hard)
    lead = {
        -1: ("note", "is borne out in ranks: across settings, the smaller the capacity gap, the larger the gain"),
        1: ("no", "is contradicted: across settings, the smaller the capacity gap, the smaller the gain"),
        0: ("open", "is undecided: across settings, gap and gain do not go together beyond error"),
        None: (
            "open",
            "is undecided: the figure correlates over settings within a point of a map, and its interval is over "
            "points, of which there is one, whatever the number of seeds; a chain with a grid has more",
        ),
    }
    tones: dict[str, Tone] = {"note": "note", "no": "no", "open": "open"}
    tone, verb = lead[sign]
    flat = f" At {_plural(hard.flat, 'point')} it does not vary, or the gain does not." if hard.flat else ""
    more = ""
    if soft.value is not None:
        more = f"; of the teacher’s effective components, the soft form, {_correlation(soft)}"
    return [
        Sentence(
            "capacity",
            tones[tone],
            f"{claim} {verb}. Rank correlation of gap and precision gain: {_correlation(hard)}{more}.{flat} "
            "Gap and gain both follow the setting, so this alone cannot tell an easier task from a colder teacher.",
        )
    ]
