"""Truths that a specification describes, kept as numbers in the format of a fit: whoever reads a cell can compute."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hydrometer.core.io.os_errors import refused
from hydrometer.models.capabilities import KeepsTruth
from hydrometer.run.graph.plan import ChainPlan
from hydrometer.store.records import RunFolder

__all__ = ["PART", "keep_truth"]

PART = "truths"
"""Where a folder keeps them."""


def keep_truth(folder: RunFolder, chain: ChainPlan) -> list[str]:
    """Write a chain's truth, as ``truths/<key>.<file of a fit>``, and return its files, relative to the folder.

    A file that is there already and says the same is left as it is; one that was altered is written again.

    Empty for maps, whose points have truths of their own, and for families whose truth is no law of their own kind, or
    a model that the specification names.
    """
    family = chain.context.family
    if chain.maps or not isinstance(family, KeepsTruth):
        return []
    try:
        with tempfile.TemporaryDirectory(prefix="hydrometer-truth-") as made:
            family.save_truth(chain.context.spec, Path(made))
            paths = [p for p in Path(made).rglob("*") if p.is_file()]
            files = {".".join((chain.truth.key, *p.relative_to(made).parts)): p for p in paths}
            for name, path in files.items():
                folder.keep(PART, name, path.read_bytes())
    except OSError as e:
        raise refused(e, folder.root / PART) from None
    return [f"{PART}/{name}" for name in sorted(files)]
