"""The flow family: its law against quadrature and closed forms, its fits, and its way in through installed metadata."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydrometer_flow.contract import CHAIN
from hydrometer_flow.family import FLOW
from hydrometer_flow.fit import fit_flow
from hydrometer_flow.law import FlowLaw
from hydrometer_flow.spec import FlowLevel

import hydrometer as hm
from chains import complaints
from hydrometer.core.errors import DataError, FitError, LawMismatchError, SpecError, StoreError
from hydrometer.models.families import families, parse_run_spec

HERE = Path(__file__).parent
TRUTH = hm.Mixture([0.5, 0.25, 0.25], [[0, 0], [2, 0.5], [-2, -0.5]], [0.15] * 3, covariance_type="spherical")
TAU = hm.Selectivity(temperature=0.4)


def fit(
    level: FlowLevel, truth: hm.Mixture, n: int = 1000, validate: int | None = None, seed: int = 0
) -> hm.Fitted[FlowLaw]:
    held_out = None if validate is None else truth.sample(validate, seed=2)
    data = truth.sample(n, seed=1)
    return fit_flow(hm.FitRequest(data, held_out, truth, None, level, "truth", "mle", hm.Stream(seed)))


@pytest.fixture(scope="module")
def spline() -> FlowLaw:
    return fit(
        FlowLevel(hidden_features=(32,), epochs=30, batch_size=100, learning_rate=0.01), TRUTH, validate=300
    ).model


@pytest.fixture(scope="module")
def gaussian() -> tuple[FlowLaw, hm.Mixture, np.ndarray]:
    """One dimension has nothing to condition on: an affine flow is a Gaussian, and its fit a mean and a variance."""
    truth = hm.Mixture([1.0], [[3.0]], [4.0], covariance_type="spherical")
    level = FlowLevel(flow="maf", transforms=1, hidden_features=(4,), epochs=300, batch_size=1000, learning_rate=0.02)
    return fit(level, truth).model, truth, truth.sample(1000, seed=1).x[:, 0]


@pytest.mark.parametrize("tau", [1.0, 0.4, 0.05])
def test_the_density_at_any_temperature_is_normalised_by_quadrature(spline: FlowLaw, tau: float) -> None:
    axis = np.linspace(-7, 7, 501)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(spline.select(hm.Selectivity(temperature=tau)).log_prob(grid))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=2e-3)


def test_draws_follow_the_density(spline: FlowLaw) -> None:
    """Share of draws in boxes against the integral of the density there, at 5 standard errors."""
    cold = spline.select(TAU)
    x = cold.sample(20_000, seed=4).x
    axis = np.linspace(-4, 4, 401)
    middle = (axis[1:] + axis[:-1]) / 2
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1).reshape(-1, 2)
    cells = (np.exp(cold.log_prob(grid)) * (axis[1] - axis[0]) ** 2).reshape(20, 20, 20, 20).sum(axis=(1, 3))
    seen = np.histogram2d(x[:, 0], x[:, 1], bins=(axis[::20], axis[::20]))[0] / len(x)
    error = np.sqrt(cells * (1 - cells) / len(x)) + 5e-4 * cells.max()
    assert (np.abs(seen - cells) < 5 * error).all()
    assert (cells > 0.02).sum() >= 5


def test_a_fit_reaches_the_closed_form_maximum(gaussian: Any) -> None:
    law, _, x = gaussian
    best = hm.Mixture([1.0], [[x.mean()]], [x.var()], covariance_type="spherical")
    points = np.linspace(-4, 10, 30)[:, None]
    assert law.log_prob(points) == pytest.approx(best.log_prob(points), abs=0.01)


def test_of_a_gaussian_latent_temperature_is_the_power_law_and_of_a_spline_it_is_not(
    gaussian: Any, spline: FlowLaw
) -> None:
    law, _, x = gaussian
    exact = hm.Mixture([1.0], [[x.mean()]], [TAU.temperature * x.var()], covariance_type="spherical")
    points = np.linspace(-4, 10, 30)[:, None]
    assert law.select(TAU).log_prob(points) == pytest.approx(exact.log_prob(points), abs=0.03)
    y = spline.sample(500, seed=3)
    divisor = spline.select(TAU).log_prob(y) - spline.log_prob(y) / TAU.temperature
    assert divisor.std() > 0.1


def test_temperatures_multiply(spline: FlowLaw) -> None:
    half = hm.Selectivity(temperature=0.5)
    x = spline.sample(20, seed=0)
    quarter = spline.select(hm.Selectivity(temperature=0.25))
    assert (spline.select(half).select(half).log_prob(x) == quarter.log_prob(x)).all()


def test_a_spline_flow_comes_close_to_the_truth(spline: FlowLaw) -> None:
    affine = fit(FlowLevel(flow="maf", transforms=1, hidden_features=(4,), epochs=30, batch_size=100), TRUTH).model
    kl = hm.judge(TRUTH, spline, n=4000)["kl_truth_student"]
    assert 0 < kl.value < 0.15 < 0.3 < hm.judge(TRUTH, affine, n=4000)["kl_truth_student"].value


def test_held_out_rows_choose_the_epoch() -> None:
    level = FlowLevel(hidden_features=(64, 64), epochs=60, batch_size=40, learning_rate=0.01)
    fitted = fit(level, TRUTH, n=40, validate=200)
    last = fit(level, TRUTH, n=40).model
    held_out = TRUTH.sample(200, seed=2)
    assert fitted.info["epoch"] < 60
    found = fitted.model.log_prob(held_out).mean()
    assert found == pytest.approx(fitted.info["log_likelihood_validate"])
    assert found > last.log_prob(held_out).mean() + 0.1


def test_fits_of_other_streams_differ_and_leave_the_global_generator_alone() -> None:
    import torch

    level = FlowLevel(hidden_features=(8,), transforms=1, epochs=2, batch_size=50)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    x = TRUTH.sample(10, seed=0)
    threads = torch.get_num_threads()
    scores = [fit(level, TRUTH, n=100, seed=s).model.log_prob(x) for s in (0, 1, 0)]
    assert (torch.rand(3) == expected).all()
    assert torch.get_num_threads() == threads
    assert (scores[0] == scores[2]).all()
    assert (scores[0] != scores[1]).all()


def test_what_cannot_be_fitted_or_compared_is_refused_in_one_line(spline: FlowLaw, tmp_path: Path) -> None:
    flat = hm.Points(np.ones((50, 2)), np.zeros(50))
    with pytest.raises(FitError, match="no spread"):
        fit_flow(hm.FitRequest(flat, None, TRUTH, None, FlowLevel(), "truth", "mle", hm.Stream(0)))
    rows, held_out = TRUTH.sample(300, seed=1), hm.Points(np.array([[np.inf, 0.0]]), np.zeros(1))
    with pytest.raises(FitError, match="lower learning_rate"):
        fit_flow(hm.FitRequest(rows, held_out, TRUTH, None, FlowLevel(), "truth", "mle", hm.Stream(0)))
    with pytest.raises(LawMismatchError):
        spline.compatible(hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical"))
    with pytest.raises(LawMismatchError):
        hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical").compatible(spline)
    with pytest.raises(DataError, match=r"\(N, 2\)"):
        spline.log_prob(np.zeros((3, 1)))
    with pytest.raises(hm.InputError, match="unselected"):
        FLOW.save_law(spline.select(TAU), tmp_path)
    with pytest.raises(StoreError, match="no flow"):
        FLOW.load_law(tmp_path, FLOW.chain_spec.model_validate(CHAIN), "float64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selectivity": [{"weight_power": 2}]}, "temperature alone"),
        ({"decoding": [{"temperature": 0.5, "top_k": 3}]}, "temperature alone"),
        ({"data": {"train": 50}}, "teacher.batch_size is 64, more than the 50 rows"),
        ({"student": {"flow": "spline"}}, "student.flow"),
        ({"student": {"bin": 8}}, "did you mean 'bins'"),
    ],
)
def test_a_wrong_chain_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_run_spec({"name": "x", "chains": {"f": CHAIN | change}}, "spec")


def test_the_entry_point_is_found_in_this_process() -> None:
    assert families()["flow"] is FLOW


# through real metadata, in processes of their own -------------------------------------------------------------------


def hydrometer(*words: object, path: Path | None = None, threads: int = 1) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "NO_COLOR": "1", "COLUMNS": "300"}
    environment |= {} if path is None else {"PYTHONPATH": str(path)}
    command = [str(Path(sys.executable).parent / "hydrometer"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed the package, from its own pyproject.toml, without a network."""
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(HERE)]
    subprocess.run(command, check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mixture = {
        "family": "mixture", "truth": CHAIN["truth"], "teacher": {"n_components": 2}, "student": {"n_components": 2},
        "data": {"train": 256, "distill": 256, "evaluate": 400},
        "selectivity": [{"weight_power": 1}, {"weight_power": 4}],
    }  # fmt: skip
    body = {"name": "both", "seeds": 2, "chains": {"flow": CHAIN, "mixture": mixture}}
    path = tmp_path_factory.mktemp("spec") / "both.yaml"
    path.write_text(json.dumps(body))
    return path


def test_an_installed_family_runs_beside_a_built_in_one(installed: Path, spec: Path, tmp_path: Path) -> None:
    done = hydrometer("run", spec, "--out", tmp_path / "run", "--json", path=installed)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert not said["failed_cells"]
    results = hm.load_results(tmp_path / "run")
    cells = {c["id"]: c for c in results["cells"]}
    per_seed = {
        "truth", "teacher", "teacher.decoded-temperature0.5", "student.direct", "student.distilled-temperature1.0",
        "student.distilled-temperature0.5", "student.direct.decoded-temperature0.5",
        "student.distilled-temperature1.0.decoded-temperature0.5",
    }  # fmt: skip
    assert {i for i in cells if i.startswith("flow.")} == {f"flow.{g}.seed{s}" for g in per_seed for s in (0, 1)}
    for metrics in (c["metrics"] for i, c in cells.items() if i.startswith("flow.")):
        identity = -metrics["entropy"]["value"] - metrics["kl_student_truth"]["value"]
        assert metrics["precision"]["value"] == pytest.approx(identity)
    groups = results["summary"]["groups"]
    truths = {chain: groups[f"{chain}.truth"]["metrics"]["precision"]["value"] for chain in ("flow", "mixture")}
    assert truths["flow"] == truths["mixture"]  # one truth, one stream: one point of the plane
    page = (tmp_path / "run" / "report.html").read_text()
    assert {"flow-plane.svg", "mixture-plane.svg"} <= {p.name for p in (tmp_path / "run" / "figures").iterdir()}
    assert "distilled" in page
    assert "temperature" in page

    again = hydrometer("run", spec, "--out", tmp_path / "run", "--json", path=installed)
    assert again.returncode == 0, again.stderr
    assert sum(json.loads(again.stdout)["computed"].values()) == 0
    (tmp_path / "run" / "report.html").unlink()
    assert hydrometer("report", tmp_path / "run").returncode == 0  # needs no family: results are enough
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_results_do_not_depend_on_threads_or_folder(installed: Path, spec: Path, tmp_path: Path) -> None:
    words = ("--set", "seeds=1", "--json")
    found = []
    for name, threads in (("a", 1), ("b", 2)):
        done = hydrometer("run", spec, "--out", tmp_path / name, *words, path=installed, threads=threads)
        assert done.returncode == 0, done.stderr
        found.append({c["id"]: c["metrics"] for c in hm.load_results(tmp_path / name)["cells"]})
    assert found[0] == found[1]


def test_a_family_that_is_not_installed_is_named(spec: Path, tmp_path: Path) -> None:
    done = hydrometer("run", spec, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert len(complaints(done.stderr)) == 1
    assert "unknown family; got 'flow'" in done.stderr


def test_a_broken_family_is_named_and_keeps_none_from_working(spec: Path, tmp_path: Path) -> None:
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hydrometer.families]\nflow = no_such_module:FLOW\nmixture = hydrometer.models.causal_lm.family:CAUSAL_LM\n"
    )
    done = hydrometer("run", spec, "--out", tmp_path / "run", path=tmp_path / "site")
    assert done.returncode == 2
    assert len(complaints(done.stderr)) == 1
    assert "'flow' cannot be used: ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
    body = json.loads(spec.read_text())
    alone = spec.with_name("alone.yaml")
    alone.write_text(json.dumps(body | {"seeds": 1, "chains": {"mixture": body["chains"]["mixture"]}}))
    assert hydrometer("run", alone, "--out", tmp_path / "run", path=tmp_path / "site").returncode == 0
