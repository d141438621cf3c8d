"""Run the tests with the oldest, or the newest, direct dependencies that pyproject.toml allows.

    python scripts/versions.py oldest                      the whole suite
    python scripts/versions.py newest -- tests/causal_lm   a part of it; arguments after -- go to pytest
    python scripts/versions.py oldest --extras= -- tests/mixture tests/markov
                                                           the base installation, without torch

The environment is created in --where (default build/versions/WHICH, some 3 GB with torch) and kept there; --make-only
stops after that. `oldest` pins every direct dependency of the base and of --extras at its lower bound and leaves
transitive dependencies to pip; `newest` pins nothing. torch is the release TORCH in both, since every other one is a
download of gigabytes; so its lower bound is not tested. The tools that tests need are the newest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
# What tests import besides the package; of the extra `dev`.
TOOLS = ("hatchling", "hypothesis", "jsonschema", "pytest", "pytest-timeout", "pytest-xdist", "scikit-learn", "zuko")
# Examples need TRL and Jupyter, which hold versions of their own.
EVERYTHING = ("-m", "not engines and not faults", "tests", "src", "--ignore=tests/examples")


def project() -> dict[str, object]:
    """Return pyproject.toml's table [project]."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def direct(extras: list[str]) -> list[Requirement]:
    """Return the requirements of the base and of some extras."""
    table = project()
    optional: dict[str, list[str]] = table["optional-dependencies"]  # type: ignore[assignment]
    unknown = [e for e in extras if e not in optional]
    if unknown:
        raise SystemExit(f"versions: no such extra; got {unknown[0]!r}; there are {', '.join(optional)}")
    lines = [*table["dependencies"], *(r for e in extras for r in optional[e])]  # type: ignore[misc]
    return [Requirement(r) for r in lines]


def lower_bound(requirement: Requirement) -> str:
    """Return the oldest release that a requirement allows. Every direct dependency states one."""
    bounds = [s.version for s in requirement.specifier if s.operator == ">="]
    if len(bounds) != 1:
        raise SystemExit(f"versions: a dependency needs one lower bound; got {str(requirement)!r}")
    return bounds[0]


def constraints(which: str, extras: list[str]) -> list[str]:
    """Return pip's constraints: nothing but torch, or every direct dependency at its lower bound."""
    held = [TORCH]
    if which == "oldest":
        held += [f"{r.name}=={lower_bound(r)}" for r in direct(extras) if r.name != "torch"]
    return held


def make(which: str, extras: list[str], where: Path, python: str) -> Path:
    """Make the environment, or bring it up to date; return its interpreter."""
    where.mkdir(parents=True, exist_ok=True)
    held = where / "constraints.txt"
    held.write_text("\n".join(constraints(which, extras)) + "\n", "utf-8")
    inside = where / "venv" / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", str(where / "venv")], check=True)
    pip = [str(inside), "-m", "pip", "install", "--quiet"]
    if "lm" in extras:  # first and alone, so that nothing pulls another build of it
        subprocess.run([*pip, TORCH], check=True)
    tools = [r for r in direct(["dev"]) if r.name in TOOLS]
    package = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    # Upgraded, or an environment that was made before would keep what was newest then.
    subprocess.run([*pip, "--upgrade", "-c", str(held), "-e", package, *map(str, tools)], check=True)
    return inside


def installed(python: Path, extras: list[str]) -> dict[str, str]:
    """Return the versions that the environment has of the direct dependencies."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    ).stdout
    found = {p["name"].lower().replace("_", "-"): p["version"] for p in json.loads(listed)}
    return {r.name: found.get(r.name.lower(), "absent") for r in direct(extras)}


def main() -> int:
    """Make the environment, say what is in it, run the tests; the exit status is pytest's."""
    own, _, rest = [*sys.argv[1:], "--"], None, list[str]()
    split = own.index("--")
    own, rest = own[:split], own[split + 1 : -1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("oldest", "newest"))
    parser.add_argument("--extras", default="lm,peft,umap", help="separated by commas; empty: the base alone")
    parser.add_argument("--where", type=Path, help="where the environment goes")
    parser.add_argument("--python", default=sys.executable, help="interpreter to make it with")
    parser.add_argument("--make-only", action="store_true", help="run no tests")
    given = parser.parse_args(own)
    extras = [e for e in given.extras.split(",") if e]
    where: Path = given.where or ROOT / "build" / "versions" / given.which
    python = make(given.which, extras, where.absolute(), given.python)
    print(" ".join(f"{k}=={v}" for k, v in installed(python, extras).items()), flush=True)
    if given.make_only:
        return 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # A cache of compiled kernels is of one numba alone.
    environment["NUMBA_CACHE_DIR"] = str(where.absolute() / "numba")
    # Old releases warn of what newer ones they depend on have deprecated; that is theirs.
    quiet = ["-o", "filterwarnings=default"] if given.which == "oldest" else []
    argv = [str(python), "-m", "pytest", "-q", *quiet, *(rest or EVERYTHING)]
    return subprocess.run(argv, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
