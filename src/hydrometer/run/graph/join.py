"""Joining a specification with what its folder holds already, or refusing it as another experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.io.yaml_io import read_json
from hydrometer.models.capabilities import RendersPrompts
from hydrometer.models.families import RunSpec, family_of, parse_run_spec
from hydrometer.run.graph.plan import Plan, truth_keys
from hydrometer.run.graph.spec_merge import merge
from hydrometer.store.records import MAX_RESULTS_BYTES, RunFolder

__all__ = [
    "PART",
    "entry_of",
    "joined",
    "keep_prompts",
    "kept_prompts",
    "merge_with",
    "refuse_other_name",
    "with_prompts",
]

T = TypeVar("T")

PART = "prompts"
"""Where a folder keeps prompts as they were rendered: a chat template may write the date."""


def with_prompts(spec: RunSpec, folder: RunFolder) -> RunSpec:
    """Return the specification with its prompts rendered: as its folder keeps them, else now.

    A prompt is rendered once, for every plan, stage and process after this sees the same. What cannot be rendered is
    left as it is, for the family's `check` to say.

    Raises
    ------
    FolderError : what the folder keeps cannot be read.
    """
    accepted = folder.accepted()
    truths: object = accepted[0].get("truths") if accepted else None
    known = cast("Mapping[str, object]", truths if isinstance(truths, dict) else {})
    chains = dict(spec.chains)
    for name, chain in spec.chains.items():
        family = family_of(chain)
        if not isinstance(family, RendersPrompts):
            continue
        chain = kept_prompts(folder, str(known.get(name)), partial(family.with_rendered, chain)) or chain
        try:
            chains[name] = family.with_rendered(chain, family.rendered(chain))
        except InputError:
            continue
    return spec.model_copy(update={"chains": chains})


def keep_prompts(folder: RunFolder, plan: Plan) -> None:
    """Keep the rendered prompts of a plan's chains, each under its truth's key."""
    for chain in plan.chains.values():
        family = chain.context.family
        if isinstance(family, RendersPrompts):
            folder.put(PART, chain.truth.key, family.rendered(chain.context.spec))


def kept_prompts(folder: RunFolder, name: str, read: Callable[[Mapping[str, object]], T]) -> T | None:
    """Return what `read` makes of prompts that a folder keeps; None where it keeps none of that name.

    So it is in folders from before prompts were kept. Raises FolderError where they cannot be read.
    """
    path = folder.root / PART / f"{name}.json"
    if not path.is_file():
        return None
    try:
        found: dict[str, object] = read_json(path, MAX_RESULTS_BYTES)
        if not isinstance(found, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError("it holds no object")
        return read(found)
    except (OSError, ValueError, InputError) as e:
        why = e.said if isinstance(e, InputError) else e
        raise FolderError(f"the run's prompts cannot be read: {why}", got=path.name, fix="restore the file") from None


def joined(folder: RunFolder, spec: RunSpec) -> RunSpec:
    """Join a specification with what its folder holds. Raises FolderError or SpecError for another experiment."""
    spec = with_prompts(spec, folder)
    return merge_with(folder, spec, entry_of(spec))


def entry_of(spec: RunSpec) -> dict[str, object]:
    """What specs/<hash>.yaml keeps: the specification, and the truths it meant by content. Raises InputError."""
    return {"spec": spec.model_dump(mode="json", exclude_none=True), "truths": truth_keys(spec)}


def _name_in(accepted: Mapping[str, Any]) -> object:
    spec = accepted.get("spec")
    return cast("Mapping[str, object]", spec).get("name") if isinstance(spec, dict) else None


def refuse_other_name(folder: RunFolder, spec: RunSpec) -> None:
    """Refuse a folder of another name, which is known before any key is. Raises FolderError."""
    for name in map(_name_in, folder.accepted()):
        if name != spec.name:
            _refuse_other(name)


def _refuse_other(name: object) -> NoReturn:
    got = "something else" if name is None else name
    fix = "same name and truth are needed to go on; choose another --out"
    raise FolderError("the folder holds another experiment", got=got, fix=fix)


def merge_with(folder: RunFolder, spec: RunSpec, entry: dict[str, object]) -> RunSpec:
    """Join with what the folder holds already. Raises FolderError: it holds another experiment."""
    known = folder.accepted()
    for other in known:
        if (name := _name_in(other)) != spec.name or other.get("truths") != entry["truths"]:
            _refuse_other(name)
    # Relative file names are read from the new specification; the truths' keys say that they mean the same content.
    return merge([spec, *(parse_run_spec(k["spec"], "specs/") for k in known)])
