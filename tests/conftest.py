from __future__ import annotations

import re
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly that the browser tests did not run; a quiet skip would be taken for a pass."""
    skipped = [str(r.longrepr) for r in terminalreporter.stats.get("skipped", [])]
    reasons = [m.group(0) for text in skipped if (m := re.search(r"NO BROWSER: [^'\"]*", text))]
    if reasons:
        terminalreporter.section("BROWSER TESTS DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(reasons)} tests of the page in a real browser: {reasons[0]}")
