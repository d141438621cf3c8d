"""The verb `plan`: tokens, operations, bytes and hours of a run, before it is paid for, and of what it still lacks.

A stage's cost is the sum of its parts (`models.work`), a plan's the sum of its stages': nothing here knows in which
order, or how many at a time, they will run. Wall-clock hours are device hours over the number of devices. Seconds on
this machine are those that earlier runs or a measurement left (`run.cost.this_machine`), else coarse ones from counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import ValidationError

from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.io.yaml_io import MAX_YAML_BYTES, explain, is_object, nearest, parse_yaml
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Family
from hydrometer.models.families import RunSpec, family_of
from hydrometer.models.work import Device, HasCostModel, Lengths
from hydrometer.run.cost.pricing import Pricing, StageCost
from hydrometer.run.cost.this_machine import COARSE, Kept
from hydrometer.run.graph.adopted import Adopted, read_adopted
from hydrometer.run.graph.inputs import check_inputs
from hydrometer.run.graph.join import joined
from hydrometer.run.graph.plan import plan_run
from hydrometer.run.graph.recipes import load_spec
from hydrometer.run.preflight.machine import missing_stages
from hydrometer.store.records import RunFolder
from hydrometer.store.storage_uri import place_of

__all__ = ["PROFILES", "CostPlan", "StageCost", "load_device", "plan"]

_ASSUMED = (
    "peaks of the vendor's data sheet (dense; float32 without TF32) times assumed utilisations, 8 microseconds to "
    "launch an operation; not measured by this project"
)
_PRICE = "assumed: of the order of on-demand list prices at the end of 2026, which differ fourfold; set usd_per_hour"
_SHARES = {"draw": 0.3, "score": 0.3, "train": 0.35}


def _accelerator(name: str, bfloat16: float, float32: float, bandwidth: float, memory: float, usd: float) -> Device:
    peaks = {"bfloat16": bfloat16, "float32": float32}
    return Device.model_validate(
        {
            "name": name,
            "source": _ASSUMED,
            "flops": peaks,
            "bandwidth": bandwidth,
            "utilisation": _SHARES,
            "launch": 8e-6,
            "link": 2e9,
            "memory": memory,
            "usd_per_hour": usd,
            "price": _PRICE,
        }
    )


PROFILES: Mapping[str, Device] = {
    "a100": _accelerator("a100", 312e12, 19.5e12, 2.04e12, 80e9, 2.8),
    "h100": _accelerator("h100", 989e12, 67e12, 3.35e12, 80e9, 4.0),
    "h200": _accelerator("h200", 989e12, 67e12, 4.8e12, 141e9, 4.5),
}
"""By name: A100 and H100 SXM of 80 GB, H200 SXM of 141 GB."""


def load_device(name: str) -> Device | None:
    """Return a named device, or one from a file; None for `this`.

    A file holds the fields of `models.work.Device`; with `like: h100` those that it leaves out are that profile's. It
    may also be the file that is kept of another machine.

    Raises
    ------
    SpecError : unknown name, unreadable file, or anything wrong inside.

    Examples
    --------
    >>> load_device("h100").memory
    80000000000.0
    """
    if name == "this":
        return None
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        known = ["this", *PROFILES]
        raise SpecError("unknown device", got=name, fix=nearest(name, known) + " or give a .yaml file")
    try:
        with path.expanduser().open("rb") as f:
            fields = parse_yaml(f.read(MAX_YAML_BYTES + 1), path.name)
    except (OSError, ValueError, RuntimeError) as e:  # a name with NUL, the home of nobody
        raise SpecError(f"the device's file cannot be read: {getattr(e, 'strerror', e)}", got=name) from None
    return _merged(fields, path)


def _merged(fields: dict[str, object], path: Path) -> Device:
    if "figures" in fields:
        return _other_machine(fields, path)
    like = fields.pop("like", None)
    if like is not None:
        if not isinstance(like, str) or like not in PROFILES:
            raise SpecError(f"{path.name}: like: unknown device", got=like, fix=nearest(str(like), list(PROFILES)))
        base: dict[str, object] = PROFILES[like].model_dump(mode="json")
        if "usd_per_hour" in fields:
            base.pop("price")
        changed = {k: _inside(base.get(k), v) for k, v in fields.items()}
        fields = {**base, "name": path.stem, "source": f"{like}, changed by {path.name}", **changed}
    try:
        return Device.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path.name) from None


def _other_machine(fields: dict[str, object], path: Path) -> Device:
    try:
        kept = Kept.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path.name) from None
    if not kept.rates:
        raise SpecError(
            f"{path.name}: nothing was measured on that machine", fix="there, `hydrometer plan RECIPE --measure`"
        )
    return kept.device(path.stem[:64])


def _inside(old: object, new: object) -> object:
    """Merge mappings; anything else is replaced."""
    return {**old, **new} if is_object(old) and is_object(new) else new


_ORDER = (
    "start",
    "examine",
    "open",
    "draw",
    "keep_law",
    "fit",
    "score",
    "judge",
    "show",
    "released",
    "map",
    "embed",
    "picture",
)


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What `plan` returns.

    Attributes
    ----------
    name : of the experiment.
    device : priced for; on this machine, that of the first chain.
    stages : one entry a chain, kind and model.
    lengths : expected lengths of answers, by chain.
    notes : what the figures assume, one line each.
    """

    name: str
    device: Device
    stages: tuple[StageCost, ...]
    lengths: Mapping[str, Lengths] = field(default_factory=dict[str, Lengths])
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> dict[str, float | int | None]:
        """Sums over all stages; memory is the largest. `usd` is None where the device has no price.

        `hours_least` and `hours_worst` bound `hours` and `hours_most` by the error factor of coarse estimates.
        """
        sums: dict[str, float | int | None] = {
            k: sum(getattr(s, k) for s in self.stages) for k in ("stages", "done", "tokens", "flops", "disk")
        }
        sums["memory"] = max((s.memory for s in self.stages), default=0.0)
        hours = sum(s.hours or 0.0 for s in self.stages)
        most = sum(s.hours_most or 0.0 for s in self.stages)
        count, price = self.device.count, self.device.usd_per_hour
        coarse = [s for s in self.stages if s.source == "coarse"]
        least = hours - sum(s.hours or 0.0 for s in coarse) * (1 - 1 / COARSE)
        worst = most + sum(s.hours_most or 0.0 for s in coarse) * (COARSE - 1)
        sums |= {"device_hours": hours, "hours": hours / count, "hours_most": most / count}
        sums |= {"hours_least": least / count, "hours_worst": worst / count}
        return sums | {"usd": None if price is None else hours * price}

    def to_json(self) -> dict[str, object]:
        """Return the plan as ``hydrometer plan --json`` prints it (docs, Scaling)."""
        return {
            "name": self.name,
            "device": self.device.model_dump(mode="json", exclude={"measured"}),
            "lengths": {k: asdict(v) for k, v in self.lengths.items()},
            "stages": [asdict(s) for s in self.stages],
            "total": self.total,
            "notes": list(self.notes),
        }


def plan(
    source: str | Path | RunSpec,
    *,
    overrides: Sequence[str] = (),
    device: str | Device = "this",
    out: str | Path | None = None,
    cache: str | Path | None = None,
    mean_tokens: float | None = None,
    measure: bool = False,
    say: Callable[[str], None] | None = None,
) -> CostPlan:
    """Estimate what a run will take: tokens, operations, bytes and hours. Nothing is computed or written.

    Seconds on this machine are those that earlier runs or a measurement left, else coarse ones: operations over a rate
    of matrix products that is measured in a second or two. Every stage says which.

    Parameters
    ----------
    source : a recipe's name, a YAML file, or a specification.
    overrides : ``a.b.c=VALUE``, as ``--set``.
    device : "this" machine; "a100", "h100" or "h200" take data sheets, assumed utilisations and an assumed price; a
        file or a `Device` brings its own.
    out, cache : as for `run`; existing artifacts count as done.
    mean_tokens : expected tokens of an answer; None takes what a run or a measurement found of this truth, else
        max_new_tokens.
    measure : time this machine at the chain's shapes now, which takes minutes, ask the truth for a few answers, and
        keep both for plans to come. Of chains whose draws are not kept a seed is run.
    say : called with a line on each step that takes a while.

    Raises
    ------
    InputError : invalid arguments or specification. The truth's weights are not needed where the specification
        describes its architecture (`truth.architecture`).

    Examples
    --------
    >>> import hydrometer as hm
    >>> found = hm.plan("markov", overrides=["seeds=2"])
    >>> found.total["done"], found.total["hours"] < 1
    (0, True)
    """
    spec = source if isinstance(source, RunSpec) else load_spec(source, overrides)
    if mean_tokens is not None and not 0 < mean_tokens < float("inf"):
        raise InputError("mean_tokens must be a number above 0", got=mean_tokens)
    given = load_device(device) if isinstance(device, str) else device
    if measure and given is not None:
        raise InputError("only this machine can be measured", got=given.name, fix="leave out the device, or measure")
    families = {name: _family(chain) for name, chain in spec.chains.items()}
    check_inputs(c for n, c in spec.chains.items() if families[n] is family_of(c))
    folder = RunFolder(out if out is not None else Path("runs") / spec.name)
    adopted: list[Adopted] = []
    if all(families[n] is family_of(c) for n, c in spec.chains.items()) and folder.root.is_dir():
        spec, adopted = joined(folder, spec), read_adopted(folder)
    by_chain = {id(chain): families[name] for name, chain in spec.chains.items()}
    nodes = plan_run(spec, adopted, family=lambda chain: by_chain[id(chain)])
    left = missing_stages(nodes, place_of(cache) if cache is not None else folder.artifacts)
    pricing = Pricing(spec, nodes, left, given, mean_tokens, measure, say or (lambda _: None))
    rows = [row for name in spec.chains for row in pricing.chain(name)]
    rows.sort(key=lambda r: (list(spec.chains).index(r.chain), _ORDER.index(r.stage) if r.stage in _ORDER else 99))
    return CostPlan(spec.name, pricing.device(), tuple(rows), pricing.lengths, tuple(pricing.notes))


def _family(chain: ChainSpec) -> Family:
    family = family_of(chain)
    return (family.unopened(chain) or family) if isinstance(family, HasCostModel) else family
