"""A trainer with the callback in it that is killed, and one of several processes: in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from callback_world import LONGEST, World, figures, trainer_of  # noqa: E402
from hydrometer.integrations import PlaneCallback  # noqa: E402

TESTS = Path(__file__).parents[1]
HEAD = """
import os, signal, sys
from pathlib import Path
import torch
from callback_world import *
from hydrometer.integrations import PlaneCallback
from hydrometer.run.judging.standing_truth import StandingTruth
torch.set_num_threads(1)
root, out = map(Path, sys.argv[1:])
truth, student, prompts, rows = root / "truth", root / "student", root / "prompts.jsonl", torch.load(root / "rows.pt")
plane = PlaneCallback(truth, prompts=prompts, every=2, n=32, max_new_tokens=LONGEST)
"""
KILLED = """
judge, seen = StandingTruth.judge, []
def dying(self, student, stream):
    seen.append(stream)
    if len(seen) == 3:
        student.sample(16, seed=stream)
        os.kill(os.getpid(), signal.SIGKILL)
    return judge(self, student, stream)
StandingTruth.judge = dying
trainer_of(out, rows, [plane], save_strategy="steps", save_steps=2).train()
"""
SEVERAL = """
trainers = []
for name, callbacks in {"beside": [plane], "alone": []}.items():
    trainers.append(trainer_of(out / name, rows, callbacks, max_steps=4, ddp_backend="gloo"))
    trainers[-1].train()
torch.save([(figures(t), t.model.state_dict()) for t in trainers], out / f"{trainers[0].args.process_index}.pt")
"""


def ended(code: str, world: World, out: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    torch.save(world.rows, world.truth.parent / "rows.pt")
    (out / "train.py").write_text(HEAD + code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(out / "train.py"), str(world.truth.parent), str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def plane(world: World) -> PlaneCallback:
    return PlaneCallback(world.truth, prompts=world.prompts, every=2, n=32, max_new_tokens=LONGEST)


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_training_killed_within_an_evaluation_goes_on_as_if_it_had_not_been(world: World, tmp_path: Path) -> None:
    done = ended(KILLED, world, tmp_path / "killed")
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert {p.name for p in (tmp_path / "killed").glob("checkpoint-*")} == {"checkpoint-2"}
    settings = {"save_strategy": "steps", "save_steps": 2}
    resumed = trainer_of(tmp_path / "killed", world.rows, [plane(world)], **settings)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer_of(tmp_path / "whole", world.rows, [plane(world)], **settings)
    whole.train()
    alone = trainer_of(tmp_path / "alone", world.rows, [], **settings)
    alone.train()
    assert list(figures(whole)) == [0, 2, 4, 6]
    assert figures(resumed) == figures(whole)
    assert equal(resumed.model.state_dict(), whole.model.state_dict())
    assert equal(resumed.model.state_dict(), alone.model.state_dict())


def test_of_several_processes_the_first_draws_and_logs(world: World, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = ended(SEVERAL, world, tmp_path / "two", *launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    (beside, alone), (second, _) = (torch.load(tmp_path / "two" / f"{i}.pt") for i in range(2))
    one = trainer_of(tmp_path / "one", world.rows, [plane(world)], max_steps=2)
    one.train()
    assert list(beside[0]) == [0, 2, 4]
    assert beside[0][0] == figures(one)[0]  # before the first step; from there on batches are twice as large
    assert beside[0][2]["recall"] != figures(one)[2]["recall"]
    assert second[0] == alone[0] == {}
    assert equal(beside[1], alone[1])
    assert equal(beside[1], second[1])
