from __future__ import annotations

from pathlib import Path

import pytest

from migration.kept import KEPT, Kept, unpack


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.chdir(tmp_path)
    return unpack(request.param, tmp_path)
