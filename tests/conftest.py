from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import site
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A kernel's first call takes seconds, so no example has a deadline. HYPOTHESIS_PROFILE=thorough before a release.
settings.register_profile("fast", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

# Without a card Triton's kernels run in its interpreter; it reads this when it is first imported, by torch for one.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Long campaigns: `make test` runs what is marked smoke of these folders, `make test-all` every test of them. The family
# from outside keeps its place in `tests/test_contract.py`.
CAMPAIGNS = {"examples", "faults", "hostile", "migration", "outside_family", "ray", "remote"}

OUTSIDE = Path(__file__).parent / "outside_family"


def pytest_configure(config: Any) -> None:
    """Install the family from outside for this process, as ``pip install -e`` does: its editable wheel, unpacked.

    Before collection, since the contract tests are over all installed families. The environment stays as it is.
    """
    from hatchling.build import build_editable

    folder = tempfile.mkdtemp(prefix="hydrometer-outside-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    with contextlib.chdir(OUTSIDE):
        wheel = build_editable(folder)
    with zipfile.ZipFile(Path(folder) / wheel) as archive:
        archive.extractall(folder)
    before = list(sys.path)
    site.addsitedir(folder)  # reads the wheel's .pth
    added = [p for p in sys.path if p not in before]
    config.add_cleanup(lambda: [sys.path.remove(p) for p in added if p in sys.path])


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in CAMPAIGNS and not item.get_closest_marker("smoke"):
            item.add_marker(pytest.mark.campaign)


@pytest.fixture(autouse=True, scope="session")
def _figures_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs of the tests take is not what this machine's owner wants to plan with."""
    from hydrometer.run.cost import this_machine

    own, folder = this_machine.device_folder, tmp_path_factory.mktemp("devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(this_machine, "device_folder", lambda: own() if "HYDROMETER_CACHE" in os.environ else folder)
        yield


@pytest.fixture(autouse=True)
def _probes_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's doctor found by drawing is not another's, nor this machine's owner's."""
    from hydrometer.run.preflight import diagnosis

    folder = tmp_path_factory.getbasetemp() / f"examined-{secrets.token_hex(4)}"
    monkeypatch.setattr(diagnosis, "examined_folder", lambda: folder)


@pytest.fixture(autouse=True)
def _one_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is not of pages, their pictures are files of one format instead of three: two fifths of the time."""
    if request.path.parent.name not in {"report", "examples"} and request.path.stem != "test_picture":
        monkeypatch.setattr("hydrometer.report.figures.chain_figures.FORMATS", ("svg",))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly which tests did not run for want of something here; a quiet skip would be taken for a pass."""
    skipped = [str(r.longrepr) for r in terminalreporter.stats.get("skipped", [])]
    for lack, of in (("NO BROWSER", "of the page in a real browser"), ("NO CARD", "of what runs on a CUDA card")):
        reasons = [m.group(0) for text in skipped if (m := re.search(lack + r": [^'\"]*", text))]
        if reasons:
            terminalreporter.section(f"TESTS DID NOT RUN: {lack}", sep="!", red=True, bold=True)
            terminalreporter.line(f"{len(reasons)} tests {of}: {reasons[0]}")
