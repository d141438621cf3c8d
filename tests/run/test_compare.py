"""Errors of combinations, against closed forms and replication, on made-up cells."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri

from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import Estimate, t_interval
from hydrometer.core.statistics.estimators import mean_estimate, mean_variance
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.core.statistics.seeds import crossed_variance, skew_of_mean
from hydrometer.stages.statistics.contrasts import apart, combine, contrast, group_figure
from hydrometer.stages.statistics.covariance import Arm, Design, Joint
from hydrometer.stages.statistics.groups import Group, Judged, TruthRows

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
    assert one.se == group.by_seed[0].metrics["recall"].se  # which knows all rows drawn


def test_shared_rows_behind_the_mass_outside_the_support() -> None:
    cells = {s: cell(np.zeros(N), np.ones(N), ROWS) for s in range(3)}
    for s, c in cells.items():
        c.metrics["truth_mass_outside_support"] = Estimate(0.1 + 0.001 * s, 0.04, 0.04, N)
    shared = group_figure(Group("a", cells, True), "truth_mass_outside_support")
    apart = group_figure(Group("a", cells, False), "truth_mass_outside_support")
    assert shared.se is not None
    assert apart.se is not None
    assert shared.se > 0.04 > apart.se


def test_the_error_on_a_common_support_counts_how_many_of_each_prompts_rows_are_on_it() -> None:
    strata = np.arange(N) % 2
    x, y = normals("x", N) - 9.0 * strata, normals("y", N)
    x[::5] = -math.inf
    rows = TruthRows(np.zeros(N), None, strata, N)
    a, b = (Group(k, {0: cell(v, np.ones(N), rows)}, True) for k, v in (("a", x), ("b", y)))
    c = contrast(a, b, "recall_on_support")
    kept = np.isfinite(x)
    away = np.where(kept, (np.where(kept, x, 0) - y - (c.value or 0)) * N / kept.sum(), 0.0)
    assert c.se == pytest.approx(math.sqrt(mean_variance(away, strata)))
    assert c.se > 1.5 * math.sqrt(mean_variance((x - y)[kept], strata[kept]))


def test_a_common_support_claims_no_more_rows_than_were_kept() -> None:
    """A cheap family keeps the first rows. A group's own figure is of all rows drawn, a difference of those alone."""
    x, y = normals("x", 16 * N), normals("y", 16 * N)
    x[::6] = -math.inf
    cells: list[Judged] = []
    for v in (x, y):
        drawn = cell(v, np.ones(N), ROWS)
        cells.append(replace(drawn, law_on_truth=lambda v=v: v[:N], truth_rows=lambda: replace(ROWS, n=16 * N)))
    a, b = (Group(k, {0: j}, True) for k, j in zip("ab", cells, strict=True))
    own, kept = group_figure(a, "recall_on_support"), np.isfinite(x[:N])
    assert own.value == a.by_seed[0].metrics["recall_on_support"].value
    assert own.se == pytest.approx(x[:N][kept].std(ddof=1) / math.sqrt(16 * kept.sum()))
    c, d = contrast(a, b, "recall_on_support"), (x - y)[:N][kept]
    assert c.value == pytest.approx(d.mean())
    assert c.se == pytest.approx(d.std(ddof=1) / math.sqrt(d.size))


def test_seeds_that_answer_one_sample_of_prompts_share_its_error() -> None:
    """12 prompts of 5 answers. What lies between prompts is in every seed's figure, and does not average out."""
    labels = Clusters(np.arange(N) % 12)
    prompts = 4 * normals("prompts", 12)[labels.labels]
    cells: dict[int, Judged] = {}
    for s in range(3):
        own, on_truth = prompts + normals(f"own{s}", N), prompts + normals(f"rows{s}", N)
        rows = TruthRows(np.zeros(N), None, labels, N)
        made = cell(on_truth, own, rows)
        made.metrics["entropy"] = mean_estimate(own, "nats", labels)
        cells[s] = replace(made, clustered=lambda: True)
    for shared in (True, False):  # the truth's rows may be each seed's own; the prompts are not
        group = Group("a", cells, shared)
        table = labels.collapse(np.stack([cells[s].law_on_truth() for s in range(3)]))
        found = group_figure(group, "recall")
        assert found.se == pytest.approx(math.sqrt(crossed_variance(table)[0]))
        assert found.df is not None
        assert 2 < found.df < 14
        entropy = group_figure(group, "entropy")
        between = np.var([cells[s].metrics["entropy"].value for s in range(3)], ddof=1) / 3
        mc = np.mean([(cells[s].metrics["entropy"].se or 0) ** 2 for s in range(3)])
        assert entropy.se == pytest.approx(math.sqrt(between + mc))
        assert entropy.se > 5 * math.sqrt(between)


def skewed_cells(rows_shared: bool) -> tuple[list[Judged], np.ndarray]:
    """Eight seeds, one of which lies far below, each judged on rows that all share or on its own."""
    offsets = np.array([0.0, 0.1, -0.1, 0.2, 0.0, 0.1, -0.2, -6.0])
    shared = normals("shared rows", N)
    noise = [shared if rows_shared else normals(f"rows {s}", N) for s in range(8)]
    return [cell(offsets[s] + noise[s], np.full(N, offsets[s]), ROWS) for s in range(8)], offsets


def test_a_group_s_interval_reaches_farther_to_the_side_of_its_far_seed() -> None:
    cells, _ = skewed_cells(rows_shared=False)
    f = group_figure(Group("g", dict(enumerate(cells)), False), "recall")
    low, high = f.ci95 or (0, 0)
    t_low, t_high = t_interval(f.value or 0, f.se or 0, f.df or 0)
    assert high == pytest.approx(t_high)
    assert t_low - 1.01 * (t_high - t_low) / 2 < low < t_low - 0.3 * (t_high - t_low) / 2


def test_skewness_of_seeds_counts_by_their_part_of_the_error() -> None:
    """Rows that all seeds share are as symmetric as their number makes them."""
    cells, _ = skewed_cells(rows_shared=True)
    f = group_figure(Group("g", dict(enumerate(cells)), True), "recall")
    values = np.array([c.metrics["recall"].value or 0.0 for c in cells])
    between = values.var(ddof=1) / 8 / (f.se or 1) ** 2
    assert between < 0.99
    assert f.skew == pytest.approx(skew_of_mean(values) * between**1.5)


@pytest.mark.parametrize("rows_shared", [True, False])
def test_contrasts_and_advice_have_one_interval_over_seeds(rows_shared: bool) -> None:
    cells, _ = skewed_cells(rows_shared)
    flat = [cell(np.zeros(N), np.zeros(N), ROWS) for _ in range(8)]
    a, b = (Group(k, dict(enumerate(c)), rows_shared) for k, c in (("a", cells), ("b", flat)))

    def arm(name: str, judged: list[Judged]) -> Arm:
        values = np.array([[c.metrics[m].value or 0.0 for m in ("precision", "recall")] for c in judged])
        return Arm(name, values, np.zeros((8, 2)), np.stack([c.law_on_truth() for c in judged]))

    joint = Joint([arm("a", cells), arm("b", flat)], Design(N, rows_shared=rows_shared))
    for metric, c in (("precision", [1.0, 0, -1, 0]), ("recall", [0.0, 1, 0, -1])):
        x = joint.linear(np.array(c))
        assert x.ci95 == pytest.approx(contrast(a, b, metric).ci95, rel=1e-6)
        low, high = x.bounds(0.05)
        assert x.ci95[0] < low < x.value < high < x.ci95[1]
        turned = joint.linear(-np.array(c))
        assert turned.ci95 == pytest.approx((-x.ci95[1], -x.ci95[0]))


def test_more_seeds_are_needed_on_the_side_of_the_longer_tail() -> None:
    """The gap is the same; only which way its spread leans differs."""
    _, offsets = skewed_cells(rows_shared=False)
    needed = []
    for sign in (1, -1):
        values = np.zeros((8, 2, 2))
        values[:, 0, 0] = 1.5 + sign * (offsets - offsets.mean())
        arms = [Arm(str(g), values[:, g], np.zeros((8, 2)), np.zeros((8, N))) for g in range(2)]
        needed.append(Joint(arms, Design(N, rows_shared=True)).needed(np.array([1.0, 0, -1, 0]), 1.5, 0.025)[0])
    assert needed[0] > needed[1]


@pytest.mark.parametrize("metric", ["recall", "entropy"])
def test_the_error_of_a_gap_between_two_sets_of_prompts_is_what_replication_shows(metric: str) -> None:
    """Models that differ by seed, more on one set; two samples of prompts, shared by seeds; some answers to each."""
    seeds, prompts, answers, times = 4, 12, 5, 300
    labels = np.tile(np.arange(prompts), answers)
    rows = TruthRows(np.zeros(labels.size), None, Clusters(labels), labels.size)
    of_model, of_gap = (normals(f"{metric}{k}", times, seeds) for k in ("models", "gaps"))
    of_prompt = normals(f"{metric}prompts", times, 2, prompts)
    of_answer = normals(f"{metric}answers", times, 2, seeds, labels.size)
    values, variances, held = [], [], 0
    for i in range(times):
        two: list[Group] = []
        for side in (0, 1):
            by_seed: dict[int | None, Judged] = {}
            for s in range(seeds):
                level = 3 * of_model[i, s] + (0.5 * of_gap[i, s] if side else 0.0)
                x = level + of_prompt[i, side][labels] + of_answer[i, side, s]
                figures = {metric: mean_estimate(x, "nats", rows.strata)}
                by_seed[s] = Judged(figures, lambda x=x: x, lambda: rows, clustered=lambda: True)
            two.append(Group("ab"[side], by_seed, False))
        a, b = two
        f = apart([(1.0, a)], [(1.0, b)], metric)
        assert f.value is not None
        assert f.se is not None
        assert f.ci95 is not None
        assert f.value == pytest.approx((group_figure(a, metric).value or 0) - (group_figure(b, metric).value or 0))
        values.append(f.value)
        variances.append(f.se**2)
        held += f.ci95[0] <= 0 <= f.ci95[1]
    replicated = np.var(values, ddof=1)
    error = replicated * math.sqrt(2 / times) + np.std(variances) / math.sqrt(times)
    high = 0.0 if metric == "recall" else 2 / (prompts * answers)  # what answers add shows between seeds, too
    assert replicated - 5 * error < np.mean(variances) < replicated + high + 5 * error
    assert held / times > 0.95 - 5 * math.sqrt(0.95 * 0.05 / times)
    assert f.se < min(group_figure(g, metric).se or 0 for g in two)  # what a seed's model is on both sets drops out
