"""The progress line: its share is of the work that began last."""

import io

from rich.console import Console

from hydrometer.run.execution.progress import ConsoleMonitor


def test_a_second_work_starts_from_nothing() -> None:
    told = io.StringIO()
    with ConsoleMonitor(Console(file=told, width=120)) as monitor:
        for total in (100.0, 2.0):
            monitor.begin(total, 0.0, 2)
            for name in ("one", "two"):
                monitor.stage(name, total / 2)
                monitor.done(total / 2, None)
    lines = [line for line in told.getvalue().splitlines() if "%" in line]
    assert lines
    assert max(int(line.split("]")[1].split("%")[0]) for line in lines) == 100
    assert sum("100%" in line for line in lines) == 2
