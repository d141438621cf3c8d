"""Where results come from: versions, the commit of the installed source where it is known, and the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from hydrometer._version import __version__
from hydrometer.core.errors import one_line
from hydrometer.run.preflight.machine import memory, processor

__all__ = ["commit", "machine", "provenance", "versions"]

_SOURCE = Path(__file__).parents[2]
_SECONDS = 10
_VERSIONED = ("numpy", "scipy", "numba", "scikit-learn", "torch", "transformers", "tokenizers")


def versions() -> dict[str, str]:
    """Return what results come from: versions of package, Python and libraries, the commit if known, the machine."""
    out = {"hydrometer": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out | provenance()


def provenance() -> dict[str, str]:
    """Return `commit`, where it is known, and `machine`, one line each."""
    found = commit()
    return ({} if found is None else {"commit": found}) | {"machine": machine()}


@cache
def commit() -> str | None:
    """Return the commit of the source that runs: of a checkout, ``-dirty`` where files differ, or of the installation.

    None where neither is known: a wheel does not say it.
    """
    ours = _git("ls-files", "--error-unmatch", "_version.py") is not None  # not a repository around an installation
    described = _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") if ours else None
    return described or _installed()


def _git(*arguments: str) -> str | None:
    apart = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(_SOURCE), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
            env=apart,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return one_line(done.stdout, 80)


def _installed() -> str | None:
    try:
        told: object = json.loads(importlib.metadata.distribution("hydrometer").read_text("direct_url.json") or "{}")
        found: object = told["vcs_info"]["commit_id"]  # pyright: ignore[reportIndexIssue, reportUnknownVariableType]
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None
    return one_line(found, 80) if isinstance(found, str) else None


@cache
def machine() -> str:
    """Return processor, cores that this process may use, and memory: ``AMD EPYC 7763, 2 cores, 7.8 GiB memory``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [processor(), f"{cores} core{'s' if cores > 1 else ''}"]
    total, _ = memory()
    return ", ".join(parts if total is None else [*parts, f"{total / 2**30:.1f} GiB memory"])
