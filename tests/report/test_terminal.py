"""Tables of the terminal: whole at every width, turned where the terminal is too narrow for them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hydrometer.report.terminal import FittedTable

NAMES = ["truth", "direct, decoded at temperature 0.8, top-p 0.95", "distilled at β = 3"]
TABLE = FittedTable(
    ["model", "precision under the reference", "recall\n/ byte", "H(q)"],
    [[n, "−12.116 ± 0.092\n−12.084\n−12.186…−12.030", "−∞", "1.224 ± 3e-04"] for n in NAMES],
    "nats per sequence, ± standard error",
    "of the run’s own rows",
)


def shown(table: FittedTable, width: int) -> list[str]:
    Console(file=(out := io.StringIO()), width=width).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [24, 40, 60, 62, 80, 120, 10_000])
def test_nothing_is_cut_at_any_width(width: int) -> None:
    lines = shown(TABLE, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for cell in ("−12.116", "−12.186…−12.030", "−∞", "3e-04", "precision", "reference", "byte", "H(q)"):
        assert words.count(cell) >= 1
    assert sum(w in ("truth", "direct,", "distilled") for w in words) == len(NAMES)
    assert "temperature" in words
    assert not any(w.endswith("…") for w in words)


def test_a_table_is_broken_then_turned() -> None:
    wide, middle, narrow = (shown(TABLE, w) for w in (200, 80, 40))
    assert any("direct, decoded at temperature 0.8, top-p 0.95" in line and "−12.116" in line for line in wide)
    assert any(line.startswith(" distilled at") and "−12.116" in line for line in middle)
    at = narrow.index("distilled at β = 3")
    assert narrow[at + 1 : at + 3] == ["  precision under the reference", "    −12.116 ± 0.092"]
    assert not any("distilled" in line and "−12.116" in line for line in narrow)


def test_a_number_stays_with_its_word_where_there_is_room() -> None:
    rows = [[n, "1" * 20] for n in NAMES]
    lines = shown(FittedTable(["model", "figure"], rows), 48)
    assert not any(line.strip() in ("0.95", "= 3") for line in lines)
