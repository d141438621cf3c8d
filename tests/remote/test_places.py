import sys
from pathlib import Path

import pytest

from hydrometer.core.errors import FolderError, InputError, MissingDependencyError, UnreachableError
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import Url, asking, copies_bound, copies_home, filesystem, place_of


def test_local_places_stay_paths(tmp_path: Path) -> None:
    for text in ("runs/x", "/tmp/a b", "odd:name/x", "a//b", "s3", "."):
        assert place_of(text) == Path(text)
    assert place_of(tmp_path) == tmp_path
    assert place_of(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert place_of(f"file://localhost{tmp_path}") == tmp_path
    store = open_store(f"file://{tmp_path}/artifacts")
    assert type(store) is ArtifactStore
    assert store.root == tmp_path / "artifacts"


def test_urls_have_one_spelling() -> None:
    found = place_of("s3://bucket/a/b c/")
    assert found == Url("s3", "bucket", "a/b c")
    assert isinstance(found, Url)
    assert place_of(str(found)) == found
    assert str(found / "x") == "s3://bucket/a/b c/x"
    assert (str(found.parent), found.name) == ("s3://bucket/a", "b c")
    root = place_of("gs://some_bucket")
    assert isinstance(root, Url)
    assert (str(root), str(root / "x"), root.name) == ("gs://some_bucket", "gs://some_bucket/x", "some_bucket")
    assert copies_home(found) != copies_home(root)


@pytest.mark.parametrize(
    "text",
    [
        "s3://", "s3:///x", "s3://b", "s3://Bucket/x", "s3://buck..et/x", "s3://-bucket/x", "s3://bucket//x",
        "s3://bucket/x//", "s3://bucket/../x", "s3://bucket/x/..", "s3://bucket/./x", "s3://bucket/x\ny",
        "s3://bucket/x\0", "s3://bucket/a*b", "s3://bucket/[a]", "s3://bucket/a\\b", "s3://bucket/" + "x" * 900,
        "s3://bucket/a%2e%2e", "memory://x", "http://bucket/x", "az://bucket/x", "S3://bucket/x", "file://",
        "file://host/x", "file:///a%00b", "s3:/bucket/x", "gs:/bucket",
    ],
)  # fmt: skip
def test_what_is_no_place_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(FolderError) as refused:
        place_of(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["s3://AKIA:hush@bucket/x", "s3://bucket/x?token=hush", "gs://bucket/x#hush", "http://u:hush@h/x"]
)
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(FolderError, match="credentials") as refused:
        place_of(text)
    assert "hush" not in str(refused.value)


def test_a_path_that_was_a_url_is_told() -> None:
    with pytest.raises(FolderError, match="lost a slash"):
        place_of(Path("s3://bucket/run"))
    with pytest.raises(FolderError, match="lost a slash"):
        place_of(Path("memory://x"))


def test_secrets_in_a_librarys_words_are_left_out() -> None:
    with pytest.raises(Exception, match="does not answer") as failed, asking(Url("s3", "bucket", "x")):
        raise OSError(5, "no answer from https://u:hush@host/x?X-Amz-Signature=hush by http://u:p@hush@proxy:1")
    assert "hush" not in str(failed.value)


def test_who_we_are_is_told_from_whether_it_answers() -> None:
    """A session that has expired or a profile that there is not does not come back by waiting."""
    exceptions = pytest.importorskip("botocore.exceptions")
    for e in (exceptions.UnauthorizedSSOTokenError(), exceptions.ProfileNotFound(profile="x")):
        with pytest.raises(FolderError, match="check the credentials"), asking(Url("s3", "bucket", "x")):
            raise e
    with pytest.raises(UnreachableError), asking(Url("s3", "bucket", "x")):
        raise exceptions.EndpointConnectionError(endpoint_url="http://x")


def test_what_gcsfs_says_of_us_and_of_its_store() -> None:
    retry = pytest.importorskip("gcsfs.retry")
    for status in (401, 403):
        with pytest.raises(FolderError, match="check the credentials"), asking(Url("gs", "bucket", "x")):
            retry.validate_response(status, b'{"error": {"message": "no"}}', "b/bucket")
    with pytest.raises(UnreachableError), asking(Url("gs", "bucket", "x")):
        retry.validate_response(503, b"", "b/bucket")
    with pytest.raises(UnreachableError), asking(Url("gs", "bucket", "x")):
        raise retry.ChecksumError("md5")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(registry._registry, "gcs", raising=False)
    found = place_of("gs://bucket/x")
    assert isinstance(found, Url)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hydrometer\[gcs\]'"):
        filesystem(found)


def test_the_bound_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE_BYTES", "2 GB")
    with pytest.raises(InputError, match="HYDROMETER_CACHE_BYTES"):
        copies_bound()
