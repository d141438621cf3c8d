"""Draw the chains of one run on one precision-recall plane: python scripts/two_chains.py DIR FILE.svg."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

import hydrometer as hm
from hydrometer.core.statistics.estimate import t_interval

COLOURS = ("#00539c", "#b5432f", "#3d7a43")


def draw(folder: Path, target: Path) -> None:
    """Means over seeds with 95 % t intervals; one colour per chain, lines from the mildest setting to the strongest."""
    results = hm.load_results(folder)
    groups = list(results["summary"]["groups"].values())
    seeds = len({c["seed"] for c in results["cells"]} - {None})
    plt.rcParams |= {"svg.hashsalt": "hydrometer", "svg.fonttype": "none", "font.size": 9}
    figure, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    for colour, chain in zip(COLOURS, results["summary"]["chains"], strict=False):
        mine = [g for g in groups if g["chain"] == chain]
        students = [g for g in mine if g["role"] == "student"]
        distilled = [g for g in students if g["training"] == "distilled" and g["decoding"] is None]
        decoded = [g for g in students if g["training"] == "direct"]  # as it is, then decoded
        teacher = [g for g in mine if g["role"] == "teacher"]
        for what, marker, line, found in (
            ("teacher, selected", "^", ":", teacher),
            ("student, distilled", "o", "-", distilled),
            ("direct student, decoded", "s", "--", decoded),
        ):
            found = sorted(found, key=lambda g: -g["metrics"]["entropy"]["value"])
            x, y = ([g["metrics"][m]["value"] for g in found] for m in ("recall", "precision"))
            dx, dy = ([half(g["metrics"][m], seeds) for g in found] for m in ("recall", "precision"))
            ax.errorbar(
                x, y, xerr=dx, yerr=dy, color=colour, marker=marker, linestyle=line, markersize=4.5, linewidth=1,
                elinewidth=0.6, markerfacecolor="white" if marker == "s" else colour, label=f"{chain}: {what}",
            )  # fmt: skip
    truth = next(g for g in groups if g["role"] == "truth")["metrics"]
    ax.plot(truth["recall"]["value"], truth["precision"]["value"], "+", color="black", markersize=12, label="truth")
    ax.set_xlabel("recall, nats per point")
    ax.set_ylabel("precision, nats per point")
    ax.legend(fontsize=7.5, frameon=False)
    figure.savefig(target, metadata={"Date": None})


def half(metric: dict[str, Any], seeds: int) -> float:
    """Half the width of the 95 % t interval over seeds."""
    return t_interval(0.0, metric["se"] or 0.0, max(seeds - 1, 1), 0.95)[1]


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
