"""Overhead of the executors: blocks that cost nothing to draw, through this process and through Ray.

A block is a draw of a family whose law knows its rows: one file of 1 kB, written into the store, checksummed, renamed.
Printed: milliseconds a block, from the graph to its last artifact; for Ray with the cluster up and a worker warm.

    python benchmarks/overhead.py [--blocks 10000] [--json FILE]
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Footprint
from hydrometer.models.mixture.family import MIXTURE
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.execution.execute import execute
from hydrometer.run.graph.plan import ChainPlan
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.nodes import Context, DrawNode, LawRef
from hydrometer.store.artifacts import ArtifactStore, content_key

ROWS = 128


class Rows:
    """A block's rows: their log-probabilities alone."""

    def __init__(self, n: int) -> None:
        self.log_prob, self.lengths, self.strata = np.zeros(n), None, None

    def __len__(self) -> int:
        return len(self.log_prob)


class Law:
    """A law whose rows are known."""

    def sample(self, n: int, *, seed: object = 0, start: int = 0) -> Rows:
        return Rows(n)

    def select(self, s: object) -> Law:
        return self


class NoOp:
    """A family that draws nothing; what is not asked of it here is that of mixtures."""

    name, keeps_draws = "no-op", True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(MIXTURE, name)

    def numerics(self, chain: ChainSpec) -> dict[str, object]:
        return {"threads": 1}

    def footprint(self, *_: object) -> Footprint:
        return Footprint()

    def cost(self, *_: object) -> float:
        return 1.0

    def precision(self, *_: object) -> str:
        return "float64"

    def truth(self, *_: object) -> Law:
        return Law()

    def save_samples(self, samples: Rows, folder: Path) -> None:
        (folder / "rows.bin").write_bytes(samples.log_prob.tobytes())


def plan_of(blocks: int) -> Plan:
    """Draws of one law, none of which needs another."""
    context = Context("no-op", ChainSpec.model_construct(family="no-op", selectivity=()), NoOp())  # type: ignore[arg-type]
    truth = LawRef("truth", content_key("no-op"), "truth")
    plan = Plan(chains={"no-op": ChainPlan(context, truth, {})})
    for i in range(blocks):
        key = content_key(["no-op", i])
        plan.nodes[key] = DrawNode(key, context, truth, None, Stream(1), i * ROWS, ROWS, "train")
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="say where the local executor's time goes")
    parser.add_argument("--only", choices=("local", "ray"))
    args = parser.parse_args()
    results: list[dict[str, object]] = []

    def report(name: str, seconds: float) -> None:
        each = 1e3 * seconds / args.blocks
        print(f"{name:8s} {args.blocks} blocks in {seconds:7.2f} s: {each:.3f} ms a block", flush=True)
        results.append({"executor": name, "blocks": args.blocks, "ms_per_block": each})

    if args.only in (None, "local"):
        with tempfile.TemporaryDirectory() as folder:
            profile = cProfile.Profile()
            begin = time.perf_counter()
            if args.profile:
                profile.enable()
            execute(plan_of(args.blocks), ArtifactStore(Path(folder) / "artifacts"), SilentMonitor())
            profile.disable()
            report("local", time.perf_counter() - begin)
            if args.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(20)
    if args.only in (None, "ray"):
        import ray
        from hydrometer.run.execution.on_ray import RayExecutor, _connected

        with _connected(None), tempfile.TemporaryDirectory() as folder:
            RayExecutor()(plan_of(8), ArtifactStore(Path(folder) / "warm"), SilentMonitor())
            begin = time.perf_counter()
            RayExecutor()(plan_of(args.blocks), ArtifactStore(Path(folder) / "artifacts"), SilentMonitor())
            report("ray", time.perf_counter() - begin)
            print(f"         on {ray.cluster_resources()['CPU']:.0f} CPUs")
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
