"""Per-token scores reach the figures in the one pass in which rows are scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import hydrometer as hm
from chains import mixture_spec, write_spec
from hydrometer.stages.judge import scores_of


def test_prefixes_come_with_the_scores_and_end_in_them() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    p = hm.Markov(np.log(table), order=1, max_new_tokens=5)
    q = p.select(hm.Selectivity(top_k=2))
    x, y = p.sample(40, seed=1), q.sample(40, seed=2)
    s = scores_of(p, q, x, y)
    assert s.truth_first is not None
    assert s.law_first is not None
    whole = (s.truth_on_truth, s.law_on_truth, s.truth_on_law, s.law_on_law)
    for first, totals in zip((*s.truth_first, *s.law_first), whole, strict=True):
        assert first[:, -1] == pytest.approx(totals, abs=1e-12)
    assert np.isneginf(s.law_on_truth).any()
    assert s.truth_first[1].shape == (40, 4)  # 1, 2, 4 tokens, and whole rows of up to 5
    assert s.truth_first[0][:, 1] == pytest.approx(p.token_log_prob(x)[:, :2].sum(axis=1), abs=1e-12)
    own = scores_of(p, p, x, x)
    assert own.truth_first is own.law_first is None  # nothing to compare


def test_a_run_leaves_curves_in_its_exhibits(tmp_path: Path) -> None:
    spec = mixture_spec(seeds=2)
    line = {"means": [[-1.0], [1.0]], "covariances": 0.05, "weights": [0.5, 0.5]}
    spec["chains"]["line"] = {**spec["chains"]["m"], "truth": line}
    hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    cells = {c["id"]: c for c in hm.load_results(tmp_path / "out")["cells"]}
    for chain, kind in (("m", "density-2d"), ("line", "curves")):  # a line has no density to show, but curves
        shown = json.loads((tmp_path / "out" / "exhibits" / f"{chain}.student.direct.seed0.json").read_bytes())
        assert shown["kind"] == kind
        prd = shown["curves"]["whole"]["prd"]
        middle = prd["slope"].index(1.0)
        found = cells[f"{chain}.student.direct.seed0"]["metrics"]["prd_alpha_one"]
        assert prd["alpha"][middle] == pytest.approx(found["value"], abs=1e-6)
        assert prd["alpha_se"][middle] == pytest.approx(found["se"], abs=1e-6)
    truth = json.loads((tmp_path / "out" / "exhibits" / "m.truth.seed0.json").read_bytes())
    assert "curves" not in truth
    assert not (tmp_path / "out" / "exhibits" / "m.student.direct.seed1.json").exists()
    own = cells["m.truth.seed0"]["metrics"]
    assert own["total_variation"]["value"] == own["total_variation"]["se"] == 0
    assert own["typicality_90"]["value"] == pytest.approx(0.9)
