"""Models of a run by name: `distilled-t0.7-seed0` in place of an artifact's key.

A cell's record has its model's name (`stages.cells.Cell.model_name`). In a folder `models/NAME` holds the model's card,
and links to the files of a language model's artifact: everything opens it that opens a model's folder. The card is not
in the artifact, which other runs may share and judge otherwise. An object store has no links, and the list alone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrometer.core.errors import FolderError
from hydrometer.core.io.files import replacing
from hydrometer.core.io.yaml_io import is_object
from hydrometer.run.results.model_card import CARD
from hydrometer.store.artifacts import META, ArtifactStore
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
    """Return the model's folder of links where they lead to the model, else the model's own folder."""
    if isinstance(home, Url) or isinstance(model, Url):
        return model
    folder = home / FOLDER / name
    if folder.is_symlink():  # as runs of earlier releases have it
        return folder if folder.resolve() == model.resolve() else model
    found = _links(folder)
    return folder if found and all(p.resolve() == model.resolve() / p.name for p in found) else model


def link_models(
    folder: RunFolder,
    records: Iterable[Mapping[str, Any]],
    store: ArtifactStore,
    card: Callable[[Mapping[str, Any]], str],
) -> None:
    """Link ``models/NAME/FILE`` to every judged model's files, with its card; what else is there is left alone.

    Only where run and artifacts are folders; on a file system without links `named_models` alone says where models are.
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
                if _link(home / record["name"], store.path("fit", key)):
                    folder.keep(f"{FOLDER}/{record['name']}", CARD, card(record).encode())


def _links(folder: Path) -> list[Path]:
    """Return the links of a folder that holds links to an artifact's files, and a card, alone; else nothing."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    held = [p for p in folder.iterdir() if p.name != CARD]
    ours = all(p.is_symlink() and _ARTIFACT.fullmatch(p.readlink().parent.name) for p in held)
    return held if ours else []


def _link(folder: Path, model: Path) -> bool:
    """Make a folder of links to a model's files, in the place of one to another model; whether it is there then."""
    files = [p for p in model.iterdir() if p.name != META]
    wanted = {folder / p.name: Path(os.path.relpath(p, folder)) for p in files}
    found = _links(folder)
    if found and {p: p.readlink() for p in found} == wanted:
        return True
    if folder.is_symlink() and _ARTIFACT.fullmatch(folder.readlink().name):  # of an earlier release
        folder.unlink()
    elif found:
        shutil.rmtree(folder)  # removes links, not what they lead to
    if folder.exists() or folder.is_symlink():
        return False
    with replacing(folder) as made:
        made.mkdir()
        try:
            for link, target in wanted.items():
                (made / link.name).symlink_to(target)
        except OSError:
            shutil.rmtree(made)
            raise
    return True
