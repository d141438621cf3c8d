"""One row of logits: the kernels and the torch path against a float64 oracle, and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.arithmetic import exp32  # noqa: E402
from hydrometer.models.causal_lm.networks import next_token, selected_logits  # noqa: E402
from hydrometer.models.causal_lm.networks.selected_logits import (  # noqa: E402
    running_sum_by_products,
    selected_log_weights,
)
from naive import cross_entropy, entropy, log_law, slug  # noqa: E402

SIZES = [8, 700, 5000]
PADDING = 5
SELECTIVITIES = [
    None,
    Selectivity(temperature=0.6),
    Selectivity(temperature=1.7),
    Selectivity(temperature=1e-30),
    Selectivity(top_k=1),
    Selectivity(top_k=40),
    Selectivity(top_k=6000),
    Selectivity(top_p=0.3),
    Selectivity(top_p=0.9),
    Selectivity(min_p=0.1),
    Selectivity(min_p=1e-6),
    Selectivity(temperature=0.7, top_p=0.95),
    Selectivity(top_k=20, min_p=0.05),
    Selectivity(temperature=0.8, top_k=6, top_p=0.95, min_p=0.02),
]
every_selectivity = pytest.mark.parametrize("s", SELECTIVITIES, ids=slug)
every_size = pytest.mark.parametrize("size", SIZES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def bits(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()


def rows(size: int, dtype: str = "float32", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Stored rows with padding that would win every draw, and what they stand for, (M, V). Some have holes."""
    rng = np.random.default_rng(seed)
    scale = np.repeat([0.3, 1.0, 3.0, 12.0], 5)[:, None]
    x = (scale * rng.standard_normal((20, size)) + rng.uniform(-30, 30, (20, 1))).astype(np.float32)
    holes = rng.random(x.shape) < 0.3
    holes[::2], holes[:, size // 2] = False, False
    x[holes] = -np.inf
    stored = np.concatenate([x, np.full((20, PADDING), 1e9, np.float32)], 1)
    if dtype == "float32":
        return stored, x
    stored = bits(stored)
    return stored, (stored[:, :size].astype(np.uint32) << 16).view(np.float32)


def assert_log_p(found: np.ndarray, wanted: np.ndarray):
    np.testing.assert_allclose(found, wanted, atol=2e-6, rtol=1e-6)


@every_dtype
@every_size
@every_selectivity
def test_draws_invert_the_cdf(s, size, dtype):
    stored, x = rows(size, dtype)
    log_p, plain = log_law(x, s), log_law(x, None)
    cdf = np.exp(log_p).cumsum(-1)
    m = np.arange(len(x))
    for u in np.random.default_rng(1).random((20, len(x))):
        ids, found = next_token.draw(stored, size, s, u)
        wanted = (cdf <= u[:, None]).sum(-1)
        clear = np.abs(cdf - u[:, None]).min(-1) > 1e-6
        assert clear.mean() > 0.5
        np.testing.assert_array_equal(ids[clear], wanted[clear])
        assert_log_p(found.selected, log_p[m, ids])
        assert_log_p(found.unselected, plain[m, ids])


@every_dtype
@every_size
@every_selectivity
def test_scores_and_entropy(s, size, dtype):
    stored, x = rows(size, dtype)
    log_p, plain = log_law(x, s), log_law(x, None)
    m = np.arange(len(x))
    likeliest = [log_p.argmax(-1), plain.argsort(-1)[:, -min(7, size)], plain.argmin(-1)]
    for ids in [*likeliest, *np.random.default_rng(2).integers(0, size, (10, len(x)))]:
        found = next_token.score(stored, size, s, ids, entropy=True)
        assert_log_p(found.selected, log_p[m, ids])
        assert_log_p(found.unselected, plain[m, ids])
        np.testing.assert_allclose(found.entropy, entropy(log_p), atol=1e-5 + 1e-8 * size, rtol=1e-6)
    for outside in (-1, size, size + PADDING, 2**40):
        found = next_token.score(stored, size, s, np.full(len(x), outside))
        assert np.isneginf(found.selected).all()
        assert np.isneginf(found.unselected).all()
        assert found.entropy.shape == (0,)


@every_size
@pytest.mark.parametrize(
    ("dtype_a", "dtype_b"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_cross_entropy(size, dtype_a, dtype_b):
    stored_a, a = rows(size, dtype_a)
    stored_b, b = rows(size, dtype_b, seed=7)
    infinite = []
    for s_a in SELECTIVITIES:
        for s_b in SELECTIVITIES:
            if 1e-30 in {s and s.temperature for s in (s_a, s_b)}:
                continue
            wanted = cross_entropy(log_law(a, s_a), log_law(b, s_b))
            found = next_token.cross_entropy(stored_a, s_a, stored_b, s_b, size)
            np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-6)
            infinite.append(np.isinf(wanted).mean())
    assert 0.1 < np.mean(infinite) < 0.9


@every_size
def test_a_nucleus_of_nearly_everything(size):
    stored, x = rows(size)
    s = Selectivity(top_p=0.999999)
    log_p, m = log_law(x, None), np.arange(len(x))
    p_ordered = np.sort(np.exp(log_p))[:, ::-1]
    for rank in range(0, size, max(1, size // 50)):
        ids = np.argsort(-log_p, -1)[:, rank]
        found = next_token.score(stored, size, s, ids).selected
        before = p_ordered[:, :rank].sum(-1)
        assert np.isfinite(found[before < 0.9999985]).all()
        assert np.isneginf(found[before > 0.9999995]).all()
        kept = np.isfinite(found)
        np.testing.assert_allclose(found[kept], log_p[m, ids][kept], atol=5e-6, rtol=1e-6)


@every_dtype
@pytest.mark.parametrize("sign", [1, -1])  # what x86 makes of inf - inf is negative
@pytest.mark.parametrize("part", ["all", "one"])
def test_not_a_number_is_seen(part, sign, dtype):
    u = np.array([1e-9, 0.5, 1 - 1e-9])
    x = np.random.default_rng(3).standard_normal((3, 700)).astype(np.float32)
    x[:, 233 if part == "one" else slice(None)] = np.copysign(np.float32(np.nan), np.float32(sign))
    for s in SELECTIVITIES:
        ids, found = next_token.draw(x if dtype == "float32" else bits(x), 700, s, u)
        assert ((ids >= 0) & (ids < 700)).all()
        assert not np.isfinite(found.selected).any()
        assert not np.isfinite(found.unselected).any()


def test_the_smallest_temperatures_are_greedy():
    x = np.array([[0.0, 2.0, 1.0]], np.float32)
    for temperature in (1e-30, 1e-38, 1e-40, 5e-324):
        s = Selectivity(temperature=temperature)
        for draw in (next_token.draw, by_torch):
            ids, found = draw(x, 3, s, np.array([0.5]))
            assert ids.tolist() == [1]
            assert found.selected.tolist() == [0]


def test_exp32():
    x = np.linspace(-87, 0, 100_001).astype(np.float32)
    found = np.array([exp32(v) for v in x], np.float64)
    wanted = np.exp(x.astype(np.float64))
    assert np.abs(found / wanted - 1).max() < 2e-7
    assert exp32(np.float32(0)) == 1
    assert 0 < exp32(np.float32(-np.inf)) < 2e-38


# -- the torch path ----------------------------------------------------------------------------------------------------


def by_torch(x, vocab_size, s, u):
    return next_token._draw_by_torch(torch.from_numpy(x)[:, :vocab_size], s, u)


def assert_same_flags(found, other):
    """All but the few whose margin is within rounding of the threshold itself."""
    assert (found.near_edge != other.near_edge).mean() <= 0.02


@every_size
@every_selectivity
def test_both_paths_draw_and_score_alike(s, size):
    stored, x = rows(size)
    cdf = np.exp(log_law(x, s)).cumsum(-1)
    for u in np.random.default_rng(4).random((10, len(x))):
        (ids, found), (ids_torch, by) = next_token.draw(stored, size, s, u), by_torch(stored, size, s, u)
        clear = np.abs(cdf - u[:, None]).min(-1) > 1e-6
        np.testing.assert_array_equal(ids[clear], ids_torch[clear])
        assert_same_flags(found, by)
        for wanted in (ids, np.random.default_rng(5).integers(-1, size + 1, len(x))):
            found = next_token.score(stored, size, s, wanted, entropy=True)
            by = next_token._score_by_torch(torch.from_numpy(x), s, torch.from_numpy(wanted), entropy=True)
            assert_log_p(found.selected, by.selected)
            assert_log_p(found.unselected, by.unselected)
            np.testing.assert_allclose(found.entropy, by.entropy, atol=1e-5 + 1e-8 * size, rtol=1e-6)
            assert_same_flags(found, by)


@every_size
def test_both_paths_give_one_cross_entropy(size):
    (stored_a, a), (stored_b, b) = rows(size), rows(size, seed=7)
    for s_a, s_b in [
        (None, None),
        (SELECTIVITIES[-1], None),
        (SELECTIVITIES[-1], SELECTIVITIES[8]),
        (None, SELECTIVITIES[5]),
    ]:
        found = next_token.cross_entropy(stored_a, s_a, stored_b, s_b, size)
        weights = (selected_log_weights(torch.from_numpy(x), s).log_weights for x, s in ((a, s_a), (b, s_b)))
        np.testing.assert_allclose(found, next_token._cross_by_torch(*weights).numpy(), atol=1e-5, rtol=1e-6)


def test_a_sharp_law_against_one_that_drops_its_tail_is_infinite_on_both_paths():
    x, sharp, cut = np.array([[0.0, -9.0]], np.float32), Selectivity(temperature=0.01), Selectivity(top_k=1)
    weights = [selected_log_weights(torch.from_numpy(x), s).log_weights for s in (sharp, cut)]
    assert next_token.cross_entropy(x, sharp, x, cut, 2).tolist() == [math.inf]
    assert next_token._cross_by_torch(*weights).tolist() == [math.inf]


@pytest.mark.parametrize("s", [Selectivity(top_k=30), Selectivity(top_p=0.5), Selectivity(min_p=0.995)], ids=slug)
def test_both_paths_flag_the_same_edges_of_crowded_rows(s):
    rng = np.random.default_rng(6)
    x = (3e-3 * rng.standard_normal((400, 700))).astype(np.float32)
    u = rng.random(400)
    (_, found), (_, by) = next_token.draw(x, 700, s, u), by_torch(x, 700, s, u)
    assert 0.02 < found.near_edge.mean() < 0.98
    assert_same_flags(found, by)


# Rows whose edge has a gap of the given size, in nats of logit, between what is kept and what is dropped.


def edge_of_top_k(gap: float) -> np.ndarray:
    return np.array([2.0, 1.0, 1.0 - gap, 0.0])


def edge_of_min_p(gap: float) -> np.ndarray:
    return np.array([0.0, -1.0, math.log(0.1) + gap, -5.0])


def edge_of_top_p_by_mass(gap: float) -> np.ndarray:
    """The first two ids hold 0.6 and a little more."""
    return np.log([0.4, 0.2 + gap * 0.5, 0.15, 0.25 - gap * 0.5])[[0, 3, 1, 2]]


def edge_of_top_p_by_order(gap: float) -> np.ndarray:
    """The second and third id are nearly alike, and the mass is reached in the midst of the second."""
    x = np.log([0.5, 0.2, 0.2, 0.1])
    x[2] -= gap
    return x


def edge_of_both(gap: float) -> np.ndarray:
    return edge_of_top_k(gap) / 2


@pytest.mark.parametrize("draw", [next_token.draw, by_torch])
@pytest.mark.parametrize(
    ("make", "s"),
    [
        (edge_of_top_k, Selectivity(top_k=2)),
        (edge_of_top_k, Selectivity(temperature=0.5, top_k=2)),
        (edge_of_min_p, Selectivity(min_p=0.1)),
        (edge_of_top_p_by_mass, Selectivity(top_p=0.65)),
        (edge_of_top_p_by_order, Selectivity(top_p=0.6)),
        (edge_of_both, Selectivity(temperature=0.5, top_k=2, min_p=0.01)),
    ],
    ids=lambda v: slug(v) or v.__name__,
)
def test_near_edge(draw, make, s):
    near, far = (make(gap)[None].astype(np.float32) for gap in (1e-6, 1e-2))
    u = np.array([0.5])
    assert draw(near, near.shape[1], s, u)[1].near_edge.tolist() == [True]
    assert draw(far, far.shape[1], s, u)[1].near_edge.tolist() == [False]


@pytest.mark.parametrize("draw", [next_token.draw, by_torch])
def test_a_gap_that_rounding_closes_is_near(draw):
    x = np.array([[10.0, 1e-3, 1e-3 + 1e-8, 0.0]], np.float32)
    assert x[0, 1] != x[0, 2]
    assert draw(x, 4, Selectivity(top_k=2), np.array([0.5]))[1].near_edge.tolist() == [True]


@pytest.mark.parametrize("draw", [next_token.draw, by_torch])
@pytest.mark.parametrize(
    "s", [None, Selectivity(temperature=0.5), Selectivity(top_k=9), Selectivity(min_p=1)], ids=slug
)
def test_a_kept_set_that_cannot_change_is_not_near_its_edge(draw, s):
    x = np.array([[2.0, 1.0, 0.5, 0.0]], np.float32)
    assert draw(x, 4, s, np.array([0.5]))[1].near_edge.tolist() == [False]


@pytest.mark.parametrize("n", [1, 255, 256, 257, 5000])
def test_running_sums_by_products_are_cumulative_sums_and_flat_at_zero(n):
    torch.manual_seed(0)
    x = torch.rand(7, n, dtype=torch.float64) ** 8
    x[:, ::3] = 0
    found = running_sum_by_products(x)
    torch.testing.assert_close(found, x.cumsum(-1), rtol=1e-13, atol=0)
    steps = found.diff(dim=-1, prepend=torch.zeros(7, 1))
    assert (steps[x == 0] == 0).all()
    assert (steps >= 0).all()


@pytest.mark.parametrize("s", [None, Selectivity(top_p=0.9), Selectivity(temperature=0.7, top_p=0.999)])
def test_what_draws_on_a_device_needs_no_sum_that_a_fit_refuses_there(s, monkeypatch):
    """CUDA has no deterministic `cumsum` of floats; fits draw own rows under deterministic algorithms."""
    torch.manual_seed(1)
    logits, u = 3 * torch.randn(50, 3000), torch.rand(50, dtype=torch.float64)
    right = next_token.draw_on_device(logits, s, u)
    for module in (selected_logits, next_token):
        monkeypatch.setattr(module, "running_sum", running_sum_by_products)
    monkeypatch.setattr(torch.Tensor, "cumsum", None)
    found = next_token.draw_on_device(logits, s, u)
    assert torch.equal(found.ids, right.ids)
    assert torch.equal(found.selected, right.selected)
