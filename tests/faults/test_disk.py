"""A disk that becomes full, or read-only, at every kind of stage and while the books are written."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from faulty import World, artifacts, at_call, at_stage, make_read_only, recover, run, small_disk

WHEN = {
    "m: fit": "artifact of a fit", "m: judge": "artifact of a judging", "keep something": "exhibit's artifact",
    "figures as released": "released figures", "map at": "point of a map",
    "hydrometer.store.records:hold": "lock", "hydrometer.run.api:keep": "examination",
    "hydrometer.run.api:results_of": "records", "hydrometer.store.records:RunFolder.write_results": "results.json",
    "hydrometer.report:build_report": "report",
    "lm: draw": "artifact of a draw", "lm: fit the teacher": "weights of a teacher",
    "lm: fit the student": "weights of a student", "lm: score": "block of scores",
    "lm: judge": "artifact of a judging (lm)", "lm: embed": "embedded rows", "lm: picture": "picture",
}  # fmt: skip
SHORT = ("m: fit", "hydrometer.store.records:RunFolder.write_results")
# What could not be written, as the line names it; an artifact is named by its folder.
WHERE = {"lock": "/.lock", "records": "/records/", "results.json": "/results.json", "report": "out/"}


@pytest.mark.parametrize(
    "when",
    [w if w in SHORT else pytest.param(w, marks=pytest.mark.faults) for w in WHEN],
    ids=lambda w: w.replace(":", " "),
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    request: pytest.FixtureRequest, tmp_path: Path, observe, when: str
) -> None:
    what = WHEN[when]
    # Only of language models an examination is kept.
    world: World = request.getfixturevalue("world" if when.startswith("lm") or what == "examination" else "small")
    moment = at_call if ":" in when and when.startswith("hydrometer") else at_stage
    page = what == "report"
    with small_disk(tmp_path / "disk", 24 if page else 8) as disk:
        leave = 0 if what == "lock" else random.Random(when).choice([0, 0, 4096])
        setup = [*disk.enter(), moment(when, disk.fill(leave))]
        ended = run(world.spec, disk.inside / "out", setup=setup, page=page)
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        assert ("No space left" if disk.mechanism == "tmpfs" else "File too large") in ended.line
        assert WHERE.get(what, "/artifacts") in ended.line
        if what == "examination":
            assert not artifacts(disk.outside / "out")  # it failed before the first stage
        disk.make_room()
        again = recover(world, disk.inside / "out", entered=disk, page=page)
    assert again == 0
    print("mechanism:", disk.mechanism)
    observe(f"disk full ({disk.mechanism}): {what}", "one line, exit 2; goes on once there is room", again=again)


def test_a_file_system_that_became_read_only_is_one_line(small: World, tmp_path: Path, observe) -> None:
    with small_disk(tmp_path / "disk") as disk:
        if disk.mechanism != "tmpfs":
            pytest.skip("no namespace to mount in; a read-only folder is tested besides")
        out = disk.inside / "out"
        full = run(small.spec, out, setup=[*disk.enter(), at_stage(4, partial(make_read_only, out))])
        again = run(small.spec, out, setup=disk.enter())
        for ended in (full, again):
            assert ended.code == 2
            assert "Read-only file system" in ended.line
            assert "Traceback" not in ended.err
    observe("file system remounted read-only while running", "one line, exit 2")
