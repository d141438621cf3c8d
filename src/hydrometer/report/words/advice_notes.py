"""Notes to an advice: what was assumed or left out, what to check first, and limits of a pilot."""

from __future__ import annotations

from collections.abc import Sequence

from hydrometer.report.values import Json, count, items, mapping, number, text
from hydrometer.report.wording import among
from hydrometer.report.words.advice_checks import advice_checks
from hydrometer.report.words.advice_text import (
    candidate_by_id,
    need_words,
    seconds_words,
    student_named,
    teacher_draws,
)

__all__ = ["advice_notes"]


def advice_notes(data: Json) -> list[str]:
    """Return notes: what was assumed or left out, and limits of a pilot."""
    need, said = mapping(data.get("need")), list[str]()
    if need.get("stated") is False:
        said.append(f"No need was stated: at most {need_words(data).removeprefix('lose at most ')} may be lost.")
    on = text(mapping(data.get("expected")).get("on"))
    if on == "fresh rows":
        said.append(
            "The expected figures are from rows that took no part in the choice, but of the same trained models: "
            "training variance is still in them."
        )
        if need.get("score"):
            said.append(f"{text(need.get('score'))} was not measured again: it is from the run’s own rows.")
    elif on == "seeds left out of the choice":
        agreeing = count(mapping(data.get("expected")).get("agreeing"))
        said.append(
            f"Without fresh rows the sample was split: each seed’s figures are those of the setting that the other "
            f"seeds choose; {agreeing} of {count(data.get('seeds'))} choices are the leader."
        )
    if data.get("shared_prompts") is True:
        said.append(
            "Warning: models are judged on the prompts that they are trained on; of other prompts these figures say "
            "nothing. Keep some for judging: prompts: {file: ..., evaluate: 0.2}."
        )
    if any(c.get("training") == "direct" and teacher_draws(c) for c in map(mapping, items(data.get("candidates")))):
        said.append(
            "The teacher is the truth, so the direct student learns from its draws, too, as if distilled at "
            "temperature 1: what is compared is temperature in the data against temperature when decoding."
        )
    reasons: dict[str, list[str]] = {}
    for x in items(data.get("excluded")):
        c = mapping(x)
        reasons.setdefault(text(c.get("reason")), []).append(student_named(data, c))
    for reason, names in reasons.items():
        said.append(f"Left out: {among(names)}{', each' if len(names) > 1 else ''} because {reason}.")
    lacking = mapping(data.get("lacking"))
    lacks = [
        f"{student_named(data, candidate_by_id(data, c))} lacks {_listed(items(seeds))}" for c, seeds in lacking.items()
    ]
    if lacks:
        said.append(f"All are compared on the {_seeds(data)} that they have in common: {among(lacks)}.")
    adopted = [mapping(c) for c in items(data.get("candidates")) if mapping(c).get("adopted")]
    if adopted:
        names = among(list(dict.fromkeys(text(c["adopted"]) for c in adopted)))
        said.append(
            f"Trained elsewhere and adopted: {names}. What they were trained on is what `adopt` was told, and their "
            "cost is not known, so none is called the cheaper."
        )
    return said + advice_checks(data) + _pilot(mapping(data.get("pilot")))


def _listed(seeds: Sequence[object]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(str(count(s)) for s in seeds)}"


def _seeds(data: Json) -> str:
    seeds = count(data.get("seeds"))
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def _pilot(pilot: Json) -> list[str]:
    if not pilot:
        return []
    share, seconds = number(pilot.get("planned_share")) or 0.0, number(pilot.get("seconds")) or 0.0
    rows = {k: [count(n) for n in items(v)] for k, v in mapping(pilot.get("rows")).items()}
    seeds = [count(n) for n in items(pilot.get("seeds"))]
    smaller = [f"{k} {v[1]} of {v[0]}" for k, v in rows.items() if len(v) == 2 and v[1] < v[0]]
    said = [
        f"A pilot of {seeds[1]} seeds for {seeds[0]}, planned at {share:.3f} of the full run’s cost; it took "
        f"{seconds_words(seconds)}, so the full run should take "
        f"{seconds_words(seconds / share) if share else 'unknown'}."
    ]
    if smaller:
        said.append(
            f"Rows: {', '.join(smaller)}. Students of less data are worse, and not by the same amount at every "
            "setting: a pilot tells which setting leads at its own size, not the full run’s figures, and the order may "
            "differ where two settings are close or lie near a constraint’s limit."
        )
    else:
        said.append("Rows are as many as in the full run: only the number of seeds differs.")
    return said
