"""Joining a specification with what its folder holds already, or refusing it as another experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, cast

from hydrometer.core.errors import FolderError
from hydrometer.models.families import RunSpec, parse_run_spec
from hydrometer.run.graph.plan import truth_keys
from hydrometer.run.graph.rendered import with_prompts
from hydrometer.run.graph.spec_merge import merge
from hydrometer.store.records import RunFolder

__all__ = ["entry_of", "joined", "merge_with", "refuse_other_name"]


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
