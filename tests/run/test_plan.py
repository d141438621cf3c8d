"""The verb `plan`: counts against torch's own, bytes against a run's, done against a folder's, and bad input."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import complaints, lm_spec, mixture_spec, write_spec
from hydrometer.core.errors import DataError, FitError, InputError, SpecError
from hydrometer.models.markov.family import MARKOV
from hydrometer.models.work import Device, Part
from hydrometer.run.cost import cost_plan
from hydrometer.run.cost.cost_plan import PROFILES, load_device
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.graph.plan import plan_run

torch = pytest.importorskip("torch")

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(source: Path, **chain: Any) -> dict[str, Any]:
    spec = lm_spec(source)
    spec["chains"]["lm"] |= {"threads": 1, **chain}
    return spec


def described(name: str = "nobody/nothing") -> dict[str, Any]:
    """A chain whose truth is nowhere, of the shape of the tiny Llama."""
    spec = lm_spec(Path(name))
    spec["chains"]["lm"]["truth"]["source"] = name
    spec["chains"]["lm"]["truth"]["prompts"] = "w3 w4"
    spec["chains"]["lm"]["truth"]["architecture"] = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    return spec


def rows_of(found: hm.CostPlan, stage: str) -> list[cost_plan.StageCost]:
    return [s for s in found.stages if s.stage == stage]


def test_half_a_folder_counts_as_done_and_bytes_are_those_of_a_run(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    path = write_spec(tiny(tiny_models["llama"]), tmp_path)
    before = hm.plan(path, out=tmp_path / "out", device="h100")
    assert before.total["done"] == 0
    assert before.total["stages"] == len(plan_run(hm.load_spec(path)).nodes)

    hm.run(path, out=tmp_path / "out", until="draw")
    drawn = hm.plan(path, out=tmp_path / "out", device="h100")
    artifacts = tmp_path / "out" / "artifacts"
    there = [f for f in artifacts.iterdir() if f.name.split("-")[0] in ("draw", "fit", "score", "judge", "show")]
    assert drawn.total["done"] == len(there) > 0
    assert 0 < drawn.total["hours"] < before.total["hours"]

    hm.run(path, out=tmp_path / "out")
    after = hm.plan(path, out=tmp_path / "out", device="h100")
    assert after.total["done"] == after.total["stages"] == before.total["stages"]
    assert after.total["hours"] == after.total["disk"] == 0
    for stage in ("draw", "fit", "score", "judge"):
        written = sum(f.stat().st_size for folder in artifacts.glob(f"{stage}-*") for f in folder.rglob("*"))
        said = sum(s.disk for s in rows_of(before, stage))
        assert 0.5 * written < said < 2 * written, stage


def test_costs_add_up_over_seeds_blocks_and_settings(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    spec = tiny(tiny_models["llama"], resample=["data", "teacher", "distill", "student", "evaluate"])

    def planned(seeds: int) -> hm.CostPlan:
        return hm.plan(write_spec(spec | {"seeds": seeds}, tmp_path), device="h100")

    one, three = planned(1), planned(3)
    for stage in ("draw", "fit", "score", "judge"):
        for a, b in zip(rows_of(one, stage), rows_of(three, stage), strict=True):
            assert (a.role, 3 * a.stages) == (b.role, b.stages)
            for name in ("tokens", "flops", "disk", "hours", "hours_most"):
                assert getattr(b, name) == pytest.approx(3 * getattr(a, name)), (stage, name)
    assert one.total["hours"] == pytest.approx(sum(s.hours or 0 for s in one.stages))
    assert hm.plan(write_spec(spec, tmp_path), device=load_device("h100").model_copy(update={"count": 4})).total[
        "hours"
    ] == pytest.approx(planned(spec["seeds"]).total["hours"] / 4)


def test_a_plan_is_coarse_until_something_is_known_and_then_says_from_where(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_spec(tiny(tiny_models["llama"]), tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("opened, drawn from or timed")

    with monkeypatch.context() as patch:
        patch.setattr("hydrometer.models.causal_lm.loading.load.read_weights", refuse)
        patch.setattr("hydrometer.models.causal_lm.cost.timing.measure", refuse)
        coarse = hm.plan(path, out=tmp_path / "out")
    dear = [s for s in coarse.stages if s.stage in ("start", "examine", "open", "draw", "fit", "score")]
    assert {s.source for s in dear} == {"coarse"}
    assert all(s.hours and s.hours_most for s in dear)
    assert coarse.lengths["lm"].mean == coarse.lengths["lm"].most
    assert coarse.total["hours_least"] < coarse.total["hours"] < coarse.total["hours_worst"]
    assert any("are coarse" in line for line in coarse.notes)

    said: list[str] = []
    measured = hm.plan(path, out=tmp_path / "out", measure=True, say=said.append)
    assert any("at the chain's shapes" in line for line in said)
    assert {s.source for s in measured.stages if s.stage in ("start", "open", "draw", "fit", "score")} == {"measured"}
    assert "answers of the truth" in measured.lengths["lm"].source
    assert measured.total["hours_least"] == pytest.approx(measured.total["hours"])

    with monkeypatch.context() as patch:
        patch.setattr("hydrometer.models.causal_lm.cost.timing.measure", refuse)
        again = hm.plan(path, out=tmp_path / "out")
    assert again.total["hours"] == pytest.approx(measured.total["hours"])
    assert again.lengths["lm"].mean == measured.lengths["lm"].mean
    for name in ("stages", "tokens", "flops", "disk"):
        assert again.total[name] == measured.total[name]  # seconds alone are better known


def test_an_accelerator_is_measured_at_the_chains_shapes_without_being_asked(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor stands for a card: rates that name a memory of its own are an accelerator's."""
    from hydrometer.models.causal_lm.cost import timing
    from hydrometer.models.causal_lm.cost_model import CostModel

    path, machine = write_spec(tiny(tiny_models["llama"]), tmp_path), CostModel.machine
    monkeypatch.setattr(CostModel, "machine", lambda self, chain: {**machine(self, chain), "memory": 8e10})

    def refusing(problem: Exception) -> Any:
        def refuse(*_: object) -> dict[str, float]:
            raise problem

        return refuse

    for problem in (FitError("the fit failed: out of memory"), InputError("the chain's models are too large")):
        with monkeypatch.context() as patch:
            patch.setattr(timing, "measure", refusing(problem))
            coarse = hm.plan(path, out=tmp_path / "out")
        assert {s.source for s in coarse.stages if s.stage in ("draw", "fit", "score")} == {"coarse"}
    assert any("lm: not measured on this card: the chain's models are too large" in line for line in coarse.notes)
    first = hm.plan(path, out=tmp_path / "out")
    assert {s.source for s in first.stages if s.stage in ("open", "draw", "fit", "score")} == {"measured"}
    kept = machine_file(tmp_path / "cache").read_text()
    again = hm.plan(path, out=tmp_path / "out")
    assert again.total["hours"] == first.total["hours"]
    assert machine_file(tmp_path / "cache").read_text() == kept  # measured once


def machine_file(cache: Path) -> Path:
    [file] = [f for f in (cache / "devices").iterdir() if f.name != "lengths.json"]
    return file


def test_the_file_of_this_machine_can_be_changed_and_says_what_speaks_against_a_figure(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    path = write_spec(tiny(tiny_models["llama"]), tmp_path)
    first = hm.plan(path, out=tmp_path / "out", measure=True)
    file = machine_file(tmp_path / "cache")
    body = json.loads(file.read_text())
    assert {f["how"] for f in body["figures"].values()} == {"measured"}
    for figure in body["figures"].values():
        figure |= {"seconds": 2 * figure["seconds"], "date": "2001-02-03", "load": 1000.0, "versions": "torch 0.1"}
    file.write_text(json.dumps(body))
    second = hm.plan(path, out=tmp_path / "out")
    assert second.total["hours"] == pytest.approx(2 * first.total["hours"])
    [told] = [line for line in second.notes if "were measured here" in line]
    for word in ("2001-02-03", "days old", "load of up to 1000.0", "other versions (torch 0.1"):
        assert word in told
        assert not any(word in line for line in first.notes)
    elsewhere = hm.plan(path, out=tmp_path / "out", device=str(file))
    assert elsewhere.total["hours"] == pytest.approx(second.total["hours"])
    assert {s.source for s in elsewhere.stages if s.stage == "draw"} == {"device"}

    file.write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        hm.plan(path, out=tmp_path / "out")


def test_a_run_leaves_what_it_took(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    path = write_spec(tiny(tiny_models["llama"]), tmp_path)
    hm.run(path, out=tmp_path / "out")
    artifacts = tmp_path / "out" / "artifacts"
    took: dict[str, float] = {}
    tokens = rows = 0
    for meta in (json.loads(f.read_text()) for f in artifacts.glob("*/meta.json")):
        took[meta["stage"]] = took.get(meta["stage"], 0.0) + meta["seconds"]
    planned = hm.plan(path, out=tmp_path / "elsewhere")
    said = {k: sum(3600 * (s.hours or 0.0) for s in rows_of(planned, k)) for k in ("draw", "fit", "score")}
    assert {s.source for s in planned.stages if s.stage in said} == {"run"}
    assert sum(said.values()) == pytest.approx(sum(took[k] for k in said), rel=0.05)
    assert any("earlier runs" in line for line in planned.notes)

    for f in artifacts.glob("draw-*/meta.json"):
        node = plan_run(hm.load_spec(path)).nodes[f.parent.name.removeprefix("draw-")]
        if getattr(node, "law").kind == "truth":  # noqa: B009
            rows, tokens = (n + json.loads(f.read_text())["info"][k] for n, k in ((rows, "rows"), (tokens, "tokens")))
    assert planned.lengths["lm"].mean == pytest.approx(tokens / rows)


def test_a_run_whose_seconds_cannot_be_kept_is_a_run(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "file"))
    found: list[str] = []

    class Watch(SilentMonitor):
        def found(self, findings: Any) -> None:
            found.extend(f.code for f in findings)

    result = hm.run(write_spec(mixture_spec(), tmp_path), out=tmp_path / "out", monitor=Watch())
    assert result.failed_cells == []
    assert "seconds-not-kept" in found


def test_only_this_machine_is_measured(command: Any) -> None:
    code, _, err = command("plan", "markov", "--device", "h100", "--measure")
    assert (code, err.count("\n")) == (2, 1)
    assert "only this machine" in err


def test_a_stage_that_the_device_cannot_hold_is_named(tmp_path: Path) -> None:
    path = write_spec(described(), tmp_path)
    small = load_device("h100")
    assert small is not None
    enough = hm.plan(path, device=small)
    assert not any("at once" in line for line in enough.notes)
    most = enough.total["memory"]
    assert most
    tight = hm.plan(path, device=small.model_copy(update={"memory": 0.9 * most}))
    [line] = [line for line in tight.notes if "at once" in line]
    largest = max(tight.stages, key=lambda s: s.memory)
    assert largest.stage == "fit"  # whose batches may be narrower
    assert f"fit {largest.role} may hold" in line
    assert line == tight.notes[0]


def test_a_truth_that_is_not_there_is_planned_from_its_description_alone(tmp_path: Path, command: Any) -> None:
    path = write_spec(described(), tmp_path)
    code, out, _ = command("plan", str(path), "--device", "h100", "--json")
    assert code == 0
    body = json.loads(out)
    assert set(body) == {"name", "device", "lengths", "stages", "total", "notes"}
    assert set(body["stages"][0]) == {
        "chain", "stage", "role", "stages", "done", "tokens", "flops", "disk", "memory", "hours", "hours_most",
        "source",
    }  # fmt: skip
    assert set(body["total"]) == {
        "stages", "done", "tokens", "flops", "disk", "memory", "device_hours", "hours", "hours_most",
        "hours_least", "hours_worst", "usd",
    }  # fmt: skip
    assert body["lengths"]["lm"]["mean"] == body["lengths"]["lm"]["most"]
    code, out, _ = command("plan", str(path), "--device", "h100", "--mean-tokens", "3")
    assert code == 0
    assert "fit teacher" in out
    assert "3 tokens expected" in out


def test_the_table_has_a_column_for_the_longest_answers_where_they_take_longer(tmp_path: Path, command: Any) -> None:
    path = write_spec(described(), tmp_path)

    def heads(*more: str) -> list[str]:
        _, out, _ = command("plan", str(path), "--device", "h100", *more)
        assert "the truth was not asked" not in out
        return next(line for line in out.splitlines() if "FLOPs" in line).split()[5:]

    assert heads() == ["memory", "time", "from"]
    assert heads("--mean-tokens", "3") == ["memory", "time", "at", "most", "from"]


def test_a_model_that_is_described_and_at_hand_is_planned_as_it_is(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    spec = described()
    spec["chains"]["lm"]["truth"]["source"] = str(tiny_models["llama"])
    here = hm.plan(write_spec(spec, tmp_path), device="h100")
    spec["chains"]["lm"]["truth"]["source"] = str(tmp_path / "nowhere")
    there = hm.plan(write_spec(spec, tmp_path), device="h100", out=tmp_path / "elsewhere")
    for a, b in zip(here.stages, there.stages, strict=True):
        # the same network; the tokenizer counts the prompt's tokens where it is at hand
        assert b.flops == pytest.approx(a.flops, rel=0.2)
        assert b.tokens == a.tokens


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": "wide"}, "describes no model"),
        ({"hidden_sise": 3}, "unknown field"),
        ({"model_type": "no-such-thing"}, "describes no model"),
        ({"model_type": None}, "needs model_type"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers of a model must be"),
    ],
)
def test_a_wrong_description_is_one_line(tmp_path: Path, change: Row, said: str) -> None:
    spec = described()
    spec["chains"]["lm"]["truth"]["architecture"] |= change
    with pytest.raises(SpecError, match=said) as e:
        hm.plan(write_spec(spec, tmp_path), device="h100")
    assert "\n" not in str(e.value)


def test_a_description_may_be_a_models_whole_config_json() -> None:
    from hydrometer.models.causal_lm.cost.operations import shape_of
    from hydrometer.models.causal_lm.planning import described_config
    from hydrometer.models.causal_lm.spec import Truth

    own = described()["chains"]["lm"]["truth"]["architecture"]
    older = {
        "architectures": ["LlamaForCausalLM"], "rope_theta": 130000, "rope_scaling": None, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "pretraining_tp": 1,
    }  # fmt: skip
    bare, whole = (described_config(Truth(source="nobody/nothing", architecture=a)) for a in (own, own | older))
    assert shape_of(bare) == shape_of(whole)


def test_a_device_comes_by_name_by_file_or_not_at_all(tmp_path: Path, command: Any) -> None:
    code, _, err = command("plan", "markov", "--device", "h1000")
    assert (code, len(complaints(err))) == (2, 1)
    assert "did you mean 'h100'?" in err
    file = tmp_path / "mine.yaml"
    file.write_text("like: h100\ncount: 8\nusd_per_hour: 2.5\nutilisation: {train: 0.5}\n")
    mine, h100 = load_device(str(file)), load_device("h100")
    assert mine is not None
    assert h100 is not None
    assert (mine.count, mine.utilisation["train"]) == (8, 0.5)
    assert mine.utilisation["draw"] == h100.utilisation["draw"]
    assert (mine.flops, mine.name) == (h100.flops, "mine")
    for text, said in (
        ("like: h1", "unknown device"),
        ("like: h100\nbandwith: 3", "bandwith"),
        ("like: h100\nflops: {bfloat16: -1}", "flops must lie between 1"),
        ("like: h100\nflops: {bfloat16: 1.0e-300}", "flops must lie between 1"),
        ("like: h100\nutilisation: {draw: 1.5}", "utilisation must lie between 1e-06 and 1"),
        ("like: h100\nlink: 1.0e-300", "link"),
        ("like: h100\nlaunch: 1.0e+300", "launch"),
        ("like: h100\nusd_per_hour: 1.0e+308", "usd_per_hour"),
        ("like: h100\nmeasured: {open: 1.0e+308}", "measured seconds must lie between 0"),
        (
            "name: x\nbandwidth: 1\nflops: {float32: 1}\nutilisation: {draw: 1, score: 1, train: 1}",
            "flops lacks bfloat16",
        ),
        ("like: h100\nbandwidth: .inf", "bandwidth"),
        ("name: x", "missing"),
    ):
        file.write_text(text)
        with pytest.raises(SpecError, match=said):
            load_device(str(file))
    with pytest.raises(SpecError, match="cannot be read"):
        load_device(str(tmp_path / "none.yaml"))
    with pytest.raises(SpecError, match="cannot be read"):
        load_device("~nobody-of-that-name/mine.yaml")


def test_a_price_is_hours_times_usd(tmp_path: Path, command: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("like: a100\ncount: 8\nusd_per_hour: 2.5\n")
    path = write_spec(described(), tmp_path)
    total = hm.plan(path, device=str(file)).total
    assert total["usd"] == pytest.approx(2.5 * total["device_hours"])
    assert total["hours"] == pytest.approx(total["device_hours"] / 8)
    code, out, _ = command("plan", str(path), "--device", str(file))
    assert code == 0
    assert "USD" in out
    assert "assumed" not in out
    for name in PROFILES:  # a card's own price is said to be assumed
        own = hm.plan(path, device=name)
        assert own.total["usd"] == pytest.approx((own.device.usd_per_hour or 0) * own.total["device_hours"])
        assert own.device.price.startswith("assumed")
    code, out, _ = command("plan", str(path), "--device", "h200")
    assert "USD" in out
    assert "assumed" in out


def test_mixtures_are_timed_by_a_seed_of_their_own_where_that_is_asked_for(tmp_path: Path) -> None:
    small = ["seeds=4", "chains.mixture.data.evaluate=200", "chains.capacity.data.evaluate=200"]
    said: list[str] = []
    coarse = hm.plan("paper-mixture", overrides=small, out=tmp_path / "out", say=said.append)
    assert not said
    assert {s.stage for s in coarse.stages} == {"fit", "judge", "show", "released", "map"}
    assert {s.source for s in coarse.stages} == {"coarse"}
    assert coarse.total["hours"] > 0
    found = hm.plan("paper-mixture", overrides=small, out=tmp_path / "out", measure=True, say=said.append)
    assert sum("running one seed" in line for line in said) == 2  # one a chain
    assert {s.source for s in found.stages} == {"measured"}
    seconds = {s.chain: s.hours for s in rows_of(found, "map")}
    more = hm.plan("paper-mixture", overrides=["seeds=8", *small[1:]], out=tmp_path / "out", say=said.append)
    assert {s.chain: s.hours for s in rows_of(more, "map")}["capacity"] == pytest.approx(2 * seconds["capacity"])
    assert sum("running one seed" in line for line in said) == 2


def test_a_run_of_mixtures_leaves_what_its_stages_took(tmp_path: Path) -> None:
    path = write_spec(mixture_spec(), tmp_path)
    hm.run(path, out=tmp_path / "out")
    took = sum(json.loads(f.read_text())["seconds"] for f in (tmp_path / "out" / "artifacts").glob("fit-*/meta.json"))
    planned = rows_of(hm.plan(path, out=tmp_path / "elsewhere"), "fit")
    assert {s.source for s in planned} == {"run"}
    assert sum(3600 * (s.hours or 0) for s in planned) == pytest.approx(took)


def test_a_part_takes_the_longer_of_counting_and_moving() -> None:
    device = Device(
        name="x", flops={"float32": 10.0, "bfloat16": 20.0}, bandwidth=5.0, launch=0.5, link=2.0,
        utilisation={"draw": 0.5, "score": 0.25, "train": 1.0}, measured={"known": 3.0},
    )  # fmt: skip
    assert device.seconds(Part("a", 1, "draw", flops=10)) == 2
    assert device.seconds(Part("a", 1, "score", flops=10, dtype="bfloat16")) == 2
    assert device.seconds(Part("a", 1, "train", flops=10, bytes=20)) == 4
    assert device.seconds(Part("a", 1, "train", launches=4, loaded=6)) == 5
    assert device.seconds(Part("known", 2, "train", flops=1e9)) == 6


# The paper's run with every size divided; docs, Scaling gives the same with a real tokenizer and 256 sequences.
DIVIDED = [
    "seeds=2",
    "chains.smollm2.truth.max_new_tokens=6",
    "chains.smollm2.teacher.architecture={num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4}",
    "chains.smollm2.student.architecture={num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4}",
    "chains.smollm2.teacher.training.num_train_epochs=1",
    "chains.smollm2.data={train: 64, validate: 16, distill: 64, evaluate: 32}",
    "chains.smollm2.block_rows=32",
    "chains.smollm2.threads=1",
]


@pytest.mark.campaign
def test_the_papers_recipe_runs_with_every_size_divided(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    sizes = [f"chains.smollm2.truth.source={tiny_models['llama']}", *DIVIDED]
    planned = hm.plan("paper-smollm2", overrides=sizes, device="h100", out=tmp_path / "out")
    result = hm.run("paper-smollm2", overrides=sizes, out=tmp_path / "out")
    assert result.failed_cells == []
    assert planned.total["stages"] == sum(result.outcome.computed.values())
    assert result.outcome.computed["fit"] == 1 + 2 * (1 + 4)  # a seed trains the students anew, and nothing else
    [chain] = result.results["summary"]["chains"].values()
    assert [row["selectivity"]["temperature"] for row in chain["tradeoff"]]
    assert chain["gate"]["passed"] in (True, False, None)


@pytest.mark.campaign
def test_the_papers_recipe_is_planned_without_its_truth_and_run_only_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    found = hm.plan("paper-smollm2", device="h100", out=tmp_path / "out")
    cells = {(s.stage, s.role): s for s in found.stages}
    n, block = 10_000_000, 256
    assert cells["fit", "student"].stages == 5 * 5
    assert [s.role for s in rows_of(found, "open")] == ["truth", "teacher", "student"]
    tokens = 256 * 512 + 1  # the empty prompt is one token, of which rows share the keys
    wide = 4 * (tokens * 2 * 24 * 2048 + 256 * 49152 + found_shapes()["truth"].parameters)
    assert cells["draw", "truth"].memory == wide  # evaluation rows are drawn in float32
    blocks = -(-n // block) + -(-10_000 // block) + -(-100_000 // block)
    assert cells["draw", "truth"].stages == blocks
    assert cells["fit", "teacher"].tokens == 5 * n * 512
    # 1.7, 0.36 and 0.13 billion parameters, as their names say
    shapes = found_shapes()
    assert [round(shapes[r].parameters / 1e6, -1) for r in ("truth", "teacher", "student")] == [1710, 360, 130]

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    code, _, err = command("run", "paper-smollm2", "--out", str(tmp_path / "out"))
    assert (code, len(complaints(err))) == (2, 1)
    assert "HuggingFaceTB/SmolLM2-1.7B" in err


def found_shapes() -> dict[str, Any]:
    from hydrometer.models.causal_lm.planning import DescribedTruth

    chain: Any = hm.load_spec("paper-smollm2").chains["smollm2"]
    return dict(DescribedTruth().subject(chain).shapes)


def test_what_a_device_is_called_stays_on_a_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('like: h100\nname: "a\\nb"\nsource: "from\\n\\e[31mhere"\n')
    found = hm.plan(write_spec(described(), tmp_path), device=str(file))
    assert found.device.name == "a b"
    assert all(line.isprintable() for line in found.notes)


def flops_of(spec: dict[str, Any], folder: Path, stage: str, role: str) -> tuple[float, int]:
    found = hm.plan(write_spec(spec, folder), device="h100", out=folder / "none")
    [row] = [s for s in rows_of(found, stage) if s.role == role]
    return row.flops, row.stages


def alone(spec: dict[str, Any], role: str, rows: int = 16) -> float:
    """Operations of scoring a block under one law."""
    from hydrometer.models.causal_lm.family import CAUSAL_LM
    from hydrometer.models.causal_lm.spec import CausalLMChain

    chain = CausalLMChain.model_validate(spec["chains"]["lm"])
    most = float(chain.truth.max_new_tokens)
    return CAUSAL_LM.work(chain, "score own", role, rows, most, "float32").flops


def test_candidates_that_the_truth_ranks_are_scored_under_it(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    def ranked(by: str) -> dict[str, Any]:
        best = {"temperature": 0.6, "best_of": 4, "rank_by": by}
        return tiny(tiny_models["llama"], selectivity=[best], decoding=[])

    spec = ranked("truth_log_prob")
    (few, blocks), (many, same) = (flops_of(s, tmp_path, "draw", "teacher") for s in (ranked("length"), spec))
    assert blocks == same == 2 + 1 + 3 + 3  # distilled, held out, judged as it is and as it is decoded
    assert many - few == pytest.approx(6 * 4 * alone(spec, "truth"))


def test_what_is_judged_in_bfloat16_is_scored_once_more(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    exact, rounded = (tiny(tiny_models["llama"], judge_dtype=d) for d in ("float32", "bfloat16"))
    for role, again in (("truth", ["truth"]), ("student", ["truth", "student"])):
        (few, blocks), (many, same) = (flops_of(s, tmp_path, "score", role) for s in (exact, rounded))
        assert blocks == same
        assert many - few == pytest.approx(blocks * sum(alone(exact, r) for r in again))


def test_what_no_count_knows_is_said(tmp_path: Path) -> None:
    plain = hm.plan(write_spec(described(), tmp_path), device="h100", out=tmp_path / "none")
    assert not any("not counted" in line or "engine" in line for line in plain.notes)
    spec = described()
    chain = spec["chains"]["lm"]
    chain["student"]["training"] = chain["student"]["training"] | {"num_workers": 2}
    chain["engine"] = {"openai": {"base_url": "http://localhost:1", "model": "m"}}
    chain["selectivity"] = [{"temperature": 1.0}, {"accept": {"by": "length", "max": 3}}]
    chain["decoding"] = []
    notes = hm.plan(write_spec(spec, tmp_path), device="h100", out=tmp_path / "none").notes
    for said in ("fits of several workers", "rows that an engine draws", "candidates that accept rejects"):
        assert any(said in line for line in notes), said


def test_a_family_that_counts_nothing_is_planned_without_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(MARKOV), "keeps_draws", True)
    found = hm.plan("markov", overrides=["seeds=1"], out=tmp_path / "none")
    assert found.device.name == "this"
    assert all(s.hours is None for s in found.stages)
    assert any("does not say" in line for line in found.notes)
