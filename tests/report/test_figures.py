from __future__ import annotations

import math

import numpy as np
import pytest
import report_synthetic as synthetic
from matplotlib.lines import Line2D

from hydrometer.report.data import plotdata
from hydrometer.report.figures import panels
from hydrometer.report.figures.contours import density_of, mass_levels
from hydrometer.report.figures.style import inline_svg, look_of, render
from hydrometer.report.read_results import parse

RUN = parse(synthetic.results(seeds=2, mixture_seeds=2))
LM, MIXTURE = RUN.chains["smollm2"], RUN.chains["mixture"]


def test_plane_holds_every_kind_and_paths_start_at_their_model() -> None:
    plane = plotdata.plane_data(RUN, LM)
    assert set(plane.paths) == set(plotdata.KINDS) - {"adopted", "baseline"}
    assert (plane.paths["truth"][0].x, plane.paths["truth"][0].y) == (-91.3, -91.3)
    assert [p.label for p in plane.paths["distilled"]] == ["τ=1", "τ=0.8", "τ=0.6"]
    assert plane.paths["decoded"][0].group == LM.direct_group
    assert plane.paths["decoded_neutral"][0].group == LM.neutral_group
    assert [p.label for p in plane.paths["decoded"][1:]] == ["τ=0.8", "τ=0.6"]


def test_ties_lead_to_the_matched_model() -> None:
    plane = plotdata.plane_data(RUN, LM)
    (x0, y0), (x1, y1) = plane.ties[-1]
    assert (x0, y0) == (-212.5, -100.2)
    assert x1 == pytest.approx(-212.5 - 19.1)
    assert y1 == pytest.approx(-100.2 + 1.1)


def test_infinite_recall_stays_in_the_plane_without_an_x() -> None:
    results = synthetic.results(seeds=1, mixture=False)
    metrics = results["summary"]["groups"]["smollm2/direct@0.6"]["metrics"]
    metrics["recall"] = synthetic.metric(None, None, 3)
    run = parse(results)
    plane = plotdata.plane_data(run, run.chains["smollm2"])
    assert plane.paths["decoded"][-1].x is None
    panels.single(3, 3, panels.draw_plane, plane)


def test_parts_add_up() -> None:
    curves = plotdata.curves_data(RUN, LM, against="setting")
    assert curves is not None
    precision, cold, fit, _ = curves.panels
    for kind in ("distilled", "decoded"):
        for p, h, k in zip(precision.series[kind], cold.series[kind], fit.series[kind], strict=True):
            assert p[0] == h[0] == k[0]
            assert p[1] == pytest.approx(h[1] + k[1])
    assert precision.levels["truth"][0] == -91.3


def test_scales_grow_with_selectivity() -> None:
    scale, place = plotdata.setting_scale(RUN, MIXTURE)
    assert [label for _, label in scale.ticks or []] == ["1", "3", "10", "30", "100", "∞"]
    places = [place({"weight_power": b}) for b in (1.0, 3.0, 10.0, 30.0, 100.0, math.inf)]
    assert places == sorted(p for p in places if p is not None)
    scale, place = plotdata.setting_scale(RUN, LM)
    assert [label for _, label in scale.ticks or []] == ["1", "0.8", "0.6"]
    assert place({"temperature": 0.1}) is None
    _, place = plotdata.entropy_scale(RUN, LM)
    assert [place({"temperature": t}) for t in (1.0, 0.8, 0.6)] == [-90.2, -62.0, -41.5]


def test_cloud_is_bounded() -> None:
    many = parse(synthetic.results(seeds=200, mixture=False))
    cloud = plotdata.plane_data(many, many.chains["smollm2"]).cloud
    assert len(cloud["distilled"]) <= 3 * plotdata.CLOUD_PER_GROUP


def test_mass_levels_of_a_gaussian() -> None:
    x = np.linspace(-5, 5, 201)
    z = -(x[None] ** 2 + x[:, None] ** 2) / 2
    # The region of highest density of a standard normal in the plane that holds m is z >= log(1 - m).
    assert mass_levels(z) == pytest.approx([math.log(0.05), math.log(0.2), math.log(0.5)], abs=0.02)


def test_damaged_densities_are_left_out() -> None:
    assert density_of({"x": [0, 1], "y": [0, 1], "log_density": [[0]]}) is None
    assert density_of({"x": [0, 1, 2], "y": [0, 1, 2], "log_density": [[None] * 3] * 3}) is None
    assert density_of({"x": [[1], 2], "y": 3, "log_density": "no"}) is None


def test_figures_are_the_same_bytes_twice() -> None:
    plane, entropy = plotdata.plane_data(RUN, MIXTURE), plotdata.plane_data(RUN, MIXTURE, x="entropy")
    first, second = (render(panels.plane_figure(plane, entropy), "svg") for _ in range(2))
    assert first == second


def test_inline_svg_has_its_own_ids_and_no_fixed_colours() -> None:
    plane = plotdata.plane_data(RUN, LM)
    svg = inline_svg(panels.single(3, 3, panels.draw_plane, plane), "p1", 'a "label" <b>')
    assert 'aria-label="a &quot;label&quot; &lt;b&gt;"' in svg
    assert "var(--c-distilled)" in svg
    assert "#c94f00" not in svg
    assert 'id="p1-' in svg
    assert 'href="#p1-' in svg
    assert "<metadata" not in svg


def test_a_legend_of_many_methods_names_each_objective_and_each_source_once() -> None:
    few = ["by jsd", "by jsd on rows of the truth", "by total_variation"]
    assert [h.get_label() for h in panels.handles_of((), few)] == [f"distilled selectively, {m}" for m in few]
    many = [f"by {loss}{rows}" for loss in ("jsd", "total_variation") for rows in ("", " on rows of the student")]
    handles = panels.handles_of((), many)
    assert [h.get_label() for h in handles] == [
        "by jsd", "by total_variation", "on rows of the teacher", "on rows of the student",
    ]  # fmt: skip
    for handle, method in zip(handles, ("by jsd", "by total_variation on rows of the student"), strict=False):
        look = look_of("distilled", method, many)
        assert (handle.get_color(), handle.get_marker()) == (look.color, look.marker)
    drawn = [Line2D([], [], linestyle=look_of("distilled", m, many).line).get_linestyle() for m in many[:2]]
    assert [h.get_linestyle() for h in handles[2:]] == drawn
    assert len(set(drawn)) == 2


def test_bars_are_the_t_intervals_not_two_standard_errors() -> None:
    raw = synthetic.results(seeds=3, mixture=False)
    for group in raw["summary"]["groups"].values():
        for m in group["metrics"].values():
            if m["value"] is not None and m["se"]:
                m["ci95"] = [m["value"] - 4.3 * m["se"], m["value"] + 4.3 * m["se"]]  # two degrees of freedom
    run = parse(raw)
    plane = plotdata.plane_data(run, run.chains["smollm2"])
    group = run.groups[next(p.group for p in plane.paths["direct"])]
    point = plane.paths["direct"][0]
    assert point.y_reach == pytest.approx(2 * (4.3 * (group.se("precision") or 0),))
    assert point.x_reach == pytest.approx(2 * (4.3 * (group.se("recall") or 0),))
