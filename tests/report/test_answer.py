"""The sentence that a page begins and a run ends with: what to do, or what would decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import report_synthetic as synthetic

import hydrometer as hm
from hydrometer.report import advice_notes, advice_sentences, answers, build_report
from hydrometer.report.read_results import read_run
from hydrometer.report.words.kept_advice import advice_of

DIRECT = {"id": "c.student.direct", "training": "direct", "selectivity": None, "decoding": None, "feasible": "met"}
COLD = {**DIRECT, "id": "c.student.direct.decoded", "decoding": {"temperature": 0.6}}
DISTILLED = {**DIRECT, "id": "c.student.distilled", "training": "distilled", "selectivity": {"temperature": 0.8}}
ADVICE: dict[str, Any] = {
    "status": "decided", "reason": None, "take": DISTILLED["id"], "leader": DISTILLED["id"], "runner_up": COLD["id"],
    "contenders": [DISTILLED["id"], COLD["id"]], "cheaper": None, "more": None, "per": "token",
    "objective": "precision", "need": {"max_recall_loss": 0.1, "margin": 0.02}, "candidates": [DIRECT, COLD, DISTILLED],
}  # fmt: skip


def said(of: dict[str, object] | None = None, **changes: object) -> str:
    chain = {**(of or {}), "advice": {**ADVICE, **changes}}
    return answers({"schema": 1, "summary": {"groups": {}, "chains": {"c": chain}}})["c"]


def test_what_to_take_or_what_would_decide() -> None:
    assert said().startswith("Take the student distilled at temperature 0.8: of 3 settings tried")
    assert said(leader=COLD["id"]).startswith("Take the direct student decoded at temperature 0.6")
    close = said(status="undecided", reason="close", more={"seeds": 6, "rows": None})
    assert close.startswith("Undecided: the student distilled at temperature 0.8 leads in precision")
    assert "in precision among those that lose at most 0.1 nats per token of recall, but is not shown" in close
    assert "direct student decoded at temperature 0.6; in all, about 6 seeds would decide" in close
    assert close.endswith("if the estimates stayed as they are: run again with --set seeds=6.")
    assert close.count(".") == close.count("0.") + 1  # one sentence
    assert "run again with --set seeds=5" in said(status="undecided", reason="one_seed")
    early = said(status="undecided", reason="partial", seeds_so_far=[1, 2])
    assert early.startswith("Undecided so far: of the 3 settings judged, 1 of 2 seeds so far, the student distilled")
    assert "has the highest precision under the teacher among" in said(of={"reference": "teacher"})
    many = [{**DISTILLED, "id": str(i), "feasible": "open"} for i in range(9)]
    words = said(status="undecided", reason="constraint", candidates=many, contenders=[str(i) for i in range(9)])
    assert "whether 9 of the 9 settings tried would lose at most 0.1" in words
    assert said(why="its recall is minus infinity") == "Undecided: its recall is minus infinity."


FIGURE = {"value": 0.4, "se": 0.5, "df": 9.0, "ci95": [-0.7, 1.5]}
RISEN = {"value": 2.0, "se": 0.2, "df": 9.0, "ci95": [1.5, 2.5]}


def advised(**changes: Any) -> list[str]:
    expected = {"on": "fresh rows", "precision_gain": FIGURE, "recall_loss": RISEN, "lead": FIGURE}
    data = {**ADVICE, "baseline": DIRECT["id"], "expected": expected, "seeds": 3, "rows": 50, **changes}
    return [*advice_sentences(data), *advice_notes(data)]


def test_a_difference_whose_interval_holds_zero_is_undecided() -> None:
    said = advised(status="undecided", reason="close", more={"seeds": None, "rows": None, "together": None})
    assert (
        "it leaves precision undecided (+0.40 nats per token, 95 % interval −0.70 to 1.50) and lowers recall by"
        in said[1]
    )
    assert "in precision is +0.40 nats per token (95 % interval −0.70 to 1.50, undecided)" in said[2]
    assert not any(w in " ".join(said) for w in (" gains", " loses", " behind"))


def test_what_would_decide_is_one_statement() -> None:
    both = {"seeds": None, "rows": None, "together": {"seeds": 12, "rows": 1440}}
    words = said(status="undecided", reason="close", more=both)
    assert "; in all, about 12 seeds and about 1,440 rows a figure together, but neither alone, would decide" in words
    assert words.endswith("run again with --set seeds=12 and as many rows (data.evaluate).")
    few = said(status="undecided", reason="close", more=both, rows=120, prompts=30)
    assert "about 1,440 rows a figure (of 360 prompts) together" in few
    words = said(status="undecided", reason="close", more={**both, "together": None})
    assert "; no number up to 1,000 seeds would decide, with rows in proportion, if the estimates" in words
    words = said(status="undecided", reason="close", more={"seeds": None, "rows": None})  # of an earlier release
    assert "; neither more seeds alone nor more rows alone would decide, if the estimates" in words


def of_objective(value: float, slack: float, which: dict[str, Any], feasible: str = "open") -> dict[str, Any]:
    figures = {"objective": {"value": value, "se": 0.1}, "slack": {"max_recall_loss": {"value": slack, "se": 0.1}}}
    return {**which, "feasible": feasible, **figures}


def test_one_that_is_ahead_and_may_break_the_need_is_said_to_be_ahead() -> None:
    """The leader is the best of those whose estimates meet the need: another may have more, and miss it by estimate."""
    leader, broken = of_objective(-3.0, 0.05, DISTILLED, "met"), of_objective(9.0, -5.0, DIRECT, "violated")
    hotter = of_objective(-2.4, -0.01, COLD)
    ahead = {"status": "undecided", "reason": "constraint", "candidates": [leader, hotter, broken]}
    words = said(**ahead)
    assert words == (
        "Undecided: the student distilled at temperature 0.8 leads in precision among those that, by the estimates, "
        "lose at most 0.1 nats per token of recall; ahead of it by 0.60 nats per token is the direct student decoded "
        "at temperature 0.6, which is not shown to meet the need."
    )
    both = said(**{**ahead, "candidates": [{**leader, "feasible": "open"}, hotter, broken]})
    assert both.endswith(
        "is not shown to meet the need; whether the student distilled at temperature 0.8 and the direct student "
        "decoded at temperature 0.6 would lose at most 0.1 nats per token of recall is open."
    )
    behind = said(**{**ahead, "candidates": [leader, of_objective(-3.1, -0.01, COLD), broken]})
    assert "leads in precision among those that lose at most" in behind
    assert "ahead" not in behind
    alone = said(**ahead | {"reason": "one_seed"})
    assert "ahead of it by 0.60 nats per token is the direct student decoded at temperature 0.6, which is not" in alone


def test_none_leads_where_no_estimate_meets_the_need() -> None:
    near, far = of_objective(-3.0, -0.05, DISTILLED), of_objective(-2.4, -0.2, COLD)
    words = said(status="undecided", reason="constraint", candidates=[near, far])
    assert words.startswith(
        "Undecided: by the estimates none of the 2 settings tried meets the need; the nearest is the student distilled "
        "at temperature 0.8, which misses by 0.05 nats per token of recall, and whether "
    )
    assert "leads" not in words


def test_a_negative_lead_is_a_rival_ahead() -> None:
    below = {"value": -0.6, "se": 0.1, "df": 9.0, "ci95": [-0.8, -0.4]}
    expected = {"on": "seeds left out of the choice", "lead": below}
    rival = {**COLD, "feasible": "open"}
    sure = advised(status="undecided", reason="constraint", expected=expected, candidates=[DISTILLED, rival])[2]
    assert (
        "; the closest rival, the direct student decoded at temperature 0.6, is ahead of it in precision by 0.60 nats "
        "per token (95 % interval 0.40 to 0.80), but is not shown to meet the need."
    ) in sure
    assert "its lead" not in sure
    met = advised(status="undecided", reason="constraint", expected=expected)[2]
    assert "is ahead of it in precision by 0.60" in met
    assert "not shown" not in met


def test_a_high_probability_beside_not_shown_is_explained() -> None:
    likely = {**DISTILLED, "p_best": 0.95}
    close = {"status": "undecided", "reason": "close", "candidates": [DIRECT, COLD, likely]}
    sure = advised(**close)[2]
    assert sure.startswith(
        "P(best of those tried that meet the need) is 0.95 on the run’s own rows (a decision asks for a stricter "
        "bound, and fresh rows); its lead over"
    )
    sure = advised(**close, expected={"on": "seeds left out of the choice", "lead": FIGURE})[2]
    assert " is 0.95 on the run’s own rows (a decision asks for a stricter bound); its lead over" in sure
    assert "stricter" not in advised(candidates=[DIRECT, COLD, likely])[2]


def test_one_seed_is_said_first() -> None:
    words = said(status="undecided", reason="one_seed", seeds=1)
    assert words.startswith("Undecided: one seed never decides between students, since it says nothing of the variance")
    missed = [{**DISTILLED, "slack": {"max_recall_loss": {"value": -1.0, "se": 0.1}}}]
    words = said(status="none", reason=None, seeds=1, candidates=missed)
    assert words.startswith("None of the 1 settings tried, as trained with one seed, is able to")
    assert "one seed" not in said(status="none", reason=None, seeds=3, candidates=missed)


def test_checks_of_measured_claims_are_notes_with_their_figure() -> None:
    assert not any("docs/claims" in s for s in advised())
    checks = {
        "cooling": {"precision": FIGURE, "recall": FIGURE, "unit": "nats per sequence"},
        "heating": {"recall_loss": FIGURE},
        "length": {"length": RISEN, "precision_gain_per_token": FIGURE},
    }
    cooling, heating, length = (s for s in advised(checks=checks) if "docs/claims" in s)
    assert (
        "the student distilled at temperature 0.8 minus the direct student decoded is precision +0.40 nats per seq"
        in cooling
    )
    assert "leaves recall undecided (−0.40 nats per token, 95 % interval −1.50 to 0.70)" in heating
    assert "by +2.00 tokens (95 % interval 1.50 to 2.50): judge it per token as well, where it leaves prec" in length
    assert [s[s.rindex("(") :] for s in (cooling, heating, length)] == [
        "(docs/claims/colder-teacher.md).", "(docs/claims/heating.md).", "(docs/claims/colder-teacher.md).",
    ]  # fmt: skip
    assert all((Path(__file__).parents[2] / s[s.rindex("(") + 1 : -2]).is_file() for s in (cooling, heating, length))


def test_results_without_advice_say_where_it_is_to_be_had() -> None:
    results = synthetic.results(seeds=3)
    assert "ask `hydrometer advise`" in answers(results)["smollm2"]


def test_a_page_begins_with_it_and_stated_advice_comes_first(tmp_path: Path) -> None:
    results = synthetic.results(seeds=3, mixture=False)
    results["summary"]["chains"]["smollm2"]["advice"] = ADVICE
    folder = synthetic.write(tmp_path / "run", results, {})
    page = build_report([folder]).read_text()
    first = page.index("Take the student distilled at temperature 0.8")
    assert page.index("<h1>") < first < page.index('class="verdict"')
    from hashlib import sha256

    digest = sha256((folder / "results.json").read_bytes()).hexdigest()
    kept = {**ADVICE, "schema": 1, "chain": "smollm2", "results": [digest], "leader": COLD["id"], "expected": {}}
    (folder / "advice.json").write_text(json.dumps(kept))
    words = "Take the direct student decoded at temperature 0.6"
    assert answers(results, folder)["smollm2"].startswith(f"Asked with --max-recall-loss 0.1 --margin 0.02: {words}")
    need = {"max_recall_loss": 0.1, "margin": 0.02, "stated": False}
    (folder / "advice.json").write_text(json.dumps({**kept, "need": need, "runs": ["a", "b"]}))
    assert answers(results, folder)["smollm2"].startswith(f"Asked of 2 runs without a need: {words}")
    (folder / "advice.json").write_text(json.dumps({**kept, "results": []}))
    assert answers(results, folder)["smollm2"].startswith("Take the student distilled")
    (folder / "advice.json").write_text("{")
    run = read_run(folder)
    assert [s.text for s in advice_of(run, run.chains["smollm2"])] == [
        "advice.json cannot be read; ask for advice again."
    ]


def judged(a: float, b: float, interval: tuple[float, float]) -> str:
    def group(name: str, recall: float | None) -> dict[str, Any]:
        metric = {"value": recall, "se": 0.1, "n_neg_inf": int(recall is None), "unit": "nats"}
        return {"chain": "judge", "role": "student", "model": name, "metrics": {"recall": metric}}

    contrast = {"a": "b", "b": "a", "metric": "recall", "value": b - a, "se": 0.1, "df": 9, "ci95": list(interval)}
    body = {"groups": {"a": group("A", a), "b": group("B", b)}, "chains": {"judge": {"judged": {"prompts": 3}}}}
    return answers({"schema": 1, "contrasts": [contrast], "summary": body})["judge"]


def test_models_that_exist_are_told_apart_by_recall() -> None:
    assert judged(-3.0, -2.0, (0.5, 1.5)).startswith("Take B: its recall is the highest")
    assert judged(-2.0, -3.0, (-1.5, -0.5)).startswith("Take A")
    assert "A has the highest recall, but is not shown to be ahead of B" in judged(-2.0, -2.1, (-0.4, 0.2))


def test_a_run_records_what_advise_decides(tmp_path: Path) -> None:
    small = ["seeds=3", "chains.markov.data.evaluate=300", "chains.markov.data.distill=300"]
    small.append("chains.markov.selectivity=[{temperature: 1}, {temperature: 0.5}]")
    found = hm.run("markov", out=tmp_path / "run", overrides=small).results["summary"]["chains"]["markov"]["advice"]
    advised = hm.advise(tmp_path / "run", fresh=False).data
    for key in ("status", "reason", "take", "leader", "runner_up", "contenders", "more", "per", "objective"):
        assert found[key] == advised[key]
    names = ("id", "training", "selectivity", "decoding", "feasible", "objective", "slack")
    assert found["candidates"] == [{k: c[k] for k in names} for c in advised["candidates"]]


def test_where_nothing_can_be_taken_the_reason_is_recorded(tmp_path: Path) -> None:
    small = ["seeds=2", "chains.markov.data.evaluate=200", "chains.markov.selectivity=[{top_k: 2}]"]
    small.append("chains.markov.decoding=[]")
    run = hm.run("markov", out=tmp_path / "run", overrides=small)
    words = answers(run.results)["markov"]
    assert words.startswith("Undecided")
    assert run.results["summary"]["chains"]["markov"]["advice"]["take"] is None


def test_a_student_of_a_divergence_costs_its_fit_and_its_teachers() -> None:
    cost = {"teacher_rows": 0, "fit_seconds": 20.0, "teacher_fit_seconds": 60.0}
    leaders = [{**c, "cost": cost} for c in (DIRECT, DISTILLED)]
    direct, distilled = (" ".join(advice_sentences({**ADVICE, "candidates": [c], "leader": c["id"]})) for c in leaders)
    assert "costs no teacher draws, only its fit on the truth’s rows (20 s a seed here)" in direct
    assert "teacher’s own fit" not in direct
    assert "costs no teacher draws, but its fit (20 s a seed here), beside the teacher’s own fit" in distilled
