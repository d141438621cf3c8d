"""Seconds that `plan` predicts for a recipe against those of a finished run. Run it on an idle machine.

    python benchmarks/plan.py quickstart runs/quickstart
    python benchmarks/plan.py smollm2-cpu runs/smollm2-cpu --artifacts CACHE

The machine is measured first (`--keep` uses known figures or coarse seconds; for the latter set HYDROMETER_CACHE to an
empty folder). Recorded seconds are those of every artifact's meta.json, by kind of stage and model if the run's keys
are those of the recipe today, else by kind alone. Seconds of a run include compiling its kernels; the plan's do not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from hydrometer import load_spec, plan
from hydrometer.run.graph.plan import plan_run
from hydrometer.run.cost.recorded import kind_of


def recorded(recipe: str, artifacts: Path) -> dict[tuple[str, str, str], float]:
    """Seconds by chain, stage and model; of stages that the recipe does not know, by stage alone."""
    nodes = plan_run(load_spec(recipe)).nodes
    out: dict[tuple[str, str, str], float] = defaultdict(float)
    for file in artifacts.glob("*/meta.json"):
        meta = json.loads(file.read_bytes())
        node = nodes.get(meta["key"])
        slot = ("?", meta["stage"], "?") if node is None else (node.context.name, *kind_of(node))
        out[slot] += meta["seconds"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--artifacts", type=Path, default=None)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    took = recorded(args.recipe, args.artifacts or args.folder / "artifacts")
    with tempfile.TemporaryDirectory() as folder:
        found = plan(args.recipe, out=Path(folder) / "none", measure=not args.keep, say=print)
    said: dict[tuple[str, str, str], float] = defaultdict(float)
    for s in found.stages:
        said[s.chain, s.stage, s.role] += (s.hours or 0.0) * 3600
    print(f"{'chain':10s} {'stage':9s} {'model':9s} {'foretold s':>11s} {'recorded s':>11s} {'ratio':>6s}")
    for slot in sorted({*said, *took}):
        a, b = said.get(slot, 0.0), took.get(slot, 0.0)
        print(f"{slot[0]:10s} {slot[1]:9s} {slot[2]:9s} {a:11.1f} {b:11.1f} {a / b if b else float('nan'):6.2f}")
    kinds = sorted({k for _, k, _ in (*said, *took)})
    for kind in kinds:
        a, b = (sum(v for (_, k, _), v in x.items() if k == kind) for x in (said, took))
        print(f"{'all':10s} {kind:9s} {'':9s} {a:11.1f} {b:11.1f} {a / b if b else float('nan'):6.2f}")
    a, b = sum(said.values()), sum(took.values())
    print(f"{'total':30s} {a:11.1f} {b:11.1f} {a / b:6.2f}")
    for note in found.notes:
        print(note)


if __name__ == "__main__":
    main()
