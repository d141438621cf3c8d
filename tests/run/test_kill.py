"""SIGKILL at seeded-random times over every stage of a tiny chain; run again; the records are equal byte for byte."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from chains import lm_spec, mixture_spec, without_timings, write_spec

pytest.importorskip("torch")

KILLS = 20


def _run(spec: str, out: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    import hydrometer as hm

    hm.run(spec, out=out)


def _stages(folder: Path) -> set[str]:
    return {p.name.split("-")[0] for p in (folder / "artifacts").glob("[!.]*")}


def test_killed_runs_end_as_an_undisturbed_one(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    spec = lm_spec(tiny_models["llama"])
    spec["chains"]["m"] = mixture_spec(as_released=True)["chains"]["m"]
    path = str(write_spec(spec, tmp_path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hydrometer", "hydrometer.models.causal_lm.trainer"])

    def start(out: Path) -> BaseProcess:
        process = context.Process(target=_run, args=(path, str(out)))
        process.start()
        return process

    def finish(out: Path) -> float:
        began = time.monotonic()
        process = start(out)
        process.join(120)
        assert process.exitcode == 0
        return time.monotonic() - began

    finish(tmp_path / "warm")
    whole = finish(tmp_path / "undisturbed")
    expected = without_timings(json.loads((tmp_path / "undisturbed" / "results.json").read_text()))
    dice = random.Random(20261121)
    killed, between = 0, set[str]()
    for k in range(KILLS):
        out = tmp_path / f"run{k}"
        share = (k + dice.random()) / KILLS  # one in each twentieth of a run, so that every stage is hit
        for _ in range(5):
            process = start(out)
            time.sleep(whole * share)
            if alive := process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join(30)
            if alive:
                killed += 1
                break
            whole *= 0.85  # the undisturbed run had been slower, on a busier machine
            shutil.rmtree(out)
        between |= _stages(out) if (out / "artifacts").is_dir() else set()
        finish(out)
        assert without_timings(json.loads((out / "results.json").read_text())) == expected, f"kill {k}"
        assert not list((out / "artifacts").glob(".tmp-*"))
        shutil.rmtree(out)
    assert killed == KILLS
    assert {"draw", "fit", "score", "judge"} <= between
