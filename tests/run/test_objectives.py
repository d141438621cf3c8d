"""Students of several objectives, and of several sources of rows, in one run: every one has its own place.

The family is an exponential whose rate is fitted by maximum likelihood, or from the median of the rows, or by a mixture
of both, which has a parameter. Its levels are a teacher, an assistant and a student.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import AfterValidator, BeforeValidator

import hydrometer as hm
from hydrometer.core.distillation import (
    MLE,
    Distillation,
    Objective,
    Prefixes,
    distillations_of,
    parse_wanted,
)
from hydrometer.core.errors import InputError, SpecError
from hydrometer.family import CheapChain, CheapFamily, Density, FitRequest, Fitted, Floats, Law, Strict, points_of
from hydrometer.models import families as known
from hydrometer.report import build_report, summary_table
from hydrometer.report.data import plotdata
from hydrometer.report.figures import panels
from hydrometer.report.figures.style import look_of
from hydrometer.report.read_results import parse
from hydrometer.report.tables.model_tables import group_table
from hydrometer.report.words.verdict import verdict
from hydrometer.run.graph.adopted import Adopted
from hydrometer.run.graph.plan import Plan, plan_run
from hydrometer.run.graph.reopen import distillations_named, one_of_methods
from hydrometer.stages.cells import Cell
from hydrometer.stages.nodes import FitNode

ROWS = {"train": 300, "distill": 400, "evaluate": 500}
NEUTRAL, COLD = hm.Selectivity(temperature=1), hm.Selectivity(temperature=0.5)
MEDIAN = Objective("median")


@dataclass(frozen=True)
class Exponential(Density):
    rate: float
    selected_by = ("temperature",)

    def points(self, uniforms: Floats) -> Floats:
        return -np.log1p(-uniforms) / self.rate

    def log_density(self, x: Floats) -> Floats:
        return np.where(x[:, 0] < 0, -math.inf, math.log(self.rate) - self.rate * x[:, 0])

    def sharpened(self, s: hm.Selectivity) -> Exponential:
        return Exponential(self.rate / (s.temperature or 1))


class Truth(Strict):
    rate: float = 2.0

    def law(self) -> Exponential:
        return Exponential(self.rate)


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _known(value: str) -> str:
    assert Objective.from_json(value).name in ("mle", "median", "mixed")
    return value


class Chain(CheapChain):
    truth: Truth = Truth()
    teacher: Strict = Strict()
    assistants: tuple[Strict, ...] = (Strict(),)
    student: Strict = Strict()
    loss: Annotated[tuple[Annotated[str, AfterValidator(_known)], ...], BeforeValidator(_tuple)] = ("mle",)  # pyright: ignore[reportIncompatibleVariableOverride]
    prefixes: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ("teacher",)


def rate_of(rows: Floats, loss: str) -> float:
    objective = Objective.from_json(loss)
    weight = {"mle": 0.0, "median": 1.0}.get(objective.name, dict(objective.parameters).get("weight", 0.0))
    return (1 - weight) / float(rows.mean()) + weight * math.log(2) / float(np.median(rows))


class Family(CheapFamily):
    name, chain_spec, law_type = "objectives", Chain, Exponential

    def fit(self, request: FitRequest) -> Fitted[Law]:
        facts = {"loss": request.loss, "prefix_source": request.prefix_source}
        return Fitted(Exponential(rate_of(points_of(request.data), request.loss)), facts)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(known, "_installed", lambda: ({"objectives": Family()}, {}))
    known.families.cache_clear()
    yield
    known.families.cache_clear()


def spec_of(losses: list[str], **changes: Any) -> hm.RunSpec:
    chain = {
        "family": "objectives",
        "data": ROWS,
        "selectivity": [{"temperature": 1}, {"temperature": 0.5}],
        "loss": losses,
        "assistants": [{}],
    }
    body = {"name": "objectives", "seeds": changes.pop("seeds", 3), "chains": {"e": {**chain, **changes}}}
    return known.parse_run_spec(body, "spec")


def fit_of(plan: Plan, cell: Cell) -> FitNode:
    judged = plan.judge_of(cell)
    assert judged is not None
    node = plan.nodes[judged.law.key]
    assert isinstance(node, FitNode)
    return node


def student(plan: Plan, role: str, d: Distillation, seed: int = 0) -> Cell:
    found = [c for c in plan.cells if (c.role, c.distillation, c.seed, c.decoding) == (role, d, seed, None)]
    assert len(found) == 1
    return found[0]


def test_every_method_has_its_own_cells_on_every_level() -> None:
    """Per seed: truth, teacher and its selection; on each level the direct student, four distilled and three controls;
    the selected assistants of both methods."""
    plan = plan_run(spec_of(["mle", "median"]))
    ids = [c.id for c in plan.cells]
    assert len(ids) == len(set(ids)) == 3 * (3 + 8 + 8 + 2)
    groups = {c.group for c in plan.cells}
    for role in ("assistant_1", "student"):
        for way in ("temperature1.0", "temperature1.0.median", "temperature0.5", "temperature0.5.median"):
            assert f"e.{role}.distilled-{way}" in groups
        for way in ("direct", "distilled-temperature1.0", "distilled-temperature1.0.median"):
            assert f"e.{role}.{way}.decoded-temperature0.5" in groups
    assert "e.assistant_1.distilled-temperature0.5.median.decoded-temperature0.5" in groups


def test_a_student_is_distilled_from_the_assistant_of_its_own_method() -> None:
    plan = plan_run(spec_of(["mle", "median"]))
    for d in distillations_of(plan.chains["e"].context.spec):
        above, below = student(plan, "assistant_1", d), student(plan, "student", d)
        fit = fit_of(plan, below)
        assert fit.data.law.key == fit_of(plan, above).key
        assert fit.teacher is not None
        assert fit.teacher.key == fit_of(plan, above).key
        assert (fit.loss, fit.prefix_source) == (d.objective.name, "teacher")
        assert below.parent == above.id
        selected = f"{above.group}.decoded-temperature0.5.seed0" if d.selectivity == COLD else above.id
        assert below.teacher_cell == selected
    controls = [c for c in plan.cells if c.role == "student" and c.decoding is not None and c.seed == 0]
    assert {(c.training, c.distillation) for c in controls} == {
        ("direct", None),
        ("distilled", Distillation(NEUTRAL)),
        ("distilled", Distillation(NEUTRAL, MEDIAN)),
    }
    assert len({plan.judge_of(c) for c in controls}) == 3


def test_one_method_is_planned_as_it_is_beside_another() -> None:
    """Ids and keys of a method do not depend on which others there are, nor on their order."""
    alone, both = plan_run(spec_of(["mle"])), plan_run(spec_of(["median", "mle"]))
    assert set(alone.nodes) < set(both.nodes)
    assert {(c.id, c.judge) for c in alone.cells} < {(c.id, c.judge) for c in both.cells}


def test_rows_of_the_truth_are_a_source_too() -> None:
    plan = plan_run(spec_of(["median"], prefixes=["teacher", "truth"], assistants=[]))
    on_truth = Distillation(COLD, MEDIAN, Prefixes("truth"))
    cell = student(plan, "student", on_truth)
    assert cell.group == "e.student.distilled-temperature0.5.median.on-truth"
    direct = next(c for c in plan.cells if c.training == "direct" and c.decoding is None and c.seed == 0)
    assert fit_of(plan, cell).data == fit_of(plan, direct).data
    assert fit_of(plan, cell).data != fit_of(plan, student(plan, "student", Distillation(COLD, MEDIAN))).data
    assert (cell.prefix_source, cell.loss) == ("truth", "median")


def test_two_models_under_one_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "slug", property(lambda _: "x"))
    with pytest.raises(SpecError, match="one cell id"):
        plan_run(spec_of(["median", "mixed(weight=0.5)"]))


def test_a_method_listed_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="listed twice"):
        plan_run(spec_of(["mixed(weight=0.5)", "mixed(weight=.50)"]))


@pytest.mark.parametrize("text", ["", "Jsd", "jsd(", "jsd(weight)", "jsd(weight=nan)", "jsd(a=1,a=2)", 3, None])
def test_what_is_no_objective_is_refused(text: object) -> None:
    with pytest.raises(SpecError):
        Objective.from_json(text)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    result = hm.run(spec_of(["mle", "median", "mixed(weight=0.5)"]), out=tmp_path / "run")
    assert result.failed_cells == []
    return tmp_path / "run", result.results


def test_a_run_judges_and_compares_every_method(made: tuple[Path, dict[str, Any]]) -> None:
    _, results = made
    cells = {c["id"]: c for c in results["cells"]}
    mixed = cells["e.student.distilled-temperature0.5.mixed-weight0.5.seed1"]
    assert (mixed["loss"], mixed["prefix_source"], mixed["selectivity"]) == (
        "mixed(weight=0.5)",
        "teacher",
        {"temperature": 0.5},
    )
    chain = results["summary"]["chains"]["e"]
    assert chain["neutral_group"] == "e.student.distilled-temperature1.0"
    steps = {s["group"].removeprefix("e.student.distilled-"): s for s in chain["tradeoff"]}
    assert len(steps) == 6
    assert Counter(s["coldest"] for s in steps.values()) == {True: 3, False: 3}
    direct = chain["direct_group"]
    for name, step in steps.items():
        method = name.partition(".5" if name.startswith("temperature0.5") else ".0")[2]
        vs_direct = step["vs_direct"]["precision"]
        assert (vs_direct["a"], vs_direct["b"]) == (step["group"], direct)
        if name.startswith("temperature0.5"):  # against the neutral student of its own method
            assert step["vs_neutral"]["precision"]["b"] == f"e.student.distilled-temperature1.0{method}"
    entries = [c for c in chain["control"] if c["selectivity"] == {"temperature": 0.5}]
    assert sorted(c.get("loss", "mle") for c in entries) == ["median", "mixed(weight=0.5)", "mle"]


def test_methods_are_compared_at_one_selectivity_seed_by_seed(made: tuple[Path, dict[str, Any]]) -> None:
    """Against differences of the cells' own figures: their mean, and at least the error that lies between them."""
    _, results = made
    cells = {c["id"]: c["metrics"] for c in results["cells"]}
    one, other = "e.student.distilled-temperature0.5.median", "e.student.distilled-temperature0.5"
    found = [c for c in results["contrasts"] if (c["a"], c["b"]) == (one, other)]
    by_metric = {c["metric"]: c for c in found}
    assert len(by_metric) == len(found) >= 6
    for metric in ("precision", "entropy", "kl_student_truth"):
        values = [
            cells[f"{one}.seed{s}"][metric]["value"] - cells[f"{other}.seed{s}"][metric]["value"] for s in range(3)
        ]
        assert by_metric[metric]["value"] == pytest.approx(np.mean(values))
        assert by_metric[metric]["se"] >= np.std(values, ddof=1) / math.sqrt(3) * (1 - 1e-9)
        assert by_metric[metric]["pairing"] == "seed"
    step = next(s for s in results["summary"]["chains"]["e"]["tradeoff"] if s["group"] == one)
    assert step["vs_methods"][other]["precision"] == by_metric["precision"]
    assert not any((c["a"], c["b"]) == (other, one) for c in results["contrasts"])


def test_the_report_has_a_row_and_a_series_of_every_method(made: tuple[Path, dict[str, Any]]) -> None:
    folder, results = made
    run = parse(results, folder)
    chain = run.chains["e"]
    names = [row[0] for row in group_table(run, chain).rows]
    assert len(names) == len(set(names)) == len(run.groups)
    for words in ("distilled at temperature 0.5", "distilled at temperature 0.5 by median"):
        assert words in names
        assert f"assistant 1, {words}" in names
    assert "distilled at temperature 1 by mixed(weight=0.5), decoded at temperature 0.5" in names
    plane = plotdata.plane_data(run, chain)
    assert [p.label for p in plane.paths["distilled"]] == ["τ=1", "τ=0.5"]
    assert [p.label for p in plane.methods["by median"]] == ["τ=1 by median", "τ=0.5 by median"]
    curves = plotdata.curves_data(run, chain, against="setting")
    assert curves is not None
    assert list(curves.panels[0].methods) == ["by median", "by mixed(weight=0.5)"]
    assert all(len(points) == 2 for panel in curves.panels for points in panel.methods.values())
    assert "rather than by mle" in verdict(results)["e"][1]
    assert summary_table(results) is not None
    page = build_report([folder]).read_text("utf-8")
    assert "distilled selectively, by mixed(weight=0.5)" in page


def test_advice_has_a_candidate_of_every_method(made: tuple[Path, dict[str, Any]]) -> None:
    folder, results = made
    candidates = results["summary"]["chains"]["e"]["advice"]["candidates"]
    plain = [c for c in candidates if c["training"] == "distilled" and c["decoding"] is None]
    assert Counter(c.get("loss", "mle") for c in plain) == {"mle": 2, "median": 2, "mixed(weight=0.5)": 2}
    advice = hm.advise(folder, hm.Need(weight=0.5), fresh=True)
    assert advice.data["baseline"] == "e.student.distilled-temperature1.0"
    assert len(advice.data["candidates"]) == len(candidates)


def test_a_second_loss_extends_a_folder_by_what_is_new(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = hm.run(spec_of(["median"]), out=out)
    before = {p.name: (p / "meta.json").read_bytes() for p in (out / "artifacts").iterdir()}
    second = hm.run(spec_of(["mle"]), out=out)
    assert second.outcome.computed["fit"] == 3 * 2 * 2  # seeds, levels, selectivities
    assert {k: v for k, v in before.items() if (out / "artifacts" / k / "meta.json").read_bytes() != v} == {}
    old, new = ({c["id"]: c for c in r.results["cells"]} for r in (first, second))
    assert {k: new[k]["metrics"] for k in old} == {k: v["metrics"] for k, v in old.items()}
    whole = hm.run(spec_of(["mle", "median"]), out=tmp_path / "whole").results
    assert [c["id"] for c in whole["cells"]] == [c["id"] for c in second.results["cells"]]
    assert {c["id"]: c["metrics"] for c in whole["cells"]} == {k: v["metrics"] for k, v in new.items()}
    assert whole["contrasts"] == second.results["contrasts"]
    third = hm.run(spec_of(["median"]), out=out)
    assert not third.outcome.computed
    assert len(third.results["cells"]) == len(new)


def test_an_adopted_model_stands_beside_the_method_that_was_named() -> None:
    spec = spec_of(["mle", "median"])
    entry = {"chain": "e", "name": "trl", "training": "distilled", "seed": 1, "law": "0" * 32, "weights": {}}
    plain = Adopted.model_validate({**entry, "selectivity": COLD})
    named = Adopted.model_validate(
        {**entry, "selectivity": COLD, **Distillation(COLD, MEDIAN).variant, "law": "1" * 32}
    )
    assert plain.place != named.place
    cells = {c.id: c for c in plan_run(spec, [plain, named]).cells if c.origin is not None}
    assert {k: c.loss for k, c in cells.items()} == {
        "e.student.distilled-temperature0.5.adopted-trl.seed1": None,  # not known
        "e.student.distilled-temperature0.5.median.adopted-trl.seed1": "median",
    }
    with pytest.raises(ValueError, match="no loss"):
        Adopted.model_validate({**entry, "training": "direct", "loss": "median"})


def test_a_method_is_named_with_its_selectivity() -> None:
    chain = plan_run(spec_of(["mle", "mixed(weight=0.5)"])).chains["e"]
    one = parse_wanted("loss=mixed(weight=.5),temperature=0.5")
    assert one is not None
    assert one_of_methods(distillations_named(chain, one)).slug == "temperature0.5.mixed-weight0.5"
    both = parse_wanted(COLD)
    assert both is not None
    assert [d.objective for d in distillations_named(chain, both)] == [MLE, Objective("mixed", (("weight", 0.5),))]
    with pytest.raises(InputError, match="several methods"):
        one_of_methods(distillations_named(chain, both))
    other = parse_wanted("temperature=0.5,loss=median")
    assert other is not None
    with pytest.raises(InputError, match=r"no student of this chain is distilled so.*by mixed"):
        distillations_named(chain, other)


@pytest.mark.parametrize(
    ("role", "selectivity", "says"),
    [
        ("teacher", "temperature=0.5", "not text"),  # the same rows for all methods
        ("assistant_1", "temperature=0.5", "several methods"),
        ("assistant_1", "temperature=0.5,loss=median", "not text"),
        ("assistant_1", "temperature=0.5,loss=other", "distilled so"),
    ],
)
def test_an_export_names_the_method_where_rows_differ(tmp_path: Path, role: str, selectivity: str, says: str) -> None:
    hm.run(spec_of(["mle", "median"], seeds=1), out=tmp_path / "run")
    with pytest.raises(InputError, match=says):
        hm.export(tmp_path / "run", to=tmp_path / "rows.jsonl", chain="e", role=role, selectivity=selectivity)


def test_many_methods_are_told_apart_by_colour_line_and_key(made: tuple[Path, dict[str, Any]]) -> None:
    """Three further methods made of the two there are: labels of their points give way to a key."""
    folder, results = made
    groups = results["summary"]["groups"]
    for name in [g for g in groups if ".student.distilled" in g and g.endswith(".median")]:
        for source in ("truth", "student"):
            groups[f"{name}.on-{source}"] = {**groups[name], "prefix_source": source}
    run = parse(results, folder)
    plane = plotdata.plane_data(run, run.chains["e"])
    looks = {m: look_of("distilled", m, plane.methods) for m in plane.methods}
    median = [look for m, look in looks.items() if m.startswith("by median")]
    assert len(median) == 3
    assert {look.color for look in median} != {looks["by mixed(weight=0.5)"].color}
    assert len({look.color for look in median}) == 1
    assert len({str(look.line) for look in median}) == 3
    assert not any(p.label for points in plane.methods.values() for p in points)
    assert [p.label for p in plane.paths["distilled"]] == ["τ=1", "τ=0.5"]
    figure = panels.single(4.5, 4.0, panels.draw_plane, plane)
    sources = [f"on rows of the {s}" for s in ("teacher", "truth", "student")]
    key = [t.get_text() for t in figure.legends[0].get_texts()]
    assert key == ["by median", "by mixed(weight=0.5)", *sources]  # each objective and each source of rows once
