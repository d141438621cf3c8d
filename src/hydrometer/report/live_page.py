"""The page while its runs go on: written again and again, and at last without what renews it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hydrometer.core.watching import doing
from hydrometer.report.page import LIVE, build_report
from hydrometer.store.records import results_so_far
from hydrometer.store.run_status import read_status
from hydrometer.store.storage_uri import Url

__all__ = ["build_live_report"]

_SHARE = 4.0  # times what the last page took: most of the time nothing is drawn


def build_live_report(runs: Sequence[str], *, out: str | None = None) -> Path | Url:
    """Write the page of runs until the last of them has ended; return it. As `build_report`."""
    shown: list[object] = []
    try:
        while any((s := read_status(r)) is not None and s.goes_on(time.time()) for r in runs):
            began = time.monotonic()
            if all(found := [results_so_far(r) for r in runs]) and found != shown:
                build_report(runs, out=out, live=True)
                shown = list(found)
            doing("waiting for figures")
            time.sleep(max(LIVE, _SHARE * (time.monotonic() - began)))
    finally:
        page = build_report(runs, out=out)
    return page
