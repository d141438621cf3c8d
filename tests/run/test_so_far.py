"""Figures while a run goes on: what is made first, what is told of it, and that a part claims no more than a part."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console
from typer.testing import CliRunner

import hydrometer as hm
from chains import mixture_spec, without_timings, write_spec
from hydrometer.cli import app
from hydrometer.core.errors import FolderError
from hydrometer.core.io.locking import hold
from hydrometer.report import advice_notes, advice_sentences, answers, missing_sentence, summary_table, verdict
from hydrometer.run.advice import advise as advise_module
from hydrometer.run.execution.execute import in_order
from hydrometer.run.execution.progress import ConsoleMonitor
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.graph.plan import plan_run
from hydrometer.run.results import sofar
from hydrometer.store.records import RunFolder

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
POWERS = (1, 3, 20, 100)


def spec_of(folder: Path, seeds: int = 2, **changes: Any) -> Path:
    chain: dict[str, Any] = {
        "selectivity": [{"weight_power": p} for p in POWERS], "decoding": [{"weight_power": 20}],
        "student": {"n_components": 2}, "data": {"train": 60, "distill": 80, "evaluate": 100},
    }  # fmt: skip
    return write_spec(mixture_spec(seeds, **(chain | changes)), folder)


class Stop(SilentMonitor):
    """Interrupts a run when so many models have figures."""

    def __init__(self, after: int) -> None:
        self.after, self.heard = after, list[str]()

    def judged(self, name: str, figures: Mapping[str, hm.Estimate]) -> None:
        assert {"precision", "recall"} <= set(figures)
        self.heard.append(name)

    def stage(self, label: str, cost: float) -> None:
        if len(self.heard) == self.after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sofar, "_EVERY", 0.0)
    monkeypatch.setattr(sofar, "_SHARE", 0.0)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What results.json held, one writing after another."""
    written: list[dict[str, Any]] = []
    whole = RunFolder.write_results

    def write(self: RunFolder, results: Mapping[str, object]) -> None:
        whole(self, results)
        written.append(hm.load_results(self.root))

    monkeypatch.setattr(RunFolder, "write_results", write)
    return written


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was interrupted when five models had figures, and its specification; nobody may change it."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sofar, "_EVERY", 0.0)
        patch.setattr(sofar, "_SHARE", 0.0)
        path = spec_of(folder)
        with pytest.raises(KeyboardInterrupt):
            hm.run(path, out=folder / "out", monitor=Stop(5))
    return path, folder / "out"


def test_extremes_come_first_and_inputs_before_their_users(tmp_path: Path) -> None:
    plan = plan_run(hm.load_spec(spec_of(tmp_path)))
    order = in_order(plan, plan.nodes)
    assert order.keys() == plan.nodes.keys()
    place = {key: i for i, key in enumerate(order)}
    assert all(place[i] < place[key] for key, node in order.items() for i in node.inputs)
    ids = [c.id for c in sorted(plan.cells, key=lambda c: place[c.judge])]
    at = "m.student.distilled-weightpower{}.seed0"
    assert ids[:6] == [
        "m.truth.seed0", at.format("100.0"), at.format("1.0"), "m.teacher.decoded-weightpower100.0.seed0",
        "m.teacher.seed0", "m.student.direct.seed0",
    ]  # fmt: skip
    assert [i for i in ids[6:10] if "student" in i] == [at.format("3.0"), at.format("20.0")]
    assert [i.endswith("seed0") for i in ids] == [True] * 12 + [False] * 12


def test_a_part_of_the_stages_is_ordered_too(tmp_path: Path) -> None:
    """What is there already is not waited for, and stages that no cell needs are made all the same."""
    plan = plan_run(hm.load_spec(spec_of(tmp_path)))
    fits = {k: n for k, n in plan.nodes.items() if n.stage == "fit"}
    assert in_order(plan, fits).keys() == fits.keys()


def test_results_are_there_while_the_run_goes_on(tmp_path: Path, parts: list[dict[str, Any]]) -> None:
    result = hm.run(spec_of(tmp_path), out=tmp_path / "out")
    final = {c["id"]: c for c in result.results["cells"]}
    assert [len(r["cells"]) for r in parts] == [*range(1, 25), 24]
    for r in parts[::5]:
        jsonschema.validate(r, SCHEMA)
    for r in parts:
        left = r.get("partial", {}).get("m", [])
        assert {c["id"] for c in r["cells"]} | set(left) == final.keys()
        assert len(r["cells"]) + len(left) == len(final)
        for cell in r["cells"]:
            # What stands in a student's cell of its teacher comes when the teacher is judged.
            extra = set(final[cell["id"]]["metrics"]) - set(cell["metrics"])
            assert extra <= {"entropy_teacher", "capacity_gap"}
            assert cell["metrics"] == {k: v for k, v in final[cell["id"]]["metrics"].items() if k not in extra}
    assert "partial" not in parts[-1]
    assert parts[-1] == result.results


@pytest.mark.campaign
@pytest.mark.parametrize("changes", [{}, {"grid": {"student": [1, 2], "teacher": [2, 3]}, "decoding": None}])
def test_no_part_claims_what_the_whole_may_not(
    tmp_path: Path, parts: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    hm.run(spec_of(tmp_path, **changes), out=tmp_path / "out")
    assert len(parts) > 4
    for r in parts[:-2]:
        said = verdict(r)["m"]
        assert said[0] == missing_sentence(r)
        assert "cells are judged; missing: m." in said[0]
        for words in said[1:4]:
            assert "o far" in words
            assert "No control was run" not in words
            assert "the teacher is the truth itself" not in words
        assert all(chain["gate"]["passed"] is None for chain in r["summary"]["chains"].values())
        Console(file=io.StringIO()).print(summary_table(r))
    for r in parts[-2:]:
        assert not any("o far" in words for words in verdict(r)["m"])


def test_the_first_sentence_of_a_part_is_provisional(
    tmp_path: Path, parts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the figures of a part would decide."""
    whole = advise_module.decide
    monkeypatch.setattr(advise_module, "decide", lambda *a: replace(whole(*a), status="decided", reason=None))
    hm.run(spec_of(tmp_path), out=tmp_path / "out")
    found = [(r["summary"]["chains"]["m"].get("advice"), r) for r in parts]
    told = [a | {"is": bool(r.get("partial"))} for a, r in found if a is not None]
    assert len(told) > 10
    assert {a["status"] for a in told if a["is"]} == {"undecided"}
    assert "partial" in {a.get("reason") for a in told}
    assert all(a.get("take") is None for a in told if a["is"])
    assert [a["status"] for a in told if not a["is"]] == ["decided", "decided"]
    assert all(answers(r)["m"].startswith("Provisional") == bool(r.get("partial")) for r in parts)


def test_an_interrupted_run_tells_what_it_has_and_goes_on(tmp_path: Path) -> None:
    path = spec_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        hm.run(path, out=tmp_path / "out", monitor=Stop(3))
    assert len(hm.load_results(tmp_path / "out")["cells"]) == 3
    said = CliRunner().invoke(app, ["report", str(tmp_path / "out")])
    assert "partial  So far 3 of 24 cells are judged; missing: m." in said.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "So far 3 of 24 cells are judged" in page
    assert "3 cells judged so far, 21 to come" in page
    rest = Stop(100)
    again = hm.run(path, out=tmp_path / "out", monitor=rest)
    assert "truth-seed0" not in rest.heard  # its row was told before
    whole = hm.run(path, out=tmp_path / "whole", monitor=(all_of := Stop(100)))
    assert len(all_of.heard) == len(set(all_of.heard)) == 12  # one line a row of the table, not a line a seed
    names = {c["name"] for c in whole.results["cells"] if c.get("name")}
    assert {n for n in all_of.heard if not n.startswith("truth") and " at " not in n} <= names
    assert {"teacher-seed0 at weight_power 20", "direct-seed0, decoded at weight_power 20"} <= set(all_of.heard)
    assert without_timings(again.results) == without_timings(whole.results)


def test_advice_while_a_run_goes_on_is_provisional(begun: tuple[Path, Path]) -> None:
    """It would be decided of a whole run (seeds agree, errors are small), and needs no lock."""
    with hold(begun[1]):
        found = hm.advise(begun[1], hm.Need(max_recall_loss=100.0))
    assert (found.status, found.take) == ("undecided", None)
    assert len(found.data["missing"]) == 19
    assert found.data["expected"]["on"] != "fresh rows"
    assert advice_sentences(found.data)[0].startswith("Provisional, 19 cells are not judged yet. Undecided")
    assert found.reason == "partial"  # of two seeds the second is to come
    assert found.data["seeds_so_far"] == [1, 2]
    assert "1 of 2 seeds so far" in advice_sentences(found.data)[0]
    assert {x["reason"] for x in found.data["excluded"]} == {"it is not judged yet"}
    (left,) = (n for n in advice_notes(found.data) if n.startswith("Left out"))
    assert left.endswith(", each because it is not judged yet.")


def test_what_leads_by_far_is_not_decided_of_a_part(tmp_path: Path) -> None:
    small = ["seeds=6", "chains.markov.decoding=[]", "chains.markov.selectivity=[{temperature: 1}, {temperature: 0.4}]"]
    sizes = [f"chains.markov.data.{k}=300" for k in ("train", "distill", "evaluate")]
    need = hm.Need(max_recall_loss=100.0)
    hm.run("markov", out=tmp_path / "out", overrides=small + sizes)
    assert hm.advise(tmp_path / "out", need, fresh=False).status == "decided"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    results["partial"] = {"markov": ["markov.to-come"]}
    (tmp_path / "out" / "results.json").write_text(json.dumps(results))
    found = hm.advise(tmp_path / "out", need)
    assert (found.status, found.reason, found.take) == ("undecided", "partial", None)
    assert "Undecided so far" in advice_sentences(found.data)[0]


def test_scores_are_taken_while_a_run_goes_on(tmp_path: Path) -> None:
    path, out = spec_of(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        hm.run(path, out=out, monitor=Stop(5))
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.1}}, "n-samples": {}}))
    cell = "m.truth.seed0"
    before = (out / "results.json").read_bytes()
    with hold(out):
        done = hm.add_scores(out, file=file, cell=cell)
    assert done.waiting
    assert (out / "results.json").read_bytes() == before
    with hold(out / "scores"), pytest.raises(FolderError):  # two at once would take each other's figures for gone
        hm.add_scores(out, file=file, cell=cell)
    alone = hm.add_scores(out, file=file, cell=cell)
    assert not alone.waiting
    assert "partial" in alone.run.results
    result = hm.run(path, out=out)
    metrics = {c["id"]: c["metrics"] for c in result.results["cells"]}
    assert metrics[cell]["lm_eval_arc_acc"]["value"] == 0.5


def test_a_models_figures_are_one_line() -> None:
    told = io.StringIO()
    with ConsoleMonitor(Console(file=told, width=60)) as monitor:
        e = hm.Estimate(-12.345, 0.1234, 0.1234, 100)
        monitor.judged("m.student.direct", {"precision": e, "entropy": e, "recall": e})
    line = "judged   m.student.direct: precision -12.35 ± 0.12 nats, recall -12.35 ± 0.12 nats\n"
    assert told.getvalue() == line


def test_beside_texts_precision_is_the_references_and_few_rows_are_explained_once() -> None:
    told = io.StringIO()
    with ConsoleMonitor(Console(file=told, width=60)) as monitor:
        e = hm.Estimate(-12.345, 0.1234, 0.1234, 100, caution="few_rows")
        monitor.judged("direct", {"recall": e, "precision_reference": e})
        monitor.judged("other", {"recall": e})
    few = "-12.35 ± 0.12 nats†"
    assert told.getvalue() == (
        f"judged   direct: precision under the reference {few}, recall {few}\n"
        "judged   †: few rows or prompts decide it: the error may be larger\n"
        f"judged   other: recall {few}\n"
    )
