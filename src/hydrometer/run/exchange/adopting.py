"""The verb `adopt`: take a model trained elsewhere into a run's folder and judge it like the run's own students."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hydrometer.core.distillation import Wanted, parse_wanted
from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.io.yaml_io import explain
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import Family
from hydrometer.models.capabilities import TrainsElsewhere
from hydrometer.models.causal_lm.loading.load import locate
from hydrometer.run.api import RunResult, results_of
from hydrometer.run.execution.execute import execute
from hydrometer.run.graph.adopted import Adopted, keep_adopted, read_adopted
from hydrometer.run.graph.inputs import check_places
from hydrometer.run.graph.outcome import Monitor, Outcome, SilentMonitor
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.run.graph.reopen import (
    Opened,
    chain_named,
    closure,
    distillations_named,
    look,
    one_of_methods,
    reopen,
    require_run,
)
from hydrometer.run.preflight.diagnosis import shared_prompts
from hydrometer.stages.cells import Cell
from hydrometer.store.artifacts import content_key
from hydrometer.store.records import load_results
from hydrometer.store.storage_uri import Url

__all__ = ["AdoptResult", "adopt"]


@dataclass(frozen=True, slots=True)
class AdoptResult:
    """What `adopt` returns.

    Attributes
    ----------
    run : the folder's results, with the adopted model in them.
    cells : ids of its cells.
    known : whether it had been adopted before.
    """

    run: RunResult
    cells: tuple[str, ...]
    known: bool


def adopt(
    folder: str | Path | Url,
    *,
    model: str | Path,
    name: str,
    selectivity: str | Selectivity | None = None,
    training: Literal["direct", "distilled", "baseline"] | None = None,
    base: str | Path | None = None,
    seed: int | None = None,
    chain: str | None = None,
    cache: str | Path | None = None,
    monitor: Monitor | None = None,
) -> AdoptResult:
    """Take a model trained elsewhere into a run's folder and judge it as a student of the chain.

    Its weights are copied into the folder's artifacts, in float32. It is judged on the same rows of the truth as the
    run's own students, and decoded where they are. Nothing of the run is trained or judged for it but what its own
    figures need; a later run keeps it.

    Parameters
    ----------
    folder : of the run.
    model : a folder of safetensors with its tokenizer, or what else `CausalLM.from_pretrained` opens.
    name : of the way it was trained; models of one name that differ in their seed alone form a group.
    selectivity : at which the teacher drew the rows it was trained on, as text ``temperature=0.8`` or as such. Where
        the run distils by several methods, ``temperature=0.8,loss=mle`` says whose student it stands beside.
    training : ``direct`` for one trained on the truth's rows, ``baseline`` for one trained on other data; else it is
        distilled.
    base : the model under an adapter, where the adapter names a path or none.
    seed : of the run whose rows it was trained on; the run's first by default.
    chain, cache, monitor : as in `run`.

    Raises
    ------
    InputError : no such run or chain, selectivity or seed, an unusable checkpoint, another vocabulary, or other weights
        under a name, setting and seed that are taken. Nothing has been changed then.

    Examples
    --------
    >>> from hydrometer import adopt
    >>> adopt("nowhere", model="checkpoint", name="trl")
    Traceback (most recent call last):
        ...
    hydrometer.core.errors.FolderError: no run in the folder; got 'nowhere'; give the folder of a run
    """
    wanted = parse_wanted(selectivity)
    home = require_run(folder)
    way = _training(training, wanted)
    check_places(home.place)
    under = None if base is None else str(base)
    locate(str(model), base=under)
    with home.hold():
        opened = reopen(home, cache)
        at = chain_named(opened.plan, chain)
        shared = shared_prompts(opened.spec, at)
        (monitor or SilentMonitor()).found(shared)
        look(opened, opened.plan, Outcome())  # refuses figures that this machine could not have made
        source = _Source(str(model), under)
        entry = _entry(opened, at, source, name, wanted, way, seed)
        known = next((a for a in read_adopted(opened.folder) if a.place == entry.place), None)
        if known is not None and known.law != entry.law:
            raise FolderError(
                "other weights have this name, setting and seed already", got=name, fix="give another --name or --seed"
            )
        _copy_weights(opened, at, source, entry)
        keep_adopted(opened.folder, entry)
        plan = opened.plan if known is not None else opened.with_adopted(entry)
        cells = [c for c in plan.chains[entry.chain].cells if _is_of(c, entry)]
        outcome = execute(closure(plan, _stages(plan, entry, cells)), opened.store, monitor or SilentMonitor())
        opened.folder.create()
        look(opened, plan, outcome)
        before = opened.findings()
        findings = [*before, *(f for s in shared if (f := s.to_json()) not in before)]
        results = results_of(opened.spec.name, opened.folder, plan, opened.store, outcome, findings)
        opened.folder.write_results(results)
    run = RunResult(opened.folder.place, load_results(opened.folder.root), outcome)
    return AdoptResult(run, tuple(c.id for c in cells), known is not None)


@dataclass(frozen=True, slots=True)
class _Source:
    """A checkpoint, and the model under it if it is an adapter."""

    model: str
    base: str | None


def _training(given: str | None, s: Wanted | None) -> str:
    """How it was trained, where that goes with the selectivity."""
    training = "distilled" if given is None else given
    if training not in ("direct", "distilled", "baseline"):
        raise InputError("--training is direct, distilled or baseline", got=training)
    if training == "direct" and s is not None:
        raise InputError("a direct model was trained on the truth's rows, which have no selectivity", got=s.label)
    if training == "baseline" and s is not None:
        fix = "leave out --selectivity, or leave out --training if it was trained on the teacher's rows"
        raise InputError("a baseline was not trained on the teacher's rows", got=s.label, fix=fix)
    if training == "distilled" and s is None:
        fix = "give --selectivity, or --training direct (on the truth's rows) or baseline (on other data)"
        raise InputError("the selectivity of the rows it was trained on is missing", got=None, fix=fix)
    return training


def _able(family: Family) -> TrainsElsewhere:
    if not isinstance(family, TrainsElsewhere):
        raise InputError("models of this family are not adopted", got=family.name, fix="name another --chain")
    return family


def _entry(
    opened: Opened, at: ChainPlan, source: _Source, name: str, wanted: Wanted | None, training: str, seed: int | None
) -> Adopted:
    """Return the folder's entry for the model."""
    family, spec = _able(at.context.family), at.context.spec
    d = None if wanted is None else one_of_methods(distillations_named(at, wanted))
    seed = opened.spec.seeds[0] if seed is None else seed
    if seed not in opened.spec.seeds and "evaluate" in spec.resample:
        known = ", ".join(map(str, opened.spec.seeds))
        raise InputError("each seed of this run has rows of its own to judge on", got=seed, fix=f"known: {known}")
    weights = dict(family.identify(source.model, source.base))
    law = content_key({"stage": "adopt", "format": 1, "truth": at.truth.key, "weights": weights})
    body: dict[str, object] = {
        "chain": at.context.name,
        "name": name,
        "training": training,
        "selectivity": None if d is None else d.selectivity,
        **({} if d is None else d.variant),
        "seed": seed,
        "law": law,
        "weights": weights,
    }
    try:
        return Adopted.model_validate(body)
    except ValidationError as e:
        raise explain(e, "adopt") from None


def _copy_weights(opened: Opened, at: ChainPlan, source: _Source, entry: Adopted) -> None:
    """Write the artifact, unless the same weights exist."""
    if opened.store.has("fit", entry.law):
        return
    family = at.context.family
    law = _able(family).adopt(at.context.spec, source.model, source.base)
    with opened.store.write("fit", entry.law, {"inputs": []}) as (home, info):
        family.save_law(law, home)
        info["adopted"] = dict(entry.weights)


def _is_of(cell: Cell, entry: Adopted) -> bool:
    return (
        cell.origin is not None
        and cell.origin["adopted"] == entry.name
        and (cell.training, cell.seed) == (entry.training, entry.seed)
        and entry.was_distilled(cell.distillation)
    )


def _stages(plan: Plan, entry: Adopted, cells: Iterable[Cell]) -> list[str]:
    """Return the stages that these cells' figures need: their own, the truth's and the teacher's."""
    by_id = {c.id: c for c in plan.chains[entry.chain].cells}
    needed = {c.id: c for c in by_id.values() if c.role == "truth" and c.seed in (None, entry.seed)}
    for cell in cells:
        for other in (cell.id, cell.parent, cell.teacher_cell):
            if other in by_id:
                needed[other] = by_id[other]
    return [k for c in needed.values() for k in (c.judge, c.judge_training, c.show) if k is not None]
