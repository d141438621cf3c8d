"""Pilots: run a chain at a share of its cost, to choose a setting before paying for the full run.

Models, selectivities and epochs stay. Seeds are cut first, down to three: fewer seeds at full size bias nothing. If
that is still too expensive, two seeds are run and all row counts cut by one factor: more seeds would not undo the bias
of fewer rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.io.yaml_io import explain
from hydrometer.models.families import RunSpec
from hydrometer.run.advice.advise import Advice, advise_on, completed, keep
from hydrometer.run.advice.candidates import open_source, the_chain
from hydrometer.run.advice.holdout import rejudged
from hydrometer.run.api import run
from hydrometer.run.graph.inputs import check_inputs, check_places
from hydrometer.run.graph.outcome import Monitor, SilentMonitor
from hydrometer.run.graph.plan import Plan, plan_run
from hydrometer.run.graph.recipes import load_spec
from hydrometer.stages.nodes import JudgeNode, Node
from hydrometer.stages.statistics.decision import Need

__all__ = ["Pilot", "advise_pilot", "plan_pilot"]

_FEWEST_ROWS = 16
_BLOCK = 32
_GUESSES = 6
_NEAR = 0.97  # of the share: close enough
_JUDGED_AGAIN = 3  # the leader, its closest rival and the baseline


@dataclass(frozen=True, slots=True)
class Pilot:
    """A planned pilot.

    Attributes
    ----------
    spec : to run.
    share : planned cost over that of the full run, fresh judging included.
    seeds : of the full run, and of the pilot.
    rows : by stream, of the full run and of the pilot.
    """

    spec: RunSpec
    share: float
    seeds: tuple[int, int]
    rows: dict[str, tuple[int, int]]


def plan_pilot(spec: RunSpec, share: float, chain: str | None = None, *, fresh: bool = True) -> Pilot:
    """Plan a pilot of one chain.

    Parameters
    ----------
    spec : the full run.
    share : of the full run's cost, by the families' cost functions; between 0 and 1.
    chain : which chain, where there are several.
    fresh : whether the advice judges three students again, which adds to the cost.

    Raises
    ------
    InputError : a share out of range, or too small for two seeds of the fewest rows.

    Examples
    --------
    >>> from hydrometer import load_spec
    >>> pilot = plan_pilot(load_spec("markov"), 0.25)
    >>> pilot.seeds, pilot.share <= 0.25, pilot.rows["distill"]  # rows are cheap: only seeds are cut
    ((20, 3), True, (4000, 4000))
    """
    if not 0 < share < 1:
        raise InputError(
            "the share of the full run's cost must lie between 0 and 1", got=share, fix="for example 0.125"
        )
    names = [n for n, c in spec.chains.items() if getattr(c, "grid", None) is None]
    if not names:
        raise InputError("maps are not advised on", got=", ".join(spec.chains), fix="give a specification of a chain")
    name = the_chain(names, chain, "the specification")
    full = spec.model_copy(update={"chains": {name: spec.chains[name]}})
    known: _Costs = {}
    total = _cost(plan_run(full), known, with_advice=False)

    def made(seeds: int, factor: float) -> tuple[RunSpec, float]:
        small = _scaled(full, name, seeds, factor)
        return small, _cost(plan_run(small), known, with_advice=fresh) / total

    def found(small: RunSpec, cost: float) -> Pilot:
        before, after = _rows(full, name), _rows(small, name)
        sizes = {k: (n, after[k]) for k, n in before.items()}
        return Pilot(small, cost, (len(full.seeds), len(small.seeds)), sizes)

    if len(full.seeds) >= 3 and made(3, 1.0)[1] <= share:
        count = _most(lambda s: made(s, 1.0)[1] <= share, 3, len(full.seeds))
        return found(*made(count, 1.0))
    factor, fewest = _fewest_rows(lambda factor: made(2, factor))
    least = fewest[1]
    if least <= share:
        return found(*_fewer_rows(lambda factor: made(2, factor), share, factor, fewest))
    rows = f"{_FEWEST_ROWS} rows" if factor == 0 else "the fewest rows that its models are fitted to"
    raise InputError(
        f"the share is too small: two seeds of {rows} take {least:.3g} of the full run's cost",
        got=share,
        fix=f"give --share {least * 1.05:.3g} or more",
    )


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number up to `high` that fits, given that all up to `low` do."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _fewest_rows(made: Callable[[float], tuple[RunSpec, float]]) -> tuple[float, tuple[RunSpec, float]]:
    """Return the least factor among 0 and powers of 1/2 that leaves models enough rows, and its specification."""
    for factor in (0.0, *(2.0**-k for k in range(10, 0, -1))):
        with suppress(SpecError):
            return factor, made(factor)
    return 1.0, made(1.0)


def _fewer_rows(
    made: Callable[[float], tuple[RunSpec, float]], share: float, low: float, best: tuple[RunSpec, float]
) -> tuple[RunSpec, float]:
    """Return the specification of the largest factor within the share; `best`, of factor `low`, is within it.

    Cost is nearly linear in the factor, so regula falsi needs few plans, and planning is not free.
    """
    whole = made(1.0)
    if whole[1] <= share:
        return whole
    high, top = 1.0, whole[1]
    for _ in range(_GUESSES):
        if top <= best[1] or best[1] > _NEAR * share:
            break
        factor = low + (high - low) * (share - best[1]) / (top - best[1])
        spec, cost = made(factor)
        if cost <= share:
            low, best = factor, (spec, cost)
        else:
            high, top = factor, cost
    return best


def _rows(spec: RunSpec, name: str) -> dict[str, int]:
    data = spec.chains[name].model_dump(mode="json")["data"]
    return {k: v for k, v in data.items() if isinstance(v, int)}


def _scaled(full: RunSpec, name: str, seeds: int, factor: float) -> RunSpec:
    """Return the specification with `seeds` seeds and all row counts times `factor`."""
    chain = full.chains[name]
    body = chain.model_dump(mode="json", exclude_none=True)
    data: dict[str, Any] | None = body.get("data")
    if data is None:
        raise SpecError(f"chains.{name} has no `data` to scale", got=chain.family, fix="run it whole, then advise DIR")
    rows = {k: max(min(v, _FEWEST_ROWS), round(v * factor)) if isinstance(v, int) else v for k, v in data.items()}
    # Selectivities as objects: infinity is no JSON number.
    kept = {k: getattr(chain, k) for k in type(chain).model_fields}
    if factor < 1 and "block_rows" in kept:  # rows are drawn in whole blocks; large ones would be partly wasted
        kept["block_rows"] = min(kept["block_rows"], _BLOCK)
    try:
        made = type(chain).model_validate({**kept, "data": rows})
    except ValidationError as e:
        raise explain(e, f"chains.{name} with fewer rows") from None
    chosen = full.seeds[:seeds]
    chosen += tuple(s for s in range(max(full.seeds) + seeds + 1) if s not in chosen)[: seeds - len(chosen)]
    return full.model_copy(update={"name": f"{full.name[:58]}-pilot", "seeds": chosen, "chains": {name: made}})


_Costs = dict[tuple[object, ...], float]


def _cost(plan: Plan, known: _Costs, *, with_advice: bool) -> float:
    """Return the relative cost of a run, and of judging its three most expensive students again.

    `known` caches costs of alike stages: a family may have to open models to compute one.
    """

    def cost(node: Node) -> float:
        what = node.alike()
        if what not in known:
            known[what] = node.cost()
        return known[what]

    total = sum(cost(n) for n in plan.nodes.values())
    if not with_advice:
        return total
    groups: dict[str, list[JudgeNode]] = {}
    for cell in plan.cells:
        if cell.training is not None and (node := plan.judge_of(cell)) is not None:
            groups.setdefault(cell.group, []).append(node)

    def judging(node: JudgeNode) -> float:
        return cost(node) + sum(cost(plan.nodes[k]) for k in node.scores)

    dearest = sorted(groups.values(), key=lambda nodes: -sum(map(judging, nodes)))[:_JUDGED_AGAIN]
    again, _ = rejudged(plan, [n for nodes in dearest for n in nodes])
    return total + sum(cost(n) for n in again.nodes.values())


def advise_pilot(
    source: str | Path | RunSpec,
    need: Need | None = None,
    *,
    share: float = 0.125,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    chain: str | None = None,
    fresh: bool = True,
    cache: str | Path | None = None,
    monitor: Monitor | None = None,
) -> Advice:
    """Run a chain at a share of its cost, and advise from it which setting to take.

    Parameters
    ----------
    source : the full run: a recipe's name, a YAML file, or a specification.
    need : what is wanted; see `advise`.
    share : of the full run's cost.
    out : the pilot's folder; ``runs/NAME-pilot`` by default.
    overrides : ``a.b.c=VALUE``, applied to the full run.
    chain : which chain, where there are several.
    fresh, cache, monitor : see `advise`.

    Returns
    -------
    Advice
        its data has `pilot`: planned share, seconds taken, seeds and rows of the full run and of the pilot. Limits of
        pilots: docs, Advice.

    Raises
    ------
    InputError : anything wrong with what was given.

    Examples
    --------
    >>> import tempfile, hydrometer as hm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     few = ["chains.markov.selectivity=[{temperature: 1}, {temperature: 0.5}]"]
    ...     advice = hm.advise_pilot("markov", share=0.25, out=folder, overrides=few)
    >>> advice.data["pilot"]["seeds"]
    [20, 3]
    """
    wanted, stated = completed(need)
    full = source if isinstance(source, RunSpec) else load_spec(source, overrides)
    check_places(out, cache)
    check_inputs(full.chains.values())
    pilot = plan_pilot(full, share, chain, fresh=fresh)
    began = time.perf_counter()
    done = run(pilot.spec, out=out, cache=cache, monitor=monitor)
    opened = open_source(done.folder, None, cache)
    advice = advise_on([opened], wanted, stated=stated, fresh=fresh, monitor=monitor or SilentMonitor())
    advice.data["pilot"] = {
        "share": share,
        "planned_share": pilot.share,
        "seconds": round(time.perf_counter() - began, 1),
        "computed": sum(done.outcome.computed.values()),
        "reused": sum(done.outcome.reused.values()),
        "seeds": list(pilot.seeds),
        "rows": {k: list(v) for k, v in pilot.rows.items()},
    }
    keep(opened.books, advice.data)
    return advice
