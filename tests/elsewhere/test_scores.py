import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hydrometer as hm
from elsewhere_world import World, contents
from hydrometer.core.errors import InputError
from hydrometer.core.statistics.estimators import mean_variance

CELLS = [f"lm.student.{k}.seed{s}" for k in ("direct", "distilled-temperature0.6") for s in (0, 1)]


def exported(folder: Path, where: Path, cell: str) -> list[dict[str, Any]]:
    path = hm.export(folder, to=where / f"{cell}.jsonl", cell=cell, text_only=True).path
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A program of the user's: how many tokens are even, and whether the answer stopped."""
    return [r | {"even": sum(t % 2 == 0 for t in r["completion_ids"]), "valid": r["ends_with_stop"]} for r in rows]


@pytest.fixture(scope="module")
def joined(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    home = tmp_path_factory.mktemp("scores")
    folder = world.copy(home)
    rows = {cell: scored(exported(folder, home, cell)) for cell in CELLS}
    flat = [r for part in rows.values() for r in part]
    np.random.default_rng(0).shuffle(flat)  # type: ignore[arg-type]  # the order of a file means nothing
    (home / "back.jsonl").write_text("".join(json.dumps(r) + "\n" for r in flat))
    done = hm.add_scores(folder, file=home / "back.jsonl")
    assert set(done.added) == set(CELLS)
    return folder, rows, done.run.results


def test_means_and_errors_are_those_of_the_columns_within_prompts(joined: Any) -> None:
    cells = {c["id"]: c["metrics"] for c in joined[2]["cells"]}
    for cell, rows in joined[1].items():
        strata = np.array([r["prompt_index"] for r in rows])
        assert len(set(strata)) == 2
        for name, unit in (("even", "score"), ("valid", "probability")):
            values = np.array([float(r[name]) for r in rows])
            m = cells[cell][f"user_{name}"]
            assert m["value"] == pytest.approx(values.mean())
            assert m["se"] == pytest.approx(math.sqrt(mean_variance(values, strata)))
            assert (m["n"], m["unit"]) == (48, unit)
    assert not [k for k in cells["lm.truth"] if k.startswith("user_")]


def test_contrasts_over_seeds_and_tables_have_them(joined: Any) -> None:
    table = {(c["a"], c["b"], c["metric"]): c for c in joined[2]["contrasts"]}
    found = table["lm.student.distilled-temperature0.6", "lm.student.direct", "user_even"]
    means = {c: np.mean([r["even"] for r in rows]) for c, rows in joined[1].items()}
    gaps = [means[CELLS[2 + s]] - means[CELLS[s]] for s in (0, 1)]
    assert found["value"] == pytest.approx(np.mean(gaps))
    assert found["se"] == pytest.approx(np.std(gaps, ddof=1) / math.sqrt(2))
    assert (found["df"], found["pairing"]) == (1, "seed")
    page = hm.build_report([joined[0]]).read_text()
    assert "user_even" in page
    metrics = {r["metric"] for r in csv.DictReader((joined[0] / "results.csv").read_text().splitlines())}
    assert {"user_even", "user_valid"} <= metrics


def test_a_later_run_keeps_them_and_new_ones_take_their_place(world: World, joined: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(joined[0], folder)
    again = hm.run(world.run.parent / "spec.yaml", out=folder)
    assert again.results == joined[2]
    rows = joined[1][CELLS[0]]
    pq.write_table(pa.table({"row": range(48), "even": [2.5] * 48}), tmp_path / "new.parquet")
    done = hm.add_scores(folder, file=tmp_path / "new.parquet", cell=CELLS[0])
    cells = {c["id"]: c["metrics"] for c in done.run.results["cells"]}
    assert cells[CELLS[0]]["user_even"]["value"] == 2.5
    assert cells[CELLS[0]]["user_valid"]["value"] == pytest.approx(np.mean([r["valid"] for r in rows]))


LM_EVAL = {
    "results": {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25,
                     "acc_norm_stderr,none": 0.05},
        "gsm8k": {"exact_match,strict-match": 0.125, "exact_match_stderr,strict-match": "N/A"},
    },
    "n-samples": {"arc_easy": {"original": 2376, "effective": 200}, "gsm8k": {"original": 1319, "effective": 8}},
}  # fmt: skip


def test_results_of_lm_evaluation_harness_join_a_cell(world: World, tmp_path: Path) -> None:
    folder = world.copy(tmp_path)
    file = tmp_path / "results_2026.json"
    file.write_text(json.dumps(LM_EVAL))
    hm.add_scores(folder, file=file, cell=CELLS[0])
    file.write_text(json.dumps(LM_EVAL).replace("0.125", "0.25"))
    done = hm.add_scores(folder, file=file, cell=CELLS[2])
    m = next(c for c in done.run.results["cells"] if c["id"] == CELLS[2])["metrics"]
    acc = m["lm_eval_arc_easy_acc"]
    assert (acc["value"], acc["se"], acc["n"], acc["unit"]) == (0.5, 0.1, 200, "lm-eval")
    assert m["lm_eval_arc_easy_acc_norm"]["se"] == 0.05
    exact = m["lm_eval_gsm8k_exact_match_strict_match"]
    assert (exact["value"], exact["se"], exact["n"]) == (0.25, None, 8)
    table = {(c["a"], c["b"], c["metric"]): c for c in done.run.results["contrasts"]}
    pair = ("lm.student.distilled-temperature0.6", "lm.student.direct")
    # seed 1 has no figures, so there is no mean over both seeds
    assert table[(*pair, "lm_eval_arc_easy_acc")]["value"] is None


def test_a_benchmark_without_an_error_gives_no_interval(tmp_path: Path, world: World) -> None:
    folder = world.copy(tmp_path)
    file = tmp_path / "results_1.json"
    for value, cell in ((0.5, "lm.teacher"), (0.25, "lm.truth")):
        file.write_text(json.dumps({"results": {"t": {"acc,none": value, "acc_stderr,none": "N/A"}}}))
        done = hm.add_scores(folder, file=file, cell=cell)
    group = done.run.results["summary"]["groups"]["lm.teacher"]["metrics"]["lm_eval_t_acc"]
    assert (group["value"], group["se"], group["ci95"]) == (0.5, None, None)


def rows_of(**changes: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"row": i, "cell": CELLS[0], "even": i % 3} for i in range(48)]
    for at, change in changes.items():
        rows[int(at[1:])] |= change
    return rows


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


BAD: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "NaN": ("a.jsonl", lines(rows_of(r3={"even": math.nan})), {}, "line 4: not a finite number"),
    "null": ("a.jsonl", lines(rows_of(r3={"even": None})), {}, "line 4: not a finite number"),
    "infinite": ("a.jsonl", lines(rows_of(r0={"even": math.inf})), {}, "not a finite number"),
    "text in a column": ("a.jsonl", lines(rows_of(r0={"even": "yes"})), {}, "not a finite number"),
    "a row too many": ("a.jsonl", lines([*rows_of(), {"row": 48, "cell": CELLS[0], "even": 1}]), {}, "has no row 48"),
    "a row twice": ("a.jsonl", lines(rows_of(r5={"row": 4})), {}, "row 4 of .* is there twice"),
    "rows missing": ("a.jsonl", lines(rows_of()[:40]), {}, "48 rows, and the file scores 40"),
    "a row below 0": ("a.jsonl", lines(rows_of(r0={"row": -1})), {}, "has no row -1"),
    "a row that is no number": ("a.jsonl", lines(rows_of(r0={"row": 0.5})), {}, "not a row's number"),
    "unknown cell": ("a.jsonl", lines(rows_of(r0={"cell": "lm.student.direct.seed7"})), {}, "no such cell"),
    "no cell": ("a.jsonl", lines([{"row": 0, "even": 1}]), {}, "--cell"),
    "two cells": ("a.jsonl", lines(rows_of()), {"cell": CELLS[1]}, "names others"),
    "no rows": ("a.jsonl", "", {}, "holds no row"),
    "no row numbers": ("a.jsonl", '{"even": 1}\n', {"cell": CELLS[0]}, "no column `row`"),
    "no scores": ("a.jsonl", lines([{"row": i, "cell": CELLS[0]} for i in range(48)]), {}, "no column of scores"),
    "unknown column": ("a.jsonl", lines(rows_of()), {"columns": ["evn"]}, "did you mean 'even'"),
    "a column of the export": ("a.jsonl", lines(rows_of()), {"columns": ["row"]}, "no such column of scores"),
    "a strange name": ("a.jsonl", lines([{"row": 0, "../x": 1}]), {"cell": CELLS[0]}, "cannot name a metric"),
    "not JSON": ("a.jsonl", "{", {}, "cannot be parsed"),
    "not Parquet": ("a.parquet", "PAR1", {}, "cannot be parsed"),
    "ragged CSV": ("a.csv", "row,even\n1\n2,3,4\n", {"cell": CELLS[0]}, "cannot be parsed"),
    "another kind": ("a.txt", "1", {}, "a file of this type"),
    "no lm-eval": ("a.json", "{}", {"cell": CELLS[0]}, "no results of lm-evaluation-harness"),
    "lm-eval without a cell": ("a.json", json.dumps(LM_EVAL), {}, "--cell"),
    "lm-eval NaN": ("a.json", '{"results": {"t": {"acc,none": NaN}}}', {"cell": CELLS[0]}, "not a finite number"),
    "lm-eval with columns": ("a.json", json.dumps(LM_EVAL), {"cell": CELLS[0], "columns": ["x"]}, "files of rows"),
}  # fmt: skip


@pytest.fixture(scope="module")
def target(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.copy(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize("what", BAD)
def test_bad_scores_are_one_line_and_change_nothing(target: Path, tmp_path: Path, what: str) -> None:
    name, text, options, says = BAD[what]
    (tmp_path / name).write_text(text)
    before = contents(target)
    with pytest.raises(InputError, match=says) as caught:
        hm.add_scores(target, file=tmp_path / name, **options)
    assert "\n" not in str(caught.value)
    assert contents(target) == before


def test_a_file_that_is_not_there_and_a_folder_of_no_run(target: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        hm.add_scores(target, file=tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text(lines(rows_of()))
    with pytest.raises(InputError, match="no run in the folder"):
        hm.add_scores(tmp_path, file=tmp_path / "a.jsonl")
