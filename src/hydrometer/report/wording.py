"""Numbers, settings and models in words, shared by terminal, page and figures.

Minus is U+2212 in words for people. A figure is rounded to two digits of its standard error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hydrometer.report.typed_results import Brought, Chain, Control, Diff, Figure, Group, Run, Step
from hydrometer.report.values import Setting, count

__all__ = [
    "KL",
    "KL_OF_TRUTH",
    "NEUTRAL",
    "ON_SUPPORT",
    "Sentence",
    "Tone",
    "Topic",
    "among",
    "collapse_words",
    "difference",
    "entry",
    "error",
    "figure",
    "is_neutral",
    "is_tilt",
    "missing_words",
    "model",
    "moved",
    "num",
    "per",
    "prompts_words",
    "recall_of",
    "setting",
    "signed",
    "span",
    "unit_per",
    "where",
    "with_error",
]

Tone = Literal["yes", "no", "open", "note"]
Topic = Literal[
    "answer",
    "so far",
    "gate",
    "trade-off",
    "control",
    "capacity",
    "baseline",
    "adopted",
    "gap",
    "texts",
    "advice",
    "caveat",
]

KL = "KL(q‖p*)"
KL_OF_TRUTH = "KL(p*‖q)"
ON_SUPPORT = "recall on the support"
"""Of a model that cuts off: over the truth's draws that it gives some probability (docs, Theory, Eq. 17)."""

MINUS = "−"
NO_SCORE = "no score"
WITHOUT_SCORES = frozenset({"recall", "entropy", "kl_student_truth", "kl_truth_student"})
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "weight_power": 1.0, "sequence_power": 1.0}
_WORDS = {
    "temperature": "temperature",
    "weight_power": "β =",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "sequence_power": "sequence power",
}
_SYMBOLS = {
    "temperature": "τ",
    "weight_power": "β",
    "top_k": "k",
    "top_p": "p",
    "min_p": "min-p",
    "sequence_power": "s",
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of the verdict: topic, outcome and text."""

    topic: Topic
    tone: Tone
    text: str


def _digits(se: float | None, value: float) -> int:
    scale = se if se is not None and se > 0 else abs(value) / 100
    if scale <= 0:
        return 2
    return min(max(1 - math.floor(math.log10(scale)), 0), 3)


def num(value: float | None, se: float | None = None) -> str:
    """Round a number to two digits of its standard error, with a true minus sign.

    Examples
    --------
    >>> num(-148.31, 4.1), num(None), num(float("inf"))
    ('−148.3', '–', '∞')
    """
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    shown = f"{value:.{_digits(se, value)}f}"
    if float(shown) == 0:
        shown = shown.lstrip("-")
    return shown.replace("-", MINUS)


def signed(value: float, se: float | None = None) -> str:
    """As `num`, with a plus sign where it is positive."""
    shown = num(value, se)
    return shown if shown.startswith(MINUS) else "+" + shown


def error(se: float | None) -> str:
    """Format a standard error with two significant digits and at most four decimals; 0 as exact.

    Examples
    --------
    >>> error(4.13), error(0.000342), error(0.00002134), error(0.0), error(None)
    ('4.1', '0.0003', '2e-05', 'exact', '–')
    """
    if se == 0:
        return "exact"
    shown = num(se, se)
    if se is None or shown.strip("0."):
        return shown
    return f"{se:.4f}" if se >= 5e-5 else f"{se:.0e}"


def with_error(value: float | None, se: float | None) -> str:
    """Format a value with its standard error; without one if it is exact or has none.

    Examples
    --------
    >>> with_error(1.224, 0.0000213), with_error(1.224, 0.0), with_error(None, None)
    ('1.224 ± 2e-05', '1.224', '–')
    """
    return f"{num(value, se)} ± {error(se)}" if se else num(value)


def figure(metric: Figure | None) -> str:
    """Format a figure as ``−148.3 ± 4.1``, or as minus infinity.

    Examples
    --------
    >>> figure(Figure(-148.31, 4.1, None, "nats", 0)), figure(Figure(None, None, None, "nats", 3))
    ('−148.3 ± 4.1', '−∞')
    >>> figure(Figure(1.224, 0.0000213, None, "nats", 0)), figure(Figure(1.224, 0.0, None, "nats", 0))
    ('1.224 ± 2e-05', '1.224')
    """
    if metric is None:
        return ""
    if metric.value is None:
        return MINUS + "∞" if metric.n_neg_inf else "–"
    return with_error(metric.value, metric.se)


def entry(group: Group, metric: str) -> str:
    """Format a group's figure, or `NO_SCORE` if the group has no log-probabilities."""
    found = group.metrics.get(metric)
    if found is None and group.absent and metric in WITHOUT_SCORES:
        return NO_SCORE
    shown = figure(found)
    # Entropies and KLs are infinite upwards; figure knows no name.
    return shown.removeprefix(MINUS) if shown == f"{MINUS}∞" and metric.startswith(("kl_", "entropy")) else shown


def span(diff: Diff, sign: int = 1) -> str:
    """Format the 95 % interval of a difference; of its negative with ``sign=-1``."""
    if diff.ci95 is None:
        return "no interval"
    low, high = sorted(sign * end for end in diff.ci95)
    return f"95 % interval {num(low, diff.se)} to {num(high, diff.se)}"


def difference(diff: Diff, unit: str = "", *, sign: int = 1, more: str = "") -> str:
    """Word a difference with its interval, and say "undecided" where that holds zero; its negative with ``sign=-1``.

    Every sentence on a difference is made here or by `moved`.

    Parameters
    ----------
    more : goes behind the interval.

    Examples
    --------
    >>> difference(Diff("a", "b", "recall", 0.36, 1.6, 3.0, (-3.2, 3.9), "row"), "nats")
    '+0.4 nats (95 % interval −3.2 to 3.9, undecided)'
    >>> difference(Diff("a", "b", "recall", 0.36, 0.1, 3.0, (0.1, 0.62), "row"), sign=-1)
    '−0.36 (95 % interval −0.62 to −0.10)'
    """
    if diff.value is None:
        return "without a finite difference"
    unsure = ", undecided" if diff.sign == 0 else ""
    return f"{signed(sign * diff.value, diff.se)}{unit and f' {unit}'} ({span(diff, sign)}{unsure}{more})"


def moved(diff: Diff, name: str, unit: str, more: str = "", *, sign: int = 1) -> str:
    """Say what a difference did to a figure, as `difference`: ``raises precision by 3.1 nats (95 % interval ...)``."""
    if diff.value is None:
        return f"leaves no finite difference in {name}"
    if not diff.sign:
        return f"leaves {name} undecided ({signed(sign * diff.value, diff.se)} {unit}, {span(diff, sign)}{more})"
    verb = "raises" if sign * diff.sign > 0 else "lowers"
    return f"{verb} {name} by {num(abs(diff.value), diff.se)} {unit} ({span(diff, diff.sign)}{more})"


def is_neutral(selectivity: Setting | None) -> bool:
    """Whether a setting changes nothing."""
    return not selectivity or all(NEUTRAL.get(k) == v for k, v in selectivity.items())


def is_tilt(selectivity: Setting | None) -> bool:
    """Whether a setting tilts towards a reward."""
    return any(k.startswith("tilt (") for k in selectivity or ())


def _plain(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:g}"


def _worded(key: str, value: float, words: Mapping[str, str], join: str) -> str:
    return key.replace("{}", _plain(value)) if "{}" in key else f"{words.get(key, key)}{join}{_plain(value)}"


def _short(key: str) -> str:
    """A tilt's name for charts: its reward without how far it reaches."""
    tilt = re.fullmatch(r"tilt \((.*), b=\{\}\)", key)
    return key if tilt is None else re.sub(r" at (\([^)]*\)) of width .*", r"\1", tilt[1]) + " b={}"


def setting(selectivity: Setting | None, *, short: bool = False) -> str:
    """Name a selectivity.

    Examples
    --------
    >>> setting({"temperature": 0.8, "top_p": 0.95}), setting({"weight_power": float("inf")}, short=True)
    ('temperature 0.8, top-p 0.95', 'β=∞')
    >>> setting({"temperature": 0.8, "best of {} by length": 4.0})
    'temperature 0.8, best of 4 by length'
    >>> setting({"tilt (bump at (0,1) of width 2 and height 3, b={})": 0.5}, short=True)
    'bump(0,1) b=0.5'
    """
    if not selectivity:
        return "as it is"
    if short:
        return " ".join(_worded(_short(k), v, _SYMBOLS, "=") for k, v in selectivity.items())
    return ", ".join(_worded(k, v, _WORDS, " ") for k, v in selectivity.items())


def distilled_at(x: Group | Step | Control | Brought, *, short: bool = False) -> str:
    """Name how a student was distilled: its setting, and the method where that is not mle on the teacher's rows."""
    return " ".join(filter(None, (setting(x.selectivity, short=short), x.method)))


def model(group: Group) -> str:
    """Name a model for people: ``distilled at temperature 0.8``; one of a map with its point before it.

    Names are unique within a chain; they omit what all its models have in common.
    """
    name = f"{group.adopted} (adopted), {_model(group)}" if group.adopted else _model(group)
    return f"{where(group.point)}: {name}" if group.point else name


def _model(group: Group) -> str:
    if group.role == "truth" and not group.model:
        return f"truth at {setting(group.decoding)}" if not is_neutral(group.decoding) else "truth"
    if group.model:
        # A student may bear the truth's name, or be called truth.
        name = group.model if group.role == "student" else f"{group.role} ({group.model})"
        return f"{name}, decoded at {setting(group.decoding)}" if group.decoding else name
    if group.training == "direct" and group.role == "student":
        name = "direct"
    elif group.training == "baseline":
        name = f"baseline {group.baseline}".rstrip()
    elif group.training == "distilled":
        name = f"distilled at {distilled_at(group)}"
        if group.role != "student":
            name = f"{group.role.replace('_', ' ')}, {name}"
    else:
        name = group.role.replace("_", " ")
        if group.selectivity and not group.decoding and not is_neutral(group.selectivity):
            name += f" at {setting(group.selectivity)}"
    if group.decoding and not is_neutral(group.decoding):
        name += (", decoded at " if group.role == "student" else " at ") + setting(group.decoding)
    return name


def recall_of(diffs: Mapping[str, Diff]) -> Diff | None:
    """Return the recall contrast, or that of recall_on_support if recall is infinite."""
    recall = diffs.get("recall")
    if recall is not None and recall.value is not None:
        return recall
    return diffs.get("recall_on_support", recall)


_AXES = {"teacher": "K′", "student": "K″", "separation": "separation"}


def where(point: Setting) -> str:
    """Name a point of a map.

    Examples
    --------
    >>> where({"separation": 3.0, "teacher": 4.0, "student": 1.0})
    'separation 3, K′ = 4, K″ = 1'
    """
    return ", ".join(f"{_AXES.get(k, k)}{' =' if _AXES.get(k, k) != k else ''} {v:g}" for k, v in point.items())


def per(chain: Chain) -> str:
    """Return the unit that nats are counted per: ``sequence`` or ``point``."""
    return "point" if chain.kind == "points" else "sequence"


def unit_per(chain: Chain) -> str:
    """Return the unit of a chain's figures, "nats per token"."""
    return f"{chain.unit} per {per(chain)}"


def prompts_words(chain: Chain) -> str:
    """Say how many prompts, and rows that answer them, models are judged and trained on; empty where none is known."""
    seen = {k: count(v) for k, v in chain.prompts.items()}
    if not seen.get("judged"):
        return ""
    apart = "" if seen.get("apart") else " of these"
    judged = f"{seen['judged']} judged on ({seen.get('rows_judged', 0)} rows)"
    return f"{judged}, {seen.get('trained', 0)}{apart} trained on ({seen.get('rows_trained', 0)} rows)"


def among(parts: list[str]) -> str:
    """Join words with commas and a last "and"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


MAX_COLLAPSED = 4
MAX_MISSING = 3


def missing_words(run: Run, chain: str | None = None) -> str:
    """Say in one sentence which cells of a run, or of one chain, are not judged yet; empty if none.

    Examples
    --------
    >>> missing_words(Run("m", [], {}, [], [], {}, {}, missing={"c": ["c.truth", "c.student.direct"]}))
    'So far 0 of 2 cells are judged; missing: c.truth and c.student.direct.'
    """
    missing = [i for name, ids in run.missing.items() for i in ids if chain in (None, name)]
    if not missing:
        return ""
    judged = sum(chain in (None, c.chain) for c in run.cells)
    more = len(missing) - MAX_MISSING
    named = among([*missing[:MAX_MISSING], *([f"{more} more"] if more > 0 else [])])
    return f"So far {judged} of {judged + len(missing)} cells are judged; missing: {named}."


def collapse_words(run: Run, chain: Chain) -> list[str]:
    """Name the collapsed students in one sentence; empty if there are none."""
    found: list[str] = []
    for group in run.of_chain(chain.name):
        share = group.value("collapsed") or 0.0
        if group.role == "student" and share > 0:
            of = f" ({share:.0%} of its seeds)" if share < 1 else ""
            found.append(model(group) + of)
    if not found:
        return []
    more = len(found) - MAX_COLLAPSED
    named = among([*found[:MAX_COLLAPSED], f"{more} more"] if more > 0 else found)
    lost = (
        "less than a twentieth of the volume that the truth fills"
        if chain.kind == "points"
        else "less than half of the truth’s entropy"
    )
    return [
        f"Collapsed: {named}. What such a student says lies among the truth’s likeliest, and it has {lost}; its "
        "precision is that of repeating a few outcomes."
    ]
