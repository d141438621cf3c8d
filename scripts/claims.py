"""Measure the claims again: python scripts/claims.py [--write] [NAME ...]; two at once.

Without names those of three minutes or fewer are measured. It fails where a verdict is not the one that is kept in
docs/claims/verdicts.json, or a condition that held fails, or the reverse. One that became undecided, or is so no more,
is only told: on another processor other last digits lead what is drawn and fitted elsewhere. --write keeps verdicts,
and writes a page and a picture for each, and the table of all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from hydrometer.claims import claims, load_claim, run_claim

DOCS = Path(__file__).resolve().parents[1] / "docs" / "claims"
KEPT = DOCS / "verdicts.json"
BUILD = Path("build") / "claims"
SHORT = 3.0  # minutes


def measured(name: str) -> dict[str, Any]:
    """What a claim's folder holds, measured now."""
    return run_claim(name, out=BUILD / name).to_json()


def said(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a verdict: the conditions under which it holds, and those under which a figure is against it."""
    failing = dict.fromkeys(c["condition"] for c in found["checks"] if c["found"] == "against the claim")
    return {"verdict": found["verdict"], "holding": found["holding"], "failing": list(failing)}


def turned(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is decided otherwise than it was, in words."""
    out = [f"{kept.get('verdict')}, now {now['verdict']}"] if kept.get("verdict") != now["verdict"] else []
    for was, this in (("holding", "failing"), ("failing", "holding")):
        out += [f"{x}: {was}, now {this}" for x in kept.get(was, []) if x in now[this]]
    return out


def page(name: str, found: dict[str, Any]) -> str:
    """The page of one claim."""
    claim = found["claim"]
    out = [f"# {claim['says'].rstrip('.')}\n", f"**{found['words'][0].upper() + found['words'][1:]}.**\n"]
    out.append("Who says it: " + "; ".join(claim["sources"]) + ".\n")
    out.append(f"What they report: {claim['reported'].strip()}\n")
    if claim["in_runs"]:
        out.append(f"What runs found: {claim['in_runs'].strip()}\n")
    out.append(f"What to do: {claim['advice'].strip()}\n")
    out.append(f"![{claim['says']}]({name}.svg)\n")
    out.append(f"Measured by `hydrometer run claims/{name}` over {claim['seeds']} seeds, {found['seconds']:.0f} s.")
    out.append(
        "Intervals are Student's over the worlds of the seeds, or a language model's own, at 1 - 0.05 / rows of the "
        "table, so that all hold together at 95 % (Bonferroni); "
        "a condition holds where all of its rows are as claimed.\n"
    )
    out.append("| where | figure | measured | claimed | found |\n|---|---|---|---|---|")
    for c in found["checks"]:
        cells = (c["condition"], c["figure"], c["measured"], f"{c['says']} {c['bound']:g}", c["found"])
        out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if found["notes"]:
        out.append("\n## What else was seen\n")
        out += [f"- {note}" for note in found["notes"]]
    out.append(f"\n## The world\n\n{found['how']}\n\n```text\n{found['about_world']}\n```\n")
    out.append("```json\n" + json.dumps(found["world"], indent=1) + "\n```")
    out.append("")
    return "\n".join(out)


def index(rows: dict[str, dict[str, Any]]) -> str:
    """The table of all claims."""
    head = (DOCS / "index.md").read_text("utf-8").partition("<!-- verdicts -->")[0]
    out = [head + "<!-- verdicts -->\n", "| claim | verdict | from |\n|---|---|---|"]
    for name, r in rows.items():
        out.append(f"| [{r['says']}]({name}.md) | {r['words']} | {'; '.join(r['sources'])} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Measure, then compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    names = args.names or [n for n in claims() if load_claim(n).minutes <= SHORT]
    kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    with ProcessPoolExecutor(2) as pool:
        results = dict(zip(names, pool.map(measured, names), strict=True))
    wrong: list[str] = []
    for name, found in results.items():
        before, now = kept.get(name, {}), said(found)
        wrong += [f"{name}: {x}" for x in turned(before, now)]
        print(f"{found['seconds']:6.1f} s  {name}: {found['words']}")
        for x in sorted(set(before.get("holding", [])) ^ set(now["holding"])):
            print(f"          {x}: holds {'now' if x in now['holding'] else 'no more'}")
    if args.write:
        DOCS.mkdir(exist_ok=True)
        for name, found in results.items():
            (DOCS / f"{name}.md").write_text(page(name, found), "utf-8")
            shutil.copyfile(BUILD / name / f"{name}.svg", DOCS / f"{name}.svg")
            claim = found["claim"]
            kept[name] = {**said(found), "words": found["words"], "says": claim["says"], "sources": claim["sources"]}
        KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", "utf-8")
        (DOCS / "index.md").write_text(index(kept), "utf-8")
    elif wrong:
        sys.exit("verdicts that turned: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
