"""Advice in words: three sentences and notes, from the content of advice.json.

The sentences say what to take, what it gains and costs, and how certain that is; they claim no more than the status.
"""

from __future__ import annotations

import math

from hydrometer.report.typed_results import Diff, read
from hydrometer.report.values import Json, count, items, mapping, number, read_method, read_setting, text
from hydrometer.report.wording import Tone, among, difference, moved, num, setting

__all__ = [
    "advice_sentence",
    "advice_sentences",
    "asked_with",
    "candidate_by_id",
    "candidate_of",
    "difference_of",
    "distilled_at",
    "nats_per",
    "need_words",
    "precision_of",
    "provisional",
    "seconds_words",
    "student_named",
    "teacher_draws",
    "tone_of",
]

SCHEMA = 1
MAX_BYTES = 5_000_000
_OPTIONS = ("max_recall_loss", "min_precision_gain", "min_score", "weight", "margin")
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
    return first.rstrip(".") + _more(data) + "."


# names ---------------------------------------------------------------------------------------------------------------


def candidate_of(data: Json, which: str) -> Json:
    """Return the candidate that a key names: leader, runner_up, baseline or cheaper."""
    return candidate_by_id(data, data.get(which))


def candidate_by_id(data: Json, wanted: object) -> Json:
    """Return the candidate of an id, or an empty one."""
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


def need_words(data: Json) -> str:
    """Word the constraints: ``lose at most 0.1 nats per token of recall``."""
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


def asked_with(data: Json) -> str:
    """Say by which call of `advise` an advice was asked for: ``with --max-recall-loss 0.1``.

    Examples
    --------
    >>> asked_with({"need": {"max_recall_loss": 1.0, "margin": 0.02, "per": "token", "stated": True}})
    'with --max-recall-loss 1 --margin 0.02'
    """
    need = mapping(data.get("need"))
    if need.get("stated") is False:
        return "without a need"
    said = [f"--{k.replace('_', '-')} {n:g}" for k in _OPTIONS if (n := number(need.get(k))) is not None]
    said += [f"--score {text(need.get('score'))}"] if text(need.get("score")) else []
    return "with " + " ".join([*said, *(["--per sequence"] if need.get("per") == "sequence" else [])])


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
    tried = len(items(data.get("candidates")))
    wanted, other = need_words(data), _turned_to(data)
    margin = f"{number(mapping(data.get('need')).get('margin')) or 0:g} {nats_per(data)}"
    those = f" among those that {wanted}" if wanted else ""
    if data.get("status") == "decided":
        return f"Take {leader}: of {tried} settings tried it has the highest {_objective(data)}{those}."
    if data.get("status") == "none":
        of = ", as trained with one seed," if count(data.get("seeds")) == 1 else ""
        return f"None of the {tried} settings tried{of} is able to {wanted}; the nearest is {leader}{_miss(data)}."
    leads = _led(data, leader, those)
    if other:
        led = f"{leader} led in {_objective(data)}{those}" if not _miss(data) else f"{leader} was nearest to the need"
        leads = (
            f"{led} on the run’s own rows, and fresh rows turn the choice: on these {student_named(data, other)} leads"
        )
    match data.get("reason"):
        case "equivalent":
            same = among([student_named(data, candidate_by_id(data, c)) for c in items(data.get("contenders"))])
            cheaper = candidate_of(data, "cheaper")
            take = f"the cheaper, {student_named(data, cheaper)}" if cheaper else "whichever costs less"
            return (
                f"Undecided: {same} are equivalent within the margin of {margin} in {_objective(data)}{those}, so "
                f"take {take}."
            )
        case "one_seed":
            return (
                "Undecided: one seed never decides between students, since it says nothing of the variance between "
                f"training runs; of these trained models {leads}."
            )
        case "partial":
            seeds = [count(n) for n in items(data.get("seeds_so_far"))]
            on = f", {seeds[0]} of {seeds[1]} seeds so far," if len(seeds) == 2 and seeds[1] > seeds[0] else ""
            return f"Undecided so far: of the {tried} settings judged{on} {leads}."
        case "unconfirmed" if not other:
            return f"Undecided: {leader} leads on the run’s own rows, and fresh rows do not confirm it."
        case "constraint":
            open_ = [candidate_by_id(data, c) for c in items(data.get("contenders"))]
            asked = [student_named(data, c) for c in open_ if c.get("feasible") != "met"]
            names = among(asked) if len(asked) <= 3 else f"{len(asked)} of the {tried} settings tried"
            ahead = {} if _miss(data) else _ahead(data)
            if not other and ahead and asked == [student_named(data, ahead)]:
                return f"Undecided: {leads}."
            leads += ";" if other or ahead else ", and" if _miss(data) else ", but"
            return f"Undecided: {leads} whether {names} would {wanted} is open."
        case _ if other:
            return f"Undecided: {leads}."
        case _:
            return f"Undecided: {leads}, but is not shown to be more than {margin} ahead of {rival}."


def _led(data: Json, leader: str, those: str) -> str:
    """Say how the leader stands: it may be nearest to the need alone, or behind one that may break it."""
    if missed := _miss(data):
        tried = len(items(data.get("candidates")))
        return f"by the estimates none of the {tried} settings tried meets the need; the nearest is {leader}{missed}"
    ahead = _ahead(data)
    if not ahead:
        return f"{leader} leads in {_objective(data)}{those}"
    by, se = _by(data, ahead), number(mapping(ahead.get("objective")).get("se"))
    return (
        f"{leader} leads in {_objective(data)}{those.replace(' that ', ' that, by the estimates, ', 1)}; "
        f"ahead of it by {num(by, se)} {nats_per(data)} is {student_named(data, ahead)}, which is not shown to meet "
        "the need"
    )


def _ahead(data: Json) -> Json:
    """Return the candidate furthest ahead of the leader of those that are not shown to break the need; else empty."""
    open_ = [c for c in map(mapping, items(data.get("candidates"))) if c.get("feasible") == "open"]
    best = max(open_, key=lambda c: _by(data, c), default=Json())
    return best if best and _by(data, best) > 0 else {}


def _by(data: Json, c: Json) -> float:
    """Return how far a candidate's objective is above the leader's; minus infinity where one is not recorded."""
    own, other = (number(mapping(x.get("objective")).get("value")) for x in (candidate_of(data, "leader"), c))
    return -math.inf if own is None or other is None else other - own


def _turned_to(data: Json) -> Json:
    """Return the candidate that leads on fresh rows, where that is another one; else empty."""
    on_fresh = mapping(data.get("expected")).get("leader")
    is_turned = on_fresh is not None and on_fresh != data.get("leader") and data.get("status") == "undecided"
    return candidate_by_id(data, on_fresh) if is_turned else {}


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
    seeds, rows = count(data.get("seeds")), count(data.get("rows"))
    design = f"{seeds or 1} seed{'s' if seeds > 1 else ''}, {rows} rows each"
    how = {
        "fresh rows": f"On fresh rows ({design})",
        "seeds left out of the choice": f"On seeds left out of the choice ({design})",
    }.get(text(expected.get("on")), f"On the rows that chose it ({design}), so optimistic,")
    if data.get("leader") == data.get("baseline"):
        how = how[0].lower() + how[1:].rstrip(",")
        figures = [expected.get("precision") or leader.get("objective"), expected.get("recall")]
        shown = ", ".join(
            f"{n} {_size(f, nats_per(data))}" for n, f in zip((precision_of(data), "recall"), figures, strict=True) if f
        )
        who = student_named(data, leader) if _turned_to(data) else "it"
        said = f"{who} is the baseline that others are compared with; {how}: {shown}; {_cost(leader)}."
        return said[0].upper() + said[1:]
    gain, lost, unit = (
        difference_of(expected.get("precision_gain")),
        difference_of(expected.get("recall_loss")),
        nats_per(data),
    )
    base = student_named(data, candidate_of(data, "baseline"))
    who = student_named(data, leader) if _turned_to(data) else "it"
    return (
        f"{how} {who} {moved(gain, precision_of(data), unit)} and {moved(lost, 'recall', unit, sign=-1)} against "
        f"{base}; {_cost(leader)}."
    )


def difference_of(figure: object) -> Diff:
    """Read a figure of advice.json as the difference that it is."""
    return read(Diff, figure)


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
    taught = f", beside the teacher’s own fit ({seconds_words(teacher)})" if teacher else ""
    if not rows:
        direct = c.get("training") == "direct"
        how = "only its fit on the truth’s rows" if direct else f"but its fit{itself}"
        return f"it costs no teacher draws, {how} ({seconds_words(fitted)} a seed here){'' if direct else taught}"
    of = f" ({tokens:,.0f} tokens, {seconds_words(drawn)})" if tokens else ""
    return f"it costs {rows:,.0f} teacher draws{of} and a fit{itself} ({seconds_words(fitted)}) a seed{taught}"


def seconds_words(s: float) -> str:
    """Write a duration."""
    if 0 < s < 0.1:
        return f"{1000 * s:.2g} ms"
    return f"{s:.2g} s" if s < 10 else f"{s:.0f} s" if s < 600 else f"{s / 60:.0f} min"


def _sureness(data: Json) -> str:
    leader = candidate_of(data, "leader")
    p = number(leader.get("p_best")) or 0.0
    shown = ">0.999" if p > 0.999 else f"{p:.2g}" if p < 0.995 else f"{p:.3f}"
    words = f"P(best of those tried that meet the need) is {shown}{_stricter(data)}"
    rival = candidate_of(data, "runner_up")
    if rival:
        lead, per = difference_of(mapping(data.get("expected")).get("lead")), nats_per(data)
        is_free = data.get("status") != "decided" and teacher_draws(leader) and teacher_draws(rival) == 0
        named = f"the closest rival, {student_named(data, rival)},{' which costs no teacher draws,' if is_free else ''}"
        if lead.value is not None and lead.value < 0:
            by = difference(lead, per, sign=-1).removeprefix("+")
            words += f"; {named} is ahead of it in {_objective(data)} by {by}"
            words += ", but is not shown to meet the need" if rival.get("feasible") == "open" else ""
        else:
            words += f"; its lead over {named} in {_objective(data)} is {difference(lead, per)}"
    else:
        words += "; no other setting may still meet the need"
    if data.get("status") == "decided":
        error = number(data.get("error")) or 0.0
        size = " of the pilot’s size" if data.get("pilot") else ""
        return f"{words}; an answer as confident as this is wrong in at most {100 * error:g} % of such runs{size}."
    return f"{words}{_more(data)}."


def _stricter(data: Json) -> str:
    """Say why a high probability may stand beside "not shown"."""
    if data.get("reason") not in ("close", "constraint", "unconfirmed"):
        return ""
    again = ", and fresh rows" if mapping(data.get("expected")).get("on") == "fresh rows" else ""
    return f" on the run’s own rows (a decision asks for a stricter bound{again})"


def teacher_draws(c: Json) -> float | None:
    """Return how many rows the teacher draws for a candidate, for one seed; None where that is not known."""
    return number(mapping(c.get("cost")).get("teacher_rows"))


def _more(data: Json) -> str:
    """Say what would decide; nothing where the answer is decided, or not for want of data."""
    more = mapping(data.get("more"))
    if data.get("reason") == "one_seed":
        return "; three seeds or more would tell: run again with --set seeds=5"
    if not more:
        return ""
    if _turned_to(data):
        return "; own and fresh rows disagree, so no number that would decide is known: train more seeds, on more rows"
    seeds, both = number(more.get("seeds")), mapping(more.get("together"))
    ways = [f"about {seeds:.0f} seeds"] if seeds is not None else []
    ways += [_rows_words(data, more)] if number(more.get("rows")) is not None else []
    if not ways and both:
        seeds = number(both.get("seeds"))
        ways = [f"about {seeds or 0:.0f} seeds and {_rows_words(data, both)} together, but neither alone,"]
    if not ways:
        alone = "neither more seeds alone nor more rows alone would decide"
        alone = "no number up to 1,000 seeds would decide, with rows in proportion" if "together" in more else alone
        return f"; {alone}, if the estimates stayed as they are"
    again = "" if seeds is None or data.get("pilot") else f": run again with --set seeds={seeds:.0f}"
    rows = " and as many rows (data.evaluate)" if again and both else ""
    return f"; in all, {' or '.join(ways)} would decide, if the estimates stayed as they are{again}{rows}"


def _rows_words(data: Json, more: Json) -> str:
    """Say how many rows, and of how many prompts where those are a sample: more answers to the same would not do."""
    rows, here = number(more.get("rows")) or 0.0, number(data.get("rows"))
    prompts = number(data.get("prompts"))
    of = f" (of {prompts * rows / here:,.0f} prompts)" if prompts and here else ""
    return f"about {rows:,.0f} rows a figure{of}"


def tone_of(data: Json) -> Tone:
    """Return the tone of an answer."""
    tones: dict[str, Tone] = {"decided": "yes", "none": "no"}
    return tones.get(text(data.get("status")), "open")
