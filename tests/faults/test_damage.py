"""Files truncated, flipped, missing or replaced by garbage: what can be made again is, anything else is one line."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from faulty import World, artifacts, recover, run, same

KINDS = ("draw", "fit", "score", "judge", "show", "released", "map", "embed", "picture", "examine")
HOW = ("truncated", "flipped", "missing", "garbage")


def damage(file: Path, how: str, dice: random.Random) -> None:
    raw = bytearray(file.read_bytes())
    match how:
        case "truncated":
            file.write_bytes(raw[: dice.randrange(len(raw))])
        case "flipped":
            raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
            file.write_bytes(raw)
        case "missing":
            file.unlink()
        case _:
            file.write_bytes(dice.randbytes(max(len(raw), 8)))


def told(out: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted((out / "artifacts").glob("examine-*/findings.json"))]


@pytest.mark.parametrize("round_", [0, *(pytest.param(k, marks=pytest.mark.faults) for k in range(1, 9))])
def test_a_damaged_artifact_is_made_again_and_nothing_else(world: World, tmp_path: Path, observe, round_: int) -> None:
    dice = random.Random(f"artifacts {round_}")
    out = tmp_path / "out"
    shutil.copytree(world.undisturbed, out)
    expected = Counter[str]()
    for k, kind in enumerate(KINDS):
        folder = dice.choice(sorted((out / "artifacts").glob(f"{kind}-*")))
        file = dice.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
        damage(file, HOW[(round_ + k) % len(HOW)], dice)
        expected[kind] += kind != "examine"
    ended = run(world.spec, out)
    assert ended.code == 0, ended.err
    assert ended.computed == +expected
    assert artifacts(out) == artifacts(world.undisturbed)
    same(out, world.undisturbed)
    assert told(out) == told(world.undisturbed)
    for kind in expected:
        observe(f"{kind} artifact truncated, flipped, missing or garbage", "made again, it alone; records equal")


def test_an_altered_finding_is_never_told(world: World, tmp_path: Path, observe) -> None:
    out = tmp_path / "out"
    shutil.copytree(world.undisturbed, out)
    (file,) = (out / "artifacts").glob("examine-*/findings.json")
    whole = file.read_bytes()
    made_up = {"code": "made-up", "severity": "warning", "chain": None, "what": "a", "why": "b", "fix": "c"}
    file.write_text(json.dumps([*json.loads(whole), made_up]))  # JSON still, and a finding
    ended = run(world.spec, out)
    assert ended.code == 0, ended.err
    assert "made-up" not in ended.err
    assert file.read_bytes() == whole
    same(out, world.undisturbed)
    observe("examine artifact altered within its form", "made again, it alone; records equal")


@pytest.mark.parametrize("round_", [0, *(pytest.param(k, marks=pytest.mark.faults) for k in range(1, 5))])
def test_damaged_books_are_written_again(small: World, tmp_path: Path, observe, round_: int) -> None:
    dice = random.Random(f"books {round_}")
    out = tmp_path / "out"
    shutil.copytree(small.undisturbed, out)
    files = [*(out / "records").iterdir(), *(out / "exhibits").iterdir()]
    files += [out / "results.json", out / "results.csv", out / "specs" / "bases.json"]
    for k, file in enumerate(sorted(files)):
        damage(file, HOW[(round_ + k) % len(HOW)], dice)
    again = recover(small, out)
    assert again == 0
    observe("records, exhibits, results and bases.json damaged", "written again, equal", again=again)


@pytest.mark.parametrize(
    "how", ["truncated", "missing", *(pytest.param(h, marks=pytest.mark.faults) for h in ("flipped", "garbage"))]
)
def test_a_damaged_specification_is_refused_and_a_lost_one_written_again(
    small: World, tmp_path: Path, observe, how: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(small.undisturbed, out)
    (file,) = (out / "specs").glob("*.yaml")
    dice = random.Random(f"spec {how}")
    whole = file.read_bytes()
    for _ in range(20):
        damage(file, how, dice)
        if how == "missing" or file.read_bytes() != whole:
            break
    if how == "missing":
        again = recover(small, out)
        assert again == 0
        observe("accepted specification lost", "written again, records equal", again=again)
        return
    ended = run(small.spec, out)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert file.name in ended.line
    assert "restore or remove it" in ended.line
    file.unlink()  # as the line says
    again = recover(small, out)
    assert again == 0
    observe("accepted specification damaged", "refused in one line; goes on once removed", again=again)
