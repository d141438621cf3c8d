"""Models of a run by name: `distilled-t0.7-seed0` in place of an artifact's key.

A cell's record has its model's name (`stages.cells.Cell.model_name`). In a folder `models/NAME` is a link to a language
model's artifact, which everything opens that opens a model's folder; an object store has no links, and the list alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrometer.core.errors import FolderError
from hydrometer.core.io.yaml_io import is_object
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.path_safety import refuse_links
from hydrometer.store.records import RunFolder, load_results
from hydrometer.store.remote import RemoteArtifacts, open_store
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["FOLDER", "NamedModel", "link_models", "named_models"]

FOLDER = "models"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+()-]{0,239}")
_ARTIFACT = re.compile(r"fit-[0-9a-f]{8,128}")


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A fitted or adopted model of a run.

    Attributes
    ----------
    name : as in ``models/NAME``.
    cell : id of the cell that it is judged in, as it is.
    place : its folder or URL.
    """

    name: str
    cell: str
    place: Path | Url


def named_models(folder: str | Path | Url, *, cache: str | Path | Url | None = None) -> list[NamedModel]:
    """Return the models of a run that are judged, in the order of its cells.

    Parameters
    ----------
    folder : of the run, or its URL.
    cache : where its artifacts are, if not inside.

    Raises
    ------
    FolderError : no run there, its models are elsewhere, or its results are of a release that gave no names.
    """
    home = place_of(folder)
    made = [c for c in load_results(home)["cells"] if c.get("status") == "ok"]
    cells = [c for c in made if is_object(a := c.get("artifacts")) and a.get("fit")]
    named = [c for c in cells if c.get("name")]
    if cells and not named:
        fix = "`hydrometer run` it again: nothing is made anew"
        raise FolderError("the results are of a release that gave models no names", got=str(folder), fix=fix)
    if bad := next(
        (c["name"] for c in named if not isinstance(c["name"], str) or not _NAME.fullmatch(c["name"])), None
    ):
        raise FolderError(
            "the results name a model as no run does", got=bad, fix="restore results.json, or run it again"
        )
    place = home / "artifacts" if cache is None else place_of(cache)
    keys = [("fit", str(c["artifacts"]["fit"]).removeprefix("fit-")) for c in named]
    if keys and (gone := open_store(place).absent(list(dict.fromkeys(keys)))):
        what = f"{len(gone)} of {len(keys)} models are not there"
        raise FolderError(what, got=str(place), fix="give --cache, if the run had one, or run it again")
    return [
        NamedModel(c["name"], str(c["id"]), _linked(home, c["name"], place / f"fit-{key}"))
        for c, (_, key) in zip(named, keys, strict=True)
    ]


def _linked(home: Path | Url, name: str, model: Path | Url) -> Path | Url:
    """Return the model's link where it leads to the model, else the model's own folder."""
    if isinstance(home, Url) or isinstance(model, Url):
        return model
    link = home / FOLDER / name
    return link if link.is_symlink() and link.resolve() == model.resolve() else model


def link_models(folder: RunFolder, records: Iterable[Mapping[str, Any]], store: ArtifactStore) -> None:
    """Link ``models/NAME`` to every judged model's artifact, where both are folders; what else is there is left alone.

    A file system without links has none: `named_models` says where models are.
    """
    if not isinstance(folder.place, Path) or isinstance(store, RemoteArtifacts):
        return
    refuse_links(folder.root, (FOLDER,))
    home = folder.root / FOLDER
    for record in records:
        if record.get("name") and record["status"] == "ok":
            key = str(record["artifacts"]["fit"]).removeprefix("fit-")
            with suppress(OSError):
                home.mkdir(exist_ok=True)
                _link(home / record["name"], Path(os.path.relpath(store.path("fit", key), home)))


def _link(link: Path, target: Path) -> None:
    if link.is_symlink():
        if link.readlink() == target or not _ARTIFACT.fullmatch(link.readlink().name):
            return
        link.unlink()
    if not link.exists():
        link.symlink_to(target, target_is_directory=True)
