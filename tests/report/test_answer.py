"""The sentence that a page begins and a run ends with: what to do, or what would decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import report_synthetic as synthetic

import hydrometer as hm
from hydrometer.report import answers, build_report
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
    assert "direct student decoded at temperature 0.6; about 6 seeds in all would decide" in close
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
    assert answers(results, folder)["smollm2"].startswith("Take the direct student decoded at temperature 0.6")
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
    names = ("id", "training", "selectivity", "decoding", "feasible")
    assert found["candidates"] == [{k: c[k] for k in names} for c in advised["candidates"]]


def test_where_nothing_can_be_taken_the_reason_is_recorded(tmp_path: Path) -> None:
    small = ["seeds=2", "chains.markov.data.evaluate=200", "chains.markov.selectivity=[{top_k: 2}]"]
    small.append("chains.markov.decoding=[]")
    run = hm.run("markov", out=tmp_path / "run", overrides=small)
    words = answers(run.results)["markov"]
    assert words.startswith("Undecided")
    assert run.results["summary"]["chains"]["markov"]["advice"]["take"] is None
