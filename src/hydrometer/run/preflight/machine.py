"""Whether this machine has the disk and memory for a plan. True only here and now, so never stored."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from hydrometer.core.errors import one_line
from hydrometer.core.findings import Finding, fatal, note, warning
from hydrometer.models.base import Footprint
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.nodes import Node
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import Url, copies_home

__all__ = ["examine_machine", "memory", "missing_stages", "processor"]

_ARTIFACT = 8192  # bytes: its folder and meta.json, a block of the file system each
_CROWDED = 0.8
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def examine_machine(plan: Plan, artifacts: Path | Url) -> list[Finding]:
    """Compare the remaining stages' needs with free disk and memory.

    Artifacts at a URL take local disk for the largest one at a time; free space at the URL is not checked.

    Parameters
    ----------
    plan : of the whole run.
    artifacts : where its artifacts are or will be; need not exist.
    """
    missing = missing_stages(plan, artifacts)
    found = [_resume(len(plan.nodes), len(missing))] if len(missing) < len(plan.nodes) else []
    known: dict[tuple[object, ...], Footprint] = {}
    takes = [(n, _footprint(n, known)) for n in missing]
    home = artifacts
    if not isinstance(home, Path):
        home, takes_here = copies_home(home), sorted(takes, key=lambda t: t[1].disk_least)[-1:]
    else:
        takes_here = takes
    found += _disk(takes_here, shutil.disk_usage(_existing(home)).free)
    total, available = memory()
    return found + _memory(takes, total, available)


def processor() -> str:
    """Return the processor's name as the system reports it, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((x.partition(":")[2].strip() for x in lines if x.startswith(("model name", "Model"))), "")
    return one_line(named or platform.processor() or platform.machine() or "unknown processor", 80)


def missing_stages(plan: Plan, artifacts: Path | Url) -> list[Node]:
    """Return the stages without artifacts; nothing is created, and no checksum is verified."""
    if isinstance(artifacts, Path):  # opening a local store creates its folder
        try:
            with os.scandir(artifacts) as entries:  # one listing, not a look-up a stage
                there = {e.name for e in entries if e.is_dir()}
        except (FileNotFoundError, NotADirectoryError):
            there = set[str]()
        return [n for n in plan.nodes.values() if f"{n.stage}-{n.key}" not in there]
    absent = open_store(artifacts).absent([(n.stage, k) for k, n in plan.nodes.items()])
    return [plan.nodes[k] for _, k in absent]


def _footprint(node: Node, known: dict[tuple[object, ...], Footprint]) -> Footprint:
    slot = (node.context.name, node.stage, *node.about())
    if slot not in known:
        known[slot] = node.footprint()
    return known[slot]


def _resume(stages: int, missing: int) -> Finding:
    return note(
        "resumes",
        f"{stages - missing} of {stages} stages are there already",
        "the run goes on from them" if missing else "the run is finished and would compute nothing",
        "nothing; choose another --out to start anew",
    )


def _disk(takes: list[tuple[Node, Footprint]], free: int) -> list[Finding]:
    least = sum(_ARTIFACT + f.disk_least for _, f in takes)
    most = sum(_ARTIFACT + f.disk_most for _, f in takes) + max((f.scratch_most for _, f in takes), default=0)
    why = "a run that cannot write a stage ends there; what is finished stays"
    fix = "free some space, choose another --out or --cache, or lower seeds, selectivities or data"
    if least > free:
        return [fatal("disk", f"the artifacts need at least {size(least)}, and {size(free)} are free", why, fix)]
    if most > _CROWDED * free:
        return [warning("disk", f"the artifacts may need {size(most)}, and {size(free)} are free", why, fix)]
    return []


def _memory(takes: list[tuple[Node, Footprint]], total: int | None, available: int | None) -> list[Finding]:
    needs, node = max(((f.memory_least, n) for n, f in takes), key=lambda pair: pair[0], default=(0, None))
    if node is None:
        return []
    who = f"{node.context.name}: the stage that needs most memory, a {node.stage}, takes at least {size(needs)}"
    fix = "take a smaller model or batch, fewer block_rows, or a machine with more memory"
    why = "a process that runs out of memory is killed, and without swap so is whatever else the kernel picks"
    if total is not None and needs > total:
        return [fatal("memory", f"{who}, and the machine has {size(total)}", why, fix)]
    if available is not None and needs > _CROWDED * available:
        return [warning("memory", f"{who}, and {size(available)} are available now", why, fix)]
    return []


def memory() -> tuple[int | None, int | None]:
    """Return total and available memory, bytes; None if the system does not report it.

    A container's limit counts as the machine's memory.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        total = None
    for path in _CGROUP:
        limit = _number(path)
        if limit is not None and (total is None or limit < total):
            total = limit
    available = _meminfo(Path("/proc/meminfo")).get("MemAvailable")
    if available is not None and total is not None:
        available = min(available, total)
    return total, available


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _meminfo(path: Path) -> Mapping[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {w[0].rstrip(":"): 1024 * int(w[1]) for w in lines if len(w) >= 2 and w[1].isdigit()}


def _existing(path: Path) -> Path:
    """Return the nearest existing parent, where the run's folder will be created."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def size(n_bytes: int) -> str:
    """Format a number of bytes for people.

    Examples
    --------
    >>> size(1_340_000_000)
    '1.3 GB'
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"
