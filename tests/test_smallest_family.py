"""The smallest family of docs/own-family.md, taken from the page: its contract, and a run against closed forms."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import hydrometer as hm
from hydrometer.core.errors import FitError, InputError, StoreError
from hydrometer.family import CheapFamily, Density, Floats, Points, load_arrays, points_of, save_arrays
from hydrometer.models import families as known
from hydrometer.models.array_files import load_rows
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.nodes import JudgeNode
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.testing import CHECKS, Check, ContractCase

PAGE = (Path(__file__).parents[1] / "docs" / "own-family.md").read_text("utf-8")
MOST_LINES = 35  # of code


def block(name: str) -> str:
    found = re.search(rf'^```\w+ title="{re.escape(name)}"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Install the page's module, by metadata of its own, for the time of these tests."""
    site = tmp_path_factory.mktemp("site")
    (site / "exponential.py").write_text(block("exponential.py"))
    info = site / "exponential-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: exponential\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hydrometer.families]\nexponential = exponential:EXPONENTIAL\n")
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    forget()
    yield importlib.import_module("exponential")
    sys.path.remove(str(site))
    del sys.modules["exponential"]
    forget()


def forget() -> None:
    known.families.cache_clear()
    known._installed.cache_clear()  # pyright: ignore[reportPrivateUsage]


def case(example: ModuleType) -> ContractCase:
    chain = example.ExponentialChain(
        family="exponential", truth={"rate": 2.0}, selectivity=[{"temperature": 1}, {"temperature": 0.5}]
    )
    cold = hm.Selectivity(temperature=0.5)
    return ContractCase(example.EXPONENTIAL, example.Exponential(2.0), hm.Selectivity(temperature=1), cold, chain)


def test_it_is_small() -> None:
    code = [line for line in block("exponential.py").splitlines() if line.strip()]
    assert len(code) <= MOST_LINES
    assert max(map(len, code)) <= 120


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_it_keeps_the_contract(check: Check, example: ModuleType, tmp_path: Path) -> None:
    check(case(example), tmp_path)


def closed_forms(truth: float, rate: float) -> dict[str, float]:
    """Figures of a rate against the truth's, nats."""
    return {
        "precision": math.log(truth) - truth / rate,
        "recall": math.log(rate) - rate / truth,
        "entropy": 1 - math.log(rate),
        "entropy_truth": 1 - math.log(truth),
        "kl_student_truth": math.log(rate / truth) + truth / rate - 1,
        "kl_truth_student": math.log(truth / rate) + rate / truth - 1,
    }


def test_a_run_agrees_with_the_closed_forms(example: ModuleType, tmp_path: Path) -> None:
    """Of every cell, by the rate that its stored law has; and the rates are those of maximum likelihood."""
    path = tmp_path / "exponential.yaml"
    path.write_text(block("exponential.yaml"))
    hm.run(path, out=tmp_path / "run")
    cells = {c["id"]: c for c in hm.load_results(tmp_path / "run")["cells"]}
    plan = plan_run(hm.load_spec(path))
    store = ArtifactStore(tmp_path / "run" / "artifacts")
    truth, judged = 2.0, 0
    assert {c.role for c in plan.cells} == {"truth", "teacher", "student"}
    for cell in plan.cells:
        node = plan.nodes[cell.judge]
        assert isinstance(node, JudgeNode)
        fitted = node.law.kind == "fit"
        rate = load_arrays(example.Exponential, store.path("fit", node.law.key)).rate if fitted else truth
        if cell.role == "teacher":
            assert rate == pytest.approx(truth, rel=5 / math.sqrt(1000))
            assert rate != truth
        rate /= 1 if cell.decoding is None else cell.decoding.temperature or 1
        metrics = cells[cell.id]["metrics"]
        for name, exact in closed_forms(truth, rate).items():
            if name in metrics:
                judged += 1
                assert abs(metrics[name]["value"] - exact) <= 5 * metrics[name]["se"] + 1e-12, (cell.id, name)
    distilled = [c.selectivity.label for c in plan.cells if c.training == "distilled" and c.selectivity is not None]
    assert set(distilled) == {"temperature 1", "temperature 0.5"}
    assert judged >= 5 * len(plan.cells)
    assert (tmp_path / "run" / "results.json").stat().st_size > 0


def test_a_setting_that_it_is_not_selected_by_is_refused(example: ModuleType) -> None:
    with pytest.raises(InputError, match="use temperature"):
        example.Exponential(2.0).select(hm.Selectivity(top_k=3))
    chain = case(example).chain.model_copy(update={"decoding": (hm.Selectivity(weight_power=2),)})
    with pytest.raises(InputError, match="weight_power 2"):
        example.EXPONENTIAL.check(chain)


def test_what_cannot_be_fitted_is_refused(example: ModuleType) -> None:
    rows = Points(np.zeros((5, 1)), np.zeros(5))
    request: Any = hm.FitRequest(rows, None, example.Exponential(1.0), None, None, "truth", "mle", hm.Stream(0))  # type: ignore[arg-type]
    with pytest.raises(FitError, match="mean above 0"):
        example.EXPONENTIAL.fit(request)


@dataclass(frozen=True)
class Kept:
    rate: float
    order: int
    means: Floats

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InputError("the rate must be above 0", got=self.rate)


KEPT = Kept(0.1, 3, np.array([[0.1, -np.inf]]))


def test_a_dataclass_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    save_arrays(KEPT, tmp_path)
    back = load_arrays(Kept, tmp_path)
    assert (type(back.rate), back.rate, type(back.order), back.order) == (float, 0.1, int, 3)
    assert back.means.tobytes() == KEPT.means.tobytes()


@pytest.mark.parametrize(
    "arrays",
    [
        {"rate": 0.1, "order": 3},
        {"rate": 0.1, "order": 3, "means": np.zeros((1, 2)), "more": 1},
        {"rate": -1.0, "order": 3, "means": np.zeros((1, 2))},
        {"rate": 0.1, "order": 3.5, "means": np.zeros((1, 2))},
        {"rate": [0.1], "order": 3, "means": np.zeros((1, 2))},
        {"rate": 0.1, "order": 3, "means": np.zeros((1, 2), np.float32)},
        {"rate": 0.1, "order": 3, "means": np.zeros((1, 2), np.complex128)},
        {"rate": 0.1, "order": 3, "means": np.array(["a"], object)},
    ],
    ids=["missing", "more", "refused", "no int", "no number", "float32", "complex", "pickled"],
)
def test_a_file_of_something_else_is_refused(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "kept.npz", **arrays)
    with pytest.raises(StoreError, match=r"kept\.npz cannot be read"):
        load_arrays(Kept, tmp_path)


def test_what_is_no_number_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="means is no array of numbers"):
        save_arrays(Kept(1.0, 1, np.array(["a"])), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_rows_of_other_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", x=np.zeros((3, 1)), log_prob=np.zeros(2))
    with pytest.raises(StoreError, match="other lengths"):
        load_rows(Points, [tmp_path], 2)


@pytest.mark.parametrize("x", [np.zeros((3, 2)), np.zeros(3), np.array([[np.nan]]), np.array([["a"]])])
def test_what_are_no_points_is_refused(x: Any) -> None:
    with pytest.raises(hm.DataError):
        points_of(x, 1)


def test_what_is_left_out_is_asked_for() -> None:
    with pytest.raises(TypeError, match="fit"):
        CheapFamily()  # type: ignore[abstract]
    with pytest.raises(TypeError, match=r"log_density.*points.*sharpened"):
        Density()  # type: ignore[abstract]
