"""Advice in words: three sentences and notes, from the content of advice.json.

The sentences say what to take, what it gains and costs, and how certain that is; they claim no more than the status.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hydrometer.report.values import Json, items, mapping, number, read_method, read_setting, text
from hydrometer.report.wording import Tone, among, num, setting

__all__ = [
    "advice_notes",
    "advice_sentence",
    "advice_sentences",
    "candidate_of",
    "distilled_at",
    "nats_per",
    "precision_of",
    "provisional",
    "seconds_words",
    "student_named",
    "tone_of",
]

SCHEMA = 1
MAX_BYTES = 5_000_000
_CONSTRAINTS = ("max_recall_loss", "min_precision_gain", "min_score")


def advice_sentences(data: Json) -> list[str]:
    """Say what to take; what it gains and costs; how sure that is.

    Parameters
    ----------
    data : content of advice.json (docs, Advice); `Advice.data` of `hydrometer.advise`.
    """
    return [provisional(len(items(data.get("missing")))) + _answer(data), _figures(data), _sureness(data)]


def provisional(early: int) -> str:
    """Return the lead-in for a run with so many cells not judged yet; empty if none."""
    return f"Provisional, {early} cell{'s are' if early > 1 else ' is'} not judged yet. " if early else ""


def advice_sentence(data: Json) -> str:
    """Say in one sentence what to take, or what would decide."""
    first = _answer(data)
    if data.get("status") == "decided" or not data.get("status"):
        return first
    if data.get("reason") == "one_seed":
        return first.rstrip(".") + "; three seeds or more would tell: run again with --set seeds=5."
    return first.rstrip(".") + _more(data) + "."


# names ---------------------------------------------------------------------------------------------------------------


def candidate_of(data: Json, which: str) -> Json:
    """Return the candidate that a key names: leader, runner_up, baseline or cheaper."""
    return _by_id(data, data.get(which))


def _by_id(data: Json, wanted: object) -> Json:
    for c in items(data.get("candidates")):
        if mapping(c).get("id") == wanted:
            return mapping(c)
    return {}


def student_named(data: Json, c: Json) -> str:
    """Name a student: ``the direct student decoded at temperature 0.8``."""
    decoded, adopted = read_setting(c.get("decoding")), text(c.get("adopted"))
    if c.get("training") == "baseline":
        words = f"the adopted baseline {adopted}" if adopted else f"the baseline {text(c.get('baseline'))}"
        words += f" decoded at {setting(decoded)}" if decoded else " as it is"
    elif c.get("training") == "direct":
        words = f"the adopted direct model {adopted}" if adopted else "the direct student"
        words += f" decoded at {setting(decoded)}" if decoded else " as it is"
    else:
        words = f"the adopted model {adopted}" if adopted else "the student"
        words += f" distilled at {distilled_at(c)}"
        words += f" and decoded at {setting(decoded)}" if decoded else ""
    return f"{words} (run {text(c.get('run'))})" if len(items(data.get("runs"))) > 1 else words


def distilled_at(c: Json, *, short: bool = False) -> str:
    """Name how a candidate was distilled."""
    return " ".join(filter(None, (setting(read_setting(c.get("selectivity")), short=short), read_method(c))))


def nats_per(data: Json) -> str:
    """Return the unit of figures."""
    return f"nats per {text(data.get('per'), 'token')}"


def precision_of(data: Json) -> str:
    """Return precision's name: whose it is, where the truth is texts, which score nothing."""
    reference = text(data.get("reference"))
    return f"precision under the {reference}" if reference else "precision"


def _wanted(data: Json) -> str:
    """The constraints: ``loses at most 0.1 nats per token of recall``."""
    need = mapping(data.get("need"))
    loss, gain, least = (number(need.get(k)) for k in _CONSTRAINTS)
    parts: list[str] = []
    if loss is not None:
        parts.append(f"lose at most {loss:g} {nats_per(data)} of recall")
    if gain is not None:
        parts.append(f"gain at least {gain:g} {nats_per(data)} of {precision_of(data)}")
    if least is not None:
        parts.append(f"reach at least {least:g} in {text(need.get('score'))}")
    return among(parts)


def _objective(data: Json) -> str:
    if data.get("objective") != "utility":
        return precision_of(data) if data.get("objective") == "precision" else text(data.get("objective"))
    w = number(mapping(data.get("need")).get("weight")) or 0.0
    return f"utility ({w:g} {precision_of(data)} + {1 - w:g} recall)"


def _size(value: object, unit: str = "") -> str:
    """Format a figure with its interval."""
    f = mapping(value)
    x, se = number(f.get("value")), number(f.get("se"))
    ends = [number(e) for e in items(f.get("ci95"))]
    shown = num(x, se) + (f" {unit}" if unit else "")
    if len(ends) != 2 or not se:
        return shown
    return f"{shown} (95 % interval {num(ends[0], se)} to {num(ends[1], se)})"


# the three sentences -------------------------------------------------------------------------------------------------


def _answer(data: Json) -> str:
    leader, rival = (student_named(data, candidate_of(data, k)) for k in ("leader", "runner_up"))
    count = len(items(data.get("candidates")))
    wanted = _wanted(data)
    margin = f"{number(mapping(data.get('need')).get('margin')) or 0:g} {nats_per(data)}"
    those = f" among those that {wanted}" if wanted else ""
    if data.get("status") == "decided":
        return f"Take {leader}: of {count} settings tried it has the highest {_objective(data)}{those}."
    if data.get("status") == "none":
        return f"None of the {count} settings tried is able to {wanted}; the nearest is {leader}{_miss(data)}."
    match data.get("reason"):
        case "equivalent":
            same = among([student_named(data, _by_id(data, c)) for c in items(data.get("contenders"))])
            cheaper = candidate_of(data, "cheaper")
            take = f"the cheaper, {student_named(data, cheaper)}" if cheaper else "whichever costs less"
            return (
                f"Undecided: {same} are equivalent within the margin of {margin} in {_objective(data)}, so take {take}."
            )
        case "one_seed":
            return (
                "Undecided: one seed says nothing of the variance between training runs; of these trained "
                f"models {leader} leads in {_objective(data)}{those}."
            )
        case "partial":
            seeds = [_whole(n) for n in items(data.get("seeds_so_far"))]
            on = f", {seeds[0]} of {seeds[1]} seeds so far," if len(seeds) == 2 and seeds[1] > seeds[0] else ""
            return f"Undecided so far: of the {count} settings judged{on} {leader} leads in {_objective(data)}{those}."
        case "unconfirmed":
            return f"Undecided: {leader} leads on the run’s own rows, and fresh rows do not confirm it."
        case "constraint":
            open_ = [_by_id(data, c) for c in items(data.get("contenders"))]
            asked = [student_named(data, c) for c in open_ if c.get("feasible") != "met"]
            names = among(asked) if len(asked) <= 3 else f"{len(asked)} of the {count} settings tried"
            return f"Undecided: {leader} leads, but whether {names} would {wanted} is open."
        case _:
            return (
                f"Undecided: {leader} leads in {_objective(data)}{those}, but is not shown to be more than {margin} "
                f"ahead of {rival}."
            )


def _miss(data: Json) -> str:
    slack = mapping(candidate_of(data, "leader").get("slack"))
    words = {
        "max_recall_loss": "of recall",
        "min_precision_gain": f"of {precision_of(data)}",
        "min_score": "of the score",
    }
    missed = {k: v for k, f in slack.items() if (v := number(mapping(f).get("value"))) is not None and v < 0}
    if not missed:
        return ""
    worst = min(missed, key=lambda k: missed[k])
    unit = "" if worst == "min_score" else f" {nats_per(data)}"
    figure = mapping(slack[worst])
    return f", which misses by {num(-missed[worst], number(figure.get('se')))}{unit} {words.get(worst, '')}"


def _figures(data: Json) -> str:
    expected, leader = mapping(data.get("expected")), candidate_of(data, "leader")
    seeds, rows = _whole(data.get("seeds")), _whole(data.get("rows"))
    design = f"{seeds or 1} seed{'s' if seeds > 1 else ''}, {rows} rows each"
    how = {
        "fresh rows": f"On fresh rows ({design})",
        "seeds left out of the choice": f"On seeds left out of the choice ({design})",
    }.get(text(expected.get("on")), f"On the rows that chose it ({design}), so optimistic,")
    cost = _cost(leader)
    if data.get("leader") == data.get("baseline"):
        how = how[0].lower() + how[1:].rstrip(",")
        figures = [expected.get("precision") or leader.get("objective"), expected.get("recall")]
        shown = ", ".join(
            f"{n} {_size(f, nats_per(data))}" for n, f in zip((precision_of(data), "recall"), figures, strict=True) if f
        )
        return f"It is the baseline that others are compared with; {how}: {shown}; {cost}."
    gain, loss = mapping(expected.get("precision_gain")), mapping(expected.get("recall_loss"))
    base = student_named(data, candidate_of(data, "baseline"))
    return (
        f"{how} it {_moved(gain, 'gains', 'loses', nats_per(data))} of {precision_of(data)} and "
        f"{_moved(loss, 'loses', 'gains', '')} of recall against {base}; {cost}."
    )


def _moved(figure: Json, rises: str, falls: str, unit: str) -> str:
    rising = (number(figure.get("value")) or 0.0) >= 0
    return f"{rises if rising else falls} {_size(figure if rising else _turned(figure), unit)}"


def _cost(c: Json) -> str:
    cost = mapping(c.get("cost"))
    if c.get("adopted"):
        return "its cost is not known, since it was trained elsewhere"
    rows, tokens = number(cost.get("teacher_rows")) or 0.0, number(cost.get("teacher_tokens"))
    drawn, fitted, teacher = (
        number(cost.get(k)) or 0.0 for k in ("draw_seconds", "fit_seconds", "teacher_fit_seconds")
    )
    own = number(cost.get("own_tokens"))
    itself = f", in which it draws {own:,.0f} tokens itself," if own else ""
    if not rows:
        how = f"its fit{itself}" if itself else "only its fit on the truth’s rows"
        return f"it costs no teacher draws, {'but ' if itself else ''}{how} ({seconds_words(fitted)} a seed here)"
    of = f" ({tokens:,.0f} tokens, {seconds_words(drawn)})" if tokens else ""
    taught = f", beside the teacher’s own fit ({seconds_words(teacher)})" if teacher else ""
    return f"it costs {rows:,.0f} teacher draws{of} and a fit{itself} ({seconds_words(fitted)}) a seed{taught}"


def _whole(value: object) -> int:
    n = number(value)
    return int(n) if n is not None and math.isfinite(n) else 0


def seconds_words(s: float) -> str:
    """Write a duration."""
    if 0 < s < 0.1:
        return f"{1000 * s:.2g} ms"
    return f"{s:.2g} s" if s < 10 else f"{s:.0f} s" if s < 600 else f"{s / 60:.0f} min"


def _sureness(data: Json) -> str:
    leader = candidate_of(data, "leader")
    p = number(leader.get("p_best")) or 0.0
    shown = ">0.999" if p > 0.999 else f"{p:.2g}" if p < 0.995 else f"{p:.3f}"
    words = f"P(best of those tried that meet the need) is {shown}"
    rival = candidate_of(data, "runner_up")
    if rival:
        lead = mapping(mapping(data.get("expected")).get("lead"))
        words += (
            f"; the closest rival, {student_named(data, rival)}, {_behind(lead, nats_per(data))} in {_objective(data)}"
        )
        if data.get("status") != "decided" and _draws(leader) and _draws(rival) == 0:
            words += " and costs no teacher draws"
    else:
        words += "; no other setting may still meet the need"
    if data.get("status") == "decided":
        error = number(data.get("error")) or 0.0
        size = " of the pilot’s size" if data.get("pilot") else ""
        return f"{words}; an answer as confident as this is wrong in at most {100 * error:g} % of such runs{size}."
    return f"{words}{_more(data)}."


def _draws(c: Json) -> float | None:
    return number(mapping(c.get("cost")).get("teacher_rows"))


def _behind(lead: Json, unit: str) -> str:
    behind = (number(lead.get("value")) or 0.0) >= 0
    return f"lies {_size(lead if behind else _turned(lead), unit)} {'behind' if behind else 'ahead'}"


def _turned(figure: Json) -> Json:
    """Return the figure with its sign flipped."""
    ends = [-(number(e) or 0.0) for e in reversed(items(figure.get("ci95")))]
    return {**figure, "value": -(number(figure.get("value")) or 0.0), "ci95": ends}


def _more(data: Json) -> str:
    more = mapping(data.get("more"))
    if not more:
        return ""
    seeds, rows = number(more.get("seeds")), number(more.get("rows"))
    ways = [f"about {seeds:.0f} seeds"] if seeds is not None else []
    ways += [f"about {rows:,.0f} rows a figure"] if rows is not None else []
    if not ways:
        return "; the present estimates lie so close that no affordable number of seeds or rows would decide"
    again = "" if seeds is None or data.get("pilot") else f": run again with --set seeds={seeds:.0f}"
    return f"; {' or '.join(ways)} in all would decide, if the estimates stayed as they are{again}"


# notes ---------------------------------------------------------------------------------------------------------------


def advice_notes(data: Json) -> list[str]:
    """Return notes: what was assumed or left out, and limits of a pilot."""
    need, said = mapping(data.get("need")), list[str]()
    if need.get("stated") is False:
        said.append(f"No need was stated: at most {_wanted(data).removeprefix('lose at most ')} may be lost.")
    on = text(mapping(data.get("expected")).get("on"))
    if on == "fresh rows":
        said.append(
            "The expected figures are from rows that took no part in the choice, but of the same trained models: "
            "training variance is still in them."
        )
        if need.get("score"):
            said.append(f"{text(need.get('score'))} was not measured again: it is from the run’s own rows.")
    elif on == "seeds left out of the choice":
        agreeing = _whole(mapping(data.get("expected")).get("agreeing"))
        said.append(
            f"Without fresh rows the sample was split: each seed’s figures are those of the setting that the other "
            f"seeds choose; {agreeing} of {_whole(data.get('seeds'))} choices are the leader."
        )
    if data.get("shared_prompts") is True:
        said.append(
            "Warning: models are judged on the prompts that they are trained on; of other prompts these figures say "
            "nothing. Keep some for judging: prompts: {file: ..., evaluate: 0.2}."
        )
    if any(c.get("training") == "direct" and _draws(c) for c in map(mapping, items(data.get("candidates")))):
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
    lacks = [f"{student_named(data, _by_id(data, c))} lacks {_listed(items(seeds))}" for c, seeds in lacking.items()]
    if lacks:
        said.append(f"All are compared on the {_seeds(data)} that they have in common: {among(lacks)}.")
    adopted = [mapping(c) for c in items(data.get("candidates")) if mapping(c).get("adopted")]
    if adopted:
        names = among(list(dict.fromkeys(text(c["adopted"]) for c in adopted)))
        said.append(
            f"Trained elsewhere and adopted: {names}. What they were trained on is what `adopt` was told, and their "
            "cost is not known, so none is called the cheaper."
        )
    return said + _pilot(mapping(data.get("pilot")))


def _listed(seeds: Sequence[object]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(str(_whole(s)) for s in seeds)}"


def _seeds(data: Json) -> str:
    count = _whole(data.get("seeds"))
    return f"{count} seed{'s' if count != 1 else ''}"


def _pilot(pilot: Json) -> list[str]:
    if not pilot:
        return []
    share, seconds = number(pilot.get("planned_share")) or 0.0, number(pilot.get("seconds")) or 0.0
    rows = {k: [_whole(n) for n in items(v)] for k, v in mapping(pilot.get("rows")).items()}
    seeds = [_whole(n) for n in items(pilot.get("seeds"))]
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


def tone_of(data: Json) -> Tone:
    """Return the tone of an answer."""
    tones: dict[str, Tone] = {"decided": "yes", "none": "no"}
    return tones.get(text(data.get("status")), "open")
