"""A run folder's records: accepted specifications, one record per cell, exhibits, results.json and results.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import yaml

from hydrometer.core.errors import FolderError, SpecError, StoreError
from hydrometer.core.io.files import is_abandoned, write_atomic
from hydrometer.core.io.locking import hold
from hydrometer.core.io.os_errors import refused
from hydrometer.core.io.yaml_io import is_array, parse_yaml, read_json, read_plain
from hydrometer.store.artifacts import content_key
from hydrometer.store.migrate import migrate
from hydrometer.store.mirror import Mirror, read_object
from hydrometer.store.path_safety import refuse_links
from hydrometer.store.remote_lock import Lease, hold_remote
from hydrometer.store.run_status import PROGRESS, RunStatus
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["MAX_RESULTS_BYTES", "RunFolder", "load_results", "plain", "results_so_far"]

MAX_ACCEPTED_BYTES = 16_000_000
MAX_RESULTS_BYTES = 1_000_000_000
_PARTS = (
    "specs", "prompts", "truths", "records", "exhibits", "scores", "adopted", "artifacts", "figures", "models",
    "dashboards",
)  # fmt: skip
_CSV_CELL = ("id", "chain", "level", "role", "training", "parent", "prefix_source", "loss", "seed", "status")
_CSV_METRIC = ("value", "se", "se_mc", "n", "n_neg_inf", "method", "unit", "df")
_CSV_MORE = ("plain", "plain_se", "caution")
_CSV_GROUP = ("median", "q25", "q75", "two_peaks", "few_seeds")
_CSV_INTERVALS = ("ci95_low", "ci95_high", "mean_se", "mean_ci95_low", "mean_ci95_high")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain(value: object) -> Any:
    """JSON-able copy: infinity as "inf", tuples as lists, numpy numbers as Python's.

    Raises
    ------
    StoreError : NaN, which no record may hold.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in cast("list[object]", value)]
    if hasattr(value, "item"):
        value = cast("Any", value).item()
    if isinstance(value, float):
        if math.isnan(value):
            raise StoreError("a record may not hold NaN")
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
    return value


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    place : a folder or URL; refused if it is a file or holds something else; made by `create`.

    Attributes
    ----------
    root : the local folder that has the records; for a URL a mirror, which lives as long as this object.
    artifacts : where artifacts are, unless they have a place of their own.
    """

    def __init__(self, place: str | Path | Url) -> None:
        self.place = place_of(place)
        self.artifacts = self.place / "artifacts"
        self._mirror = Mirror(self.place) if isinstance(self.place, Url) else None
        self._lease: Lease | None = None
        self.root = root = self.place if isinstance(self.place, Path) else cast("Mirror", self._mirror).root
        try:
            refuse_links(root, _PARTS)
            is_file, is_filled = root.exists() and not root.is_dir(), root.is_dir() and any(root.iterdir())
        except OSError as e:  # no permission, or a name that is too long
            raise refused(e, root) from None
        if is_file:
            raise FolderError("the output path is a file", got=str(root), fix="choose another --out")
        if is_filled and not (root / "specs").is_dir():
            raise FolderError(
                "the output folder is not empty and holds no run", got=str(root), fix="choose an empty or new --out"
            )

    def create(self) -> None:
        """Make the folder and its parts; existing ones are left alone."""
        try:
            for part in ("specs", "prompts", "records", "exhibits"):
                (self.root / part).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise refused(e, self.root) from None

    def sweep(self) -> None:
        """Remove half-written files of killed processes. Only while holding the folder's lock."""
        for part in ("", "specs", "prompts", "truths", "records", "exhibits", "scores", "adopted", "figures"):
            for leftover in (self.root / part).glob(".*.tmp"):
                if is_abandoned(leftover.name):
                    with suppress(OSError):
                        leftover.unlink()

    @contextmanager
    def hold(self) -> Generator[None]:
        """Hold the folder's lock, with records up to date. Raises FolderError if another run holds it."""
        if self._mirror is None:
            with hold(self.root):
                yield
            return
        with hold_remote(self._mirror.url) as lease:
            self._lease = lease
            try:
                self._mirror.pull()
                self.create()
                yield
            finally:
                self._lease = None

    def push(self) -> None:
        """Send changes to where the folder is kept; a no-op for a local folder."""
        if self._mirror is not None:
            if self._lease is not None:
                self._lease.check()
            self._mirror.push()

    def tell(self, status: RunStatus) -> None:
        """Write progress.json."""
        write_atomic(self.root / PROGRESS, status.model_dump_json() + "\n")
        if self._mirror is not None:
            if self._lease is not None:
                self._lease.check()
            self._mirror.send(PROGRESS)

    def accepted(self) -> list[dict[str, Any]]:
        """Accepted specifications, in a fixed order."""
        out: list[dict[str, Any]] = []
        for path in sorted((self.root / "specs").glob("*.yaml")):
            try:
                raw = read_plain(path, MAX_ACCEPTED_BYTES)
                out.append(parse_yaml(raw, f"{path.name} in specs/", MAX_ACCEPTED_BYTES))
            except (OSError, SpecError) as e:
                why = e.said if isinstance(e, SpecError) else e
                raise FolderError(f"{path.name} in specs/ cannot be read: {why}", fix="restore or remove it") from None
            if content_key(plain(out[-1])) != path.stem:
                raise FolderError(
                    "a file in specs/ is not what it was when the run accepted it",
                    got=path.name,
                    fix="restore or remove it",
                )
        return out

    def accept(self, spec: Mapping[str, object]) -> None:
        """Keep an accepted specification under its hash.

        Raises
        ------
        SpecError : it is too large to be read again, defaults written out.
        """
        body = plain(spec)
        text: str = yaml.safe_dump(body, sort_keys=False)
        parse_yaml(text.encode(), "the specification, its defaults written out,", MAX_ACCEPTED_BYTES)
        write_atomic(self.root / "specs" / f"{content_key(body)}.yaml", text)

    def bases(self) -> list[Path]:
        """Folders that relative file names of the accepted specifications were read from, newest first."""
        try:
            value: object = read_json(self.root / "specs" / "bases.json", MAX_ACCEPTED_BYTES)
        except (OSError, ValueError):  # of another machine
            return []
        return [Path(v) for v in (value if is_array(value) else []) if isinstance(v, str) and "\0" not in v]

    def remember_base(self, base: Path) -> None:
        """Remember the folder that relative file names were read from."""
        old = self.bases()
        if old[:1] != [base]:
            kept = [str(b) for b in dict.fromkeys([base, *old])][:8]
            write_atomic(self.root / "specs" / "bases.json", json.dumps(kept) + "\n")

    def put(self, part: str, name: str, value: Mapping[str, object]) -> None:
        """Write a record or exhibit unless it already says the same."""
        path = self.root / part / f"{name}.json"
        raw = (json.dumps(plain(value), indent=1 if part == "records" else None) + "\n").encode()
        if _bytes(path) != raw:
            write_atomic(path, raw)

    def keep(self, part: str, name: str, raw: bytes) -> None:
        """Write a file below a part of the folder unless it already says the same."""
        try:
            (self.root / part).mkdir(exist_ok=True)
        except OSError as e:
            raise refused(e, self.root / part) from None
        if _bytes(self.root / part / name) != raw:
            write_atomic(self.root / part / name, raw)

    def write_results(self, results: Mapping[str, object]) -> None:
        """Write results.json, and results.csv with one metric a row."""
        body = plain(results)
        write_atomic(self.root / "results.json", json.dumps(body, indent=1) + "\n")
        write_atomic(self.root / "results.csv", _csv(body["cells"], body["summary"]["groups"]))
        self.push()


def _bytes(path: Path) -> bytes | None:
    try:
        return read_plain(path, MAX_RESULTS_BYTES)
    except OSError:  # an unreadable one is written again
        return None


def _field(value: object) -> object:
    """Return a field of the table; text that a spreadsheet would take for a formula begins with an apostrophe."""
    if isinstance(value, str) and value.startswith(_FORMULA) and value != "-inf":
        return f"'{value}"
    return value


def _csv(cells: list[dict[str, Any]], groups: dict[str, Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = (*_CSV_CELL, "selectivity", "decoding", "metric", *_CSV_METRIC)
    writer.writerow((*head, "point", "group", "seeds", "mean", *_CSV_GROUP, *_CSV_MORE, *_CSV_INTERVALS))
    for cell in cells:
        head = [cell[k] for k in _CSV_CELL] + [
            json.dumps(cell[k]) if cell[k] else "" for k in ("selectivity", "decoding")
        ]
        point = json.dumps(cell["point"]) if cell.get("point") else ""
        group = groups[cell["group"]]
        for name, metric in cell["metrics"].items():
            over = group["metrics"][name]
            row = (*head, name, *(metric.get(k) for k in _CSV_METRIC), point, cell["group"], group["seeds"])
            last = (over["value"], *(over[k] for k in _CSV_GROUP), *(metric.get(k) for k in _CSV_MORE))
            ends = (*(metric.get("ci95") or ("", "")), over["se"], *(over["ci95"] or ("", "")))
            writer.writerow([_field(v) for v in (*row, *last, *ends)])
    return out.getvalue()


class _NoResultsError(FolderError):
    """A folder without results.json."""


def results_so_far(folder: Path | str | Url) -> dict[str, Any]:
    """Read results.json as `load_results`; nothing where a run has not written it yet."""
    try:
        return load_results(folder)
    except _NoResultsError:
        return {}


def load_results(folder: Path | str | Url) -> dict[str, Any]:
    """Read a run's results.json, of any release, from a folder or a URL, in the present schema.

    Raises
    ------
    FolderError : no run there, or results of a newer release's schema.
    """
    place = place_of(folder) / "results.json"
    try:
        value: object = (
            read_json(place, MAX_RESULTS_BYTES)
            if isinstance(place, Path)
            else json.loads(read_object(place, MAX_RESULTS_BYTES))
        )
    except FileNotFoundError:
        raise _NoResultsError(
            "no results.json in the folder", got=str(folder), fix="give the folder of a run"
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise FolderError(f"results.json cannot be read: {e}", got=str(folder), fix="run it again") from None
    return migrate(value, str(place))
