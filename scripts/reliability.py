"""Write the table of docs/reliability.md from the log of a fault campaign.

    python scripts/reliability.py LOG

LOG has one JSON object per line, {"fault", "outcome", "again", "lost"}, plus "times" if a line stands for many. Tests
write it to the file named by FAULTS_LOG.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- campaign: begin -->", "<!-- campaign: end -->"


def table(lines: list[str]) -> str:
    """One row a fault and outcome; empty where it was not measured."""
    found: dict[tuple[str, str], list[dict[str, int | None]]] = {}
    for line in lines:
        seen = json.loads(line)
        found.setdefault((seen["fault"], seen["outcome"]), []).append(seen)
    rows = [
        "| fault | injected | outcome | finished stages made again | stages under way lost |",
        "|---|---|---|---|---|",
    ]
    for (fault, outcome), times in sorted(found.items()):
        again, lost = (_spread([x[k] for x in times]) for k in ("again", "lost"))
        rows.append(f"| {fault} | {_count(times)} | {outcome} | {again} | {lost} |")
    total = sum(map(_count, found.values()))
    return "\n".join([*rows, "", f"{total} faults injected; every expectation held, or this table would not exist."])


def _count(times: list[dict[str, int | None]]) -> int:
    return sum(seen.get("times") or 1 for seen in times)


def _spread(values: list[int | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return ""
    return f"{sum(known)} in {len(known)}, at most {max(known)}" if any(known) else "0"


def main() -> None:
    """Replace the text between the page's markers."""
    lines = Path(sys.argv[1]).read_text("utf-8").splitlines()
    head, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(lines)}\n\n{END}{tail}", "utf-8")


if __name__ == "__main__":
    main()
