"""The kernels of losses on CUDA, in Triton's interpreter, against the dense forms in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested here (pip install triton)")

from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.training import divergences, losses  # noqa: E402
from hydrometer.models.objectives import WEIGHTS, Divergence  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy, of what a `where` drops
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter's, see conftest
V, W, ROWS = 70, 74, 5
KINDS = [
    *(Divergence(k, 0.5 if w is None else w) for k, w in WEIGHTS.items()),
    Divergence("jsd", 0.1), Divergence("jsd", 0.0), Divergence("jsd_scaled", 0.9),
    Divergence("skew_kl_teacher_student", 0.0), Divergence("skew_kl_student_teacher", 0.0),
    Divergence("kl_teacher_student", temperature=2.5), Divergence("kl_student_teacher", temperature=0.5),
]  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


def _rows(dtype: Any, *, scale: float = 3.0, v: int = V, w: int = W, shift: float = 0.0) -> tuple[Any, Any]:
    g = torch.Generator().manual_seed(0)
    made = [(scale * torch.randn(ROWS, w, generator=g) + shift).to(DEVICE, dtype) for _ in range(2)]
    for x in made:
        x[:, 10:13] = -torch.inf  # ids that do not exist
    return made[0], made[1][:, :v]


def _dense(student: Any, teacher: Any, s: Selectivity | None, d: Divergence, scale: float) -> tuple[float, Any]:
    """Value and gradient in float64 by torch's operations, which the dense forms of the objectives test."""
    made = student.cpu().double()
    return divergences.to_gradient(made, teacher.cpu().double(), V, s, d, scale), made


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("s", [None, Selectivity(temperature=0.7), Selectivity(temperature=0.8, top_k=9)], ids=str)
@pytest.mark.parametrize("d", KINDS, ids=lambda d: f"{d.kind}-{d.weight:g}-{d.temperature:g}")
def test_a_divergence_and_its_gradient(d: Divergence, s: Selectivity | None, dtype: Any) -> None:
    student, teacher = _rows(dtype)
    right, gradient = _dense(student, teacher, s, d, 0.25)
    found = divergences.to_gradient_fused(student, teacher, V, s, d, 0.25)
    if math.isinf(right):
        assert math.isinf(found)
        return
    assert found == pytest.approx(right, rel=3e-6, abs=3e-6)
    most = max(float(gradient.abs().max()), 1e-3)
    near = TOLERANCE[dtype]
    np.testing.assert_allclose(student.float().cpu(), gradient, rtol=near, atol=near * most)
    assert not student[:, V:].any()


@pytest.mark.parametrize("d", KINDS, ids=lambda d: f"{d.kind}-{d.weight:g}-{d.temperature:g}")
def test_large_logits_lose_no_digits(d: Divergence) -> None:
    student, teacher = _rows(torch.float32, shift=1000.0)
    right, gradient = _dense(student, teacher, None, d, 1.0)
    assert divergences.to_gradient_fused(student, teacher, V, None, d, 1.0) == pytest.approx(right, rel=3e-6, abs=3e-6)
    np.testing.assert_allclose(student.cpu(), gradient, atol=1e-5 * max(float(gradient.abs().max()), 1e-2))


@pytest.mark.parametrize("temperature", [1e-38, 1e-6, 1e6])
def test_extreme_temperatures_of_a_teacher(temperature: float) -> None:
    d, s = Divergence("kl_teacher_student"), Selectivity(temperature=temperature)
    student, teacher = _rows(torch.float32, shift=40.0)
    right, gradient = _dense(student, teacher, s, d, 1.0)
    assert divergences.to_gradient_fused(student, teacher, V, s, d, 1.0) == pytest.approx(right, rel=3e-6)
    np.testing.assert_allclose(student.cpu(), gradient, atol=1e-5)


def test_equal_laws_have_no_divergence() -> None:
    for d in KINDS:
        student, _ = _rows(torch.float32)
        found = divergences.to_gradient_fused(student, student[:, :V].clone(), V, None, d, 1.0)
        assert abs(found) < 2e-6
        if d.kind != "skew_kl_student_teacher_detached":
            assert float(student.abs().max()) < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_logit_that_is_no_number_shows(bad: float, side: int) -> None:
    rows = _rows(torch.float32)
    rows[side][2, 40] = bad
    assert math.isnan(divergences.to_gradient_fused(*rows, V, None, Divergence("jsd"), 1.0))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [V, 9000])
def test_a_cross_entropy_and_its_gradient(dtype: Any, size: int) -> None:
    logits, _ = _rows(dtype, v=size, w=size + 4)
    ids = torch.tensor([0, 3, 9, size - 1, 20], device=DEVICE)
    made = logits.cpu().double()[:, :size].requires_grad_()
    right = torch.nn.functional.cross_entropy(made, ids.cpu(), reduction="sum")
    (0.5 * right).backward()
    found = losses.cross_entropy_fused(logits, ids, size, 0.5)
    assert float(found) == pytest.approx(float(right.detach()), rel=1e-6)
    np.testing.assert_allclose(logits[:, :size].float().cpu(), made.grad, atol=TOLERANCE[dtype])
    assert not logits[:, size:].any()


def test_more_ids_than_a_block_holds() -> None:
    student, teacher = _rows(torch.float32, v=9000, w=9002)
    made = student.cpu().double()
    right = divergences.to_gradient(made, teacher.cpu().double(), 9000, None, Divergence("jsd"), 1.0)
    assert divergences.to_gradient_fused(student, teacher, 9000, None, Divergence("jsd"), 1.0) == pytest.approx(right)
    np.testing.assert_allclose(student.cpu(), made, atol=1e-6)
