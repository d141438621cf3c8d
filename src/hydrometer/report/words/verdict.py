"""The verdict in words: teacher gate, trade-off, control, caveats, in this order.

A sentence claims a direction only where its 95 % interval excludes zero; it says "undecided" where the interval holds
zero, and says why where there is no interval. Precision is always given with its two parts,
``dPrecision = -dH - dKL(q||p*)``: a student that only got colder gains the first alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hydrometer.report.read_results import parse
from hydrometer.report.typed_results import Chain, Control, Diff, Run
from hydrometer.report.values import count, mapping
from hydrometer.report.wording import (
    KL,
    ON_SUPPORT,
    Sentence,
    Tone,
    among,
    collapse_words,
    difference,
    distilled_at,
    is_neutral,
    is_tilt,
    missing_words,
    num,
    recall_of,
    setting,
    span,
    unit_per,
)
from hydrometer.report.words.adopted_text import adopted_sentences
from hydrometer.report.words.crossed_text import crossed_sentences
from hydrometer.report.words.gap_text import gap_sentences
from hydrometer.report.words.grid_text import capacity_sentence, map_sentences
from hydrometer.report.words.judged_text import judged_sentences
from hydrometer.report.words.row_text import row_words
from hydrometer.report.words.seed_text import seed_words
from hydrometer.report.words.tradeoff_text import MAX_METHODS, coldest, tradeoff_sentence

__all__ = ["Sentence", "sentences", "verdict"]

MAX_REASONS = 3


def verdict(results: dict[str, Any]) -> dict[str, list[str]]:
    """Say in words what a run found.

    Parameters
    ----------
    results : the object that results.json holds.

    Returns
    -------
    dict : per chain the sentences; first the teacher gate, the trade-off and the control, then the caveats.

    Raises
    ------
    FolderError : where the schema is a newer release's.

    Examples
    --------
    >>> verdict({"schema": 1, "summary": {"groups": {}, "chains": {}}})
    {}
    """
    run = parse(results)
    return {name: [s.text for s in sentences(run, chain)] for name, chain in run.chains.items()}


def sentences(run: Run, chain: Chain) -> list[Sentence]:
    """Write one chain’s verdict: gate, trade-off and control, capacity where it was measured, then the caveats."""
    if chain.judged:
        return [*judged_sentences(run, chain), *_caveats(run, chain)]
    said = map_sentences(chain) if chain.points else [_gate(chain), tradeoff_sentence(run, chain), _control(run, chain)]
    said += capacity_sentence(run, chain)
    if missing := missing_words(run, chain.name):
        said = [Sentence("so far", "open", missing), *(_so_far(s, chain) for s in said)]
    said += [*gap_sentences(run, chain), *adopted_sentences(chain), *crossed_sentences(chain)]
    said += _caveats(run, chain)
    return said if not chain.reference else _beside_texts(said, run, chain)


def _beside_texts(said: list[Sentence], run: Run, chain: Chain) -> list[Sentence]:
    """Say what is measured under what and over how much text, where the truth is texts."""
    reference = chain.reference
    text = (
        "The truth is texts: recall is over texts whose prompts no model of this run was trained on. Texts score "
        f"nothing, so precision and KL(q‖{reference}) are under the {reference}, which may prefer other answers."
        + _lengths(run, chain)
    )

    def named(text: str) -> str:
        return text.replace(KL, f"KL(q‖{reference})").replace("the truth’s mode", f"the {reference}’s mode")

    renamed = [Sentence(s.topic, s.tone, named(s.text)) for s in said]
    return [*renamed, Sentence("texts", "note", text)]


def _lengths(run: Run, chain: Chain) -> str:
    """Say how long the texts are beside the drawn answers, where both are known."""
    of = run.of_chain(chain.name)
    whole = next((a / b for g in of if (a := g.value("recall")) and (b := g.value("recall_per_token"))), None)
    given = (mapping(mapping(s.get("chains")).get(chain.name)).get("truth") for s in run.specs)
    most = next((n for truth in given if (n := count(mapping(truth).get("max_new_tokens")))), 0)
    if whole is None or not most:
        return ""
    return f" Recall is over whole texts, mean {whole:.0f} tokens; precision over answers of at most {most}."


def _so_far(said: Sentence, chain: Chain) -> Sentence:
    """Weaken a sentence to what the cells judged so far can show."""
    controls = [c for at in chain.points or [chain] for c in at.control]
    not_yet = {
        "gate": (
            not chain.points and chain.gate.diff is None,
            "The teacher gate is open so far: it needs teacher and direct student.",
        ),
        "trade-off": (
            not chain.points and coldest(chain) is None,
            "No student of a selective teacher is judged so far.",
        ),
        "control": (
            all(is_neutral(c.selectivity) for c in controls),
            "The control is open so far: no student is judged both distilled and decoded.",
        ),
    }
    is_early, words = not_yet.get(said.topic, (False, ""))
    if is_early:
        return Sentence(said.topic, "open", words)
    return Sentence(said.topic, "note" if said.tone == "note" else "open", f"So far: {said.text}")


def _gate(chain: Chain) -> Sentence:
    diff = chain.gate.diff
    if chain.teacher_group is None and diff is None:
        return Sentence("gate", "note", "There is no teacher gate: the teacher is the truth itself.")
    sign = diff.sign if diff is not None else None
    state = chain.gate.passed if sign is None else {1: True, -1: False, 0: None}[sign]
    size, interval = "", ""
    unit = (
        f"{chain.unit} per byte of text" if diff is not None and diff.metric == "recall_per_byte" else unit_per(chain)
    )
    if diff is not None and diff.value is not None:
        size = f"{num(abs(diff.value), diff.se)} {unit}"
        interval = f" ({span(diff, -1 if diff.value < 0 and state is False else 1)})"
    if state is True:
        words = f"The teacher gate holds: the teacher’s recall beats the direct student’s by {size or 'some nats'}"
        return Sentence("gate", "yes", f"{words}{interval}, so it had something to teach.")
    if state is False:
        words = f"The teacher gate fails: the teacher’s recall lies {size or 'some nats'} below the direct student's"
        return Sentence(
            "gate", "no", f"{words}{interval}. It had nothing to teach, and what follows shows cooling only."
        )
    if diff is None or diff.value is None or diff.ci95 is None:
        why = chain.gate.reason or "the recall of the teacher or of the direct student has no interval"
        return Sentence("gate", "open", f"The teacher gate is undecided: {why}.")
    return Sentence(
        "gate",
        "open",
        f"The teacher gate is undecided: the teacher’s recall minus the direct student’s is "
        f"{difference(diff, unit)}. A gain below may be cooling only.",
    )


def outcome(control: Control) -> tuple[int | None, int | None]:
    """Return who is ahead at equal entropy on recall and on KL: +1 distilled, -1 decoded, 0 undecided, None unknown."""
    return _ahead(control.matched or {})


def _ahead(found: Mapping[str, Diff]) -> tuple[int | None, int | None]:
    recall, kl = recall_of(found), found.get("kl_student_truth")
    by_kl = None if kl is None or kl.sign is None else -kl.sign
    return (None if recall is None else recall.sign), by_kl


def _lead(by_recall: int | None, by_kl: int | None) -> tuple[Tone, str]:
    who = {1: "distilling is ahead", -1: "decoding the direct student is ahead", 0: "undecided", None: "not comparable"}
    if by_recall == by_kl:
        tones: dict[int | None, Tone] = {1: "yes", -1: "no"}
        both = " on recall and on " + KL
        return tones.get(by_recall, "open"), who[by_recall] + both
    tone: Tone = "open" if by_recall is None or by_kl is None or by_recall * by_kl < 0 else "note"
    return tone, f"{who[by_recall]} on recall, {who[by_kl]} on {KL}"


def _size(diff: Diff | None, name: str, unit: str) -> str:
    if diff is None or diff.value is None:
        return f"{name}: no finite difference"
    return f"{name} {difference(diff, unit)}"


def _matched(control: Control, chain: Chain) -> Sentence:
    matched = control.matched or {}
    tone, lead = _lead(*outcome(control))
    recall = recall_of(matched)
    on_support = recall is not None and recall.metric == "recall_on_support"
    name = f"{ON_SUPPORT}, as recall is −∞," if on_support else "recall"
    at = f" ({num(control.matched_entropy)} {chain.unit})" if control.matched_entropy is not None else ""
    return Sentence(
        "control",
        tone,
        f"The control, at equal entropy{at}: {lead}. Distilled at {distilled_at(control)} minus the direct "
        f"student decoded: {_size(recall, name, unit_per(chain))}; "
        f"{_size(matched.get('kl_student_truth'), KL, 'nats')}.",
    )


def _others(chosen: Control, rest: list[Control]) -> str:
    if len({c.method for c in rest}) > MAX_METHODS:
        leads = Counter(_lead(*outcome(c))[1] for c in rest)
        counted = "; ".join(f"{lead} at {n}" for lead, n in leads.most_common())
        return f" Of the {len(rest)} other settings and ways to distil: {counted}."
    same = [distilled_at(c) for c in rest if outcome(c) == outcome(chosen)]
    words = f" The same holds at {among(same)}." if same else ""
    for control in rest:
        if outcome(control) != outcome(chosen):
            words += f" At {distilled_at(control)}: {_lead(*outcome(control))[1]}."
    return words


def _tilted(control: Control, chain: Chain) -> tuple[Tone, str]:
    """What a tilt does to the teacher and what to the student, at one setting."""
    unit = unit_per(chain)

    def sizes(found: Mapping[str, Diff]) -> str:
        return f"{_size(recall_of(found), 'recall', unit)}; {_size(found.get('kl_student_truth'), KL, 'nats')}."

    tone, lead = _lead(*_ahead(control.same_setting))
    at = distilled_at(control)
    words = (
        f"The control, at the same {at}: {lead}. Distilled from the tilted teacher minus the direct student, tilted: "
    )
    words += sizes(control.same_setting)
    if control.vs_neutral_decoded:
        words += f" Minus the distilled student, tilted: {sizes(control.vs_neutral_decoded)}"
    return tone, words


def _control(run: Run, chain: Chain) -> Sentence:
    tilts = [_tilted(c, chain) for c in chain.control if is_tilt(c.selectivity)]
    selective = [c for c in chain.control if not (is_neutral(c.selectivity) or is_tilt(c.selectivity))]
    if tilts and not selective:
        tone, _ = tilts[0]
        agree = all(other == tone for other, _ in tilts)
        return Sentence("control", tone if agree else "note", " ".join(words for _, words in tilts))
    found = _sharpened(run, chain, sorted(selective, key=lambda c: not c.method))
    return Sentence("control", found.tone, " ".join([found.text, *(words for _, words in tilts)]))


def _sharpened(run: Run, chain: Chain, selective: list[Control]) -> Sentence:
    matched = [c for c in selective if c.matched]
    if matched:
        # Decreasing teacher entropy, as the trade-off is listed: the last is the coldest.
        sentence = _matched(matched[-1], chain)
        return Sentence("control", sentence.tone, sentence.text + _others(matched[-1], matched[:-1]))
    direct = run.groups.get(chain.direct_group or "")
    if not selective and direct is not None and direct.value("n_components") == 1:
        words = (
            "There is no control: a student of one component has no weights to sharpen, so decoding changes nothing."
        )
        return Sentence("control", "note", words)
    if not selective:
        return Sentence(
            "control",
            "open",
            "No control was run: whether decoding the direct student selectively does as well as distilling is open.",
        )
    last = selective[-1]
    why = last.matched_reason or "the decoded student reaches no equal entropy"
    words = f"The control is undecided at equal entropy: {why.rstrip('.')}."
    recall, kl = recall_of(last.same_setting), last.same_setting.get("kl_student_truth")
    if (recall and recall.value is not None) or (kl and kl.value is not None):
        name = ON_SUPPORT if recall is not None and recall.metric == "recall_on_support" else "recall"
        words += (
            f" At the same setting, {distilled_at(last)}, distilled minus decoded: "
            f"{_size(recall, name, unit_per(chain))}; {_size(kl, KL, 'nats')}; the two differ in entropy too."
        )
    return Sentence("control", "open", words)


def _caveats(run: Run, chain: Chain) -> list[Sentence]:
    said = [
        "Precision alone is improper: the truth’s mode repeated for ever would maximise it. "
        f"Read it beside entropy, {KL} and recall, which is proper."
    ]
    if chain.points:
        said.append(
            "Every interval is 95 % by itself: of many without any effect, one in twenty would exclude zero. Points "
            "share their seeds, so neighbouring tiles err together."
        )
    if chain.seeds == 1 and not chain.judged:
        said.append(
            "One seed: the intervals speak of these trained models only, not of what training again would give."
        )
    said += seed_words(run, chain)
    said += row_words(run, chain)
    said += collapse_words(run, chain)
    said += [f"Of the figures: {words}." for name, words in run.doubts if name == chain.name]
    infinite = [g for g in run.of_chain(chain.name) if g.is_infinite("recall")]
    if infinite:
        cut = sorted({setting(g.decoding or g.selectivity) for g in infinite})
        said.append(
            f"Recall is −∞ at {among(cut)}: a cut-off gives some of the truth’s draws probability zero. "
            f"{ON_SUPPORT.capitalize()} stands in for it, over the truth’s draws that keep some probability, "
            "so two models' figures are not over the same draws."
        )
    chosen = [g for g in run.of_chain(chain.name) if g.absent]
    if chosen:
        where = sorted({setting(g.decoding) for g in chosen})
        said.append(
            f"Laws at {among(where)} cannot be scored: rows chosen among candidates have no log-probability that can "
            "be computed. They have precision, texts and cost, but no entropy, recall or KL, and are left out of "
            "figures over recall or entropy. Students distilled from them have every figure."
        )
    failed = [c for c in run.cells if c.chain == chain.name and not c.ok]
    if failed:
        total = sum(c.chain == chain.name for c in run.cells)
        reasons = Counter(c.reason or "no reason recorded" for c in failed).most_common(MAX_REASONS)
        listed = "; ".join(f"{reason} ({n})" for reason, n in reasons)
        said.append(f"{len(failed)} of {total} cells failed and are in no mean: {listed}.")
    return [Sentence("caveat", "note", s) for s in said]
