"""Prompts belong to a run: rendered once, kept in its folder, and asked again as they are kept.

A chat template may write the date, and a tokenizer may come with one that does. Without this a run could be gone on
with, extended or exported on the day of its beginning alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar, cast

from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.io.yaml_io import read_json
from hydrometer.models.capabilities import RendersPrompts
from hydrometer.models.families import RunSpec, family_of
from hydrometer.run.graph.plan import Plan
from hydrometer.store.records import MAX_RESULTS_BYTES, RunFolder

__all__ = ["PART", "keep_prompts", "kept_prompts", "with_prompts"]

T = TypeVar("T")

PART = "prompts"
"""Where a folder keeps them."""


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
