"""Errors of combinations, against closed forms and replication, on made-up cells."""

import math

import numpy as np
import pytest
from scipy.special import ndtri

from hydrometer.core.estimate import Estimate, mean_estimate
from hydrometer.core.rng import Stream
from hydrometer.stages.compare import Group, Judged, TruthRows, combine, contrast, group_figure

N = 60


def normals(name: str, *shape: int) -> np.ndarray:
    return ndtri(Stream(11, (name,)).uniforms(0, math.prod(shape), 1)[:, 0]).reshape(shape)


def cell(on_truth: np.ndarray, own: np.ndarray, rows: TruthRows, kl: np.ndarray | None = None) -> Judged:
    """A cell with recall rows `on_truth`, entropy rows `own`, and KL rows `kl` (precision = -H - KL)."""
    kl = np.zeros_like(own) if kl is None else kl
    metrics: dict[str, Estimate] = {
        "recall": mean_estimate(on_truth, "nats"),
        "recall_on_support": mean_estimate(on_truth[np.isfinite(on_truth)], "nats"),
        "entropy": mean_estimate(own, "nats"),
        "kl_student_truth": mean_estimate(kl, "nats"),
        "precision": mean_estimate(-own - kl, "nats"),
    }
    return Judged(metrics, lambda: on_truth, lambda: rows)


ROWS = TruthRows(np.zeros(N), None, None, N)


def test_one_seed_contrast_of_recall_is_the_paired_t_of_rows() -> None:
    x, y = normals("x", N), normals("y", N) + normals("x", N)
    a, b = (Group(k, {0: cell(v, np.ones(N), ROWS)}, True) for k, v in (("a", x), ("b", y)))
    c = contrast(a, b, "recall")
    d = x - y
    assert (c.value, c.df, c.pairing) == (pytest.approx(d.mean()), N - 1, "row")
    assert c.se == pytest.approx(d.std(ddof=1) / math.sqrt(N))


def test_one_seed_contrast_of_precision_adds_the_variances() -> None:
    x, y = normals("p", N), 2 * normals("q", N)
    a, b = (Group(k, {0: cell(np.zeros(N), v, ROWS)}, True) for k, v in (("a", x), ("b", y)))
    c = contrast(a, b, "entropy")
    assert c.pairing == "seed"
    assert c.se == pytest.approx(math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / N))


def test_a_shared_teacher_brings_its_own_error_once() -> None:
    seeds = {s: cell(np.zeros(N), 0.1 * normals(f"s{s}", N) + s, ROWS) for s in range(3)}
    shared = cell(np.zeros(N), 5 * normals("t", N), ROWS)
    c = contrast(Group("a", seeds, True), Group("t", {None: shared}, True), "entropy")
    between = np.var([seeds[s].metrics["entropy"].value for s in range(3)], ddof=1) / 3
    assert c.se == pytest.approx(math.sqrt(between + (shared.metrics["entropy"].se or 0) ** 2))
    assert c.df is not None
    assert 2 < c.df < N


def test_recall_over_the_rows_both_can_say() -> None:
    x, y = normals("x", N), normals("y", N)
    x[:5] = -math.inf
    a, b = (Group(k, {0: cell(v, np.ones(N), ROWS)}, True) for k, v in (("a", x), ("b", y)))
    assert contrast(a, b, "recall").value is None
    c = contrast(a, b, "recall_on_support")
    d = (x - y)[5:]
    assert c.value == pytest.approx(d.mean())
    assert c.se == pytest.approx(d.std(ddof=1) / math.sqrt(N - 5))
    assert group_figure(a, "recall_on_support").value == pytest.approx(x[5:].mean())


def test_seeds_crossed_with_shared_rows_are_more_uncertain_than_either() -> None:
    rows, seeds = 3 * normals("rows", N), 0.5 * normals("seeds", 5)
    group = Group("a", {s: cell(rows + seeds[s], np.ones(N), ROWS) for s in range(5)}, True)
    f = group_figure(group, "recall")
    assert f.se == pytest.approx(math.sqrt(seeds.var(ddof=1) / 5 + rows.var(ddof=1) / N), rel=1e-9)
    apart = group_figure(Group("a", group.by_seed, rows_shared=False), "recall")
    assert apart.se == pytest.approx(seeds.std(ddof=1) / math.sqrt(5))


def test_matched_entropy_interval_covers() -> None:
    """Replicate a world whose decoded path is a line: KL = 2 H. The student lies 0.3 above the path at its entropy."""
    hits, reps, m, slope = 0, 600, 200, 2.0
    z = normals("worlds", reps, 3, m, 2)
    for r in range(reps):
        made: list[Judged] = []
        for j, (h, above) in enumerate(((5.0, 0.3), (4.0, 0.0), (7.0, 0.0))):
            noise = z[r, j]
            own = h + noise[:, 0]
            made.append(cell(np.zeros(N), own, ROWS, slope * h + above + 0.5 * noise[:, 1] - 0.4 * noise[:, 0]))
        groups = [Group(str(j), {0: c}, True) for j, c in enumerate(made)]
        h = [g.by_seed[0].metrics["entropy"].value or 0.0 for g in groups]
        kl = [g.by_seed[0].metrics["kl_student_truth"].value or 0.0 for g in groups]
        w = (h[0] - h[1]) / (h[2] - h[1])
        terms = [(1.0, groups[0]), (-(1 - w), groups[1]), (-w, groups[2])]
        f = combine(terms, "kl_student_truth", slope=(kl[1] - kl[2]) / (h[2] - h[1]))
        assert f.ci95 is not None
        hits += f.ci95[0] <= 0.3 <= f.ci95[1]
    assert abs(hits / reps - 0.95) < 5 * math.sqrt(0.95 * 0.05 / reps)


def test_one_teacher_behind_all_seeds_keeps_its_error() -> None:
    """A figure copied from a shared teacher is equal in all seeds; its error must not vanish with them."""
    teacher = mean_estimate(normals("teacher", N), "nats")
    cells = {s: cell(np.zeros(N), np.ones(N), ROWS) for s in range(3)}
    for c in cells.values():
        c.metrics["entropy_teacher"] = teacher
    assert group_figure(Group("a", cells, True), "entropy_teacher").se == pytest.approx(teacher.se)


def test_kept_rows_give_the_error_of_all_rows() -> None:
    """A cheap family keeps some rows; with shared rows and several seeds the error is that of the number drawn."""
    rows, seeds, drawn = 3 * normals("rows", N), 0.5 * normals("seeds", 5), 16 * N
    thin = TruthRows(np.zeros(N), None, None, drawn)
    group = Group("a", {s: cell(rows + seeds[s], np.ones(N), thin) for s in range(5)}, True)
    expected = math.sqrt(seeds.var(ddof=1) / 5 + rows.var(ddof=1) / drawn)
    assert group_figure(group, "recall").se == pytest.approx(expected, rel=1e-9)
    one = group_figure(Group("a", {0: group.by_seed[0]}, True), "recall")
    assert one.se == pytest.approx(rows.std(ddof=1) / math.sqrt(drawn))


def test_shared_rows_behind_the_mass_outside_the_support() -> None:
    cells = {s: cell(np.zeros(N), np.ones(N), ROWS) for s in range(3)}
    for s, c in cells.items():
        c.metrics["truth_mass_outside_support"] = Estimate(0.1 + 0.001 * s, 0.04, 0.04, N)
    shared = group_figure(Group("a", cells, True), "truth_mass_outside_support")
    apart = group_figure(Group("a", cells, False), "truth_mass_outside_support")
    assert shared.se is not None
    assert apart.se is not None
    assert shared.se > 0.04 > apart.se
