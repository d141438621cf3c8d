"""Files are written whole, through no link, and one folder keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hydrometer.core.errors import FolderError
from hydrometer.core.io import files
from hydrometer.core.io.files import cache_home, file_digest, mark, replacing, write_atomic
from hydrometer.store.storage_uri import copies_home, place_of


def test_one_cache_folder_is_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$HYDROMETER_CACHE before $XDG_CACHE_HOME before the home's own."""
    from hydrometer.run.cost.this_machine import device_folder

    url = place_of("s3://bucket/run")
    assert not isinstance(url, Path)
    for variable, value, expected in (
        ("HOME", tmp_path / "home", tmp_path / "home" / ".cache" / "hydrometer"),
        ("XDG_CACHE_HOME", tmp_path / "xdg", tmp_path / "xdg" / "hydrometer"),
        ("HYDROMETER_CACHE", tmp_path / "own", tmp_path / "own"),
    ):
        if variable == "HOME":
            monkeypatch.delenv("HYDROMETER_CACHE", raising=False)
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(variable, str(value))
        assert cache_home() == expected
        assert copies_home(url).parent == expected / "remote"
    assert device_folder() == tmp_path / "own" / "devices"


@pytest.mark.parametrize("data", ["text", b"bytes"])
def test_a_file_is_as_open_to_others_as_any(tmp_path: Path, data: str | bytes) -> None:
    write_atomic(tmp_path / "a", data)
    (tmp_path / "plain").write_bytes(data.encode() if isinstance(data, str) else data)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "plain")
    assert sorted(os.listdir(tmp_path)) == ["a", "plain"]


def test_a_link_laid_beforehand_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "00" * n)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f".a.{mark()}.00000000.tmp").symlink_to(precious)
    with pytest.raises(FolderError, match="refuses"):
        write_atomic(tmp_path / "a", "other")
    assert precious.read_text() == "mine"


def test_what_fails_halfway_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")

    def halfway() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halfway()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
