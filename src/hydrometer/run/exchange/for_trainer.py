"""A distilled student's setting as a folder for a trainer of TRL: rows, the start, the teacher, and arguments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydrometer.core.distillation import Distillation, Wanted
from hydrometer.core.errors import InputError
from hydrometer.core.io.files import mark
from hydrometer.core.io.yaml_io import user_path
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.run.graph.reopen import distillations_named, one_of_methods
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.cells import Cell
from hydrometer.stages.nodes import FitNode
from hydrometer.store.artifacts import ArtifactStore

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.drafting.for_trl import TrlTrainer

__all__ = ["ROWS", "native_fits", "new_folder", "student_fit", "write_setting"]

ROWS, SETTING = "rows.parquet", "setting.json"


def new_folder(to: str | Path) -> Path:
    """Return where the folder will be. Raises InputError: something is there, or it has no place."""
    path = user_path(str(to))
    if path.exists() or path.is_symlink() or not path.parent.is_dir():
        raise InputError("--trainer makes a new folder, in one that exists", got=str(to), fix="choose another --to")
    return path


def native_fits(plan: Plan, chain: ChainPlan, distilled: Sequence[Distillation] | None) -> list[tuple[Cell, FitNode]]:
    """Return a chain's own models that are judged as they are, with their fits; direct ones of None."""

    def node_of(cell: Cell) -> FitNode | None:
        judged = plan.judge_of(cell)
        made = None if judged is None else plan.nodes.get(judged.law.key)
        return made if isinstance(made, FitNode) else None

    training = "direct" if distilled is None else "distilled"
    return [
        (c, node)
        for c in chain.cells
        if c.training == training
        and c.decoding is None
        and c.distillation in (distilled or (None,))
        and (node := node_of(c)) is not None
    ]


def student_fit(plan: Plan, chain: ChainPlan, wanted: Wanted | None, seed: int | None) -> FitNode:
    """Return the fit of the distilled student that is meant, of its first seed by default. Raises InputError."""
    if wanted is None:
        raise InputError("--trainer needs a student", got=None, fix="name it: --selectivity temperature=1,loss=jsd")
    fits = native_fits(plan, chain, [one_of_methods(distillations_named(chain, wanted))])
    last = [(c, node) for c, node in fits if c.level == max(c.level for c, _ in fits)]
    for cell, node in last:
        if seed is None or cell.seed in (None, seed):
            return node
    raise InputError(
        "the run does not have this seed", got=seed, fix="known: " + ", ".join(str(c.seed) for c, _ in last)
    )


@contextmanager
def write_setting(store: ArtifactStore, node: FitNode, trainer: TrlTrainer, target: Path) -> Generator[Path]:
    """Make a folder of the models and the setting of a student's fit; the caller puts the rows into it.

    Raises
    ------
    InputError : a setting that TRL does not have, or a teacher that is not made yet, or not opened here.
    """
    from hydrometer.models.causal_lm.drafting.for_trl import arguments_of, write_models
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.level_spec import level_spec

    assert node.distillation is not None  # of a distilled student
    assert node.teacher is not None
    if node.usual is not None:
        fix = "budget: steps, or export rows alone"
        raise InputError("TRL ends no fit by its tokens", got="budget: tokens", fix=fix)
    needed = (*node.teacher.inputs, *(() if node.start is None else node.start.inputs))
    if missing := [k for k in needed if not store.has("fit", k)]:
        fix = "`hydrometer run` it first; --until draw fits no student"
        raise InputError("a model that this fit starts from or learns from is not fitted yet", got=missing[0], fix=fix)
    bench, level = ArtifactLoader(store), level_spec(node.level.spec)
    truth, teacher = (bench.law(node.context, x, "float32", purpose="train") for x in (node.truth, node.teacher))
    start = None if node.start is None else bench.law(node.context, node.start, "float32", purpose="train")
    if not isinstance(truth, CausalLaw) or not isinstance(teacher, CausalLaw):
        raise InputError("a served model is no teacher of TRL's", got=node.teacher.role, fix="use a model that is here")
    assert start is None or isinstance(start, CausalLaw)  # of the run's own fits
    seed = node.stream.integer()
    arguments, differs = arguments_of(trainer, node.distillation, teacher, level, node.data.n, seed)
    folder = target.with_name(f".{target.name}.{mark()}.tmp")
    folder.mkdir()
    try:
        write_models(folder, level, truth, teacher, start, node.distillation.selectivity, seed)
        d = node.distillation
        named = [",".join(f"{k}={v}" for k, v in d.selectivity.to_json().items()), f"loss={d.objective.to_json()}"]
        setting = {
            "trainer": trainer,
            "arguments": arguments,
            "stop_ids": list(truth.stop_ids),
            "dtype": "float32" if level.training.master_weights else level.training.torch_dtype,
            "selectivity": ",".join([*named, f"prefix_source={d.prefixes.to_json()}"]),
            "differs": list(differs),
        }
        (folder / SETTING).write_text(json.dumps(setting, indent=1), encoding="utf-8")
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
