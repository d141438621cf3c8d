"""What measures share: worlds, exact figures that are finite, angles; and which recipes are claims."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import hydrometer as hm
from chains import mixture_spec
from hydrometer.claims.worlds import (
    ChainWorld,
    degrees_between,
    exact_figures,
    fitted_mixture,
    mixture_entropy,
    mixture_figures,
)
from hydrometer.cli.commands import app
from hydrometer.core.errors import FitError
from hydrometer.core.rng import Stream


def test_a_world_draws_and_counts() -> None:
    world = ChainWorld(vocabulary=3, max_new_tokens=4, end=0.3, smoothing=0.5)
    truth = world.truth(1, seed=7)
    assert np.exp(truth.log_table[:, 0]) == pytest.approx(0.3)
    assert np.exp(world.truth(1, seed=7, end=0.1).log_table[:, 0]) == pytest.approx(0.1)
    rows = truth.sample(50, seed=0)
    by_hand = np.bincount(rows.ids[rows.within], minlength=3) + 0.5
    assert np.exp(world.fitted(rows, 0).log_table[0]) == pytest.approx(by_hand / by_hand.sum())


def test_an_infinite_figure_is_no_number() -> None:
    said = hm.Markov(np.log([[0.5, 0.25, 0.25]]), order=0, max_new_tokens=2)
    with np.errstate(divide="ignore"):
        silent = hm.Markov(np.log([[0.5, 0.5, 0.0]]), order=0, max_new_tokens=2)
    assert exact_figures(said, silent, ("precision",))["precision"] < 0
    with pytest.raises(FitError, match="infinite in a world; got 'recall'"):
        exact_figures(said, silent, ("precision", "recall"))


@pytest.mark.parametrize("d", [1, 2])
def test_figures_of_mixtures_are_sums_over_a_grid(d: int) -> None:
    truth = hm.Mixture([0.6, 0.4], np.repeat([[-1.0], [1.5]], d, axis=1), [0.5, 1.0], covariance_type="spherical")
    law = hm.Mixture([0.2, 0.8], np.repeat([[0.0], [1.0]], d, axis=1), np.full((2, d), 0.7), covariance_type="diag")
    step = 0.05
    x = np.stack(np.meshgrid(*[np.arange(-9, 9, step)] * d, indexing="ij"), axis=-1).reshape(-1, d)
    (p, log_p), (q, log_q) = ((np.exp(m.log_prob(x)) * step**d, m.log_prob(x)) for m in (truth, law))
    expected = {
        "precision": q @ log_p,
        "recall": p @ log_q,
        "entropy": -(q @ log_q),
        "kl_student_truth": q @ (log_q - log_p),
    }
    assert mixture_figures(truth, law) == pytest.approx(expected, rel=1e-5)
    assert mixture_entropy(truth) == pytest.approx(-(p @ log_p), rel=1e-5)


def test_a_mixture_of_one_has_the_points_moments() -> None:
    rows = hm.Mixture([1.0], [[2.0, 0.0]], [1.0], covariance_type="spherical").sample(50)
    law = fitted_mixture(rows.x, 1, Stream(0), reg_covar=0.25)
    assert law.means[0] == pytest.approx(rows.x.mean(axis=0))
    assert law.covariances[0] == pytest.approx(rows.x.var(axis=0) + 0.25)


def test_angles_near_nothing_and_of_opposites() -> None:
    x = np.array([1.0, 0.0])
    assert degrees_between(x, 3 * x) == 0
    assert degrees_between(x, -x) == pytest.approx(180, abs=1e-12)
    assert degrees_between(x, np.array([1.0, 1e-9])) == pytest.approx(np.degrees(1e-9), rel=1e-6)


def test_a_file_in_a_folder_of_that_name_is_a_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "heating.yaml").write_text(yaml.safe_dump(mixture_spec()))
    done = CliRunner().invoke(app, ["run", "claims/heating.yaml", "--out", "out", "--json"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "results.json").is_file()
    assert CliRunner().invoke(app, ["run", "claims/heatin", "--out", "out"]).exit_code != 0
