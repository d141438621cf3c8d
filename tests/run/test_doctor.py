"""The examination of whole runs: design, machine, folder; how `run` heeds it; the command."""

import json
import shutil
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

import hydrometer as hm
from chains import complaints, lm_spec, mixture_spec, write_spec
from hydrometer.core.errors import InputError
from hydrometer.core.findings import FIGURE_CODES
from hydrometer.models.families import parse_run_spec
from hydrometer.models.mixture.spec import MixtureLevel
from hydrometer.report.tables.findings_table import findings_table
from hydrometer.run.execution.progress import ConsoleMonitor
from hydrometer.run.preflight import diagnosis, machine
from hydrometer.run.preflight.design import examine_design

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
MARKOV: dict[str, Any] = {
    "family": "markov", "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 6}, "teacher": {"order": 1},
    "student": {"order": 1}, "data": {"train": 200, "distill": 200, "evaluate": 200},
    "selectivity": [{"temperature": 1}, {"temperature": 0.5}],
}  # fmt: skip
LEVEL = {"n_components": 2}
FEW = {"train": 16, "validate": 8, "distill": 16, "evaluate": 8}


def codes(spec: dict[str, Any]) -> dict[str, str]:
    """Code to severity of what is found in the only chain, without the machine."""
    run = parse_run_spec(spec, "test")
    (name,) = run.chains
    found = [*examine_design(run, name), *hm.doctor(run, out="no-such-folder").lasting]
    return {f.code: f.severity for f in found}


def markov(**changes: Any) -> dict[str, Any]:
    return {"name": "tiny", "seeds": 3, "chains": {"c": MARKOV | changes}}


def mixture(seeds: int = 3, **changes: Any) -> dict[str, Any]:
    return mixture_spec(seeds=seeds, **{"student": LEVEL, **changes})


def test_nothing_is_found_in_sound_chains() -> None:
    assert codes(mixture()) == {}
    assert codes(markov()) == {}


@pytest.mark.parametrize(
    ("spec", "code", "severity"),
    [
        (mixture(seeds=1), "one-seed", "warning"),
        (mixture(resample=[]), "seeds-alike", "warning"),
        (mixture(data={"train": 60, "distill": 80, "evaluate": 10}), "few-rows", "warning"),
        (mixture(selectivity=[{"weight_power": 2}]), "no-neutral", "warning"),
        (mixture(selectivity=[{"weight_power": 1}]), "no-selectivity", "warning"),
        (mixture(decoding=[]), "no-control", "warning"),
        (mixture(decoding=[], student={"n_components": 1}), "no-control", "note"),
        (mixture(teacher="truth"), "teacher-is-truth", "note"),
        (mixture(student={"n_components": 3}), "student-larger", "warning"),
        (mixture(data={"train": 12, "distill": 80, "evaluate": 200}), "few-points", "warning"),
        (markov(student={"order": 2}), "student-larger", "warning"),
        (markov(student={"order": 1, "smoothing": 0}), "no-smoothing", "warning"),
    ],
)
def test_a_planted_fault_is_found(spec: dict[str, Any], code: str, severity: str) -> None:
    assert codes(spec).get(code) == severity


def test_a_truth_that_teaches_alone_leaves_temperatures_to_compare() -> None:
    for assistants in ([], [{"order": 1}]):
        spec = parse_run_spec(markov(teacher="truth", assistants=assistants), "test")
        (said,) = (f.why for f in examine_design(spec, "c") if f.code == "teacher-is-truth")
        assert ("temperature in the data against temperature when decoding" in said) != bool(assistants)


@pytest.mark.parametrize(
    ("resample", "seeds", "shared"),
    [(["distill", "student"], 2, True), (["data", "distill", "student"], 2, False), (["distill", "student"], 1, False)],
)
def test_a_draw_that_all_seeds_share_is_said(resample: list[str], seeds: int, shared: bool) -> None:
    spec = parse_run_spec(markov(teacher="truth", resample=resample) | {"seeds": seeds}, "test")
    (said,) = (f.why for f in examine_design(spec, "c") if f.code == "teacher-is-truth")
    assert ("one draw for all seeds" in said) == shared


def test_rows_that_every_seed_redraws_count_together() -> None:
    assert "few-rows" not in codes(mixture(seeds=6, data={"train": 60, "distill": 80, "evaluate": 10}))


def test_a_truth_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("abcabcabcabc\nabcabcabc\n")
    truth = {"order": 1, "text": str(tmp_path / "long.txt"), "max_new_tokens": 4}
    assert codes(markov(truth=truth))["stop-unreachable"] == "warning"
    assert "stop-unreachable" not in codes(markov(truth=truth | {"max_new_tokens": 16}))


def test_a_map_has_its_own_seeds_and_goes_through_sizes() -> None:
    grid = {"student": [1, 2, 4], "seeds": 20}
    assert codes(mixture(seeds=1, grid=grid)) == {}


@pytest.mark.parametrize(
    ("kind", "n"), [("full", 2 + 6 + 9), ("diag", 2 + 6 + 6), ("spherical", 2 + 6 + 3), ("tied", 2 + 6 + 3)]
)
def test_free_parameters_of_three_components_in_the_plane(kind: Any, n: int) -> None:
    from hydrometer.models.mixture.doctor import n_parameters

    assert n_parameters(MixtureLevel(n_components=3, covariance_type=kind), 2) == n


@pytest.mark.parametrize("name", ["paper-mixture", "markov", "mixture-map"])
def test_shipped_recipes_have_nothing_fatal(name: str) -> None:
    found = hm.doctor(name, out="no-such-folder")
    assert not found.is_fatal
    assert {f.code for f in found.findings if f.severity == "warning"} == set()


def test_warnings_that_a_description_tells_of_are_notes(tmp_path: Path) -> None:
    body = hm.load_spec("markov", ["seeds=1"]).model_dump(mode="json", exclude_none=True)

    def severity(**more: object) -> str:
        spec = write_spec({**body, **more}, tmp_path)
        return next(f.severity for f in hm.doctor(spec, out="no-such-folder").findings if f.code == "one-seed")

    assert (severity(), severity(known=["few-rows"]), severity(known=["one-seed"])) == ("warning", "warning", "note")
    shipped = hm.load_spec("quickstart")
    assert shipped.known == ("one-seed", "truncated", "prompts-shared", "few-steps")
    assert "One seed" in shipped.description
    assert "cut at 24 tokens" in shipped.description
    assert "32 steps teach a model little" in shipped.description
    assert "trained and judged on four short instructions" in shipped.description


def test_no_fix_is_said_twice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = hm.doctor("markov", out=tmp_path / "file").findings[0]
    assert found.code == "folder"
    assert found.fix not in found.what


def test_the_chain_of_the_quickstart_has_nothing_fatal(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    spec = hm.load_spec("quickstart").model_dump(mode="json", exclude_none=True)
    rows = [{"messages": [{"role": "user", "content": f"w{i}"}]} for i in range(3, 7)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    chain = spec["chains"]["smollm2"]
    chain["truth"] |= {"source": str(tiny_models["llama"]), "prompts": {"file": "prompts.jsonl", "chat": True}}
    chain["teacher"]["init"]["layers"], chain["student"]["init"]["layers"] = [0, 1, 2], [0, 2]
    found = hm.doctor(write_spec(spec, tmp_path), out=tmp_path / "out")
    assert not found.is_fatal
    assert {"one-seed", "draw-dtype"} <= {f.code for f in found.findings if f.chain == "smollm2"}
    assert not (tmp_path / "out").exists()


# -- the machine and the folder ----------------------------------------


def passing(spec: Path, out: Path) -> dict[str, hm.Finding]:
    return {f.code: f for f in hm.doctor(spec, out=out).passing}


@pytest.mark.parametrize(("free", "severity"), [(10**3, "fatal"), (10**5, "warning"), (10**12, None)])
def test_disk(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, free: int, severity: str | None
) -> None:
    path = write_spec(lm_spec(tiny_models["llama"]), tmp_path)
    plan = passing(path, tmp_path / "out")
    assert "disk" not in plan
    if severity == "warning":  # between what is certain and what it may come to
        free = _artifact_bytes(path, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    here = passing(path, tmp_path / "out").get("disk")
    assert (here and here.severity) == severity


def _artifact_bytes(path: Path, tmp_path: Path) -> int:
    from hydrometer.run.graph.plan import plan_run

    plan = plan_run(hm.load_spec(path))
    known: dict[Any, Any] = {}
    least = sum(8192 + machine._footprint(n, known).disk_least for n in plan.nodes.values())
    most = sum(8192 + machine._footprint(n, known).disk_most for n in plan.nodes.values())
    assert least < most
    return most


@pytest.mark.parametrize(
    ("memory", "severity"), [((1000, 1000), "fatal"), ((10**12, 1000), "warning"), ((None, None), None)]
)
def test_memory(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, memory: Any, severity: str | None
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: memory)
    here = passing(write_spec(lm_spec(tiny_models["llama"]), tmp_path), tmp_path / "out").get("memory")
    assert (here and here.severity) == severity


def test_a_machine_that_is_too_small_opens_no_model(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrometer.models.causal_lm.inference.model import CausalLM

    monkeypatch.setattr(machine, "memory", lambda: (1000, 1000))
    monkeypatch.setattr(CausalLM, "from_pretrained", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(InputError, match="takes at least"):
        hm.run(write_spec(lm_spec(tiny_models["llama"]), tmp_path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_machines_memory_is_read_from_the_system() -> None:
    total, available = machine.memory()
    assert total is not None
    assert total > 10**8
    assert available is None or 0 < available <= total


def test_a_containers_limit_is_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("50000000\n")
    monkeypatch.setattr(machine, "_CGROUP", (tmp_path / "memory.max",))
    assert machine.memory()[0] == 50_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()[0] != 50_000_000


def test_what_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    path = write_spec(mixture(), tmp_path)
    hm.run(path, out=tmp_path / "out")
    there = passing(path, tmp_path / "out")
    assert "finished" in there["resumes"].why
    more = write_spec(mixture(seeds=4), tmp_path, "more.yaml")
    assert "goes on" in passing(more, tmp_path / "out")["resumes"].why


def test_another_experiment_in_the_folder_is_fatal_and_named(tmp_path: Path) -> None:
    hm.run(write_spec(mixture(), tmp_path), out=tmp_path / "out")
    other = write_spec(mixture(student={"n_components": 1}), tmp_path, "other.yaml")
    found = hm.doctor(other, out=tmp_path / "out")
    assert found.is_fatal
    assert "another experiment" in found.findings[0].what


# -- what a run does with it ----------------------------------------


def test_a_fatal_finding_ends_a_run_before_anything_is_made(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    student = {"init": "scratch", "architecture": {"num_hidden_layers": 1, "vocab_size": 60}}
    path = write_spec(lm_spec(tiny_models["llama"], student=student), tmp_path)
    with pytest.raises(InputError, match="the student has 60 output rows") as caught:
        hm.run(path, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_findings_are_in_the_results_and_probed_once(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrometer.models.causal_lm.family import CausalLMFamily

    path = write_spec(lm_spec(tiny_models["llama"]), tmp_path)
    results = hm.run(path, out=tmp_path / "out").results
    Draft202012Validator(SCHEMA).validate(results)
    kept = results["summary"]["findings"]
    assert {"one-seed", "pad-is-eos"} <= {f["code"] for f in kept}
    assert all(f["chain"] == "lm" for f in kept)
    calls: list[object] = []
    right = CausalLMFamily.examine
    monkeypatch.setattr(CausalLMFamily, "examine", lambda *a: calls.append(a) or right(*a))
    again = hm.run(path, out=tmp_path / "out")
    assert again.results["summary"]["findings"] == kept
    before = [hm.Finding(**f) for f in kept if f["code"] not in FIGURE_CODES]
    assert hm.doctor(path, out=tmp_path / "out").lasting == tuple(before)
    assert calls == []
    (folder,) = (tmp_path / "out" / "artifacts").glob("examine-*")
    whole = (folder / "findings.json").read_text()
    (folder / "findings.json").write_text("[{")
    mended = hm.run(path, out=tmp_path / "out")
    assert len(calls) == 1
    assert mended.results["summary"] == results["summary"]
    assert (folder / "findings.json").read_text() == whole
    assert sum(mended.outcome.computed.values()) == 0


def test_a_run_after_the_doctor_draws_no_probe_again(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrometer.models.causal_lm.family import CausalLMFamily

    calls: list[object] = []
    right = CausalLMFamily.examine
    monkeypatch.setattr(CausalLMFamily, "examine", lambda *a: calls.append(a) or right(*a))
    path = write_spec(lm_spec(tiny_models["llama"], data=FEW), tmp_path)
    found = hm.doctor(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = hm.run(path, out=tmp_path / "out", until="draw")
    assert len(calls) == 1
    assert len(list((done.folder / "artifacts").glob("examine-*"))) == 1
    again = hm.doctor(path, out=tmp_path / "elsewhere")
    assert again.lasting == found.lasting
    hm.doctor(path, out=tmp_path / "elsewhere", overrides=["chains.lm.data.evaluate=9"])
    assert len(calls) == 2  # of another specification it is drawn


def test_what_the_doctor_drew_is_of_the_models_that_were_there(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    given = tmp_path / "teacher"
    CausalLM(make_llama(max_position_embeddings=4), make_tokenizer(64)).save(given)
    spec = lm_spec(tiny_models["llama"], data=FEW, teacher={"source": str(given)})
    path = write_spec(spec, tmp_path)
    assert "context-short" in [f.code for f in hm.doctor(path, out=tmp_path / "out").findings if f.is_fatal]
    shutil.rmtree(given)
    CausalLM(make_llama(), make_tokenizer(64)).save(given)
    assert not hm.doctor(path, out=tmp_path / "out").is_fatal
    hm.run(path, out=tmp_path / "out", until="draw")


def test_what_a_folder_was_asked_for_before_is_said(tmp_path: Path) -> None:
    def said(spec: dict[str, Any]) -> list[str]:
        path = write_spec(spec, tmp_path)
        by_doctor = [f.what for f in hm.doctor(path, out=tmp_path / "out").passing if f.code == "asked-earlier"]
        stream = StringIO()
        hm.run(path, out=tmp_path / "out", monitor=ConsoleMonitor(Console(file=stream, width=80)))
        lines = [x for x in stream.getvalue().splitlines() if x.startswith("warning asked-earlier")]
        assert len(lines) == len(by_doctor)
        assert all(w in x for w, x in zip(by_doctor, lines, strict=True))
        return by_doctor

    more = [{"weight_power": 1}, {"weight_power": 3}, {"weight_power": 20}]
    assert said(mixture(seeds=2)) == []
    assert said(mixture(seeds=3, selectivity=more, decoding=[*more, {"weight_power": 2}])) == []
    (found,) = said(mixture(seeds=1))
    assert found.startswith("the folder also asks for seed 1, seed 2, ")
    assert "weight_power 3" in found
    assert "decoding weight_power 2" in found


@pytest.mark.parametrize("damage", [b"{}", b"[1]", b"[{", b"", b"\xff", b"null", b"[" * 100_000])
def test_damaged_findings_are_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "findings.json").write_bytes(damage)
    assert diagnosis._read(tmp_path / "findings.json") is None
    (tmp_path / "findings.json").write_bytes(b"[]")
    assert diagnosis._read(tmp_path / "findings.json") == ()


def test_only_what_lasts_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (10**12, 1))
    path = write_spec(mixture(), tmp_path)
    assert "memory" in passing(path, tmp_path / "out")
    assert hm.run(path, out=tmp_path / "out").results["summary"]["findings"] == []


def test_more_than_one_fatal_finding_is_said() -> None:
    bad = hm.Finding("x", "fatal", "what", "why", "fix")
    with pytest.raises(InputError, match=r"m: what: why; fix \(and 1 more"):
        diagnosis.Diagnosis((hm.Finding("x", "fatal", "what", "why", "fix", "m"), bad)).refuse()
    diagnosis.Diagnosis((hm.Finding("x", "warning", "what", "why", "fix"),)).refuse()


# -- the command ----------------------------------------


def test_the_command_lists_findings_and_exits_0(command: Any, tmp_path: Path) -> None:
    write_spec(mixture(seeds=1), tmp_path)
    code, out, err = command("doctor", "spec.yaml")
    assert (code, err) == (0, "")
    assert "warning one-seed" in out
    assert "why" in out
    assert "fix" in out
    code, out, _ = command("doctor", "spec.yaml", "--json", "--set", "seeds=3")
    assert code == 0
    assert json.loads(out) == {"fatal": False, "findings": []}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spec.yaml"]


def test_the_command_exits_2_on_a_fatal_finding_and_names_every_chain(command: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    spec = mixture(seeds=1)
    spec["chains"]["lm"] = lm_spec(tmp_path / "nowhere")["chains"]["lm"]
    write_spec(spec, tmp_path)
    code, out, _ = command("doctor", "spec.yaml", "--json")
    assert code == 2
    body = json.loads(out)
    assert body["fatal"]
    assert body["findings"][0]["code"] == "refused"
    assert "nowhere" in body["findings"][0]["what"]
    assert {f["chain"] for f in body["findings"]} == {"lm", "m"}


def test_a_run_prints_its_warnings_and_counts_notes(tmp_path: Path) -> None:
    path, out = write_spec(mixture(seeds=1, teacher="truth"), tmp_path), StringIO()
    hm.run(path, out=tmp_path / "out", monitor=ConsoleMonitor(Console(file=out, width=80)))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("warning one-seed: m: the run has one seed: intervals")
    assert lines[1].startswith("notes: 1,")


def test_findings_quote_text_as_text() -> None:
    out = StringIO()
    console = Console(file=out, width=200)
    found = hm.Finding("x", "warning", "[red]what[/red]\x1b[31m", "why", "fix", "m")
    console.print(findings_table([found.to_json()]))
    ConsoleMonitor(console).found([found])
    assert out.getvalue().count("[red]what[/red]") == 2
    assert "\x1b" not in out.getvalue()


def test_a_bad_specification_is_one_line(command: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nchains: {m: {family: '[red]x[/red]'}}")
    code, _, err = command("doctor", "bad.yaml")
    assert code == 2
    assert "[red]x[/red]" in err
    assert len(complaints(err)) == 1
