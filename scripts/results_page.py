"""Write docs/results/NAME.md and its pictures from a run: python scripts/results_page.py DIR "COMMAND" COMMIT."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import hydrometer as hm
from hydrometer.report import verdict
from hydrometer.report.values import read_method
from hydrometer.report.wording import with_error

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results"
COLUMNS = {
    "precision": "precision", "recall": "recall", "entropy": "H(q)", "kl_student_truth": "KL(q‖p\\*)",
    "kl_truth_student": "KL(p\\*‖q)",
}  # fmt: skip
BESIDE_TEXTS = {
    "precision_reference": "precision under the {}", "recall": "recall", "entropy": "H(q)",
    "kl_student_reference": "KL(q‖{})",
}  # fmt: skip


def label(group: dict[str, Any]) -> str:
    """Name a group in words."""
    words = [group["role"] if not group["training"] else group["training"]]
    for key, word in (("selectivity", "at"), ("decoding", "decoded at")):
        if group[key]:
            words.append(word + " " + ", ".join(f"{k} {v}" for k, v in group[key].items()))
        if key == "selectivity" and (method := read_method(group)):
            words.append(method)
    return " ".join(words)


def page(folder: Path, command: str, commit: str) -> str:
    """The page of one run."""
    results = hm.load_results(folder)
    name = results["name"]
    out = [f"# {name}\n", f"`{command}`, commit `{commit}`, {results['versions']['machine']}, shared.\n"]
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items() if k not in ("commit", "machine"))
    out.append(f"Versions: {versions}.\n")
    for chain, facts in results["summary"]["chains"].items():
        unit = "answer" if facts["kind"] == "sequences" else "point"
        over = "one seed ± standard error"
        if facts["seeds"] > 1:
            over = f"mean over {facts['seeds']} seeds ± total standard error"
        out.append(f"## {chain}\n\nTruth: {facts['truth']}. Nats per {unit}, {over}.\n")
        columns = COLUMNS if facts.get("reference") is None else BESIDE_TEXTS
        if "map" not in facts:
            heads = " | ".join(head.format("teacher") for head in columns.values())
            out.append(f"| model | {heads} |\n|---{'|---' * len(columns)}|")
        for group in results["summary"]["groups"].values():
            if group["chain"] == chain and "map" not in facts:
                found = [group["metrics"].get(c) or {"value": None, "se": None} for c in columns]
                cells = " | ".join(with_error(m["value"], m["se"]) for m in found)
                out.append(f"| {label(group)} | {cells} |")
        out.append("\nWhat the report says:\n")
        out += [f"- {sentence}" for sentence in verdict(results)[chain]]
        out.append("")
        for row in facts.get("as_released", []):
            if row["printed"] is not None:
                inside = "inside" if row["q025"] <= row["printed"] <= row["q975"] else "outside"
                out.append(
                    f"- As released, {row['training']}, {row['metric'].split('_')[0]} at beta = 100: printed "
                    f"{row['printed']}, {inside} the central 95 % of seeds, {row['q025']:.2f} to {row['q975']:.2f}, "
                    f"median {row['median']:.2f}."
                )
        for kind in ("plane", "by-setting", "contours", "map-1", "map-2", "map-3", "map-4", "gap"):
            picture = folder / "figures" / f"{chain}-{kind}.svg"
            if picture.is_file():
                target = DOCS / f"{name}-{chain}-{kind}.svg"
                shutil.copyfile(picture, target)
                out.append(f"\n![{chain}: {kind}]({target.name})")
    return "\n".join(out) + "\n"


def main() -> None:
    """Write the page."""
    folder, command, commit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    hm.build_report([folder])
    name = hm.load_results(folder)["name"]
    (DOCS / f"{name}.md").write_text(page(folder, command, commit))
    if (folder / "results.csv").stat().st_size < 500_000:
        shutil.copyfile(folder / "results.csv", DOCS / f"{name}.csv")


if __name__ == "__main__":
    main()
