from __future__ import annotations

import copy
from typing import Any

import pytest
import report_synthetic as synthetic
from report_synthetic import contrast
from rich.console import Console

from hydrometer.core.errors import FolderError
from hydrometer.report import summary_table, verdict
from hydrometer.report.read_results import parse
from hydrometer.report.tables.model_tables import group_table, spread_table
from hydrometer.report.wording import entry, model
from hydrometer.report.words.verdict import sentences

BASE = synthetic.results(seeds=3, mixture=False)


@pytest.fixture
def run() -> dict[str, Any]:
    return copy.deepcopy(BASE)


def chain(run: dict[str, Any]) -> dict[str, Any]:
    return run["summary"]["chains"]["smollm2"]


def said(run: dict[str, Any]) -> list[str]:
    return verdict(run)["smollm2"]


def last_control(run: dict[str, Any]) -> dict[str, Any]:
    return chain(run)["control"][-1]


def test_gate_holds_and_comes_first(run: dict[str, Any]) -> None:
    gate = said(run)[0]
    assert gate.startswith("The teacher gate holds")
    assert "6.8 nats per sequence" in gate
    assert "95 % interval" in gate


def test_gate_fails(run: dict[str, Any]) -> None:
    chain(run)["gate"] = {"passed": False, "contrast": contrast("t", "d", "recall", -9.5, 2.0)}
    gate = said(run)[0]
    assert "The teacher gate fails" in gate
    assert "9.5 nats per sequence below" in gate
    assert "95 % interval 5.6 to 13.4" in gate
    assert "cooling only" in gate


def test_gate_is_undecided_when_the_interval_holds_zero_whatever_the_file_says(run: dict[str, Any]) -> None:
    chain(run)["gate"] = {"passed": True, "contrast": contrast("t", "d", "recall", 1.0, 2.0)}
    assert "undecided" in said(run)[0]
    assert "holds" not in said(run)[0]


def test_gate_without_an_interval_gives_the_reason(run: dict[str, Any]) -> None:
    chain(run)["gate"] = {"passed": None, "contrast": None, "reason": "the teacher’s cell failed"}
    assert said(run)[0] == "The teacher gate is undecided: the teacher’s cell failed."


def test_every_difference_whose_interval_holds_zero_is_undecided(run: dict[str, Any]) -> None:
    """Gate, trade-off, control, adopted models and gaps: none claims a direction, and each says the word."""
    words = ("precision", "recall", "entropy", "kl_student_truth")
    zero = {m: contrast("a", "b", m, 0.3, 2.0) for m in words}
    c = chain(run)
    c["gate"]["contrast"] = zero["recall"]
    c["tradeoff"][-1]["vs_neutral"] = zero
    c["control"] = c["control"][-1:]
    c["control"][0]["matched_entropy"] = {"entropy": 50.1, **zero}
    student = c["tradeoff"][-1]["group"]
    c["adopted"] = [{"group": student, "name": "mine", "training": "direct", "vs_direct": zero}]
    figure = {"held_out": 1.0, "training_prompts": 0.7, "gap": zero["recall"]}
    c["generalisation"] = [{"group": student, "figures": {"recall": figure}, "vs_direct": {"recall": zero["recall"]}}]
    found = [s for s in sentences(parse(run), parse(run).chains["smollm2"]) if s.topic != "caveat"]
    assert {"gate", "trade-off", "control", "adopted", "gap"} <= {s.topic for s in found}
    for s in found:
        assert s.text.count("interval −3.6 to 4.2") == (
            s.text.count("undecided (+") + s.text.count("to 4.2, undecided)")
        )
        assert not any(verb in s.text for verb in ("raises", "lowers", "is ahead", "beats", "holds:"))


def test_few_rows_are_said_once_and_named_where_few_have_them(run: dict[str, Any]) -> None:
    assert not any("decide" in s for s in said(run)[3:])
    mine = [c for c in run["cells"] if c["chain"] == "smollm2"]
    for cell in mine:
        cell["metrics"]["recall"]["caution"] = "few_rows"
    teacher = [c for c in mine if c["role"] == "teacher"]
    for cell in teacher:
        cell["metrics"]["entropy"]["caution"] = "few_rows"
    n = len(mine)
    (words,) = (s for s in said(run)[3:] if "decide" in s)
    assert words.startswith(f"Few rows decide recall of {n} of {n} cells and entropy of teacher: fewer than six carry")
    run["specs"][0]["chains"]["smollm2"]["truth"] = {"prompts": {"are": "sample"}}
    for prompts, why in ((12, "as of any so few"), (60, "for fewer than six of them carry the error")):
        chain(run)["prompts"] = {"judged": prompts, "rows_judged": 4 * prompts}
        (words,) = (s for s in said(run)[3:] if "decide" in s)
        assert words.startswith(
            f"The {prompts} prompts are a sample, and few of them decide recall of {n} of {n} cells"
        )
        assert why in words
        assert "rows" not in words


def test_no_teacher(run: dict[str, Any]) -> None:
    chain(run)["teacher_group"] = None
    chain(run)["gate"] = {"passed": None, "contrast": None}
    assert "the teacher is the truth itself" in said(run)[0]


def test_tradeoff_splits_the_gain(run: dict[str, Any]) -> None:
    words = said(run)[1]
    assert "Distilling at temperature 0.6 instead of at temperature 1 raises precision by 81.1 nats" in words
    assert "−ΔH = +54.4 (it got colder)" in words
    assert "−ΔKL(q‖p*) = +26.7 (it fits better)" in words
    assert "it lowers recall by 22.8 nats" in words
    assert "; 2.43 per token)" in words  # "raises" has said the sign
    chain(run)["tradeoff"][-1]["vs_neutral"]["precision_per_token"]["value"] *= -1
    assert "; −2.43 per token)" in said(run)[1]  # shorter answers: a token's precision fell


def test_tradeoff_of_cooling_alone(run: dict[str, Any]) -> None:
    d = chain(run)["tradeoff"][-1]["vs_neutral"]
    d["kl_student_truth"] = contrast("a", "b", "kl_student_truth", 0.2, 1.0)
    d["recall"] = contrast("a", "b", "recall", -1.0, 4.0)
    words = said(run)[1]
    assert "−ΔKL(q‖p*) = −0.2 (undecided)" in words
    assert "leaves recall undecided (−1.0 nats" in words


def test_tradeoff_falls_back_on_the_direct_student(run: dict[str, Any]) -> None:
    chain(run)["neutral_group"] = None
    chain(run)["tradeoff"][-1]["vs_neutral"] = {}
    assert "rather than training directly" in said(run)[1]


def test_no_selective_student(run: dict[str, Any]) -> None:
    chain(run)["tradeoff"] = chain(run)["tradeoff"][:1]
    assert "no student was distilled selectively" in said(run)[1]


def test_infinite_recall_uses_its_companion_and_says_so(run: dict[str, Any]) -> None:
    step, control = chain(run)["tradeoff"][-1], last_control(run)
    for diffs in (step["vs_neutral"], control["matched_entropy"]):
        diffs["recall"] = contrast("a", "b", "recall", None, 1.0)
        diffs["recall_on_support"] = contrast("a", "b", "recall_on_support", -4.0, 1.0)
    group = run["summary"]["groups"]["smollm2/direct@0.6"]
    group["metrics"]["recall"] = synthetic.metric(None, None, 17)
    group["decoding"] = {"temperature": 0.6, "top_p": 0.9}
    _, trade, decides, *caveats = said(run)
    assert "recall is −∞, and it lowers recall on the support by 4.0 nats" in trade
    assert "recall on the support, as recall is −∞" in decides
    (infinite,) = (c for c in caveats if "temperature 0.6, top-p 0.9" in c)
    assert "probability zero. Recall on the support stands in" in infinite
    assert "_" not in " ".join(said(run))  # words, no identifiers


def matched(run: dict[str, Any], recall: float, kl: float) -> str:
    last_control(run)["matched_entropy"] = {
        "entropy": 50.1,
        "recall": contrast("a", "b", "recall", recall, 2.0),
        "kl_student_truth": contrast("a", "b", "kl_student_truth", kl, 2.0),
    }
    chain(run)["control"] = chain(run)["control"][-1:]
    return said(run)[2]


@pytest.mark.parametrize(
    ("recall", "kl", "lead"),
    [
        (20.0, -9.0, "distilling is ahead on recall and on KL(q‖p*)"),
        (-20.0, 9.0, "decoding the direct student is ahead on recall and on KL(q‖p*)"),
        (1.0, 1.0, "undecided on recall and on KL(q‖p*)"),
        (20.0, 9.0, "distilling is ahead on recall, decoding the direct student is ahead on KL(q‖p*)"),
        (20.0, 1.0, "distilling is ahead on recall, undecided on KL(q‖p*)"),
    ],
)
def test_control(run: dict[str, Any], recall: float, kl: float, lead: str) -> None:
    assert lead in matched(run, recall, kl)


def test_control_tells_where_other_settings_differ(run: dict[str, Any]) -> None:
    words = said(run)[2]
    assert "Distilled at temperature 0.6" in words
    assert "At temperature 0.8: undecided on recall, decoding the direct student is ahead on KL(q‖p*)." in words


def test_controls_of_many_ways_to_distil_are_counted(run: dict[str, Any]) -> None:
    last = last_control(run)
    for loss, sign in (("jsd", 1), ("kl_teacher_student", 1), ("skew", 1), ("total_variation", -1)):
        matched = {
            name: contrast("a", "b", name, sign * value, 0.1)
            for name, value in (("recall", 2.0), ("kl_student_truth", -2.0))
        }
        chain(run)["control"].append({**last, "loss": loss, "matched_entropy": matched})
    words = said(run)[2]
    others = len(chain(run)["control"]) - 1 - sum(not c["selectivity"] for c in chain(run)["control"])
    assert f"Of the {others} other settings and ways to distil: " in words
    assert "; decoding the direct student is ahead on recall and on KL(q‖p*) at 1" in words
    assert "The same holds at" not in words


def test_control_without_a_match_gives_the_reason(run: dict[str, Any]) -> None:
    for control in chain(run)["control"]:
        control["matched_entropy"], control["matched_reason"] = None, "the path does not reach it."
    words = said(run)[2]
    assert "undecided at equal entropy: the path does not reach it. At the same setting" in words
    assert "differ in entropy too" in words


def test_no_control(run: dict[str, Any]) -> None:
    chain(run)["control"] = []
    assert "No control was run" in said(run)[2]


def test_caveats(run: dict[str, Any]) -> None:
    assert "improper" in said(run)[3]
    assert not any("One seed" in s for s in said(run))
    chain(run)["seeds"] = 1
    run["cells"][0] |= {"status": "failed", "reason": "out of memory", "metrics": {}}
    caveats = said(run)[3:]
    assert any(s.startswith("One seed") for s in caveats)
    assert any(f"1 of {len(run['cells'])} cells failed" in s and "out of memory (1)" in s for s in caveats)


def test_caveats_of_means_over_seeds(run: dict[str, Any]) -> None:
    assert any(s.startswith("3 seeds are few") for s in said(run)[3:])
    chain(run)["seeds"] = 10
    assert not any("seeds" in s for s in said(run)[3:])
    groups = run["summary"]["groups"]
    direct = groups[chain(run)["direct_group"]]
    direct |= {"unseen": 0.259, "seeds": 10}
    direct["metrics"]["recall"] |= {"median": -170.0, "q25": -180.0, "q75": -160.0, "two_peaks": True}
    direct["metrics"]["precision"] |= {"two_peaks": False, "few_seeds": True}
    caveats = said(run)[3:]
    assert any(s.startswith("Two peaks over seeds: recall of direct.") for s in caveats)
    assert any(s.startswith("Few seeds for so skewed a spread: precision of direct.") for s in caveats)
    assert any("10 seeds: an outcome that up to 26% of all trainings have" in s for s in caveats)
    assert any("twice as many would bring 26% down to 14%." in s for s in caveats)
    found = {
        "code": "controls-disagree",
        "severity": "warning",
        "chain": "smollm2",
        "what": "a",
        "why": "b",
        "fix": "c",
    }
    run["summary"]["findings"] = [found]
    assert "Of the figures: a: b; c." in said(run)


def test_shares_have_intervals_within_zero_and_one(run: dict[str, Any]) -> None:
    metrics = run["summary"]["groups"][chain(run)["direct_group"]]["metrics"]
    metrics["eos_rate"] |= {"value": 0.0, "se": 0.094, "ci95": [-0.207, 0.207]}
    metrics["recall"] |= {"value": -0.05, "se": 0.094, "ci95": [-0.257, 0.157]}
    parsed = parse(run)
    cells = [
        cell
        for extra in (True, False)
        for row in group_table(parsed, parsed.chains["smollm2"], extra=extra).rows
        for cell in row
    ]
    assert "0.000 ± 0.094\n0.000…0.207" in cells
    assert "−0.050 ± 0.094\n−0.257…0.157" in cells


def test_tables_have_intervals_beside_errors_and_medians_on_the_page(run: dict[str, Any]) -> None:
    direct = run["summary"]["groups"][chain(run)["direct_group"]]
    direct["metrics"]["recall"] |= {"median": -170.0, "q25": -180.0, "q75": -160.0, "two_peaks": True}
    direct["metrics"]["recall"]["few_seeds"] = True
    direct["seeds"] = 10
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(summary_table(run))
    console.file.close()
    lines = console.export_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "−173.0 ± 5.1" in line)
    low, high = direct["metrics"]["recall"]["ci95"]
    ends = f"−{-low:.1f}…−{-high:.1f}"
    assert ends in lines[at + 1]
    assert [lines[at + i].strip() for i in (2, 3)] == ["few seeds", "two peaks"]
    parsed = parse(run)
    here = parsed.chains["smollm2"]
    page = spread_table(parsed, here)
    assert ["−170.0, −180.0 to −160.0, two peaks"] in [row[1:] for row in page.rows]
    assert page.head == ["model", "recall"]
    assert any(
        cell.endswith(f"\n{ends}, few seeds, two peaks") for row in group_table(parsed, here).rows for cell in row
    )


def test_another_schema_is_refused() -> None:
    with pytest.raises(FolderError, match="schema"):
        verdict({"schema": 2})


def test_summary_table_prints_names_as_text(run: dict[str, Any]) -> None:
    run["summary"]["chains"]["[bold]x\x1b[31m"] = {**chain(run), "truth": "x"}
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(summary_table(run))
    console.file.close()
    text = console.export_text()
    assert "[bold]x" in text
    assert "\x1b[31m" not in text
    assert "−174.7 ± 4.2" in text
    assert "The teacher gate holds" in text


def test_empty_results() -> None:
    assert verdict({"schema": 1, "summary": {"chains": {"c": {}}}})["c"][0].startswith("There is no teacher gate")


def test_rows_of_a_truth_that_is_the_teacher_have_names_of_their_own() -> None:
    truth = {"chain": "c", "role": "truth", "metrics": {}}
    cold = {**truth, "decoding": {"temperature": 0.7}}
    judged = {**truth, "model": "big"}
    student = {"chain": "c", "role": "student", "model": "truth", "metrics": {}}
    groups = {"a": truth, "b": cold, "c": judged, "d": student}
    names = [model(g) for g in parse({"schema": 1, "summary": {"chains": {}, "groups": groups}}).groups.values()]
    assert names == ["truth", "truth at temperature 0.7", "truth (big)", "truth"]


def test_a_kl_is_infinite_upwards() -> None:
    infinite = {"value": None, "se": None, "n_neg_inf": 2}
    group = {"chain": "c", "role": "student", "metrics": {"recall": infinite, "kl_truth_student": infinite}}
    found = parse({"schema": 1, "summary": {"chains": {}, "groups": {"g": group}}}).groups["g"]
    assert (entry(found, "recall"), entry(found, "kl_truth_student")) == ("−∞", "∞")


def test_no_control_is_asked_of_a_student_without_weights(run: dict[str, Any]) -> None:
    here = chain(run)
    here["control"] = []
    assert "No control was run" in said(run)[2]
    run["summary"]["groups"][here["direct_group"]]["metrics"]["n_components"] = {"value": 1.0}
    assert said(run)[2].startswith("There is no control: a student of one component")


def test_of_many_methods_those_are_named_that_another_beats_on_both(run: dict[str, Any]) -> None:
    step = next(s for s in chain(run)["tradeoff"] if s["coldest"])
    groups = run["summary"]["groups"]
    moves = {"kl_teacher_student": (1, 2), "jsd": (-1, -2), "total_variation": (1, -2), "jsd_scaled": (0.1, 2)}
    step["vs_methods"] = {}
    for loss, (precision, recall) in moves.items():
        name = f"{step['group']}.{loss}"
        groups[name] = {**groups[step["group"]], "loss": loss, "prefix_source": "teacher"}
        step["vs_methods"][name] = {
            metric: contrast(step["group"], name, metric, value, 0.2)
            for metric, value in (("precision", precision), ("recall", recall))
        }
    words = next(s for s in said(run) if "ways to distil" in s)
    assert "Of 5 ways to distil" in words
    assert words.endswith(
        "(95 % each): kl_teacher_student at temperature 0.6 (by mle); mle at temperature 0.6 (by jsd)."
    )
    warm = next(s for s in chain(run)["tradeoff"] if s["selectivity"] == {"temperature": 0.8})
    names = [f"{step['group']}.{loss}" for loss in ("kl_teacher_student", "total_variation")]
    groups[names[1]] |= {"loss": "mle"}
    warm["vs_methods"] = {names[0]: step["vs_methods"][names[0]]}
    warm |= {"loss": "jsd", "prefix_source": "teacher"}
    words = next(s for s in said(run) if "ways to distil" in s)  # each setting with those that win there
    assert "kl_teacher_student at temperature 0.8 (by jsd) and at temperature 0.6 (by mle)" in words
    for diffs in step["vs_methods"].values():
        diffs["recall"]["ci95"] = [-9.0, 9.0]
    assert "none is shown to be beaten" in next(s for s in said(run) if "ways to distil" in s)
