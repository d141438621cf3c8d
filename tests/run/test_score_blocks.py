"""Judging block by block: the figures of one pass, and nothing of it lost or made twice."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hydrometer as hm
from chains import lm_spec, without_timings, write_spec
from hydrometer.core.errors import StoreError
from hydrometer.models.markov.family import MarkovFamily
from hydrometer.run.advice.holdout import rejudged
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages import score as scoring
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.judge import figures, judge, scores_of
from hydrometer.stages.judge_files import load_metrics
from hydrometer.stages.nodes import VERSIONS, JudgeNode, ScoreNode
from hydrometer.stages.score import load_columns, save_columns
from hydrometer.store.artifacts import ArtifactStore

CHAIN: dict[str, Any] = {
    "family": "markov", "truth": {"order": 2, "vocabulary": 4, "max_new_tokens": 20}, "teacher": {"order": 2},
    "student": {"order": 1}, "data": {"train": 100, "distill": 100, "evaluate": 200},
    "selectivity": [
        {"temperature": 1}, {"temperature": 0.6}, {"top_k": 2}, {"best_of": 3, "rank_by": "length"},
        {"accept": {"by": "stopped", "min": 1}},
    ],
}  # fmt: skip


def close(found: dict[str, Any], expected: dict[str, Any], rel: float, floor: float = 0.0) -> None:
    assert list(found) == list(expected)
    for name, e in expected.items():
        if name == "recorded_minus_scored":  # is rounding, and its spread the rounding of rounding
            assert found[name]["value"] == pytest.approx(e["value"], abs=1e-6)
            continue
        for field in ("value", "se", "df", "n", "n_neg_inf", "method", "unit"):
            a, b = found[name][field], e[field]
            same = pytest.approx(b, rel=rel, abs=floor) if isinstance(b, float) else b
            assert a == same, (name, field)


@pytest.mark.parametrize("controlled", [True, False])
def test_blocks_give_the_figures_of_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controlled: bool) -> None:
    """Chains are scored in float64, row by row: 64 rows at a time or all at once is the same but for sums' rounding."""
    if not controlled:  # a family from outside may know no expectations along its rows
        monkeypatch.setattr(scoring, "Controlled", type("Nobody", (), {}))
    spec = write_spec({"name": "m", "seeds": 1, "chains": {"m": copy.deepcopy(CHAIN)}}, tmp_path)
    whole = hm.run(spec, out=tmp_path / "whole")
    monkeypatch.setattr(MarkovFamily, "keeps_draws", True)
    monkeypatch.setattr(MarkovFamily, "block_rows", lambda self, chain: 64)
    blocks = hm.run(spec, out=tmp_path / "blocks")
    assert not whole.failed_cells
    assert not blocks.failed_cells
    assert "score" not in whole.outcome.computed
    judged = blocks.outcome.computed["judge"]
    chosen = sum("absent" in c for c in blocks.results["cells"])
    assert chosen == 6
    assert blocks.outcome.computed["score"] == 4 * (1 + 2 * (judged - 1) - chosen)  # 200 rows are four blocks
    for a, b in zip(whole.results["cells"], blocks.results["cells"], strict=True):
        assert a["id"] == b["id"]
        close(b["metrics"], a["metrics"], 1e-9, 1e-12)
    direct = next(c for c in blocks.results["cells"] if c["id"] == "m.student.direct.seed0")["metrics"]
    assert (direct["recall"]["method"] == "cv") == controlled
    assert ("typicality_50_first_4" in direct) == controlled


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, hm.RunResult]:
    """A tiny language model's chain, judged on 40 rows in blocks of 16; answers of one to six tokens."""
    pytest.importorskip("torch")
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    folder = tmp_path_factory.mktemp("blocks")
    CausalLM(make_llama(), make_tokenizer(64)).save(folder / "model")
    (folder / "p.jsonl").write_text('{"prompt": "w3 w4"}\n{"prompt": "w5"}\n{"prompt": "w6 w7 w8"}\n')
    spec = lm_spec(
        folder / "model", selectivity=[{"temperature": 1.0}, {"top_p": 0.8}],
        data={"train": 32, "validate": 16, "distill": 32, "evaluate": 40},
        truth={"source": str(folder / "model"), "max_new_tokens": 6, "prompts": {"file": "p.jsonl"}},
    )  # fmt: skip
    path = write_spec(spec, folder)
    result = hm.run(path, out=folder / "out", cache=folder / "cache")
    assert not result.failed_cells
    return path, folder, result


def opened(made: tuple[Path, Path, hm.RunResult]) -> tuple[Any, ArtifactLoader]:
    return plan_run(hm.load_spec(made[0])), ArtifactLoader(ArtifactStore(made[1] / "cache"))


def fork(made: tuple[Path, Path, hm.RunResult], target: Path, without: tuple[str, ...] = ()) -> Path:
    shutil.copytree(made[1] / "cache", target)
    for kind in without:
        for folder in target.glob(f"{kind}-*"):
            shutil.rmtree(folder)
    return target


def test_a_network_gives_the_figures_of_one_pass(made: tuple[Path, Path, hm.RunResult]) -> None:
    """Batches end with their block. float32 products of other shapes may differ by 1e-6 nats a token; here none does
    on the machines tried, so 1e-6 of a figure leaves room for others."""
    plan, bench = opened(made)
    for cell in plan.cells:
        node = plan.nodes[cell.judge]
        truth = bench.law(node.context, node.truth, "float32")
        is_truth = cell.id == "lm.truth"
        law = truth if is_truth else bench.law(node.context, node.law, "float32", node.decoding)
        x = bench.rows(node.context, node.truth_rows)
        y = x if is_truth else bench.rows(node.context, node.law_rows)
        expected = figures(scores_of(truth, law, x, y), truth, law)
        found = load_metrics(bench.store.path("judge", node.key))
        fields = ("value", "se", "df", "n", "n_neg_inf", "method", "unit")
        as_dict = [{k: {f: getattr(e, f) for f in fields} for k, e in m.items()} for m in (found, expected)]
        close(as_dict[0], as_dict[1], 1e-6, 1e-6)
    assert sum("first_4" in name for name in found) == 5


def test_what_a_kill_leaves_is_not_made_again(
    made: tuple[Path, Path, hm.RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, result = made
    cache = fork(made, tmp_path / "cache", ("score", "judge", "show"))
    score, done = scoring.score, 7

    def killed(node: ScoreNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
        if len(list(cache.glob("score-*"))) == done:
            raise KeyboardInterrupt
        return score(node, bench, folder)

    with monkeypatch.context() as patch:
        patch.setattr("hydrometer.stages.compute.score", killed)
        with pytest.raises(KeyboardInterrupt):
            hm.run(path, out=tmp_path / "out", cache=cache)
    assert not list(cache.glob(".tmp-*"))
    again = hm.run(path, out=tmp_path / "out", cache=cache)
    assert again.outcome.reused["score"] == done
    assert again.outcome.computed["score"] == result.outcome.computed["score"] - done
    assert without_timings(again.results) == without_timings(result.results)


@pytest.mark.parametrize("judged", [True, False])
def test_a_damaged_block_is_scored_again_and_no_other(
    made: tuple[Path, Path, hm.RunResult], tmp_path: Path, judged: bool
) -> None:
    path, _, result = made
    cache = fork(made, tmp_path / "cache", () if judged else ("judge",))
    broken = sorted(cache.glob("score-*"))[3] / "scores.npz"
    broken.write_bytes(broken.read_bytes()[:-9])
    again = hm.run(path, out=tmp_path / "out", cache=cache)
    assert again.outcome.computed["score"] == 1
    assert again.outcome.computed["judge"] == (0 if judged else result.outcome.computed["judge"])
    assert without_timings(again.results) == without_timings(result.results)


def test_more_evaluation_rows_add_blocks(made: tuple[Path, Path, hm.RunResult], tmp_path: Path) -> None:
    """40 rows are blocks of 16, 16 and 8 rows, 64 are four of 16: the first two serve again."""
    path, folder, result = made
    spec = json.loads(path.read_text())
    spec["chains"]["lm"]["data"]["evaluate"] = 64
    cache = fork(made, tmp_path / "cache")
    (tmp_path / "p.jsonl").write_text((folder / "p.jsonl").read_text())
    more = hm.run(write_spec(spec, tmp_path), out=tmp_path / "more", cache=cache)
    sides = result.outcome.computed["score"] // 3
    assert more.outcome.reused["score"] == 2 * sides
    assert more.outcome.computed["score"] == 2 * sides
    assert "fit" not in more.outcome.computed
    judged = result.outcome.computed["judge"]
    assert more.outcome.computed["draw"] == 2 * judged  # of each law: the third block whole, and the fourth


def test_no_row_is_drawn_that_nobody_asked_for(made: tuple[Path, Path, hm.RunResult]) -> None:
    plan, bench = opened(made)
    for node in plan.nodes.values():
        if isinstance(node, JudgeNode):
            drawn = [bench.store.meta("draw", k)["info"]["rows"] for k in node.law_rows.blocks]
            assert drawn == [16, 16, 8]


def test_judging_opens_no_model(
    made: tuple[Path, Path, hm.RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, bench = opened(made)
    monkeypatch.setattr(ArtifactLoader, "law", lambda *a: pytest.fail("opened a model"))
    for cell in plan.cells:
        node = plan.nodes[cell.judge]
        (tmp_path / cell.id).mkdir()
        judge(node, bench, tmp_path / cell.id)
        old = bench.store.path("judge", node.key)
        assert (tmp_path / cell.id / "metrics.json").read_bytes() == (old / "metrics.json").read_bytes()
        with np.load(tmp_path / cell.id / "rows.npz") as a, np.load(old / "rows.npz") as b:
            assert a.files == b.files
            assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_blocks_of_other_lengths_and_controls_are_joined(tmp_path: Path) -> None:
    """Short rows' prefixes are whole rows; a control that a block lacks, for a row it is infinite for, none has."""
    table = np.random.default_rng(3).dirichlet(np.ones(4), size=5)
    p, q = (
        hm.Markov(np.log(table), order=1, max_new_tokens=9),
        hm.Markov(np.log(table[::-1]), order=1, max_new_tokens=9),
    )
    x = p.sample(200, seed=1)
    x = x.take(np.argsort(x.lengths, kind="stable"))
    whole = scoring.columns_of(p, q, x)
    edges = [0, *(int((x.lengths <= m).sum()) for m in (1, 3, 9))]
    parts = [x.take(slice(a, b)) for a, b in pairwise(edges)]
    assert [int(part.lengths.max()) for part in parts] == [1, 3, 9]
    folders = [tmp_path / str(i) for i in range(3)]
    for folder, part in zip(folders, parts, strict=True):
        folder.mkdir()
        save_columns(scoring.columns_of(p, q, part), folder)
    found = load_columns(folders)
    for name in ("own", "other", "controls", "own_first", "other_first"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-12), name
    assert found.own_first.shape == (200, 5)
    assert found.exact
    assert found.own_exact is None
    middle = scoring.columns_of(p, q, parts[1])
    save_columns(replace(middle, controls=middle.controls[:, :1], exact=False), folders[1])
    fewer = load_columns(folders)
    assert (fewer.controls == found.controls[:, :1]).all()
    assert not fewer.exact
    (folders[2] / "scores.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(StoreError, match="scores cannot be read"):
        load_columns(folders)


def test_fresh_rows_are_scored_in_blocks_of_their_own(made: tuple[Path, Path, hm.RunResult]) -> None:
    plan, _ = opened(made)
    again, keys = rejudged(plan, [plan.nodes[c.judge] for c in plan.cells])
    order = {key: i for i, key in enumerate(again.nodes)}
    for old, new in keys.items():
        a, b = plan.nodes[old], again.nodes[new]
        assert isinstance(b, JudgeNode)
        assert len(a.law_scores) == len(b.law_scores)
        for key in (*b.truth_scores, *b.law_scores):
            assert key not in plan.nodes
            assert all(order[i] < order[key] < order[new] for i in again.nodes[key].inputs)
    assert not set(again.nodes) & set(plan.nodes)


def test_a_new_version_of_scoring_judges_again(
    made: tuple[Path, Path, hm.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = opened(made)
    monkeypatch.setitem(VERSIONS, "score", VERSIONS["score"] + 1)
    later = plan_run(hm.load_spec(made[0]))
    for a, b in zip(plan.cells, later.cells, strict=True):
        assert a.judge != b.judge
        assert plan.nodes[a.judge].law_rows == later.nodes[b.judge].law_rows
