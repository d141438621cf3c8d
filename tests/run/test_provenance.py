"""Where results come from: the machine, and the commit of the source where it is known."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hydrometer.run.api import versions
from hydrometer.run.results import provenance as module


@pytest.fixture(autouse=True)
def _anew():
    module.commit.cache_clear()
    yield
    module.commit.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", "-C", folder, *named, *arguments], check=True, capture_output=True, text=True).stdout


def test_results_name_the_machine() -> None:
    said = versions()["machine"]
    assert " core" in said
    assert len(said.splitlines()) == 1


def test_the_commit_is_that_of_the_source_and_says_where_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src" / "hydrometer"
    source.mkdir(parents=True)
    (source / "_version.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(module, "_SOURCE", source)
    at = git(tmp_path, "rev-parse", "HEAD").strip()
    assert module.commit() == at[:12]
    (source / "_version.py").write_text("2")
    module.commit.cache_clear()
    assert module.commit() == f"{at[:12]}-dirty"


def test_a_repository_around_an_installation_is_not_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "_version.py").write_text("1")
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("x")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(module, "_SOURCE", tmp_path / "site")
    monkeypatch.setattr(module, "_installed", lambda: None)
    assert module.commit() is None
