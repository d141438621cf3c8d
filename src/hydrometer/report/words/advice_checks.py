"""What measured claims advise to check before a candidate is taken (`run.advice.checks`), in words."""

from __future__ import annotations

from hydrometer.report.values import Json, mapping, text
from hydrometer.report.wording import among, difference, moved
from hydrometer.report.words.advice_text import candidate_of, difference_of, nats_per, precision_of, student_named

__all__ = ["advice_checks"]


def advice_checks(data: Json) -> list[str]:
    """Return a sentence for each check that the leader's figures give reason for, with the claim's page.

    Parameters
    ----------
    data : content of advice.json (docs, Advice).
    """
    found = mapping(data.get("checks"))
    said = (
        ("colder-teacher", _cooling(data, mapping(found.get("cooling")))),
        ("heating", _heating(data, mapping(found.get("heating")))),
        ("colder-teacher", _length(data, mapping(found.get("length")))),
    )
    return [f"{words} (docs/claims/{claim}.md)." for claim, words in said if words]


def _cooling(data: Json, found: Json) -> str:
    if not found:
        return ""
    unit = text(found.get("unit"))
    named = ((precision_of(data), "precision"), ("recall", "recall"))
    parts = [f"{name} {difference(difference_of(found.get(key)), unit)}" for name, key in named]
    leader = student_named(data, candidate_of(data, "leader"))
    return (
        f"Cooling alone may do as much: at equal entropy, {leader} minus the direct student decoded is {among(parts)}"
    )


def _heating(data: Json, found: Json) -> str:
    if not found:
        return ""
    leader, base = (student_named(data, candidate_of(data, k)) for k in ("leader", "baseline"))
    lost = moved(difference_of(found.get("recall_loss")), "recall", nats_per(data), sign=-1)
    return (
        f"Heating buys recall only where a model is too sure of few rows, which is not shown here: {leader} {lost} "
        f"against {base}"
    )


def _length(data: Json, found: Json) -> str:
    if not found:
        return ""
    leader, base = (student_named(data, candidate_of(data, k)) for k in ("leader", "baseline"))
    tokens = difference(difference_of(found.get("length")), "tokens")
    gain = moved(difference_of(found.get("precision_gain_per_token")), precision_of(data), "nats per token")
    return (
        f"Precision a row falls with every token, and rows of {leader} differ in length from those of {base} by "
        f"{tokens}: judge it per token as well, where it {gain}"
    )
