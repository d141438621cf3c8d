"""Kinds of stages: each answers for itself, and nothing that runs them knows which there are."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import lm_spec, mixture_spec, write_spec
from hydrometer.models.base import Footprint
from hydrometer.run import pilot
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages import compute, given_nodes, nodes
from hydrometer.stages.cells import Cell
from hydrometer.stages.nodes import VERSIONS, AdoptNode, DrawNode, JudgeNode, MapNode, Node, ScoreNode

KINDS = {
    k for room in (nodes, given_nodes) for k in vars(room).values() if isinstance(k, type) and issubclass(k, Node)
} - {Node}
ROOM = Path(hm.__file__).parent


def planned(spec: dict[str, Any], folder: Path) -> list[Node]:
    return list(plan_run(hm.load_spec(write_spec(spec, folder))).nodes.values())


def of(kind: type[Node], found: list[Node]) -> list[Any]:
    return [n for n in found if isinstance(n, kind)]


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda k: k.__name__), ids=lambda k: k.__name__)
def test_every_kind_says_how_it_is_called_priced_and_run(kind: type[Node]) -> None:
    assert not kind.__abstractmethods__
    assert {"stage", "priced", "does"} <= vars(kind).keys()
    assert kind.stage in VERSIONS


def test_a_kind_that_does_not_answer_cannot_be_planned() -> None:
    bare = dataclass(frozen=True, slots=True)(type("BareNode", (Node,), {}))
    with pytest.raises(TypeError, match="does"):
        bare("key", None)


def test_one_place_lists_the_kinds_and_lists_them_all() -> None:
    made = {k for k in vars(compute).values() if isinstance(k, type) and issubclass(k, Node)}
    assert made == KINDS | {Node}


def test_all_kinds_are_named_for_people_and_take_something(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    pytest.importorskip("torch")
    found = planned(lm_spec(tiny_models["llama"], picture="pca"), tmp_path)
    context = found[0].context
    found += planned(mixture_spec(as_released=True, grid=None), tmp_path)
    found += planned(mixture_spec(grid={"student": [1, 2]}), tmp_path)
    rows = [{"prompt": f"w{i}", "completion": "w3"} for i in range(3, 9)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    truth = {"text": {"file": str(tmp_path / "texts.jsonl"), "evaluate": 0.5}, "max_new_tokens": 6}
    llama = {"source": str(tiny_models["llama"])}
    found += planned(lm_spec(tiny_models["llama"], truth=truth, teacher=llama), tmp_path)
    kept = {"loss": ["kl_teacher_student"], "teacher_law": ["top_k(k=4)"]}
    found += planned(lm_spec(tiny_models["llama"], **kept), tmp_path)
    found.append(AdoptNode("key", context, "mine"))
    assert {type(n) for n in found} == KINDS
    labels = {n.label for n in found}
    assert labels >= {
        "lm: draw from the truth, rows 0-15", "lm: draw from the teacher at temperature 0.6, rows 16-31",
        "lm: fit the student on the teacher's rows at temperature 0.6",
        "lm: keep top_k(k=4) of the teacher's law at temperature 0.6 along rows 16-31",
        "lm: fit the student on the teacher's rows at temperature 0.6 by kl_teacher_student from top_k(k=4)",
        "lm: open the adopted mine",
        "lm: score the student, its rows 32-47", "lm: score the teacher decoded at temperature 0.6, its rows 0-15",
        "lm: score the truth, the truth's rows 0-15", "lm: judge the teacher decoded at temperature 0.6",
        "lm: keep something to look at", "m: figures as released", "lm: embed the truth's rows", "lm: picture by pca",
        "m: map at student 2", "lm: encode 1 texts of the truth to validate by",
        "lm: score the held-out texts 0-2 under student", "lm: judge the student decoded at temperature 0.6",
    }  # fmt: skip
    family, chain = context.family, context.spec
    draw, score, judge = (of(k, found)[0] for k in (DrawNode, ScoreNode, JudgeNode))
    assert draw.cost() == family.cost(chain, "draw", "truth", 16)
    assert score.cost() == family.cost(chain, "judge", "truth", 16) / 2
    assert judge.cost() == family.cost(chain, "judge", "student", 1)  # its blocks are scored by stages of their own
    assert draw.footprint() == family.footprint(chain, "draw", "truth", 16)
    assert judge.footprint() == Footprint(disk_most=40 * 48)
    point = of(MapNode, found)[0]
    both = [point.context.family.cost(point.context.spec, what, "student", 1) for what in ("fit", "judge")]
    assert (point.units(), point.cost()) == (2 * 3, 2 * 3 * sum(both))
    assert {n.cost() > 0 for n in found[:-1]} == {True}
    assert found[-1].cost() == 0
    assert {n.stage for n in found if n.footprint() == Footprint()} == {
        "fit", "show", "released", "map", "embed", "picture",
    } | {n.stage for n in found if n.context.name == "m" and n.footprint() == Footprint()}  # fmt: skip


def test_candidates_are_paid_for(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    pytest.importorskip("torch")
    best = {"temperature": 0.6, "best_of": 4, "rank_by": "truth_log_prob"}
    draws = of(DrawNode, planned(lm_spec(tiny_models["llama"], selectivity=[best], decoding=[]), tmp_path))
    drawn = [n for n in draws if n.law.role == "teacher"]
    many, once = (next(n for n in drawn if (n.selectivity is None) is plain) for plain in (False, True))
    assert many.cost() == 4 * once.cost()
    assert many.alike() != once.alike()
    both = lm_spec(tiny_models["llama"], selectivity=[{"temperature": 1}, best], decoding=[])
    whole = plan_run(hm.load_spec(write_spec(both, tmp_path)))
    assert pilot._cost(whole, {}, with_advice=False) == pytest.approx(sum(n.cost() for n in whole.nodes.values()))
    assert (many.asked().times, many.asked().held, len(many.asked().counts)) == (4, 2, 2)


def test_a_cell_of_a_map_has_no_judge_of_its_own(tmp_path: Path) -> None:
    one = plan_run(hm.load_spec(write_spec(mixture_spec(), tmp_path)))
    cells: list[Cell] = one.cells
    assert [n.key for n in one.judges_of(cells)] == [c.judge for c in cells]
    mapped = plan_run(hm.load_spec(write_spec(mixture_spec(grid={"student": [1]}), tmp_path)))
    assert mapped.judges_of(mapped.cells) == []


def test_what_runs_stages_tells_no_kind_from_another_by_a_list_of_them() -> None:
    """`match` over kinds, and chains of isinstance, would have to be mended for every new one."""
    named = {k.__name__ for k in KINDS}
    for path in set(ROOM.rglob("*.py")) - {ROOM / "stages/compute.py"}:
        tree = ast.parse(path.read_text("utf-8"))
        cases = {p.cls.id for p in ast.walk(tree) if isinstance(p, ast.MatchClass) and isinstance(p.cls, ast.Name)}
        assert not cases & named, path
        for asked in (n for n in ast.walk(tree) if isinstance(n, ast.If) and len(n.orelse) == 1):
            also = asked.orelse[0]
            both = [ast.unparse(i.test) for i in (asked, also) if isinstance(i, ast.If)]
            assert sum(any(f", {k})" in test for k in named) for test in both) < 2, path
