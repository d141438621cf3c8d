import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import validate

import hydrometer as hm
from chains import without_timings
from elsewhere_world import World, contents
from hydrometer.core.errors import InputError

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
COLD = "lm.student.distilled-temperature0.6.adopted-trl"
DIRECT = "lm.student.direct.adopted-trl"


def native(run: Path) -> tuple[Path, dict[str, Any]]:
    """The artifact of the run's own student distilled at 0.6, seed 0, and its cell."""
    cell = next(c for c in hm.load_results(run)["cells"] if c["id"] == "lm.student.distilled-temperature0.6.seed0")
    for folder in (run / "artifacts").glob("judge-*"):
        metrics = json.loads((folder / "metrics.json").read_text())
        if metrics["recall"]["value"] == cell["metrics"]["recall"]["value"]:
            inputs = json.loads((folder / "meta.json").read_text())["inputs"]
            fit = next(run / "artifacts" / f"fit-{k}" for k in inputs if (run / "artifacts" / f"fit-{k}").is_dir())
            return fit, cell
    raise AssertionError("not found")


@pytest.fixture(scope="module")
def adopted(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run with four adopted models: its own cold student again, one of seed 1, and two direct ones."""
    folder = world.copy(tmp_path_factory.mktemp("adopted"))
    own, _ = native(folder)
    hm.adopt(folder, model=own, name="trl", selectivity="temperature=0.6", seed=0)
    hm.adopt(folder, model=world.checkpoints["one-1"], name="trl", selectivity="temperature=0.6", seed=1)
    for seed in (0, 1):
        done = hm.adopt(folder, model=world.checkpoints[f"one-{seed}"], name="trl", training="direct", seed=seed)
        assert not done.known
        assert done.cells == (f"{DIRECT}.seed{seed}", f"{DIRECT}.decoded-temperature0.6.seed{seed}")
    return folder, done.run.results


def test_the_runs_own_student_adopted_has_its_own_recall(world: World, adopted: Any) -> None:
    """Same weights, same rows of the truth: equal to the last bit. Its own rows are others, so precision is near."""
    cells = {c["id"]: c for c in adopted[1]["cells"]}
    _, own = native(world.run)
    back = cells[f"{COLD}.seed0"]
    for metric in ("recall", "kl_truth_student", "entropy_truth", "entropy_teacher"):
        assert back["metrics"][metric] == own["metrics"][metric]
    a, b = back["metrics"]["precision"], own["metrics"]["precision"]
    assert a["value"] != b["value"]
    assert abs(a["value"] - b["value"]) < 5 * np.hypot(a["se"], b["se"])
    for key in ("training", "selectivity", "seed", "level", "role", "parent", "prefix_source"):
        assert back[key] == own[key], key
    assert back["origin"]["adopted"] == "trl"
    assert len(back["origin"]["weights"]["sha256"]) == 64
    assert "origin" not in own


def test_what_the_run_had_is_as_it_was_and_the_schema_holds(world: World, adopted: Any) -> None:
    validate(adopted[1], SCHEMA)
    before = {c["id"]: c["metrics"] for c in hm.load_results(world.run)["cells"]}
    after = {c["id"]: c["metrics"] for c in adopted[1]["cells"]}
    assert {k: after[k] for k in before} == before
    old, new = (r["summary"]["chains"]["lm"] for r in (hm.load_results(world.run), adopted[1]))
    assert {k: v for k, v in new.items() if k != "adopted"} == old


def test_contrasts_are_paired_over_seeds_with_natives_and_with_their_own(adopted: Any) -> None:
    table = {(c["a"], c["b"], c["metric"]): c for c in adopted[1]["contrasts"]}
    entry = next(e for e in adopted[1]["summary"]["chains"]["lm"]["adopted"] if e["group"] == COLD)
    cells = {c["id"]: c["metrics"]["recall"]["value"] for c in adopted[1]["cells"]}
    for key, other in {
        "vs_direct": "lm.student.direct", "vs_neutral": "lm.student.distilled-temperature1.0",
        "vs_native": "lm.student.distilled-temperature0.6", "vs_own_direct": DIRECT,
        "same_setting": "lm.student.direct.decoded-temperature0.6",
    }.items():  # fmt: skip
        found = table[COLD, other, "recall"]
        assert entry[key]["recall"] == found
        assert found["pairing"] == "row"
        mean = np.mean([cells[f"{COLD}.seed{s}"] - cells[f"{other}.seed{s}"] for s in (0, 1)])
        assert found["value"] == pytest.approx(mean)
    assert (f"{DIRECT}.decoded-temperature0.6", "lm.student.direct", "precision") in table
    assert adopted[1]["summary"]["groups"][COLD]["seeds"] == 2


def test_page_and_csv_have_them(adopted: Any) -> None:
    page = hm.build_report([adopted[0]]).read_text()
    assert "trl (adopted), distilled at temperature 0.6" in page
    assert "trained elsewhere, adopted" in page
    from hydrometer.report.wording import signed
    from hydrometer.report.words.verdict import verdict

    said = [
        s for s in verdict(adopted[1])["lm"] if s.startswith("trl, distilled at temperature 0.6, minus the run’s own")
    ]
    assert len(said) == 1
    entry = next(e for e in adopted[1]["summary"]["chains"]["lm"]["adopted"] if e["group"] == COLD)
    native_recall = entry["vs_native"]["recall"]
    assert f"recall {signed(native_recall['value'], native_recall['se'])}" in said[0]
    assert f"{COLD}.seed1" in (adopted[0] / "results.csv").read_text()


def test_a_second_run_keeps_them_and_an_extension_too(world: World, adopted: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(adopted[0], folder)
    shutil.rmtree(folder / "records")
    again = hm.run(world.run.parent / "spec.yaml", out=folder)
    assert not again.outcome.computed
    assert without_timings(again.results) == without_timings(adopted[1])


def test_adopting_twice_is_once(world: World, adopted: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(adopted[0], folder)
    moved = tmp_path / "elsewhere"  # the same weights in another place
    shutil.copytree(world.checkpoints["one-1"], moved)
    before = contents(folder)
    done = hm.adopt(folder, model=moved, name="trl", selectivity="temperature=0.6", seed=1)
    assert done.known
    assert not done.run.outcome.computed
    assert contents(folder) == before


def test_the_folder_needs_the_checkpoint_no_more(world: World, tmp_path: Path) -> None:
    folder, checkpoint = world.copy(tmp_path), tmp_path / "checkpoint"
    shutil.copytree(world.checkpoints["one-0"], checkpoint)
    first = hm.adopt(folder, model=checkpoint, name="x", training="direct").run.results
    shutil.rmtree(checkpoint)
    for part in (folder / "artifacts").glob("judge-*"):
        shutil.rmtree(part)
    assert without_timings(hm.run(world.run.parent / "spec.yaml", out=folder).results) == without_timings(first)
    weights = next(
        p
        for p in (folder / "artifacts").glob("fit-*")
        if "adopted" in json.loads((p / "meta.json").read_text())["info"]
    )
    shutil.rmtree(weights)
    for part in (folder / "artifacts").glob("judge-*"):
        shutil.rmtree(part)
    lost = hm.run(world.run.parent / "spec.yaml", out=folder)
    assert [c for c in lost.failed_cells if "adopted-x" in c] == lost.failed_cells != []
    failed = next(c for c in lost.results["cells"] if c["id"] == lost.failed_cells[0])
    assert "adopt it again" in failed["reason"]


@pytest.mark.campaign
def test_a_run_that_only_drew_takes_in_models_without_training_its_own(world: World, tmp_path: Path) -> None:
    folder = hm.run(world.run.parent / "spec.yaml", out=tmp_path / "run", until="draw").folder
    fits = len(list((folder / "artifacts").glob("fit-*")))
    done = hm.adopt(folder, model=world.checkpoints["one-0"], name="trl", selectivity="temperature=0.6")
    assert len(list((folder / "artifacts").glob("fit-*"))) == fits + 1
    cells = {c["id"]: c for c in done.run.results["cells"]}
    assert set(cells) == {"lm.truth", "lm.teacher", "lm.teacher.decoded-temperature0.6", f"{COLD}.seed0"}
    hm.build_report([folder])
    hm.adopt(folder, model=world.checkpoints["one-1"], name="trl", training="direct")
    whole = hm.run(world.run.parent / "spec.yaml", out=folder)
    assert whole.results["summary"]["chains"]["lm"]["direct_group"] == "lm.student.direct"
    after = {c["id"]: c["metrics"] for c in whole.results["cells"]}
    assert after[f"{COLD}.seed0"] == cells[f"{COLD}.seed0"]["metrics"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another vocabulary": ({"model": "narrow"}, "vocabulary is not the truth's"),
    "nothing there": ({"model": "nowhere"}, "no such model"),
    "a file": ({"model": "file"}, "GGUF"),
    "a NUL": ({"model": "a\0b"}, "no such model"),
    "a pickle": ({"model": "pickle"}, "never loaded"),
    "no tokenizer": ({"model": "bare"}, "holds no tokenizer"),
    "not finite": ({"model": "nan"}, "NaN or infinity"),
    "torn weights": ({"model": "torn"}, "is not sound"),
    "a path for a name": ({"name": "../x"}, "name"),
    "unknown selectivity": ({"selectivity": "temperature=0.7"}, "it has temperature=1.0; temperature=0.6"),
    "no selectivity": ({"selectivity": None}, "--training direct"),
    "direct with a selectivity": ({"training": "direct"}, "no selectivity"),
    "seed below 0": ({"seed": -1}, "seed"),
    "unknown chain": ({"chain": "ln"}, "did you mean 'lm'"),
    "taken": ({"name": "taken"}, "other weights have this name"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad_models(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    home = tmp_path_factory.mktemp("bad")
    good = world.checkpoints["one-0"]
    for name in ("pickle", "bare", "nan", "torn"):
        shutil.copytree(good, home / name)
    shutil.copytree(world.checkpoints["narrow"], home / "narrow")
    (home / "pickle" / "model.safetensors").rename(home / "pickle" / "pytorch_model.bin")
    for f in (home / "bare").glob("tokenizer*"):
        f.unlink()
    weights = load_file(home / "nan" / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, home / "nan" / "model.safetensors", metadata={"format": "pt"})
    (home / "torn" / "model.safetensors").write_bytes(b"\x00" * 100)
    (home / "file").write_text("x")
    return home


@pytest.fixture(scope="module")
def target(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = world.copy(tmp_path_factory.mktemp("target"))
    hm.adopt(folder, model=world.checkpoints["one-1"], name="taken", selectivity="temperature=0.6")
    return folder


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_adopted_is_one_line_and_changes_nothing(
    world: World, bad_models: Path, target: Path, what: str
) -> None:
    before = contents(target)
    change, says = BAD[what]
    options = {"model": str(world.checkpoints["one-0"]), "name": "x", "selectivity": "temperature=0.6"} | change
    if "model" in change and "\0" not in change["model"]:
        options["model"] = str(bad_models / change["model"])
    with pytest.raises(InputError, match=says) as caught:
        hm.adopt(target, **options)
    assert "\n" not in str(caught.value)
    assert contents(target) == before


@pytest.mark.parametrize("body", ["- a", "chain: lm", "a: !!python/object/apply:os.system ['touch hacked']", "{"])
def test_an_entry_that_is_none_is_one_line(world: World, target: Path, tmp_path: Path, body: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(target, folder)
    (folder / "adopted" / "x.yaml").write_text(body)
    with pytest.raises(InputError, match="adopt") as caught:
        hm.run(world.run.parent / "spec.yaml", out=folder)
    assert "\n" not in str(caught.value)
    assert not Path("hacked").exists()


def test_figures_of_another_machine_are_not_thrown_away(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrometer.models.causal_lm.family import CAUSAL_LM, CausalLMFamily

    folder = world.copy(tmp_path)
    own = CAUSAL_LM.numerics
    monkeypatch.setattr(CausalLMFamily, "numerics", lambda self, chain: {**own(chain), "cpu": "another"})
    before = contents(folder)
    with pytest.raises(InputError, match="versions, threads and processor"):
        hm.adopt(folder, model=world.checkpoints["one-0"], name="x", training="direct")
    assert contents(folder) == before


def test_a_plan_counts_what_was_adopted(world: World, adopted: Any) -> None:
    spec = world.run.parent / "spec.yaml"
    before, after = (hm.plan(spec, out=folder, device="h100").total for folder in (world.run, adopted[0]))
    assert before["done"] == before["stages"] < after["stages"] == after["done"]
