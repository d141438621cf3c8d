"""Run a specification and keep the run's folder as a fixture for tests that read this release's output.

    python scripts/keep_run.py schema1-choices SPEC.yaml

writes tests/migration/schema1-choices/: `spec.yaml`, `made.json` (the code version) and `run.tar.gz`, which holds the
run's folder as `run/` and, if it exists beside SPEC.yaml, the model folder `model/`. Derived files are left out:
records, report, charts, and the stages that `exhibits/` are copied from. To use an older release, set PYTHONPATH to
its sources.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import hydrometer
from hydrometer.run.api import run
from hydrometer.stages.nodes import VERSIONS

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 100_000
LEFT_OUT = ("records", "figures", "report.html", ".lock", "artifacts/show-", "specs/bases.json")


def kept(folder: Path) -> list[Path]:
    """Return the files of a run's folder that are kept."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p for p in files if not p.relative_to(folder).as_posix().startswith(LEFT_OUT)]


def archive(named: dict[str, Path]) -> bytes:
    """Pack files by their names; equal content gives equal bytes."""
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, path in sorted(named.items()):
            data = path.read_bytes()
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def commit() -> str:
    """Return the commit of the code that runs, or nothing where it is no checkout."""
    source = Path(hydrometer.__file__).parent
    found = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def main() -> int:
    """Run, pack, write."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    name, spec = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        result = run(spec, out=folder)
        named = {f"run/{p.relative_to(folder).as_posix()}": p for p in kept(folder)}
        model = spec.parent / "model"
        if model.is_dir():
            named |= {f"model/{p.relative_to(model).as_posix()}": p for p in model.rglob("*") if p.is_file()}
        data = archive(named)
    if len(data) > LARGEST:
        print(f"keep_run: a fixture is small; got {len(data)} bytes; fewer seeds, rows or settings", file=sys.stderr)
        return 1
    home = ROOT / "tests" / "migration" / name
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(spec, home / "spec.yaml")
    (home / "run.tar.gz").write_bytes(data)
    made = {
        "hydrometer": hydrometer.__version__,
        "commit": commit(),
        "schema": result.results["schema"],
        "stages": VERSIONS,
    }
    (home / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"{home.relative_to(ROOT)}: {len(data)} bytes, {len(named)} files, {len(result.results['cells'])} cells")
    return 0


if __name__ == "__main__":
    sys.exit(main())
