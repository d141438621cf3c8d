"""The harness of the fault campaign: runs in forked children, faults at given moments, and what must hold afterwards.

A fork server imports the package once; every run is a fork of it that calls the command line, so that fifty runs cost
little more than their work. A fault is set up in the child, real in itself (a full file system, a limit of the kernel,
a signal) and placed at a moment by wrapping one call of the program.

For another executor: give `start` a `setup` that kills the worker (`at_stage(n, kill_worker)`), and check with `same`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from chains import lm_chain, mixture_spec, without_timings

Setup = Callable[[], None]
Action = Callable[[], None]

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = [
    "hydrometer", "hydrometer.cli", "hydrometer.run.execution.progress", "hydrometer.models.causal_lm.training.trainer",
    "hydrometer.models.causal_lm.inference.embedder", "faulty",
]  # fmt: skip
LIMIT = 240.0  # seconds that any one run may take on a crowded machine


def everything(source: Path | None) -> dict[str, Any]:
    """Every kind of stage, seconds of work; without a source all but those of language models, less than a second."""
    spec = mixture_spec(seeds=1, as_released=True)
    spec["name"] = "everything"
    spec["chains"]["k"] = {
        "family": "markov", "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 6}, "teacher": {"order": 1},
        "student": {"order": 1}, "data": {"train": 50, "distill": 50, "evaluate": 50},
        "selectivity": [{"temperature": 1}, {"temperature": 0.5}],
    }  # fmt: skip
    spec["chains"]["map"] = mixture_spec(grid={"student": [1], "seeds": 2})["chains"]["m"]
    if source is not None:
        data = {"train": 32, "validate": 16, "distill": 32, "evaluate": 32}
        spec["chains"]["lm"] = lm_chain(source, data=data, picture="pca")
    return spec


# runs ----------------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a run ended: exit code (minus the signal where one killed it) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error that begins with the program's name."""
        lines = [x for x in self.err.splitlines() if x.startswith("hydrometer: ")]
        assert len(lines) == 1, self.err
        return lines[0]

    @property
    def computed(self) -> Counter[str]:
        return Counter(json.loads(self.out)["computed"])


@dataclass
class Started:
    """A run under way, and in how many moments something is to happen to it."""

    process: BaseProcess
    logs: Path
    moments: int

    def end(self) -> Ended:
        self.process.join(LIMIT)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(30)
            raise AssertionError(f"the run did not end: {(self.logs / 'err').read_text()}")
        out, err = ((self.logs / name).read_text(errors="replace") for name in ("out", "err"))
        came = (self.logs / "moments").stat().st_size
        shutil.rmtree(self.logs)
        assert came >= self.moments, f"{came} of {self.moments} moments came, so nothing was proved: {err}"
        return Ended(self.process.exitcode or 0, out, err)

    def listens(self) -> bool:
        """Whether it has handlers for signals already, as the kernel sees it."""
        return self.process.is_alive() and catches(self.process.pid or 0, signal.SIGTERM)


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(mask, 16) >> (signum - 1) & 1)


def start(argv: Sequence[str], logs: Path, setup: Sequence[Setup] = (), *, page: bool = False) -> Started:
    """Start ``hydrometer *argv`` in a child; without `page` no report is built, which would be most of the time."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    logs.mkdir(parents=True)
    for name in ("out", "err", "moments"):
        (logs / name).touch()
    process = CONTEXT.Process(target=_child, args=(list(argv), logs, list(setup), page))
    process.start()
    moments = sum(isinstance(each, partial) and each.func in (_at_stage, _at_call) for each in setup)
    return Started(process, logs, moments)


def run(spec: Path, out: Path, *more: str, setup: Sequence[Setup] = (), page: bool = False) -> Ended:
    """``hydrometer run SPEC --out OUT --json`` to its end."""
    return begin(spec, out, *more, setup=setup, page=page).end()


def begin(spec: Path, out: Path, *more: str, setup: Sequence[Setup] = (), page: bool = False) -> Started:
    """``hydrometer run SPEC --out OUT --json``, under way."""
    argv = ["run", str(spec), "--out", str(out), "--json", *more]
    return start(argv, spec.parent / f"logs-{time.monotonic_ns()}", setup, page=page)


def _child(argv: list[str], logs: Path, setup: list[Setup], page: bool) -> None:
    from hydrometer import _stopping
    from hydrometer.cli import commands

    for signum in _stopping.CODES:  # as the import of the command line does
        signal.signal(signum, _stopping.at_once)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(logs / name, os.O_WRONLY), descriptor)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["FAULTS_MOMENTS"] = str(logs / "moments")
    gc.freeze()  # a collection need not go through all that was imported
    sys.argv = ["hydrometer", *argv]
    if not page:
        importlib.import_module("hydrometer.report").build_report = lambda folders: folders[0] / "report.html"
    for each in setup:
        each()
    commands.main()


# moments -------------------------------------------------------------------------------------------------------------


def _came() -> None:
    with open(os.environ["FAULTS_MOMENTS"], "a") as f:
        f.write(".")


def at_stage(wanted: int | str, action: Action) -> Setup:
    """When the stage of this number begins, or the first whose label holds this text."""
    return partial(_at_stage, wanted, action)


def _at_stage(wanted: int | str, action: Action) -> None:
    from hydrometer.run.execution.progress import ConsoleMonitor

    inner, seen = ConsoleMonitor.stage, [0]

    def stage(self: ConsoleMonitor, label: str, cost: float) -> None:
        here = seen[0] == wanted if isinstance(wanted, int) else wanted in label and seen[0] >= 0
        seen[0] += 1
        if here:
            seen[0] = -(10**9)
            _came()
            action()
        inner(self, label, cost)

    ConsoleMonitor.stage = stage


def at_call(where: str, action: Action) -> Setup:
    """When ``module:name`` or ``module:Class.name`` is first called."""
    return partial(_at_call, where, action)


def _at_call(where: str, action: Action) -> None:
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for c in classes:
        owner = getattr(owner, c)
    inner, left = getattr(owner, name), [action]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left:
            _came()
            left.pop()()
        return inner(*args, **kwargs)

    setattr(owner, name, call)


# faults --------------------------------------------------------------------------------------------------------------


def signal_self(signum: int) -> None:
    os.kill(os.getpid(), signum)


def limit(which: int, soft: int) -> None:
    """Set a limit of the kernel; the hard one stays."""
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))


def limit_memory(room: int) -> None:
    """Leave this many bytes of address space to what comes."""
    ctypes.CDLL(None).mallopt(-8, 1)  # one arena: each thread's own would claim 64 MiB of addresses, used or not
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE") + room)


def use_up_descriptors(left: int) -> None:
    """Leave this many file descriptors."""
    limit(resource.RLIMIT_NOFILE, max(int(p.name) for p in Path("/proc/self/fd").iterdir()) + left)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def set_clock_back(seconds: float) -> None:
    """Let the wall clock of this process jump; the monotonic clocks do not, as on a real machine."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() - seconds
    time.time_ns = lambda: real_ns() - int(seconds * 1e9)


def fill(folder: Path, leave: int) -> None:
    """Use up the file system that a folder is on, but for this many bytes."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - leave
    with (folder / "filler").open("wb") as f:
        os.posix_fallocate(f.fileno(), 0, max(size, 1))


def become_nobody() -> None:
    """Give up root, for whom permissions do not count."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


# a file system of one's own ------------------------------------------------------------------------------------------

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 32, 4096, 16384, 1 << 18


def _libc(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@dataclass
class SmallDisk:
    """A file system of a few megabytes that only those who enter its namespace see.

    Attributes
    ----------
    mechanism : "tmpfs", or "RLIMIT_FSIZE" where no namespace can be had: then files cannot grow instead.
    inside : its path for who has entered; `outside` is the same folder for everybody else.
    """

    mechanism: str
    inside: Path
    outside: Path
    keeper: int

    def enter(self) -> list[Setup]:
        return [] if self.mechanism != "tmpfs" else [partial(_enter, self.keeper)]

    def fill(self, leave: int) -> Action:
        if self.mechanism != "tmpfs":
            return partial(limit, resource.RLIMIT_FSIZE, leave)
        return partial(fill, self.inside, leave)

    def make_room(self) -> None:
        (self.outside / "filler").unlink(missing_ok=True)


@contextmanager
def small_disk(at: Path, megabytes: int = 8) -> Iterator[SmallDisk]:
    """Mount one, in a process that does nothing but keep its namespace alive."""
    at.mkdir(parents=True)
    CONTEXT.set_forkserver_preload(PRELOAD)
    here, there = CONTEXT.Pipe()
    keeper = CONTEXT.Process(target=_keep, args=(at, megabytes, there))
    keeper.start()
    why = here.recv()
    try:
        if why:
            print(f"no namespace of our own ({why}): RLIMIT_FSIZE stands in")
            yield SmallDisk("RLIMIT_FSIZE", at, at, 0)
        else:
            pid = keeper.pid or 0
            yield SmallDisk("tmpfs", at, Path(f"/proc/{pid}/root{at}"), pid)
    finally:
        keeper.kill()
        keeper.join(30)


def _keep(at: Path, megabytes: int, pipe: Any) -> None:
    try:
        uid, gid = os.geteuid(), os.getegid()
        _libc("unshare", _NEWNS | (_NEWUSER if uid else 0))
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        _libc("mount", b"none", b"/", None, _REC | _PRIVATE, None)
        _libc("mount", b"tmpfs", bytes(at), b"tmpfs", 0, f"size={megabytes}m,mode=777".encode())
    except OSError as e:
        pipe.send(str(e))
    else:
        pipe.send("")
    while True:
        signal.pause()


def _enter(keeper: int) -> None:
    for name, kind in (("user", _NEWUSER), ("mnt", _NEWNS)):
        if os.stat(f"/proc/{keeper}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            handle = os.open(f"/proc/{keeper}/ns/{name}", os.O_RDONLY)
            _libc("setns", handle, kind)
            os.close(handle)


def make_read_only(folder: Path) -> None:
    """Of the namespace that was entered; by a mount over it, for a file system in use is not remounted."""
    _libc("mount", bytes(folder), bytes(folder), None, _BIND, None)
    _libc("mount", b"none", bytes(folder), None, _REMOUNT | _BIND | _RDONLY, None)


# what must hold ------------------------------------------------------------------------------------------------------


def artifacts(out: Path) -> Counter[str]:
    """Finished artifacts of stages, by kind; what the examination kept is none."""
    kinds = Counter(p.name.rpartition("-")[0] for p in (out / "artifacts").glob("[!.]*"))
    del kinds["examine"]
    return kinds


def leftovers(out: Path) -> list[str]:
    """Names of what was begun and never finished."""
    return sorted(
        str(p.relative_to(out)) for p in out.rglob(".*") if p.name != ".lock" and "/.tmp-" not in str(p.parent)
    )


def books(out: Path) -> dict[str, str]:
    """Everything a run recorded, without seconds."""
    found = {"results.json": without_timings(json.loads((out / "results.json").read_text()))}
    found["results.csv"] = (out / "results.csv").read_text()
    for path in sorted((out / "records").iterdir()):
        record = json.loads(path.read_text())
        assert record.pop("seconds") >= 0
        record.get("fit", {}).pop("seconds", None)
        found[f"records/{path.name}"] = json.dumps(record)
    found |= {f"exhibits/{p.name}": p.read_text() for p in sorted((out / "exhibits").iterdir())}
    return found


def same(out: Path, undisturbed: Path) -> None:
    """Everything is as in an undisturbed run, and nothing is left over."""
    mine, theirs = books(out), books(undisturbed)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if mine[name] != theirs[name]]
    assert not different
    assert leftovers(out) == []


@dataclass
class World:
    """A specification, the folder of a run of it that nothing disturbed, and how long that took."""

    spec: Path
    undisturbed: Path
    seconds: float


def recover(world: World, out: Path, *, entered: SmallDisk | None = None, page: bool = False) -> int:
    """Run again: everything must be as in the undisturbed run. Returns how many finished stages were made again."""
    seen = out if entered is None else entered.outside / out.relative_to(entered.inside)
    missing = artifacts(world.undisturbed) - artifacts(seen)
    ended = run(world.spec, out, setup=[] if entered is None else entered.enter(), page=page)
    assert ended.code == 0, ended.err
    same(seen, world.undisturbed)
    return (ended.computed - missing).total()
