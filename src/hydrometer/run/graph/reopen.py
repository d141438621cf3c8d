"""Opening a run's folder again: its experiment, its plan, and what of it is finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydrometer.core.distillation import Distillation, Wanted, distillations_of
from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.io.yaml_io import nearest
from hydrometer.models.capabilities import TrainsElsewhere
from hydrometer.models.families import RunSpec, parse_run_spec
from hydrometer.models.finite_selectivity import canonical
from hydrometer.run.graph.adopted import Adopted, read_adopted
from hydrometer.run.graph.join import with_prompts
from hydrometer.run.graph.outcome import Outcome
from hydrometer.run.graph.plan import ChainPlan, Plan, plan_run
from hydrometer.run.graph.recipes import shipped_recipes
from hydrometer.run.graph.spec_merge import merge
from hydrometer.stages.nodes import DrawNode
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.records import RunFolder, load_results
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import Url, place_of

__all__ = [
    "Opened",
    "chain_named",
    "closure",
    "distillations_named",
    "look",
    "one_of_methods",
    "reopen",
    "require_run",
    "spec_of",
    "training_rows",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Opened:
    """A run's folder with its plan: the union of its accepted specifications, and the models it adopted."""

    folder: RunFolder
    spec: RunSpec
    plan: Plan
    store: ArtifactStore

    def findings(self) -> list[dict[str, object]]:
        """Return what the last run's results say of its examination."""
        results = _recorded(self.folder)
        return [] if results is None else list(results["summary"]["findings"])

    def with_adopted(self, entry: Adopted) -> Plan:
        """Plan once more, with one more adopted model."""
        return plan_run(self.spec, [*read_adopted(self.folder), entry])


def require_run(place: str | Path | Url) -> RunFolder:
    """Open a folder or URL, refusing one that no run has begun in, before anything is made in it."""
    found = place_of(place)
    if not isinstance(found, Path) or ("\0" not in str(found) and (found / "specs").is_dir()):
        folder = RunFolder(found)
        if (folder.root / "specs").is_dir():
            return folder
    raise FolderError("no run in the folder", got=str(found), fix="give the folder of a run")


def reopen(folder: RunFolder, cache: str | Path | None = None, chain: str | None = None) -> Opened:
    """Open the folder of a run; nothing in it is changed.

    Parameters
    ----------
    folder : as `require_run` opens it.
    cache : where its artifacts are, if not inside.
    chain : plan this chain alone; all of them by default.

    Notes
    -----
    Relative file names of its specifications are looked for where its runs found them, among the shipped recipes, here,
    and in and beside the folder. The right place is the one whose truths are, by content, those that the run accepted.

    Raises
    ------
    FolderError : no run there, or its truth is not what it was.
    InputError : a file that its specifications name is gone.
    """
    root = folder.place
    accepted = folder.accepted()
    if not accepted:
        raise FolderError("the folder accepted no specification yet", got=str(root), fix="run the experiment first")
    truths: dict[str, str] = accepted[0].get("truths", {})
    adopted = read_adopted(folder)
    first: InputError | None = None
    is_changed = False
    for base in dict.fromkeys([*folder.bases(), shipped_recipes(), Path.cwd(), *_around(folder)]):
        try:
            spec = merge([spec_of(a, base) for a in accepted])
            if chain is not None:
                spec = spec.model_copy(update={"chains": {chain: _known(chain, spec.chains)}})
            spec = with_prompts(spec, folder)
            plan = plan_run(spec, adopted)
        except InputError as e:
            first = first or e
            continue
        if all(truths.get(n) == c.truth.key for n, c in plan.chains.items()):
            return Opened(folder, spec, plan, open_store(cache or folder.artifacts))
        is_changed = True
    if first is not None and not is_changed:
        raise first
    raise FolderError(
        "the truth of this run is not what it was", got=str(root), fix="restore the model and the prompts it was run on"
    )


def _around(folder: RunFolder) -> tuple[Path, ...]:
    return (folder.place, folder.place.parent) if isinstance(folder.place, Path) else ()


def spec_of(entry: dict[str, Any], base: Path) -> RunSpec:
    """Read the specification of an accepted entry. Raises FolderError, SpecError."""
    body = entry.get("spec")
    if not isinstance(body, dict):
        raise FolderError("a file in specs/ holds no specification", fix="restore or remove it")
    return parse_run_spec(body, "specs/", base)  # pyright: ignore[reportUnknownArgumentType]


def chain_named(plan: Plan, name: str | None) -> ChainPlan:
    """Return a chain by name; without one, the only chain of models that may be trained elsewhere.

    Raises
    ------
    InputError : no such chain, or several to choose from.
    """
    if name is not None:
        return _known(name, plan.chains)
    fitting = [c for c in plan.chains.values() if isinstance(c.context.family, TrainsElsewhere)]
    if len(fitting) != 1:
        names = ", ".join(c.context.name for c in fitting) or "none"
        fix = "name one with --chain" if fitting else "this works on chains of language models"
        raise InputError("the chain is not determined", got=f"chains of such models: {names}", fix=fix)
    return fitting[0]


def _known(name: str, chains: Mapping[str, T]) -> T:
    if name not in chains:
        raise InputError("no such chain in this run", got=name, fix=nearest(name, list(chains)))
    return chains[name]


def distillations_named(chain: ChainPlan, wanted: Wanted) -> list[Distillation]:
    """Return a chain's distillations at a selectivity, in the chain's own spelling of it.

    Raises
    ------
    InputError : it has none; the message names those that it has.
    """
    spec = chain.context.spec
    at = next((s for s in spec.selectivity if canonical(s) == canonical(wanted.selectivity)), None)
    if at is None:
        known = "; ".join(",".join(f"{k}={v}" for k, v in s.to_json().items()) for s in spec.selectivity)
        raise InputError("this chain does not have that selectivity", got=wanted.label, fix=f"it has {known}")
    here = [d for d in distillations_of(spec) if d.selectivity == at]
    found = [d for d in here if wanted.is_method_of(d)]
    if not found:
        fix = "it has " + "; ".join(d.label for d in here)
        raise InputError("no student of this chain is distilled so", got=wanted.label, fix=fix)
    return found


def one_of_methods(found: Sequence[Distillation]) -> Distillation:
    """Return the only one. Raises InputError where there are several methods to choose from."""
    if len(found) > 1:
        known = "; ".join(",".join(f"{k}={v}" for k, v in d.to_json().items() if k != "selectivity") for d in found)
        fix = "name one, as in --selectivity temperature=0.8,loss=mle"
        raise InputError("several methods of distilling to choose from", got=known, fix=fix)
    return found[0]


def closure(plan: Plan, keys: Iterable[str]) -> Plan:
    """Return the part of a plan that makes these nodes, without cells."""
    needed: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            waiting += plan.nodes[key].inputs
    return Plan({k: n for k, n in plan.nodes.items() if k in needed}, plan.chains, plan.dashboards)


def training_rows(plan: Plan) -> Plan:
    """Return the part of a plan that draws every model's training rows, and fits what they are drawn from."""
    return closure(plan, [k for k, n in plan.nodes.items() if isinstance(n, DrawNode) and n.purpose == "train"])


def look(opened: Opened, plan: Plan, outcome: Outcome) -> None:
    """Enter into an outcome what of a plan is left to be made, and what failed in an earlier run.

    Raises
    ------
    FolderError : a cell that results.json has figures of is not judged under this machine's numerics.
    """
    store = opened.store
    results = _recorded(opened.folder)
    before: dict[str, dict[str, Any]] = {} if results is None else {c["id"]: c for c in results["cells"]}
    for cell in plan.cells:
        old = before.get(cell.id, {})
        if store.has(plan.nodes[cell.judge].stage, cell.judge) or cell.judge in outcome.failed:
            continue
        if old.get("status") == "failed":
            outcome.failed[cell.judge] = str(old.get("reason"))
        elif old:
            raise FolderError(
                "figures in results.json have no artifact under this machine's versions, threads and processor",
                got=cell.id,
                fix="go on where they were made, or `hydrometer run` it again here first",
            )
        else:
            outcome.left.add(cell.judge)
    shown = [k for c in plan.cells for k in (c.judge_training, c.show, c.released)] + [
        c.picture for c in plan.chains.values()
    ]
    outcome.left |= {k for k in shown if k is not None and not store.has(plan.nodes[k].stage, k)}


def _recorded(folder: RunFolder) -> dict[str, Any] | None:
    """What results.json holds; None where there is none. Raises FolderError where it lacks what a run writes."""
    if not (folder.root / "results.json").is_file():
        return None
    results = load_results(folder.root)
    try:
        named = all(isinstance(c["id"], str) and c["status"] in ("ok", "failed") for c in results["cells"])
        whole = named and isinstance(results["summary"]["findings"], list)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        fix = "remove it, then run the experiment again"
        raise FolderError("results.json lacks what a run writes", got=str(folder.place), fix=fix)
    return results
