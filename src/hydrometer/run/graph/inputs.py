"""Nothing dear before something cheap: what can be refused before a model is opened, and is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hydrometer.core.spec import ChainSpec
from hydrometer.models.capabilities import ChecksInputs
from hydrometer.models.families import family_of
from hydrometer.store.path_safety import refuse_unwritable
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["check_inputs", "check_places"]


def check_inputs(chains: Iterable[ChainSpec]) -> None:
    """Look at the files and sources that chains name; nothing of them is opened. Raises InputError."""
    for chain in chains:
        family = family_of(chain)
        if isinstance(family, ChecksInputs):
            family.check_inputs(chain)


def check_places(*places: str | Path | Url | None) -> None:
    """Refuse folders of this machine that cannot be written. Raises FolderError."""
    for given in places:
        place = None if given is None else place_of(given)
        if isinstance(place, Path):
            refuse_unwritable(place)
