"""Counts of operations and bytes against torch's own counter and the networks themselves."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import MixtralConfig  # noqa: E402

from chains import lm_spec  # noqa: E402
from hydrometer.models.causal_lm.cost.memory import step_bytes  # noqa: E402
from hydrometer.models.causal_lm.cost.operations import Shape, shape_of, spread, stage_work, workers_of  # noqa: E402
from hydrometer.models.causal_lm.cost.timing import _Bench, measure  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from hydrometer.models.causal_lm.training import trainer  # noqa: E402
from hydrometer.models.work import Device, share_out  # noqa: E402
from hydrometer.stages.score import Columns, save_columns  # noqa: E402
from tiny import make_gpt2, make_llama, make_qwen2, make_tokenizer  # noqa: E402


def forward_flops(shape: Shape, tokens: float, pairs: float, heads: float) -> float:
    """Operations of a forward pass: `pairs` of a token and a position, in each layer; `heads` states that meet V."""
    body = shape.layers * (2.0 * shape.layer * tokens + 4.0 * shape.attention * pairs)
    return body + 2.0 * shape.width * shape.vocabulary * heads


@pytest.mark.parametrize("make", [make_llama, lambda: make_gpt2(tied=True), make_qwen2], ids=["llama", "gpt2", "qwen2"])
def test_forward_operations_are_those_that_torch_counts(make) -> None:
    model = make()
    model.set_attn_implementation("eager")  # products that the counter knows
    shape, rows, length = shape_of(model.config), 3, 17
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(rows, length, dtype=torch.long))
    counted = counter.get_total_flops()
    said = forward_flops(shape, rows * length, rows * length**2, rows * length)
    assert said == pytest.approx(counted, rel=0.01)


def chain_of(folder: Path, **more: object) -> CausalLMChain:
    return CausalLMChain.model_validate(lm_spec(folder)["chains"]["lm"] | {"threads": 1, **more})


def test_a_stage_counts_what_it_runs(llama_folder: Path) -> None:
    c = chain_of(llama_folder)
    s = CAUSAL_LM.subject(c)
    truth, most = s.shapes["truth"], c.truth.max_new_tokens
    draw = CAUSAL_LM.work(c, "draw", "truth", 32, float(most), "float32")
    once = forward_flops(truth, 32 * most, 32 * most * (s.prompt + most / 2), 32 * most)
    assert once < draw.flops < 1.5 * once  # and the prompts
    student = s.shapes["student"]
    epochs = s.levels["student"].training.num_train_epochs
    fit = CAUSAL_LM.work(c, "fit", "student", 64, float(most), "float32")
    # An answer's last token is not run through the layers where rows are packed.
    assert fit.flops > 3 * epochs * forward_flops(student, 64 * (most - 1), 0, 64 * most)
    assert fit.tokens == 64 * most * epochs
    truths, own = (CAUSAL_LM.work(c, x, "student", 64, float(most), "float32") for x in ("score truth", "score law"))
    judge = truths.flops + own.flops
    tokens = 64 * most
    heads = 2 * (forward_flops(truth, 0, 0, tokens) + forward_flops(student, 0, 0, tokens))
    bodies = forward_flops(truth, tokens, 0, 0) + 2 * forward_flops(student, tokens, 0, 0)
    assert heads + bodies < judge < 1.5 * (heads + bodies)  # the truth at its own rows is kept
    alone = CAUSAL_LM.work(c, "score own", "truth", 64, float(most), "float32").flops
    once = forward_flops(truth, tokens, 0, tokens)
    assert once < alone < 1.5 * once


def test_costs_of_a_chain_for_progress_are_seconds_of_the_same_counts(llama_folder: Path) -> None:
    c = chain_of(llama_folder)
    for stage in ("draw", "fit", "judge"):
        few, many = (CAUSAL_LM.cost(c, stage, "student", n) for n in (4096, 8192))
        assert 0 < few < many < 2.5 * few


def test_workers_wait_for_their_last_batch() -> None:
    for tokens in (1.0, 1000.0, 1024.0, 5000.0, 1e6, 1e9):
        assert spread(tokens, 1) == tokens
        for workers in (2, 8):
            assert tokens <= spread(tokens, workers) <= tokens + 1024 * workers


def test_measuring_asks_only_for_what_is_not_known(llama_folder: Path) -> None:
    c = chain_of(llama_folder)
    s = CAUSAL_LM.subject(c)
    found = measure(s, 4.0, {})
    needed = {
        p.name
        for stage in ("draw", "fit", "score own", "score truth", "score law", "judge", "open")
        for role in ("truth", "teacher", "student")
        for precision in ("float32", "bfloat16")
        if not (stage == "fit" and role == "truth")
        for p in CAUSAL_LM.work(c, stage, role, 32, 4.0, precision).parts
    }
    assert needed - set(found) <= {n for n in needed if "bfloat16" in n and c.draw_dtype == "float32"}
    assert all(v > 0 for v in found.values())
    marked = dict.fromkeys(found, 7.0)
    assert measure(s, 4.0, marked) == marked


def test_a_fit_of_several_workers_is_measured_in_this_process(llama_folder: Path) -> None:
    s = CAUSAL_LM.subject(chain_of(llama_folder))
    several = s.levels["student"].training.model_copy(update={"num_workers": 2, "save_steps": 1})
    assert min(_Bench(s, 4.0).train(s.configs["student"], several)) > 0


def test_experts_are_counted_whole() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    attention, router, experts = 2 * 32 * 32 + 2 * 32 * 16, 4 * 32, 4 * 3 * 32 * 48
    assert shape_of(config).layer == attention + router + experts


def test_a_block_of_scores_keeps_what_is_said(llama_folder: Path, tmp_path: Path) -> None:
    c, n = chain_of(llama_folder), 1000
    own, first = np.zeros(n), np.zeros((n, 1 + math.ceil(math.log2(c.truth.max_new_tokens))))
    save_columns(Columns(own, own, np.zeros((n, 2)), first, first), tmp_path)
    written = sum(f.stat().st_size for f in tmp_path.iterdir())
    for stage in ("score truth", "score law"):
        assert CAUSAL_LM.work(c, stage, "student", n, 6.0, "float32").disk == pytest.approx(written, rel=0.02)


def test_memory_of_a_draw_is_that_of_its_arithmetic(llama_folder: Path) -> None:
    c = chain_of(llama_folder, draw_dtype="bfloat16")
    narrow, wide = (CAUSAL_LM.work(c, "draw", "truth", 16, 6.0, p).memory for p in ("bfloat16", "float32"))
    assert wide == 2 * narrow > 0
    assert CAUSAL_LM.footprint(c, "draw", "truth", 16).memory_least == wide  # evaluation rows are drawn in float32


def test_memory_of_a_draw_holds_every_prompt_as_long_as_the_longest(llama_folder: Path, tmp_path: Path) -> None:
    held: list[int] = []
    for n in (1, 11):
        file = tmp_path / f"{n}.jsonl"
        file.write_text("\n".join(json.dumps({"prompt": text}) for text in ("w3", "w4", " ".join(["w5"] * n))))
        truth = {"source": str(llama_folder), "max_new_tokens": 6, "prompts": {"file": str(file), "chat": False}}
        held.append(CAUSAL_LM.footprint(chain_of(llama_folder, truth=truth), "draw", "truth", 16).memory_least)
    config = CAUSAL_LM.subject(chain_of(llama_folder)).configs["truth"]
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert held[1] - held[0] == 3 * 10 * numbers * 4


def test_a_plans_memory_is_counted_wherever_it_is(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, auto = chain_of(llama_folder, threads=4), chain_of(llama_folder, threads=4, device="auto")
    said = {s: CAUSAL_LM.work(here, s, "student", 16, 6.0, "float32").memory for s in ("draw", "fit", "score law")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert CAUSAL_LM.footprint(auto, "draw", "student", 16).memory_least == 0
    card = {s: CAUSAL_LM.work(auto, s, "student", 16, 6.0, "float32").memory for s in said}
    subject, longest = CAUSAL_LM.subject(auto), auto.truth.max_new_tokens
    n, width = subject.shapes["student"].parameters, max(subject.prompts) + longest
    saved = step_bytes(subject.configs["student"], n, auto.student.training, 16, (width, longest))
    assert saved > 0
    assert card == {**said, "fit": said["fit"] + saved}  # batches are padded there
    assert (workers_of(here), workers_of(auto)) == (4, 1)


def test_held_out_rows_are_scored_in_float32_whatever_models_are_judged_in(llama_folder: Path) -> None:
    c = chain_of(llama_folder, judge_dtype="bfloat16")
    scored = [p for p in CAUSAL_LM.work(c, "fit", "student", 64, 6.0, "bfloat16").parts if p.phase == "score"]
    assert {p.dtype for p in scored} == {"float32"}
    assert {p.name for p in scored} <= set(measure(CAUSAL_LM.subject(c), 4.0, {}))


def test_attention_counts_the_tokens_that_answers_are_expected_to_have(llama_folder: Path) -> None:
    c = chain_of(llama_folder)
    s, rows, mean = CAUSAL_LM.subject(c), 64, 2.0
    truth, tokens = s.shapes["truth"], rows * mean
    scored = CAUSAL_LM.work(c, "score own", "truth", rows, mean, "float32").flops
    prompts = forward_flops(truth, sum(s.prompts), 0, 0)
    looked = truth.layers * 2.0 * truth.attention * s.prompt * sum(s.prompts)
    once = forward_flops(truth, tokens, tokens * (s.prompt + mean / 2), tokens)
    assert scored == pytest.approx(once + prompts + looked)


def test_what_was_measured_at_one_length_is_not_taken_for_another(llama_folder: Path) -> None:
    c = chain_of(llama_folder)
    longer = c.model_copy(update={"truth": c.truth.model_copy(update={"max_new_tokens": 60})})
    asked = c.model_copy(update={"truth": c.truth.model_copy(update={"prompts": "w3 w4 w5 w6 w7 w8"})})
    for stage in ("draw", "score own", "score law"):
        names = [{p.name for p in CAUSAL_LM.work(x, stage, "student", 16, 4.0, "float32").parts}
                 for x in (c, longer, asked)]  # fmt: skip
        assert all(a.isdisjoint(b) for a, b in combinations(names, 2))


@pytest.mark.parametrize("more", [{"num_workers": 2}, {"save_steps": 500}], ids=["workers", "checkpoints"])
def test_fits_of_workers_and_with_checkpoints_are_measured_and_leave_nothing(llama_folder: Path, more: Any) -> None:
    levels = {k: lm_spec(llama_folder)["chains"]["lm"][k] for k in ("teacher", "student")}
    # On both: equal shapes are measured once.
    c = chain_of(llama_folder, **{k: v | {"training": v["training"] | more} for k, v in levels.items()})
    found = measure(CAUSAL_LM.subject(c), 4.0, {})
    assert any(n.startswith("train.layer") for n in found)
    assert not list(Path(trainer.__file__).parent.glob("checkpoint-*"))


def test_a_chain_that_fills_its_models_positions_is_measured(tmp_path: Path) -> None:
    CausalLM(make_llama(max_position_embeddings=5), make_tokenizer(64)).save(tmp_path / "tight")
    c = chain_of(tmp_path / "tight", truth={"source": str(tmp_path / "tight"), "max_new_tokens": 4, "prompts": None})
    assert all(v > 0 for v in measure(CAUSAL_LM.subject(c), 4.0, {}).values())


def test_training_counts_each_prompt_of_a_batch_once(llama_folder: Path, tmp_path: Path) -> None:
    """64 rows of two long prompts: half of the answers six tokens, half of them two."""
    (tmp_path / "two.jsonl").write_text("\n".join(json.dumps({"prompt": w * 20}) for w in ("w3 ", "w4 ")))
    truth = {"source": str(llama_folder), "max_new_tokens": 6, "prompts": {"file": str(tmp_path / "two.jsonl")}}
    c = chain_of(llama_folder, truth=truth)
    s = CAUSAL_LM.subject(c)
    spec, own = s.levels["student"].training, s.shapes["student"]
    batch = spec.per_device_train_batch_size
    packed = 2 * 20 + batch * (4 - 1)
    layer = next(p for p in stage_work(s, "fit", "student", 64, 4.0, "float32").parts if "train.layer" in p.name)
    assert layer.units == pytest.approx(own.layers * spec.num_train_epochs * 64 / batch * packed, rel=0.1)
    plain = replace(s, shapes={k: replace(v, packs=False) for k, v in s.shapes.items()})
    padded = next(p for p in stage_work(plain, "fit", "student", 64, 4.0, "float32").parts if "train.layer" in p.name)
    assert padded.units == own.layers * spec.num_train_epochs * 64 * 26
    assert padded.name != layer.name


def test_what_stages_took_is_shared_out_so_that_other_sizes_are_priced_by_it(llama_folder: Path) -> None:
    """Seconds of parts that nobody knows make those of stages; from these alone, stages of other sizes are priced."""
    c = chain_of(llama_folder)
    stages = [(stage, role) for stage in ("draw", "score own", "score truth", "score law", "fit")
              for role in ("truth", "teacher", "student") if (stage, role) != ("fit", "truth")]  # fmt: skip

    def works(rows: int) -> list[Any]:
        return [CAUSAL_LM.work(c, stage, role, rows, 4.0, "float32") for stage, role in stages]

    coarse = Device(
        name="x", flops={"float32": 1e9, "bfloat16": 1e9}, bandwidth=1e9,
        utilisation={"draw": 0.5, "score": 0.5, "train": 0.5},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    units: dict[str, list[float]] = {}
    for w in works(64):
        for p in w.parts:
            units.setdefault(p.name, []).append(coarse.seconds(p) / max(p.units, 1e-9))
    real = coarse.model_copy(
        update={"measured": {k: float(np.mean(v) * rng.lognormal(0, 1)) for k, v in units.items()}}
    )
    took = [(w, 3, 3 * w.seconds(real)) for w in works(64)]
    found = coarse.model_copy(update={"measured": share_out(took, coarse)})
    assert sum(w.seconds(found) for w in works(64)) == pytest.approx(sum(w.seconds(real) for w in works(64)))
    off = [a.seconds(found) / a.seconds(real) for a in works(640)]
    before = [a.seconds(coarse) / a.seconds(real) for a in works(640)]
    assert max(abs(np.log(off))) < np.log(1.25) < max(abs(np.log(before)))
    assert all(v > 0 for v in found.measured.values())
