"""Extending an experiment: what a folder's specifications may differ in, and their union."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydrometer.core.distillation import DENSE, MLE, TEACHER_ROWS, Objective, Prefixes, TeacherLaw
from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import is_object, user_path
from hydrometer.core.spec import ChainSpec, Selectivity
from hydrometer.models.families import RunSpec
from hydrometer.models.finite_selectivity import canonical

__all__ = ["beyond", "merge"]

# Fields of a chain, beside its selectivities, that tell how students are distilled.
METHODS: dict[str, Callable[[object], Objective | Prefixes | TeacherLaw]] = {
    "loss": Objective.from_json,
    "prefixes": Prefixes.from_json,
    "teacher_law": TeacherLaw.from_json,
}
_MAY_CHANGE = ("seeds", "selectivity", *METHODS, "decoding", "baselines", "picture", "judge_training_prompts")


def strength(s: Selectivity) -> tuple[float, ...]:
    """Sort key from the mildest selectivity to the strongest, by field."""
    return (
        s.weight_power or s.sequence_power or 1.0,
        -(s.temperature if s.temperature is not None else 1.0),
        -(s.top_p if s.top_p is not None else 1.0),
        -float(s.top_k) if s.top_k is not None else float("-inf"),
        s.min_p or 0.0,
        0.0 if s.tilt is None else 1 / s.tilt.strength,
        float(s.best_of or 1),
        float(s.accept is not None),
    )


def merge(specs: list[RunSpec]) -> RunSpec:
    """Join specifications of one experiment: the union of seeds, selectivities, ways to distil and decodings.

    Raises
    ------
    SpecError : they differ in anything else.
    """
    first = specs[0]
    for other in specs[1:]:
        found = list(_differences(experiment(first), experiment(other)))
        if found:
            raise SpecError(
                f"the folder holds another experiment: {', '.join(found)} {'differ' if found[1:] else 'differs'}",
                fix=f"only {', '.join(_MAY_CHANGE)} may change; choose another --out",
            )

    def union(name: str) -> ChainSpec:
        chains = [s.chains[name] for s in specs]
        # A neutral setting has many spellings that mean one law; the first spelling stands for it.
        selectivity = _unique([s for c in chains for s in c.selectivity])
        controls = _unique([s for c in chains for s in c.controls])
        update: dict[str, object] = {"selectivity": selectivity, "decoding": controls}
        for method, parse in METHODS.items():
            update |= _union_of(method, parse, chains)
        picture = next((p for c in chains if (p := getattr(c, "picture", None)) is not None), None)
        if picture is not None:  # it changes no figure, so that a finished run can still be given one
            update["picture"] = picture
        if any(getattr(c, "judge_training_prompts", False) for c in chains):  # nor does this
            update["judge_training_prompts"] = True
        if baselines := _baselines(chains):
            update["baselines"] = baselines
        return chains[0].model_copy(update=update)

    seeds = tuple(sorted({seed for s in specs for seed in s.seeds}))
    return first.model_copy(update={"seeds": seeds, "chains": {n: union(n) for n in first.chains}})


def beyond(whole: RunSpec, asked: RunSpec) -> list[str]:
    """Return in words what a joined specification asks for besides one of those that it was joined from."""
    more = [f"seed {s}" for s in whole.seeds if s not in asked.seeds]
    for name, chain in whole.chains.items():
        known = _extended(asked.chains[name])
        more += [words for what, words in _extended(chain).items() if what not in known]
    return more


def _extended(chain: ChainSpec) -> dict[tuple[str, object], str]:
    """What others of the experiment may have more of, and its words."""
    out: dict[tuple[str, object], str] = {("distilled", canonical(s)): s.label for s in chain.selectivity}
    settings = [canonical(s) for s in chain.selectivity]
    out |= {("decoded", k): f"decoding {s.label}" for s in chain.controls if (k := canonical(s)) not in settings}
    for method, parse in METHODS.items():
        out |= {(method, parse(x)): f"{method} {parse(x).slug}" for x in getattr(chain, method, ())}
    if getattr(chain, "judge_training_prompts", False):
        out["judged", "training"] = "judge_training_prompts"
    return out | {("baseline", b.name): f"baseline {b.name}" for b in getattr(chain, "baselines", ())}


def _baselines(chains: Sequence[ChainSpec]) -> tuple[Any, ...]:
    """Join the chains' baselines. Raises SpecError for two of one name."""
    found: dict[str, Any] = {}
    for b in (b for c in chains for b in getattr(c, "baselines", ())):
        known = found.setdefault(b.name, b)
        if known.model_dump(mode="json", context="key") != b.model_dump(mode="json", context="key"):
            raise SpecError("the folder holds another baseline of that name", got=b.name, fix="give it another name")
    return tuple(found.values())


def _union_of(
    method: str, parse: Callable[[object], Objective | Prefixes | TeacherLaw], chains: Sequence[ChainSpec]
) -> dict[str, object]:
    """Join the chains' losses, sources of rows, or laws: usual ones first; nothing where chains have no such field."""
    given = [item for c in chains for item in getattr(c, method, ())]
    found = {parse(item): item for item in reversed(given)}
    order = sorted(found, key=lambda x: (x not in (MLE, TEACHER_ROWS, DENSE), x.slug))
    return {method: tuple(found[x] for x in order)} if given else {}


def _unique(items: list[Selectivity]) -> tuple[Selectivity, ...]:
    chosen: dict[Selectivity | None, Selectivity] = {}
    for s in sorted(items, key=strength):
        chosen.setdefault(canonical(s), s)
    return tuple(chosen.values())


def experiment(spec: RunSpec) -> dict[str, object]:
    """Return the part of a specification that an extension may not change."""
    body = spec.model_dump(mode="json", exclude={"seeds", "description", "known"}, context="key")
    for chain in body["chains"].values():
        chain.pop("selectivity")
        chain.pop("decoding", None)
        chain.pop("picture", None)
        chain.pop("judge_training_prompts", None)
        chain.pop("baselines", None)
        for method in METHODS:
            chain.pop(method, None)
    for name, chain in spec.chains.items():
        if (drawing := getattr(chain, "drawing", None)) is not None:  # where an engine is and how fast may change
            engine, settings = drawing
            body["chains"][name]["engine"] = {engine.name: settings.identity(), "for": settings.roles}
    return body


def _differences(a: object, b: object, path: str = "") -> Iterator[str]:
    """Yield the paths of the differences. Sources that are one folder or file, however written, are equal."""
    if is_object(a) and is_object(b):
        for key in sorted({*a, *b}, key=str):
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b and not (path.endswith(".source") and isinstance(a, str) and isinstance(b, str) and _one_place(a, b)):
        yield path or "everything"


def _one_place(a: str, b: str) -> bool:
    places = [os.path.realpath(user_path(p)) for p in (a, b)]
    return places[0] == places[1] and os.path.exists(places[0])
