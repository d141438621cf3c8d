from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_synthetic as synthetic

from hydrometer.report import build_report

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> {{ 7*7 }} "
    "abc\u202edef\u200bghi\x07\x1b[31m \ud800 http://example.com/x e" + "\u0301" * 12
)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of both chains."""
    return build_report([synthetic.demo(tmp_path_factory.mktemp("demo") / "run")])


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of one chain, every text of which is hostile."""
    run = synthetic.results(seeds=1, mixture=False)
    run["name"] = "run <b>bold</b> \u202e"
    run["versions"]["torch"] = "<script>alert(1)</script>"
    run["summary"]["chains"]["smollm2"]["truth"] = "truth <i>i</i> \u200f"
    run["cells"].append({**run["cells"][-1], "id": "../<u>x</u>", "status": "failed", "reason": "<b>boom</b>\u2066"})
    exhibits = synthetic.text_exhibits(run, HOSTILE)
    return synthetic.write(tmp_path_factory.mktemp("hostile") / "run", run, exhibits)


@pytest.fixture(scope="session")
def hostile(hostile_run: Path) -> Path:
    """The page of the hostile run."""
    return build_report([hostile_run])


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that the terminal summary tells about."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("NO BROWSER: no chromium, chromium-browser or google-chrome on the PATH")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("NO BROWSER: playwright is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=[*flags, "--disable-sync", "--no-first-run"])
        yield chromium
        chromium.close()
