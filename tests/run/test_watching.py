"""A run seen from elsewhere: what it says of itself, `watch`, and the page that renews itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import mixture_spec, write_spec
from hydrometer.core.errors import FolderError
from hydrometer.report import build_live_report, live_page, page
from hydrometer.run.execution import progress, recorder
from hydrometer.run.execution.progress import Pace
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.results import sofar
from hydrometer.store.records import RunFolder
from hydrometer.store.run_status import RunStatus, read_status

RENEWS = '<meta http-equiv="refresh"'


class Stop(SilentMonitor):
    """Interrupts a run at a stage."""

    def __init__(self, after: int, do: Callable[[], None] = lambda: None) -> None:
        self.left, self.do = after, do

    def stage(self, label: str, cost: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.do()
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run that was interrupted, with figures of some models, and its specification."""
    folder = tmp_path_factory.mktemp("begun")
    path = write_spec(mixture_spec(1), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sofar, "_EVERY", 0.0)
        patch.setattr(sofar, "_SHARE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            hm.run(path, out=folder / "out", monitor=Stop(8))
    assert hm.load_results(folder / "out")["partial"]
    return folder / "out", path


def tell(out: Path, **changes: Any) -> None:
    """Let a run say something else of itself."""
    now = time.time() - changes.pop("ago", 0)
    said = {
        "state": "running", "stages": 14, "done": 7, "failed": 0, "share": 0.5, "left": 65.0,
        "doing": "m: fit the student (3/9 steps)", "began": now - 130, "written": now,
    }  # fmt: skip
    RunFolder(out).tell(RunStatus(**(said | changes)))


def test_a_run_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[RunStatus] = []
    whole = RunFolder.tell

    def told(self: RunFolder, status: RunStatus) -> None:
        heard.append(status)
        whole(self, status)

    monkeypatch.setattr(RunFolder, "tell", told)
    monkeypatch.setattr(recorder, "_EVERY", 0.001)
    result = hm.run(write_spec(mixture_spec(2), tmp_path), out=tmp_path / "out")
    stages = sum(result.outcome.computed.values())
    assert {s.state for s in heard[:-1]} == {"running"}
    assert [s.done for s in heard] == sorted(s.done for s in heard)
    assert max(s.stages for s in heard) == stages
    assert len({s.doing for s in heard}) > 3
    assert read_status(tmp_path / "out") == heard[-1]
    assert (heard[-1].state, heard[-1].done, heard[-1].share, heard[-1].left) == ("done", stages, 1.0, None)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_an_interrupted_run_says_that_it_stopped(begun: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        hm.run(begun[1], out=tmp_path / "out", monitor=Stop(3))
    status = read_status(tmp_path / "out")
    assert status is not None
    assert (status.state, status.done) == ("stopped", 2)


def test_a_long_stage_is_no_silence(begun: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing new happens in it, and the run says so again."""
    monkeypatch.setattr(recorder, "_EVERY", 0.01)
    monkeypatch.setattr(recorder, "_BEAT", 0.05)
    times: list[float] = []

    def look() -> None:
        for _ in range(3):
            before = read_status(tmp_path / "out")
            assert before is not None
            deadline = time.monotonic() + 60
            while (after := read_status(tmp_path / "out")) == before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert after is not None
            times.append(after.written - before.written)

    with pytest.raises(KeyboardInterrupt):
        hm.run(begun[1], out=tmp_path / "out", monitor=Stop(2, look))
    assert len(times) == 3
    assert min(times) > 0


def test_a_status_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    for text in ("{", '{"state": "asleep"}', "[" * 100_000, '{"share": NaN}'):
        (tmp_path / "progress.json").write_text(text)
        with pytest.raises(FolderError, match=r"progress\.json cannot be read"):
            read_status(tmp_path)


def test_time_left_is_that_of_the_rate_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = Pace()
    pace.begin(12.0, 2.0, 3)
    pace.stage("one", 4.0)
    now[0] += 20
    pace.tick(1, 2, "steps")
    assert (pace.share, pace.left, pace.words) == (0.2, 80.0, "one (1/2 steps, 0.05/s)")
    pace.done(4.0, "why")
    assert (pace.share, pace.left, pace.count, pace.failed) == (0.4, 30.0, 1, 1)
    assert pace.doing("opening")
    assert pace.words == "one (opening)"


@pytest.mark.parametrize("width", [80, 50])
def test_watch_shows_a_run_once_where_nobody_looks_on(
    begun: tuple[Path, Path], command: Any, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    tell(begun[0], failed=2)
    code, out, _ = command("watch", str(begun[0]))
    assert code == 1  # as of a run with failed cells
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].rstrip().endswith(" 50%")
    assert "running for 2:10, 1:05 left" in out
    assert "stages   7 done (2 failed), 7 to come" in out
    assert "doing    m: fit the student (3/9 steps)" in out
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("truth"))
    metrics = hm.load_results(begun[0])["summary"]["groups"]["m.truth"]["metrics"]
    for metric in ("precision", "recall"):
        assert f"{metrics[metric]['value']:.3f} ±".replace("-", "−") in " ".join(lines[at : at + 3])
    assert "missing: m." in " ".join(out.split())


@pytest.mark.parametrize(
    ("changes", "said", "ends"),
    [
        ({"ago": 600}, "the run has died", 1),
        ({"state": "stopped", "left": None}, "stopped at", 1),
        ({"state": "done", "done": 14, "share": 1.0, "left": None}, "done in 2:10", 0),
    ],
)
def test_watch_says_how_a_run_ended(
    begun: tuple[Path, Path], command: Any, changes: dict[str, Any], said: str, ends: int
) -> None:
    tell(begun[0], **dict(changes))
    code, out, _ = command("watch", str(begun[0]), "--once")
    assert said in out
    assert code == ends
    if "died" in said:
        assert re.search(r"nothing has moved since \d\d:\d\d:\d\d, 10:\d\d ago", out)


def test_watch_looks_on_until_the_end(begun: tuple[Path, Path], command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal. Each look comes two seconds after the last."""
    from hydrometer.cli import commands

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    tell(begun[0])
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        tell(begun[0], **({"share": 0.75} if len(naps) == 1 else {"state": "done", "share": 1.0, "left": None}))

    monkeypatch.setattr(commands.time, "sleep", nap)
    code, out, _ = command("watch", str(begun[0]))
    assert code == 0
    assert naps == [2.0, 2.0]
    assert out.index(" 50%") < out.index(" 75%") < out.index("100%")


def test_watch_of_no_run_is_refused(tmp_path: Path, command: Any) -> None:
    code, _, err = command("watch", str(tmp_path))
    assert code == 2
    assert "give the folder of a run" in err


def test_a_live_page_renews_itself_until_the_run_ends(
    begun: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(begun[0])
    monkeypatch.setattr(page.chain_figures, "views_of", lambda *_: [])
    pages: list[str] = []

    def nap(seconds: float) -> None:
        assert seconds >= page.LIVE
        pages.append((tmp_path / "report.html").read_text())
        if len(pages) == 2:
            tell(begun[0], state="done", left=None)

    monkeypatch.setattr(live_page.time, "sleep", nap)
    target = build_live_report([str(begun[0])], out=str(tmp_path))
    assert target == tmp_path / "report.html"
    assert len(pages) == 2
    assert all(f'{RENEWS} content="{page.LIVE}">' in p and "this page renews itself every 10 s" in p for p in pages)
    assert RENEWS not in target.read_text()
    assert "renews itself" not in target.read_text()


def test_a_live_page_that_is_left_no_longer_renews_itself(
    begun: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(begun[0])
    monkeypatch.setattr(page.chain_figures, "views_of", lambda *_: [])

    def nap(seconds: float) -> None:
        assert RENEWS in (tmp_path / "report.html").read_text()
        raise KeyboardInterrupt

    monkeypatch.setattr(live_page.time, "sleep", nap)
    with pytest.raises(KeyboardInterrupt):
        build_live_report([str(begun[0])], out=str(tmp_path))
    assert RENEWS not in (tmp_path / "report.html").read_text()
