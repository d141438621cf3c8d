"""SIGKILL at random moments, and at the end of every kind of stage."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from faulty import World, at_call, at_stage, begin, leftovers, recover, run, signal_self

STAGES = {
    "lm: draw": "draw", "lm: fit the teacher": "fit", "lm: score": "score", "lm: judge": "judge", "lm: embed": "embed",
    "lm: picture": "picture", "m: fit": "fit", "m: judge": "judge", "keep something": "show",
    "figures as released": "released", "map at": "map",
}  # fmt: skip


@pytest.mark.parametrize(
    ("round_", "times"), [(0, 3), *(pytest.param(k, 10, marks=pytest.mark.faults) for k in range(1, 6))]
)
def test_a_killed_run_goes_on_and_has_lost_one_stage_at_most(
    world: World, tmp_path: Path, observe, round_: int, times: int
) -> None:
    dice = random.Random(f"kill {round_}")
    out, hit = tmp_path / "out", Counter[str]()
    for k in range(times):
        for _ in range(8):
            started = begin(world.spec, out)
            time.sleep(world.seconds * (k + dice.random()) / times)
            started.process.kill()
            if started.end().code == -signal.SIGKILL:
                break
            world.seconds *= 0.8  # the machine was busier when the undisturbed run was timed
            shutil.rmtree(out)
        else:
            pytest.fail("no run was killed before its end")
        begun = [x for x in leftovers(out) if x.startswith("artifacts/")]
        hit.update(x.split("-")[1] for x in begun)
        # What was whole is not made again; what was not whole is one stage at most: one block, one fit, one judging.
        again = recover(world, out)
        assert again == 0
        assert len(begun) <= 1
        observe("SIGKILL of the driver at a random moment", "records equal", again=again, lost=len(begun))
        shutil.rmtree(out)
    if times >= 10:
        assert hit.total() >= 2  # killed inside a stage, and not only before and after


@pytest.mark.parametrize(
    "when",
    [w if w == "lm: score" else pytest.param(w, marks=pytest.mark.faults) for w in STAGES],
    ids=lambda w: w.replace(":", ""),
)
def test_a_run_killed_at_the_end_of_a_stage_loses_that_one(
    request: pytest.FixtureRequest, tmp_path: Path, observe, when: str
) -> None:
    world: World = request.getfixturevalue("world" if when.startswith("lm") else "small")
    out = tmp_path / "out"
    die = at_stage(when, at_call("hydrometer.store.artifacts:_files_of", partial(signal_self, signal.SIGKILL)))
    assert run(world.spec, out, setup=[die]).code == -signal.SIGKILL
    begun = leftovers(out)
    assert len(begun) == 1
    assert begun[0].startswith(f"artifacts/.tmp-{STAGES[when]}-")
    again = recover(world, out)
    assert again == 0
    observe(f"SIGKILL at the end of a stage: {STAGES[when]}", "records equal", again=again, lost=len(begun))
