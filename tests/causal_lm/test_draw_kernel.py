"""The kernel that draws on CUDA, in Triton's interpreter, against torch's operations and the processor's kernels."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("triton", reason="Triton is not installed: its kernel is not tested here (pip install triton)")

from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.networks import next_token  # noqa: E402
from naive import SETTINGS, log_law, slug  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter's, see conftest
ROWS = 12
EDGES = [
    Selectivity(top_k=1),
    Selectivity(top_p=0.001),
    Selectivity(top_p=1.0),
    Selectivity(min_p=1.0),
    Selectivity(temperature=1e-6),
    Selectivity(temperature=50.0),
    Selectivity(top_k=64),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("s", [*SETTINGS, *EDGES], ids=slug)
def test_the_kernel_draws_and_scores_as_torch_does(s: Selectivity | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(ROWS, 70)).to(DEVICE, dtype)
    logits[:, 10:14] = -torch.inf  # ids that do not exist
    u = torch.rand(ROWS, dtype=torch.float64).to(DEVICE)
    found, right = next_token.draw_fused(logits[:, :64], s, u), next_token.draw_on_device(logits[:, :64], s, u)
    same = (found.ids == right.ids).cpu().numpy()
    assert same.mean() > 0.9
    log_p = log_law(logits[:, :64].float().cpu().numpy(), s)
    sure = ~(found.near_edge | right.near_edge).cpu().numpy()
    at = found.ids.cpu().numpy()
    np.testing.assert_allclose(found.selected.cpu().numpy()[sure], log_p[np.arange(ROWS), at][sure], atol=1e-5)
    for a, b in ((found.unselected, right.unselected), (found.near_edge, right.near_edge)):
        np.testing.assert_allclose(a.cpu().numpy()[same], b.cpu().numpy()[same], atol=1e-6)
    assert not np.isin(at, range(10, 14)).any()


def test_ties_at_an_edge_are_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]).repeat(40, 1).to(DEVICE)
    u = ((torch.arange(40, dtype=torch.float64) + 0.5) / 40).to(DEVICE)
    ids = next_token.draw_fused(logits, Selectivity(top_k=2), u).ids.cpu().numpy()
    weights = np.exp([2.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(np.bincount(ids, minlength=5)[:4] / 40, weights / weights.sum(), atol=1 / 20)
    assert 4 not in ids


def test_more_ids_than_a_block_holds() -> None:
    torch.manual_seed(2)
    logits, u = torch.randn(4, 9000).to(DEVICE), torch.tensor([0.01, 0.4, 0.8, 1 - 1e-12], dtype=torch.float64)
    for s in (None, Selectivity(top_p=0.9)):
        found = next_token.draw_fused(logits, s, u.to(DEVICE))
        right = next_token.draw_on_device(logits.cpu(), s, u)
        np.testing.assert_array_equal(found.ids[:3].cpu(), right.ids[:3])
        np.testing.assert_allclose(found.selected[:3].cpu(), right.selected[:3], atol=1e-5)
        assert torch.isfinite(found.selected).all()
