"""The verb on real runs: candidates, fresh rows, costs, words, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import complaints, lm_spec, mixture_spec, write_spec
from hydrometer.core.errors import FolderError, InputError
from hydrometer.report import advice_notes, advice_sentences, advice_table, build_report
from hydrometer.report.read_results import read_run
from hydrometer.report.words.kept_advice import advice_of
from hydrometer.run.advice import advise as verb
from hydrometer.run.advice import candidates
from hydrometer.run.advice.advise import decision_of
from hydrometer.run.advice.candidates import entries, open_source
from hydrometer.run.advice.holdout import rejudged
from hydrometer.run.pilot import plan_pilot
from hydrometer.stages.judge_files import load_law_on_truth
from hydrometer.stages.nodes import DrawNode, JudgeNode
from hydrometer.stages.statistics.contrasts import contrast
from hydrometer.stages.statistics.groups import Group, Judged, TruthRows

MARKOV: dict[str, Any] = {
    "name": "tiny-markov",
    "seeds": 4,
    "chains": {
        "n": {
            "family": "markov",
            "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 8, "end": 0.2},
            "teacher": {"order": 2, "smoothing": 0.05},
            "student": {"order": 1, "smoothing": 0.05},
            "data": {"train": 200, "distill": 400, "evaluate": 200},
            "selectivity": [{"temperature": 1}, {"temperature": 0.6}, {"top_p": 0.8}],
        }
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advise")
    hm.run(write_spec(MARKOV, folder), out=folder / "run")
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def by_id(advice: hm.Advice) -> dict[str, Any]:
    return {c["id"]: c for c in advice.data["candidates"]}


def test_every_student_is_a_candidate_or_told_why_not(run: Path) -> None:
    advice = hm.advise(run, hm.Need(max_recall_loss=0.2), fresh=False)
    assert list(by_id(advice)) == [
        "n.student.direct", "n.student.direct.decoded-temperature0.6", "n.student.distilled-temperature1.0",
        "n.student.distilled-topp0.8", "n.student.distilled-temperature0.6",
        "n.student.distilled-temperature1.0.decoded-temperature0.6",
    ]  # fmt: skip
    left_out = {x["id"]: x["reason"] for x in advice.data["excluded"]}
    assert set(left_out) == {
        "n.student.direct.decoded-topp0.8", "n.student.distilled-temperature1.0.decoded-topp0.8"
    }  # fmt: skip
    assert all("minus infinity" in reason for reason in left_out.values())
    assert advice.data["baseline"] == "n.student.distilled-temperature1.0"
    assert sum(c["p_best"] for c in advice.data["candidates"]) == pytest.approx(1, abs=0.02)


def test_gains_and_losses_are_the_contrasts_of_the_run(run: Path) -> None:
    """A recall loss is the run's own contrast, paired and with the same error, with its sign turned."""
    results = hm.load_results(run)
    known = {(c["a"], c["b"], c["metric"]): c for c in results["contrasts"]}
    found = by_id(hm.advise(run, hm.Need(max_recall_loss=0.2), fresh=False))
    for name in ("n.student.distilled-temperature0.6", "n.student.distilled-topp0.8"):
        for key, metric, sign in (("precision_gain", "precision", 1), ("recall_loss", "recall", -1)):
            c = known[name, "n.student.distilled-temperature1.0", f"{metric}_per_token"]
            assert found[name][key]["value"] == pytest.approx(sign * c["value"])
            assert found[name][key]["se"] == pytest.approx(c["se"])
            assert found[name][key]["df"] == pytest.approx(c["df"])


def test_fresh_rows_are_new_rows_of_the_same_models(run: Path) -> None:
    need = hm.Need(max_recall_loss=0.2)
    advice = hm.advise(run, need)
    expected = advice.data["expected"]
    assert expected["on"] == "fresh rows"
    leader = by_id(advice)[advice.leader]
    gain, again = leader["precision_gain"], expected["precision_gain"]
    assert gain["value"] != again["value"]
    assert abs(gain["value"] - again["value"]) < 5 * (gain["se"] ** 2 + again["se"] ** 2) ** 0.5
    assert hm.advise(run, need).data == advice.data  # kept and read again
    source = open_source(run, None, None)
    nodes = [n for n in source.plan.nodes.values() if isinstance(n, JudgeNode)]
    plan, _ = rejudged(source.plan, nodes)
    old = {(r.stream.seed, r.stream.path) for n in nodes for r in (n.truth_rows, n.law_rows)}
    new = [n for n in plan.nodes.values() if isinstance(n, JudgeNode)]
    assert len(new) == len(nodes)
    assert not old & {(r.stream.seed, r.stream.path) for n in new for r in (n.truth_rows, n.law_rows)}


def test_fresh_rows_that_turn_the_choice_make_the_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is made wrong on purpose: the worst of two that differ by nats, as luck of rows might have it."""
    need = hm.Need(max_recall_loss=2.0)
    right = hm.advise(run, need)
    assert right.data["expected"]["leader"] == right.leader

    def wrong(*given: Any) -> Any:
        d = decision_of(*given)
        assert d.leader != given[1].baseline
        return replace(d, status="decided", reason=None, leader=given[1].baseline, runner_up=d.leader)

    monkeypatch.setattr(verb, "decision_of", wrong)
    advice = hm.advise(run, need)
    assert (advice.status, advice.reason, advice.take) == ("undecided", "unconfirmed", None)
    assert advice.data["expected"]["leader"] == right.leader
    said = advice_sentences(advice.data)
    assert said[0].startswith(
        "Undecided: the student distilled at temperature 1 led in precision among those that lose"
    )
    assert "on the run’s own rows, and fresh rows turn the choice: on these the " in said[0]
    assert said[0].endswith(" leads.")
    assert said[1].startswith("The student distilled at temperature 1 is the baseline")
    assert "do not confirm" not in " ".join(said)


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that end late, which a colder teacher lengthens, and a student heated."""
    folder = tmp_path_factory.mktemp("late")
    chain = {**MARKOV["chains"]["n"], "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 16, "end": 0.06}}
    chain |= {"data": {"train": 2000, "distill": 2000, "evaluate": 400}}
    chain |= {"selectivity": [{"temperature": t} for t in (1, 0.5, 1.6)]}
    hm.run(write_spec({**MARKOV, "chains": {"n": chain}}, folder), out=folder / "run")
    return folder / "run"


def test_lengths_are_checked_where_nats_are_counted_by_row(late: Path) -> None:
    cold = "n.student.distilled-temperature0.5"
    need = hm.Need(weight=0.0, min_precision_gain=0.0, per="sequence")
    contrasts = {(c["a"], c["b"], c["metric"]): c for c in hm.load_results(late)["contrasts"]}
    found = leading(late, need, cold).data
    for key, metric in (("length", "length"), ("precision_gain_per_token", "precision_per_token")):
        c = contrasts[cold, found["baseline"], metric]
        assert found["checks"]["length"][key]["value"] == pytest.approx(c["value"])
        assert found["checks"]["length"][key]["se"] == pytest.approx(c["se"])
    assert found["checks"]["length"]["length"]["ci95"][0] > 0
    (note,) = (n for n in advice_notes(found) if n.startswith("Precision a row falls with every token"))
    assert "(docs/claims/colder-teacher.md)" in note
    assert "length" not in leading(late, hm.Need(max_recall_loss=9.0), cold).data["checks"]
    assert "length" not in leading(late, need, found["baseline"]).data["checks"]


def test_heating_is_checked_on_the_leaders_own_figures(late: Path) -> None:
    recall = hm.Need(min_precision_gain=0.0)
    hot = leading(late, recall, "n.student.distilled-temperature1.6").data
    loss = hot["checks"]["heating"]["recall_loss"]
    assert loss == by_id_of(hot, hot["leader"])["recall_loss"]
    assert loss["ci95"][1] > 0
    assert any(n.startswith("Heating buys recall only where") for n in advice_notes(hot))
    assert "heating" not in leading(late, hm.Need(max_recall_loss=9.0), hot["leader"]).data["checks"]
    cold = leading(late, recall, "n.student.distilled-temperature0.5").data
    assert "heating" not in cold["checks"]
    assert "cooling" not in cold["checks"]  # no decoded student has its entropy


def test_mere_cooling_is_told_where_the_decoded_student_is_not_behind_at_equal_entropy(tmp_path: Path) -> None:
    chain = {**MARKOV["chains"]["n"], "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 16, "end": 0.35}}
    chain |= {"data": {"train": 2000, "distill": 2000, "evaluate": 400}}
    chain |= {"selectivity": [{"temperature": t} for t in (1, 0.5)]}
    chain |= {"decoding": [{"temperature": t} for t in (0.2, 0.3, 0.4, 0.5, 0.7)]}
    run, name = tmp_path / "run", "n.student.distilled-temperature0.5"
    results = hm.run(write_spec({**MARKOV, "chains": {"n": chain}}, tmp_path), out=run).results
    (control,) = (c for c in results["summary"]["chains"]["n"]["control"] if c["distilled"] == name)
    matched = control["matched_entropy"]
    assert all(matched[m]["ci95"][0] <= 0 for m in ("precision", "recall"))
    found = leading(run, hm.Need(max_recall_loss=9.0), name).data
    assert found["checks"]["cooling"]["recall"]["value"] == matched["recall"]["value"]
    assert found["checks"]["cooling"]["unit"] == "nats per sequence"
    assert any(
        n.startswith("Cooling alone may do as much: at equal entropy, the student dist") for n in advice_notes(found)
    )
    for other in (found["baseline"], "n.student.direct.decoded-temperature0.5"):
        assert "cooling" not in leading(run, hm.Need(max_recall_loss=9.0), other).data["checks"]
    kept = json.loads((run / "results.json").read_text())
    for c in kept["summary"]["chains"]["n"]["control"]:
        c["matched_entropy"]["recall"]["ci95"] = [0.1, 0.2]
    (run / "results.json").write_text(json.dumps(kept))
    assert "cooling" not in leading(run, hm.Need(max_recall_loss=9.0), name).data["checks"]


def by_id_of(data: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in data["candidates"] if c["id"] == name)


def leading(folder: Path, need: hm.Need, name: str) -> hm.Advice:
    """Advise as if a candidate led."""
    with pytest.MonkeyPatch.context() as patch:

        def chosen(*given: Any) -> Any:
            d, field = decision_of(*given), given[1]
            return replace(d, leader=next(i for i, e in enumerate(field.found) if e.id == name))

        patch.setattr(verb, "decision_of", chosen)
        return hm.advise(folder, need, fresh=False)


def test_costs_say_that_decoding_needs_no_teacher(run: Path) -> None:
    advice = hm.advise(run, fresh=False)
    assert not any("The teacher is the truth" in n for n in advice_notes(advice.data))
    found = by_id(advice)
    assert found["n.student.direct.decoded-temperature0.6"]["cost"]["teacher_rows"] == 0
    distilled = found["n.student.distilled-temperature0.6"]["cost"]
    assert distilled["teacher_rows"] == 400
    assert distilled["fit_seconds"] > 0
    assert distilled["teacher_fit_seconds"] > 0


@pytest.mark.parametrize("levels", [1, 2])
def test_where_the_teacher_is_the_truth_direct_rows_are_its_draws(levels: int, tmp_path: Path) -> None:
    chain = MARKOV["chains"]["n"] | {"teacher": "truth", "selectivity": [{"temperature": 1}]}
    chain |= {"assistants": [{"order": 2, "smoothing": 0.05}]} if levels == 2 else {}
    hm.run(write_spec(MARKOV | {"seeds": 2, "chains": {"n": chain}}, tmp_path), out=tmp_path / "run")
    advice = hm.advise(tmp_path / "run", fresh=False)
    said = any(n.startswith("The teacher is the truth") for n in advice_notes(advice.data))
    costs = by_id(advice)
    direct, distilled = (costs[f"n.student.{k}"]["cost"] for k in ("direct", "distilled-temperature1.0"))
    assert (direct["truth_rows"], distilled["truth_rows"], distilled["teacher_rows"]) == (200, 0, 400)
    planned = entries(open_source(tmp_path / "run", None, None), "recall", "precision", priced=False)[0]
    assert {e.id: e.cost["teacher_rows"] for e in planned} == {k: c["cost"]["teacher_rows"] for k, c in costs.items()}
    if levels == 2:  # an assistant teaches
        assert (said, direct["teacher_rows"]) == (False, 0)
    else:
        assert (said, direct["teacher_rows"]) == (True, 200)
        words = [" ".join(advice_sentences({**advice.data, "leader": k})) for k in costs if "direct" in k]
        assert all("it costs 200 teacher draws and" in w and "no teacher draws" not in w for w in words)


def test_tokens_of_direct_rows_count_where_the_teacher_is_the_truth(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    spec = lm_spec(tiny_models["llama"], teacher="truth", selectivity=[{"temperature": 1}])
    hm.run(write_spec(spec, tmp_path), out=tmp_path / "run")
    found = by_id(hm.advise(tmp_path / "run", fresh=False))
    for name in ("direct", "distilled-temperature1.0"):
        cost = found[f"lm.student.{name}"]["cost"]
        assert cost["teacher_tokens"] > cost["teacher_rows"] == 48


def test_words_follow_the_status(run: Path) -> None:
    advice = hm.advise(run, hm.Need(min_precision_gain=50))
    assert advice.status == "none"
    assert advice.take is None
    said = advice_sentences(advice.data)
    assert len(said) == 3
    assert said[0].startswith("None of the 6 settings tried is able to gain at least 50 nats per token of precision; ")
    assert "which misses by" in said[0]
    undecided = hm.advise(run, hm.Need(weight=0.5, margin=5.0))
    assert (undecided.status, undecided.reason) == ("undecided", "equivalent")
    assert "take the cheaper, the direct student" in advice_sentences(undecided.data)[0]
    decided = hm.advise(run, hm.Need(min_precision_gain=0.0, margin=0.0, max_recall_loss=0.001))
    assert advice_sentences(decided.data)[0].split()[0] in ("Take", "Undecided:")
    default = hm.advise(run)
    assert default.data["need"]["max_recall_loss"] == 0.1
    assert advice_notes(default.data)[0].startswith("No need was stated: at most 0.1 nats per token of recall")


def shown(run: Path) -> list[str]:
    read = read_run(run)
    return [s.text for s in advice_of(read, read.chains["n"])]


def test_the_page_shows_advice_of_these_results_only(run: Path) -> None:
    assert shown(run) == []
    advice = hm.advise(run, hm.Need(max_recall_loss=0.2), fresh=False)
    assert shown(run) == [" ".join(advice_sentences(advice.data)), *advice_notes(advice.data)]
    assert "P(best of those tried" in build_report([run]).read_text()
    good = (run / "advice.json").read_text()
    for broken in ("{", "\xff", "[]", '{"schema": 1, "chain": "n", "results": 3, "candidates": [3]}'):
        (run / "advice.json").write_text(broken)
        assert all("P(best" not in s for s in shown(run))
    hostile = json.loads(good) | {"candidates": [3, {"id": {}}], "expected": 5, "need": [], "leader": {}, "excluded": 1}
    (run / "advice.json").write_text(json.dumps(hostile))
    assert len(shown(run)) >= 1
    (run / "advice.json").write_text(good)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"name": "changed"}))
    again = f"`hydrometer advise {run} --chain n`, with the need of advice.json"
    assert shown(run) == [f"The advice kept here is of earlier results; ask again: {again}."]


def test_a_score_of_the_users_is_a_constraint(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    for cell in results["cells"]:
        if cell["role"] == "student" and "topp0.8" not in cell["id"]:
            value = (0.99 if "0.6" in cell["id"] else 0.5) + 0.001 * (cell["seed"] or 0)
            cell["metrics"]["user_valid"] = {"value": value, "se": 0.001, "se_mc": 0.001, "n": 200, "n_neg_inf": 0,
                                             "method": "mc", "unit": "share"}  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    advice = hm.advise(run, hm.Need(score="user_valid", min_score=0.95))
    found = by_id(advice)
    assert {k.rsplit("temperature", 1)[-1] for k, c in found.items() if c["feasible"] == "met"} == {"0.6"}
    assert found["n.student.direct"]["feasible"] == "violated"
    assert any(x["reason"] == "it has no user_valid" for x in advice.data["excluded"])
    assert any("user_valid was not measured again" in n for n in advice_notes(advice.data))
    with pytest.raises(InputError, match="no candidate has this score"):
        hm.advise(run, hm.Need(score="user_jsn", min_score=0.5))


def test_a_failed_seed_is_left_out_of_all(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    for cell in results["cells"]:
        if cell["id"] == "n.student.distilled-temperature0.6.seed2":
            cell.update(status="failed", reason="it diverged", metrics={})
    (run / "results.json").write_text(json.dumps(results))
    assert hm.advise(run, fresh=False).data["seeds"] == 3
    for cell in results["cells"]:
        if cell["role"] == "student":
            cell.update(status="failed", reason="it diverged", metrics={})
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="its cells failed: it diverged") as caught:
        hm.advise(run)
    assert "\n" not in str(caught.value)


def test_points_are_advised_on_too_and_two_runs_make_one_field(tmp_path: Path) -> None:
    one = write_spec(mixture_spec(seeds=3, student={"n_components": 2}), tmp_path, "one.yaml")
    two = write_spec(mixture_spec(seeds=3, student={"n_components": 1}), tmp_path, "two.yaml")
    far = mixture_spec(seeds=3)
    far["chains"]["m"]["truth"]["covariances"] = 0.06
    hm.run(one, out=tmp_path / "one")
    hm.run(two, out=tmp_path / "two")
    hm.run(write_spec(far, tmp_path, "far.yaml"), out=tmp_path / "far")
    advice = hm.advise([tmp_path / "one", tmp_path / "two"], hm.Need(weight=0.3))
    assert advice.data["per"] == "point"
    ids = list(by_id(advice))
    assert len(ids) == len(set(ids)) > 6
    assert {i.split(":")[0] for i in ids} == {"one", "two"}
    assert "(run " in advice_sentences(advice.data)[0]
    assert hm.advise([tmp_path / "one", tmp_path / "one"], fresh=False).data["candidates"] != []
    with pytest.raises(InputError, match="different truths"):
        hm.advise([tmp_path / "one", tmp_path / "far"])
    with pytest.raises(InputError, match="points, not sequences"):
        hm.advise(tmp_path / "one", hm.Need(max_recall_loss=1.0, per="sequence"))


def test_one_seed_never_decides(tmp_path: Path) -> None:
    hm.run(write_spec(mixture_spec(seeds=1), tmp_path), out=tmp_path / "run")
    advice = hm.advise(tmp_path / "run", fresh=False)
    assert (advice.status, advice.reason) == ("undecided", "one_seed")
    assert advice.data["expected"]["on"] == "the rows that chose it"
    said = advice_sentences(advice.data)
    assert said[0].startswith("Undecided: one seed never decides between students")
    assert said[2].endswith("three seeds or more would tell: run again with --set seeds=5.")
    assert "rows each), so optimistic" in said[1]
    assert ",:" not in said[1]
    other = {**advice.data, "leader": advice.data["baseline"]}
    assert "rows each), so optimistic: precision" in advice_sentences(other)[1]


def prompted(models: dict[str, Path]) -> dict[str, Any]:
    prompts = {"file": "prompts.jsonl", "chat": False}
    return {"source": str(models["llama"]), "max_new_tokens": 6, "prompts": prompts}


def test_language_models_are_paired_by_row_seed_and_prompt(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts as strata, rows shared by seeds: the crossed design, as `stages.statistics.contrasts` has it."""
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"w{i} w4"}) for i in (3, 5)))
    spec = lm_spec(tiny_models["llama"], seeds=2, truth=prompted(tiny_models))
    hm.run(write_spec(spec, tmp_path), out=tmp_path / "out", cache=tmp_path / "cache")
    # From anywhere: the folder knows where the prompts file was.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out, cache = Path("../out"), Path("../cache")
    advice = hm.advise(out, hm.Need(max_recall_loss=0.5, per="sequence"), cache=cache)
    assert advice.data["shared_prompts"] is True
    (said,) = (n for n in advice_notes(advice.data) if "judged on the prompts that they are trained on" in n)
    assert said.startswith("Warning: ")
    found = by_id(advice)
    name = "lm.student.distilled-temperature0.6"
    c = next(
        c for c in hm.load_results(out)["contrasts"]
        if (c["a"], c["b"], c["metric"]) == (name, "lm.student.distilled-temperature1.0", "recall")
    )  # fmt: skip
    assert found[name]["recall_loss"]["value"] == pytest.approx(-c["value"])
    assert found[name]["recall_loss"]["se"] == pytest.approx(c["se"], rel=0.05)
    assert found[name]["cost"]["teacher_tokens"] > found[name]["cost"]["teacher_rows"] == 48
    assert found["lm.student.direct"]["cost"]["teacher_tokens"] == 0
    (tmp_path / "prompts.jsonl").unlink()
    with pytest.raises(InputError, match="the file cannot be read"):
        hm.advise(out, cache=cache)


@pytest.mark.parametrize("kind", ["apart", "taught by the truth"])
def test_advice_that_draws_nothing_reads_records_alone(
    kind: str, tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as from the plan, whose models must be there; then without them, and without torch."""
    source, asked = tmp_path / "model", tmp_path / "asked.jsonl"
    shutil.copytree(tiny_models["llama"], source)
    asked.write_text("\n".join(json.dumps({"prompt": f"w{3 + i} w{4 + i}"}) for i in range(8)))
    prompts = {"file": str(asked), **({"evaluate": 0.5} if kind == "apart" else {})}
    changes = {"loss": ["kl_teacher_student"], "prefixes": ["truth"]} if kind == "apart" else {}
    changes |= {} if kind == "apart" else {"teacher": "truth", "student": {"init": "truth"}}
    spec = lm_spec(source, seeds=2, selectivity=[{"temperature": 1}, {"temperature": 0.7}], **changes)
    chain = spec["chains"]["lm"]
    chain["truth"] |= {"prompts": prompts}
    chain["student"] |= {"training": {"num_train_epochs": 1, "per_device_train_batch_size": 16, "bf16": False}}
    run = tmp_path / "run"
    hm.run(write_spec(spec, tmp_path), out=run)
    need = hm.Need(max_recall_loss=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "recorded_plan", lambda *_: None)
        planned = hm.advise(run, need, fresh=False).data
    assert planned["shared_prompts"] == (kind != "apart")
    shutil.rmtree(source)
    asked.unlink()
    code = (
        "import sys, json, hydrometer as hm\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"print(json.dumps(hm.advise({str(run)!r}, hm.Need(max_recall_loss=0.5), fresh=False).data))"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(planned))
    with pytest.raises(InputError):  # fresh rows are drawn of the models
        hm.advise(run, need)
    results = json.loads((run / "results.json").read_text())
    for name in ("judge-../../elsewhere", 3):  # what leads out of the store is not followed
        results["cells"][0]["artifacts"]["judge"] = name
        (run / "results.json").write_text(json.dumps(results))
        with pytest.raises(InputError):
            hm.advise(run, need, fresh=False)


def test_a_pilot_is_run_and_advised_on(tmp_path: Path) -> None:
    path = write_spec(MARKOV | {"seeds": 10}, tmp_path)
    advice = hm.advise_pilot(path, hm.Need(max_recall_loss=0.5), share=0.5, out=tmp_path / "pilot")
    facts = advice.data["pilot"]
    assert facts["seeds"] == [10, 3]
    assert 0.3 < facts["planned_share"] <= 0.5
    assert facts["seconds"] > 0
    assert json.loads((tmp_path / "pilot" / "advice.json").read_text())["pilot"] == facts
    notes = " ".join(advice_notes(advice.data))
    assert "A pilot of 3 seeds for 10" in notes
    assert "only the number of seeds differs" in notes


# pilots ------------------------------------------------------------------------------------------------------------


def test_a_pilot_saves_seeds_before_rows() -> None:
    spec = hm.load_spec("paper-mixture")
    pilot = plan_pilot(spec, 0.1, "mixture")
    assert pilot.seeds[0] == 200
    assert 3 <= pilot.seeds[1] <= 20
    assert pilot.share <= 0.1
    assert all(full == small for full, small in pilot.rows.values())
    assert plan_pilot(spec, 0.2, "mixture").seeds[1] > pilot.seeds[1]
    assert list(pilot.spec.chains) == ["mixture"]
    assert pilot.spec.name != spec.name


def test_a_pilot_of_language_models_saves_rows(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    data = {"train": 512, "validate": 64, "distill": 512, "evaluate": 256}
    spec = hm.load_spec(write_spec(lm_spec(tiny_models["llama"], seeds=3, data=data, block_rows=64), tmp_path))
    for share in (0.3, 0.5):
        pilot = plan_pilot(spec, share)
        assert pilot.seeds == (3, 2)
        assert 0.8 * share < pilot.share <= share
        assert all(small < full for full, small in pilot.rows.values())
        draws = [n for n in open_plan(pilot).values() if isinstance(n, DrawNode)]
        assert max(n.n for n in draws) == 32
    with pytest.raises(InputError, match=r"too small: two seeds of 16 rows take 0\.\d+ .* give --share 0\."):
        plan_pilot(spec, 0.001)


def test_a_pilot_leaves_every_model_the_rows_it_needs(tmp_path: Path) -> None:
    """Sixteen rows are too few for forty components."""
    data = {"train": 600, "distill": 600, "evaluate": 4000}
    spec = hm.load_spec(write_spec(mixture_spec(seeds=30, teacher={"n_components": 40}, data=data), tmp_path))
    pilot = plan_pilot(spec, 0.12)
    assert pilot.share <= 0.12
    assert pilot.seeds == (30, 2)
    assert pilot.rows["train"][1] >= 40
    with pytest.raises(InputError, match="two seeds of the fewest rows that its models are fitted to take") as caught:
        plan_pilot(spec, 1e-6)
    assert "\n" not in str(caught.value)


def open_plan(pilot: Any) -> dict[str, Any]:
    from hydrometer.run.graph.plan import plan_run

    return plan_run(pilot.spec).nodes


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        plan_pilot(hm.load_spec("markov"), share)


# command line ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "no results.json"),
        (["empty"], "no results.json"),
        (["spec.yaml"], "is a file"),
        (["run", "--weight", "2"], "between 0"),
        (["run", "--score", "user_x"], "belong together"),
        (["run", "--score", "user_x", "--min-score", "1"], "no candidate has this score"),
        (["run", "--max-recall-loss", "-1"], "max_recall_loss"),
        (["run", "--per", "byte"], "'token', 'sequence'"),
        (["run", "--per", "sequence"], "nothing is wanted"),
        (["run", "--chain", "m"], "no such chain"),
        (["run", "--share", "0.5"], "only with --pilot"),
        (["run", "--out", "x"], "only with --pilot"),
        (["run", "--pilot", "markov"], "one of the two"),
        ([], "one of the two"),
        (["run", "--cache", "nowhere"], "artifacts are not there"),
        (["--pilot", "markv"], "did you mean 'markov'"),
        (["--pilot", "mixture-map"], "maps are not advised on"),
        (["--pilot", "quickstart"], "several chains"),
    ],
)
def test_bad_calls_are_one_line_and_exit_2(
    run: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run.parent / "empty").mkdir()
    write_spec(MARKOV, run.parent)
    code, _, err = command(["advise", *argv], capsys, monkeypatch)
    assert code == 2
    assert len(complaints(err)) == 1, err
    assert says in err
    assert not (run / "advice.json").exists()


def command(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    import signal
    import sys

    from hydrometer.cli import commands

    monkeypatch.setattr(sys, "argv", ["hydrometer", *argv])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        commands.main()
    except SystemExit as e:
        code = int(e.code or 0)
    else:
        code = 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_three_sentences_then_a_table_and_json(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = command(["advise", str(run), "--max-recall-loss", "0.2", "--json"], capsys, monkeypatch)
    assert code == 0
    body = json.loads(out)
    assert len(body["sentences"]) == 3
    kept = json.loads((run / "advice.json").read_text())
    assert {k: v for k, v in body.items() if k in kept} == kept
    code, out, _ = command(["advise", str(run), "--max-recall-loss", "0.2"], capsys, monkeypatch)
    assert code == 0
    assert " ".join(out.split()).startswith(" ".join(body["sentences"]))
    assert "τ=0.6" in out
    flat = " ".join(out.split())
    assert advice_table(kept).head[1:3] == ["precision gained", "recall lost"]
    assert "Precision gained and recall lost (below zero: gained)" in flat
    assert "open where it is not" in flat


def test_what_a_run_recorded_does_not_steer_the_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = json.loads((run / "results.json").read_text())
    for cell in results["cells"]:
        if cell["id"].startswith("n.student.distilled-temperature0.6.seed"):
            cell.update(status="failed", reason="\x1b]0;evil\x07\u202e", metrics={})
    (run / "results.json").write_text(json.dumps(results))
    code, out, _ = command(["advise", str(run), "--max-recall-loss", "0.2", "--no-fresh"], capsys, monkeypatch)
    assert code == 0
    assert "Left out" in out
    assert "evil" in out
    assert all(c == "\n" or c.isprintable() for c in out)


def test_damaged_or_missing_artifacts_are_told(run: Path) -> None:
    source = open_source(run, None, None)
    cell = next(c for c in source.chain.cells if c.training == "direct")
    (run / "artifacts" / f"judge-{cell.judge}" / "rows.npz").write_bytes(b"broken")
    with pytest.raises(FolderError, match="a judge artifact of the run is missing, damaged"):
        hm.advise(run, fresh=False)
    shutil.rmtree(run / "specs")
    (run / "specs").mkdir()
    with pytest.raises(FolderError, match="no specification"):
        hm.advise(run, fresh=False)


def test_results_that_were_tampered_with_are_one_line(run: Path) -> None:
    text = (run / "results.json").read_text()
    for change, says in (
        (lambda r: r.pop("summary"), "lacks what a run writes"),
        (lambda r: [c.update(metrics={"precision": 3}) for c in r["cells"]], "figures that cannot be read"),
        (lambda r: [c["metrics"]["precision_per_token"].update(value=float("nan")) for c in r["cells"]], "no finite"),
    ):
        results = json.loads(text)
        change(results)
        (run / "results.json").write_text(json.dumps(results))
        with pytest.raises(InputError, match=says) as caught:
            hm.advise(run, fresh=False)
        assert "\n" not in str(caught.value)


def test_maps_and_direct_students_alone_are_refused(tmp_path: Path) -> None:
    spec = mixture_spec(seeds=2, grid={"student": [1, 2]})
    hm.run(write_spec(spec, tmp_path), out=tmp_path / "map")
    with pytest.raises(InputError, match="no distilled student to advise on"):
        hm.advise(tmp_path / "map")


def test_contrast_helpers_agree(run: Path) -> None:
    """What advice reads of artifacts gives the run's own contrast when put through `stages.statistics.contrasts`."""
    source = open_source(run, None, None)
    cells = {c.id: c for c in source.chain.cells}
    groups = []
    for name in ("distilled-temperature0.6", "distilled-temperature1.0"):
        judged: dict[int | None, Judged] = {}
        for s in range(4):
            c = cells[f"n.student.{name}.seed{s}"]
            metrics = {k: hm.Estimate.from_json(m) for k, m in source.cells[c.id]["metrics"].items()}
            rows = load_law_on_truth(source.store.path("judge", c.judge))
            judged[s] = Judged(metrics, lambda r=rows: r, lambda r=rows: TruthRows(r, None, None, 200))
        groups.append(Group(name, judged, rows_shared=False))
    c = contrast(groups[0], groups[1], "recall")
    found = by_id(hm.advise(run, hm.Need(max_recall_loss=1.0, per="sequence"), fresh=False))
    loss = found["n.student.distilled-temperature0.6"]["recall_loss"]
    assert loss["value"] == pytest.approx(-(c.value or 0.0))
    assert loss["se"] == pytest.approx(c.se)
