"""Log-probabilities under a model that the run cannot open, brought by the user: precision and KL under it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hydrometer as hm
from elsewhere_world import World, contents
from hydrometer.cli.commands import main
from hydrometer.core.errors import InputError
from hydrometer.core.statistics.estimators import mean_variance
from hydrometer.models.causal_lm.inference.model import CausalLM

CELLS = [f"lm.student.{k}.seed{s}" for k in ("direct", "distilled-temperature0.6") for s in (0, 1)]
TRUTH = "lm.truth"


def native(source: Path, row: dict[str, Any]) -> float:
    """Score one row with the truth's own weights, token by token: prompt, answer, the end among it."""
    import torch

    model = CausalLM.from_pretrained(source, device="cpu").model
    ids = torch.tensor([[*row["prompt_ids"], *row["completion_ids"]]])
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    at = len(row["prompt_ids"])
    steps = torch.log_softmax(logits[at - 1 : -1], -1)
    return float(sum(steps[i, t] for i, t in enumerate(row["completion_ids"])))


@pytest.fixture(scope="module")
def rows(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    home = tmp_path_factory.mktemp("answers")
    out: dict[str, list[dict[str, Any]]] = {}
    for cell in CELLS:
        path = hm.export(world.run, to=home / f"{cell}.jsonl", cell=cell, text_only=True).path
        out[cell] = [json.loads(line) for line in path.read_text().splitlines()]
        for row in out[cell]:
            row["logprob"] = native(world.source, row)
    return out


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def own_scores(folder: Path, cell: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What the run itself scored: log q and log p* of the cell's rows."""
    found = [np.load(folder / "artifacts" / name / "scores.npz") for name in cell["artifacts"]["scores"]["own"]]
    return np.concatenate([f["own"] for f in found]), np.concatenate([f["other"] for f in found])


def truth_scores(folder: Path, cell: dict[str, Any]) -> np.ndarray:
    """What the run itself scored: log p* and log q of the truth's rows, (2, N)."""
    found = [np.load(folder / "artifacts" / name / "scores.npz") for name in cell["artifacts"]["scores"]["truth"]]
    return np.concatenate([np.stack([f["own"], f["other"]]) for f in found], axis=1)


def test_scores_of_the_truth_itself_are_the_runs_own_figures(
    world: World, rows: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Imported as the run scored them: its plain means to the last digits. As transformers scores them: as near."""
    folder = world.copy(tmp_path)
    before = {c["id"]: c for c in hm.load_results(folder)["cells"]}
    exact = [
        {"row": i, "cell": cell, "logprob": float(v)}
        for cell in CELLS
        for i, v in enumerate(own_scores(folder, before[cell])[1])
    ]
    hm.add_scores(folder, file=write(tmp_path / "exact.jsonl", exact), truth="same")
    flat = [r for cell in CELLS for r in reversed(rows[cell])]
    done = hm.add_scores(folder, file=write(tmp_path / "back.jsonl", flat), truth="big")
    cells = {c["id"]: c for c in done.run.results["cells"]}
    for cell in CELLS:
        m = cells[cell]["metrics"]
        log_q, log_p = own_scores(folder, before[cell])
        strata = np.array([r["prompt_index"] for r in rows[cell]])
        tokens = np.array([len(r["completion_ids"]) for r in rows[cell]])
        for name, values in (("precision", log_p), ("kl_student", log_q - log_p)):
            got = m[f"user_{name}_same"]
            assert got["value"] == pytest.approx(values.mean(), abs=1e-9)
            assert got["se"] == pytest.approx(math.sqrt(mean_variance(values, strata)), abs=1e-9)
            assert (got["n"], got["unit"]) == (48, "nats")
            per_token = m[f"user_{name}_same_per_token"]
            assert per_token["value"] == pytest.approx(values.sum() / tokens.sum(), abs=1e-9)
            assert m[f"user_{name}_big"]["value"] == pytest.approx(got["value"], abs=1e-4)
            kept = m[name if name == "precision" else "kl_student_truth"]  # with control variates, where they help
            assert abs(got["value"] - kept["value"]) < 5 * math.hypot(got["se"], kept["se"])
        assert {k: v for k, v in m.items() if not k.startswith("user_")} == before[cell]["metrics"]
    table = {(c["a"], c["b"], c["metric"]): c for c in done.run.results["contrasts"]}
    found = table["lm.student.distilled-temperature0.6", "lm.student.direct", "user_precision_big"]
    means = [np.mean([r["logprob"] for r in rows[c]]) for c in CELLS]
    assert found["value"] == pytest.approx(np.mean([means[2] - means[0], means[3] - means[1]]))
    assert "user_kl_student_big" in hm.build_report([folder]).read_text(encoding="utf-8")
    again = hm.run(world.run.parent / "spec.yaml", out=folder)
    assert again.results == done.run.results


def test_what_is_no_sum_of_log_probabilities_in_nats_is_one_line(
    world: World, rows: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder = world.copy(tmp_path)
    before = contents(folder)
    mine = rows[CELLS[0]]

    def refused(changed: list[dict[str, Any]], said: str, **more: Any) -> None:
        with pytest.raises(InputError) as e:
            hm.add_scores(folder, file=write(tmp_path / "bad.jsonl", changed), **{"truth": "big", **more})
        assert said in str(e.value)
        assert "\n" not in str(e.value)

    refused([{**r, "logprob": r["logprob"] / len(r["completion_ids"])} for r in mine], "not means a token")
    refused([{**r, "logprob": r["logprob"] / math.log(10)} for r in mine], "nor log10")
    refused([*mine[:-1], {**mine[-1], "logprob": 0.5}], "row 47 of lm.student.direct.seed0: a log-probability is at")
    refused([{**r, "logprob": -r["logprob"]} for r in mine], "at most 0")
    refused([{**r, "logprob": False} for r in mine], "line 1: not a finite number")
    refused(mine[:-1], "row 47 is the first without")
    refused([*mine, mine[3]], "row 3 of lm.student.direct.seed0 is there twice")
    refused([*mine[:-1], {**mine[-1], "logprob": -math.inf}], "not a finite number")
    refused([{k: v for k, v in r.items() if k != "logprob"} for r in mine], "no such column of scores")
    refused(mine, "cannot name the model", truth="my big/model")
    refused(mine, "there is one column of log-probabilities", columns=["logprob", "other"])
    assert contents(folder) == before


def test_answers_of_the_truth_give_the_runs_own_recall(
    world: World, rows: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """As its own program would bring them: prompt, answer, log-probability, and whether the answer was cut."""
    folder = world.copy(tmp_path)
    before = {c["id"]: c for c in hm.load_results(folder)["cells"]}
    drawn = hm.export(folder, to=tmp_path / "drawn.jsonl", cell=TRUTH, text_only=True).path
    own = [json.loads(line) for line in drawn.read_text().splitlines()]
    # A text has no special tokens, which this truth draws, too: ids 0 to 2, but for an end.
    said = np.array([min([9, *r["completion_ids"][: -1 if r["ends_with_stop"] else None]]) > 2 for r in own])
    said &= np.array([r["completion_ids"] != [1] for r in own])
    own = [r for r, is_text in zip(own, said, strict=True) if is_text]
    strata = np.array([r["prompt_index"] for r in own])
    tokens = np.array([len(r["completion_ids"]) for r in own])
    scored = {name: truth_scores(folder, c)[:, said] for name, c in before.items()}
    brought = [
        {"prompt": r["prompt"], "answer": r["completion"].removesuffix(" <eos>"), "logprob": float(p)}
        | {k: r[k] for k in ("ends_with_stop",) if not r[k]}
        for r, p in zip(own, scored[TRUTH][0], strict=True)
    ]
    assert 0 < sum("ends_with_stop" in r for r in brought) < len(brought)
    done = hm.add_scores(folder, file=write(tmp_path / "answers.jsonl", brought), truth="big")
    after = {c["id"]: c["metrics"] for c in done.run.results["cells"]}
    assert set(done.added) == set(before)
    for cell, (log_p, log_q) in scored.items():
        for name, values in (("user_recall_big", log_q), ("user_kl_big_student", log_p - log_q)):
            got, per_token = after[cell][name], after[cell][f"{name}_per_token"]
            assert got["value"] == pytest.approx(values.mean(), abs=1e-9)
            assert got["se"] == pytest.approx(math.sqrt(mean_variance(values, strata)), abs=1e-9)
            assert per_token["value"] == pytest.approx(values.sum() / tokens.sum(), abs=1e-9)
    gap = {(c["a"], c["b"]): c["value"] for c in done.run.results["contrasts"] if c["metric"] == "user_recall_big"}
    means = [after[c]["user_recall_big"]["value"] for c in CELLS]
    found = gap["lm.student.distilled-temperature0.6", "lm.student.direct"]
    assert found == pytest.approx(np.mean([means[2] - means[0], means[3] - means[1]]))
    held = contents(folder)
    for changed, said in (
        ({"prompt": "w9"}, "models are not judged on this prompt"),
        ({"answer": ""}, "the answer is empty"),
        ({"answer": "w7 <eos>"}, "the answer's text has the end token in it"),
        ({"logprob": True}, "not a finite number"),
        ({"logprob": 0.5}, "a log-probability is at most 0"),
    ):
        with pytest.raises(InputError, match=said) as e:
            hm.add_scores(folder, file=write(tmp_path / "bad.jsonl", [{**brought[0], **changed}]), truth="big")
        assert "\n" not in str(e.value)
    in_bits = [{**r, "logprob": r["logprob"] / math.log(2)} for r in brought]
    with pytest.raises(InputError, match="no KL is below 0; bring answers that the model drew"):
        hm.add_scores(folder, file=write(tmp_path / "bad.jsonl", in_bits), truth="big", cell=TRUTH)
    assert contents(folder) == held


def test_a_column_of_scores_and_a_truth_of_one_name_are_refused(
    world: World, rows: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder = world.copy(tmp_path)
    back = write(tmp_path / "back.jsonl", [{**r, "precision_big": 1.5, "precision_other": 0.5} for r in rows[CELLS[0]]])
    hm.add_scores(folder, file=back, truth="big")
    before = contents(folder)
    with pytest.raises(InputError, match="have one name; got 'user_precision_big'"):
        hm.add_scores(folder, file=back, columns=["precision_big"])
    assert contents(folder) == before
    hm.add_scores(folder, file=back, columns=["precision_other"])
    with pytest.raises(InputError, match="have one name; got 'user_precision_other'"):
        hm.add_scores(folder, file=back, truth="other")


def test_the_command_takes_a_name_and_a_column(
    world: World,
    rows: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = world.copy(tmp_path)
    renamed = [{"row": r["row"], "lp": r["logprob"]} for r in rows[CELLS[0]]]
    file = write(tmp_path / "lp.jsonl", renamed)
    words = ["scores", str(folder), "--file", str(file), "--cell", CELLS[0], "--column", "lp", "--truth", "big"]
    monkeypatch.setattr(sys, "argv", ["hydrometer", *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "user_precision_big_per_token" in capsys.readouterr().out.replace("\n", "")
