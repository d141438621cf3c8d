"""Is this machine's accelerator right, and how fast is it? `python -m hydrometer.benchmarks.gpu`.

Right first: the contract of families, draws against an enumerated law, fits against the processor's, a killed fit that
goes on. Then speed against peers on random weights of real shapes; medians of five turns. No network is needed. Peers
that are not installed (trl, liger-kernel) are named and left out. With --device cpu --small the same code runs on any
machine in two minutes: a test of the command, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["main", "table"]

_OPTIONAL = {"triton": "draws in one kernel", "trl": "a peer's divergence", "liger_kernel": "a peer's divergence"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run checks, then cases; print both, and write them where asked. Returns 1 where a check fails."""
    args = _arguments(argv)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is available; --device cpu --small tests the command itself", file=sys.stderr)
        return 2
    from hydrometer.benchmarks.device_checks import CHECKS
    from hydrometer.benchmarks.device_speed import cases, measured

    found: dict[str, Any] = {"machine": _machine(args.device), "checks": [], "cases": []}
    print(", ".join(f"{k} {v}" for k, v in found["machine"].items()))
    for name, what in _OPTIONAL.items():
        if find_spec(name) is None:
            print(f"not installed: {name} ({what})")
    for check in CHECKS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                said, right = check(args.device, Path(folder)), True
            except Exception as e:  # whatever a driver or a library raises is a failed check
                said, right = f"{type(e).__name__}: {e}".splitlines()[0], False
        name = check.__name__.replace("_", " ")
        found["checks"].append({"name": name, "right": right, "said": said})
        print(f"{'right' if right else 'WRONG'}  {name}: {said} ({time.perf_counter() - began:.0f} s)", flush=True)
    right = all(c["right"] for c in found["checks"])
    if right and not args.checks:
        for make in cases(args.device, small=args.small):
            found["cases"].append(measured(make(), args.device, args.repeats))
            print(table(found["cases"][-1:], head=len(found["cases"]) == 1), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if right else 1


def table(found: Sequence[dict[str, Any]], *, head: bool = True) -> str:
    """The cases as a table in Markdown: ours, each peer, the ratio, its aim, and memory above the weights, MB."""
    lines = ["| work | ours | peer | ratio | aim | memory, MB |", "|---|---|---|---|---|---|"] if head else []
    for case in found:
        ours, *peers = case["rates"]
        memory = case["memory"] or {}
        for peer in peers or [None]:
            mine = f"{statistics.median(case['rates'][ours]):,.0f} {case['unit']}"
            theirs = "none installed" if peer is None else f"{peer}: {statistics.median(case['rates'][peer]):,.0f}"
            ratio = "" if peer is None else f"{case['ratios'][peer]:.2f}"
            held = ", ".join(f"{n} {memory[n]:,.0f}" for n in (ours, peer) if n in memory)
            lines.append(f"| {case['title']} | {mine} | {theirs} | {ratio} | {case['aim']:g} | {held} |")
    return "\n".join(lines)


def _machine(device: str) -> dict[str, str]:
    import torch

    versions = {p: metadata.version(p) for p in ("hydrometer", "torch", "transformers")}
    card = platform.processor() or platform.machine()
    if device == "cuda":
        of = torch.cuda.get_device_properties(0)
        card = f"{of.name}, {of.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return {"device": card, **versions}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hydrometer.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that any machine runs in two minutes")
    parser.add_argument("--checks", action="store_true", help="only whether it is right")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--json", type=Path, help="write what was found there too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
