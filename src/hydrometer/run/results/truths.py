"""Truths that a specification describes, kept as numbers in the format of a fit: whoever reads a cell can compute."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hydrometer.core.io.os_errors import refused
from hydrometer.models.capabilities import KeepsTruth
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.store.records import RunFolder

__all__ = ["PART", "keep_truths", "truth_files"]

PART = "truths"
"""Where a folder keeps them."""


def keep_truths(folder: RunFolder, plan: Plan) -> None:
    """Write each chain's truth, as ``truths/<key>.<file of a fit>``; a file that says the same is left as it is.

    Nothing for maps, whose points have truths of their own, and for families whose truth is no law of their own kind,
    or a model that the specification names.
    """
    try:
        for chain in plan.chains.values():
            family = chain.context.family
            if chain.maps or not isinstance(family, KeepsTruth):
                continue
            with tempfile.TemporaryDirectory(prefix="hydrometer-truth-") as made:
                family.save_truth(chain.context.spec, Path(made))
                for path in (p for p in Path(made).rglob("*") if p.is_file()):
                    name = ".".join((chain.truth.key, *path.relative_to(made).parts))
                    folder.keep(PART, name, path.read_bytes())
    except OSError as e:
        raise refused(e, folder.root / PART) from None


def truth_files(folder: RunFolder, chain: ChainPlan) -> list[str]:
    """Return the files of a chain's truth, relative to the folder; none in a folder that an earlier release wrote."""
    return sorted(f"{PART}/{p.name}" for p in (folder.root / PART).glob(f"{chain.truth.key}.*"))
