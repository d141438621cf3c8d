"""Counts of operations and bytes against torch's own counter and the networks themselves."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from chains import lm_spec  # noqa: E402
from hydrometer.models.causal_lm.costs import forward_flops, shape_of, spread  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from hydrometer.models.causal_lm.timing import _Bench, measure  # noqa: E402
from tiny import make_gpt2, make_llama, make_qwen2  # noqa: E402


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
    assert fit.flops > 3 * epochs * forward_flops(student, 64 * most, 0, 64 * most)
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


def test_lanes_wait_for_their_last_batch() -> None:
    for tokens in (1.0, 1000.0, 1024.0, 5000.0, 1e6, 1e9):
        assert spread(tokens, 1) == tokens
        for lanes in (2, 8):
            assert tokens <= spread(tokens, lanes) <= tokens + 1024 * lanes


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
