"""Runs whose students learn from what is kept of a teacher's law along rows: made once, resumed, served, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from chains import lm_spec, without_timings, write_spec  # noqa: E402
from fake_server import serving  # noqa: E402
from hydrometer.core.errors import SpecError, StageError  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_law import forget_sessions  # noqa: E402
from hydrometer.models.rows.kept_laws import load_kept  # noqa: E402
from hydrometer.report import build_report  # noqa: E402
from hydrometer.run.graph.plan import plan_run  # noqa: E402
from hydrometer.stages.artifact_loader import ArtifactLoader  # noqa: E402
from hydrometer.stages.fit import keep_law  # noqa: E402
from hydrometer.stages.given_nodes import KeepLawNode  # noqa: E402
from hydrometer.stages.nodes import FitNode  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
FORMS = ["dense", "top_k(k=8)", "top_k_renormalised(k=8)", "top_k_bucket(k=8)", "sampled(k=8)"]


def spec_of(model: Path, **chain: Any) -> dict[str, Any]:
    methods = {"loss": ["mle", "kl_teacher_student"], "selectivity": [{"temperature": 0.6}], "decoding": []}
    chain = {"data": {"train": 16, "validate": 16, "distill": 32, "evaluate": 16}, **chain}
    return lm_spec(model, **{**methods, "teacher_law": FORMS, **chain})


def folders_of(out: Path, stage: str) -> dict[str, Path]:
    return {p.name: p for p in (out / "artifacts").glob(f"{stage}-*")}


def test_a_run_keeps_a_law_once_and_says_what_it_leaves_out(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    plain = hm.run(write_spec(spec_of(tiny_models["llama"], teacher_law=["dense"]), tmp_path), out=tmp_path / "out")
    made = hm.run(write_spec(spec_of(tiny_models["llama"]), tmp_path), out=tmp_path / "out")
    assert not made.failed_cells
    jsonschema.validate(made.results, SCHEMA)
    cells = {c["id"]: c for c in made.results["cells"]}
    for cell in plain.results["cells"]:  # what was there stays what it was
        assert cells[cell["id"]]["artifacts"] == cell["artifacts"]
        assert "teacher_law" not in cell
    found = {c.get("teacher_law"): c for c in cells.values() if c["training"] == "distilled" and c["loss"] != "mle"}
    assert set(found) == {None, *FORMS[1:]}
    assert len({c["metrics"]["precision"]["value"] for c in found.values()}) == 5
    # Two blocks of rows to learn from and one held out: once for all that see the likeliest, once for the drawn.
    assert len(folders_of(tmp_path / "out", "keep_law")) == 2 * 3
    told = {t["teacher_law"]: t for t in made.results["summary"]["chains"]["lm"]["teacher_laws"]}
    assert {k: t["bytes_a_token"] for k, t in told.items()} == dict.fromkeys(FORMS[1:4], 8 * 5 + 4) | {FORMS[4]: 12}
    for name, t in told.items():
        assert t["positions"] == 64
        assert found[name]["artifacts"]["fit"] == t["fit"]
        assert 0 < t["gradient_cosine"] <= 1 + 1e-9
    gaps = {k: t["difference"] for k, t in told.items()}
    assert gaps[FORMS[3]]["value"] < 0  # a bucket can only bring laws nearer
    assert gaps[FORMS[2]]["value"] > 5 * gaps[FORMS[2]]["se"]
    assert abs(gaps[FORMS[4]]["value"]) < 5 * gaps[FORMS[4]]["se"]
    # Names, tables and words tell the methods apart.
    page = build_report([tmp_path / "out"]).read_text(encoding="utf-8")
    assert "by kl_teacher_student from top_k_bucket(k=8)" in page


def test_a_plan_counts_what_is_kept(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    spec = hm.load_spec(write_spec(spec_of(tiny_models["llama"]), tmp_path))
    nodes = plan_run(spec).nodes.values()
    kept = [n for n in nodes if isinstance(n, KeepLawNode)]
    whole = 4 * 64 * 64
    assert sum(n.footprint().disk_most for n in kept) == 48 * 6 * (44 + 12) + 4 * whole
    (row,) = [s for s in hm.plan(spec).stages if s.stage == "keep_law"]
    assert row.disk >= sum(n.footprint().disk_most for n in kept)
    fits = {n.law.name: n for n in nodes if isinstance(n, FitNode) and n.matched is not None}
    assert [len(fits[k].asked().counts) for k in ("dense", "top_k")] == [3, 1]  # the teacher's pass is the stage's


def test_a_killed_stage_and_fit_go_on_to_the_same_bits(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_spec(spec_of(tiny_models["llama"], teacher_law=FORMS[3:], loss=["kl_teacher_student"]), tmp_path)
    whole = hm.run(path, out=tmp_path / "whole")
    done: list[str] = []

    def killed(node: KeepLawNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
        facts = keep_law(node, bench, folder)  # what it leaves half-made is not taken
        done.append(node.key)
        if len(done) == 3:
            raise KeyboardInterrupt
        return facts

    with monkeypatch.context() as patch:
        patch.setattr("hydrometer.stages.compute.keep_law", killed)
        with pytest.raises(KeyboardInterrupt):
            hm.run(path, out=tmp_path / "killed")
    assert len(folders_of(tmp_path / "killed", "keep_law")) == 2
    resumed = hm.run(path, out=tmp_path / "killed")
    assert without_timings(resumed.results) == without_timings(whole.results)
    for name, folder in folders_of(tmp_path / "whole", "keep_law").items():
        for file in folder.glob("*.npy"):
            assert file.read_bytes() == (tmp_path / "killed" / "artifacts" / name / file.name).read_bytes()


def test_what_is_kept_of_another_teacher_is_refused(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    path = write_spec(spec_of(tiny_models["llama"], teacher_law=FORMS[1:2], loss=["kl_teacher_student"]), tmp_path)

    def other(node: KeepLawNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
        facts = keep_law(node, bench, folder)
        (folder / "of.json").write_text(json.dumps({"teacher": "0" * 32}))
        return facts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydrometer.stages.compute.keep_law", other)
        found = hm.run(path, out=tmp_path / "out")
    reasons = [c["reason"] for c in found.results["cells"] if c["status"] == "failed"]
    assert reasons
    assert all("is another teacher's law" in r and "\n" not in r for r in reasons)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ({"teacher_law": ["top_k(k=65)"], "loss": ["jsd"]}, "keeps more ids than the vocabulary has"),
        ({"teacher_law": ["top_k"]}, "names how many ids are kept"),
        ({"teacher_law": ["top_k(k=1.5)"]}, "names how many ids are kept"),
        ({"teacher_law": ["topk(k=8)"]}, "no such teacher_law.*did you mean .top_k"),
        ({"teacher_law": ["top_k(k=8)"], "loss": ["kl_student_teacher"]}, "may say ids that are not kept"),
        ({"teacher_law": ["sampled(k=8)"], "loss": ["jsd"]}, "linear in the law alone"),
        ({"teacher_law": ["top_k_bucket(k=8)"], "loss": ["jsd(temperature=2)"]}, "no power of its own"),
        ({"teacher_law": ["top_k_bucket(k=8)"], "loss": ["adaptive_kl"]}, "over the whole vocabulary"),
        ({"teacher_law": ["top_k(k=8)"], "loss": ["mle"]}, "is of rows drawn before the fit"),
        ({"teacher_law": ["top_k(k=8)"], "loss": ["jsd"], "prefixes": ["student"]}, "is of rows drawn before the fit"),
        ({"teacher_law": ["top_k(k=8)", "top_k(k=8)"], "loss": ["jsd"]}, "listed twice"),
    ],
)
def test_what_has_no_meaning_is_one_line_before_anything_is_drawn(
    tmp_path: Path, tiny_models: dict[str, Path], chain: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said) as e:
        plan_run(hm.load_spec(write_spec(spec_of(tiny_models["llama"], **chain), tmp_path)))
    assert "\n" not in str(e.value)


# -- a served teacher --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_session() -> Any:
    forget_sessions()
    yield
    forget_sessions()


@pytest.fixture
def served(tmp_path: Path, tiny_models: dict[str, Path]) -> tuple[CausalLM, Path]:
    lm = CausalLM(make_llama(seed=0), make_tokenizer(64))
    lm.tokenizer.save_pretrained(tmp_path / "tokenizer")
    return lm, tiny_models["llama"]


def chain_of(tmp_path: Path, model: Path, source: object, **chain: Any) -> Path:
    truth = {"source": source, "max_new_tokens": 6, "stop": [1]}
    start = {"init": {"source": str(model)}, "training": {"num_train_epochs": 1, "bf16": False}}
    more = {"truth": truth, "teacher": "truth", "student": start, "loss": ["kl_teacher_student"], **chain}
    return write_spec(spec_of(model, **more), tmp_path)


def at(url: str, tmp_path: Path, api: str) -> dict[str, Any]:
    return {"served": {"base_url": url, "model": "tiny", "tokenizer": str(tmp_path / "tokenizer"), "api": api,
                       "patience": 0, "concurrency": 4}}  # fmt: skip


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_served_teacher_is_distilled_by_what_it_says_of_its_likeliest(
    tmp_path: Path, served: tuple[CausalLM, Path], api: str
) -> None:
    """Its ids, log-probabilities and masses along the rows that it drew are those of the network opened."""
    lm, model = served
    law = ["top_k_renormalised(k=5)"]
    with serving(lm) as (url, _):
        settings = {"teacher_law": law, "selectivity": [{"temperature": 1}, {"temperature": 0.6}]}
        found = hm.run(chain_of(tmp_path, model, at(url, tmp_path, api), **settings), out=tmp_path / "out")
    assert not found.failed_cells
    jsonschema.validate(found.results, SCHEMA)
    told = found.results["summary"]["chains"]["lm"]["teacher_laws"]
    assert [(t["bytes_a_token"], t["positions"]) for t in told] == [(29, 0), (29, 0)]
    plan = plan_run(hm.load_spec(chain_of(tmp_path, model, at(url, tmp_path, api), **settings)))
    checked = 0
    for node in (n for n in plan.nodes.values() if isinstance(n, KeepLawNode)):
        kept = load_kept(tmp_path / "out" / "artifacts" / f"keep_law-{node.key}")
        x = node.context.family.load_samples([tmp_path / "out" / "artifacts" / f"draw-{node.block}"], node.n)
        done = 0
        for i in range(len(x)):
            prompt, row = list(x.prompt_ids[int(x.prompt_index[i])]), x.row(i).tolist()
            with torch.no_grad():
                z = lm.model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1, :64].double()
            log_p, here = z.log_softmax(-1), slice(done, done + len(row))
            top, ids = log_p.topk(5, -1)
            cold = node.selectivity is not None
            want = (top / 0.6).log_softmax(-1) if cold else top
            np.testing.assert_array_equal(kept.ids[here], ids)
            np.testing.assert_allclose(kept.log_p[here], want, atol=1e-4)
            rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
            assert np.isneginf(kept.rest[here]).all() if cold else np.allclose(kept.rest[here], rest, atol=1e-3)
            done += len(row)
            checked += 1
    assert checked == 2 * (32 + 16)


def test_a_server_that_tells_fewer_ids_or_none_of_the_tokenizer_s_is_one_line(
    tmp_path: Path, served: tuple[CausalLM, Path]
) -> None:
    lm, model = served

    def few(answer: dict[str, Any], asked: dict[str, Any]) -> Any:
        if asked.get("prompt_logprobs", 0) > 5:
            own = answer["choices"][0]["prompt_logprobs"]
            answer["choices"][0]["prompt_logprobs"] = [p and dict(list(p.items())[:3]) for p in own]
        return answer

    def strange(answer: dict[str, Any], asked: dict[str, Any]) -> Any:
        if asked.get("prompt_logprobs", 0) > 5:
            for position in answer["choices"][0]["prompt_logprobs"][1:]:
                for v in position.values():
                    v["logprob"] = min(v["logprob"], -9.0)
                position["999"] = {"logprob": -0.01}
        return answer

    for change, said in ((few, "tells fewer than 8 likeliest"), (strange, "none of the tokenizer's")):
        forget_sessions()
        with serving(lm, change=change) as (url, _):
            settings = {"teacher_law": ["top_k_bucket(k=8)"], "selectivity": [{"temperature": 1}]}
            path = chain_of(tmp_path, model, at(url, tmp_path, "vllm"), **settings)
            found = hm.run(path, out=tmp_path / change.__name__)
        reasons = [c["reason"] for c in found.results["cells"] if c["status"] == "failed"]
        assert reasons, change
        assert all(said in r and "\n" not in r for r in reasons), reasons


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ({"teacher_law": ["dense"]}, "gives no whole next-token laws"),
        ({"teacher_law": ["sampled(k=8)"]}, "gives no whole next-token laws"),
        ({"teacher_law": ["top_k_bucket(k=8)"]}, "top k bucket|top_k_bucket .k 8. is not known at temperature 0.6"),
    ],
)
def test_what_a_served_teacher_does_not_know_is_refused(
    tmp_path: Path, served: tuple[CausalLM, Path], chain: dict[str, Any], said: str
) -> None:
    path = chain_of(tmp_path, served[1], at("http://localhost:9", tmp_path, "vllm"), **chain)
    with pytest.raises((SpecError, StageError), match=said) as e:
        plan_run(hm.load_spec(path))
    assert "\n" not in str(e.value)
