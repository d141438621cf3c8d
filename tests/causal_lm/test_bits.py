"""Equal bits for equal questions, whoever asks and in whatever order; and weights that change in between."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.rng import as_stream  # noqa: E402
from hydrometer.models.causal_lm.inference import sampler  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.networks import next_token  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from naive import PROMPTS, SETTINGS, STOP, assert_right, naive_log_prob  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

COLUMNS = ("prompt_index", "ids", "lengths", "stopped", "log_prob", "token_log_prob", "token_log_prob_unselected")


def assert_equal_bits(x: Sequences, y: Sequences):
    for name in (*COLUMNS, "near_edge"):
        np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


def digest(x: Sequences) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(getattr(x, name)).tobytes() for name in COLUMNS)).hexdigest()


def composite_law(lm: CausalLM, block_rows: int = 16) -> CausalLaw:
    return lm.law(PROMPTS, max_new_tokens=10, selectivity=SETTINGS[-1], stop=STOP, block_rows=block_rows)


def test_a_block_is_drawn_alike_each_time_and_in_any_order(any_lm: CausalLM):
    law, stream = composite_law(any_lm), as_stream(5)
    blocks = [sampler.draw_blocks(law, stream, b, b + 1) for b in range(3)]
    for b in (2, 0, 1, 1):
        assert_equal_bits(sampler.draw_blocks(law, stream, b, b + 1), blocks[b])
    assert_equal_bits(law.sample(48, seed=5), Sequences.concatenate(blocks))


def test_a_block_cut_short_has_the_rows_of_a_whole_one(any_lm: CausalLM):
    law, stream = composite_law(any_lm), as_stream(5)
    whole = law.sample(48, seed=5)
    assert_equal_bits(law.sample_block(16, stream=stream, start=16), whole.take(slice(16, 32)))
    cut, rows = law.sample_block(6, stream=stream, start=32), whole.take(slice(32, 38))
    for i in range(6):
        np.testing.assert_array_equal(cut.row(i), rows.row(i))
    np.testing.assert_allclose(cut.log_prob, rows.log_prob, atol=1e-4)


def test_a_frozen_network_is_laid_out_once_and_draws_the_same_bits(llama: CausalLM):
    frozen = CausalLM(llama.model, llama.tokenizer)
    frozen.frozen = True
    assert frozen.engine is frozen.engine
    x, y = composite_law(llama).sample(40), composite_law(frozen).sample(40)
    assert_equal_bits(x, y)
    assert_equal_bits(x, composite_law(frozen).sample(40))
    np.testing.assert_array_equal(composite_law(llama).log_prob(x), composite_law(frozen).log_prob(x))


def test_threads_that_draw_side_by_side_do_not_disturb_one_another(llama: CausalLM):
    law, stream = composite_law(llama), as_stream(5)

    def drawn(b: int) -> Sequences:
        torch.set_num_threads(1)
        return sampler.draw_blocks(law, stream, b, b + 1)

    blocks = [0, 1, 2, 0, 1, 2]
    alone = [drawn(b) for b in blocks]
    with ThreadPoolExecutor(2) as pool:
        for x, y in zip(alone, pool.map(drawn, blocks), strict=True):
            assert_equal_bits(x, y)


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
import torch
torch.set_num_threads(1)
from test_bits import CausalLM, composite_law, digest, make_llama, make_tokenizer
print(digest(composite_law(CausalLM(make_llama(), make_tokenizer(64))).sample(40, seed=5)))
"""


def test_another_process_draws_the_same_bits(llama: CausalLM):
    here = Path(__file__).parent
    script = SCRIPT.format(tests=str(here.parent), here=str(here))
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed.split() == [digest(composite_law(llama).sample(40, seed=5))]


def test_workers_draw_the_same_bits_each_time(llama: CausalLM):
    law = composite_law(llama, block_rows=96)
    one = law.sample(96, seed=5)
    torch.set_num_threads(2)
    draws = [law.sample(96, seed=5) for _ in range(3)]
    assert torch.get_num_threads() == 2
    assert_equal_bits(draws[0], draws[1])
    assert_equal_bits(draws[0], draws[2])
    assert (draws[0].lengths == one.lengths).mean() > 0.97
    inside = (one.near_edge == 0) & (draws[0].lengths == one.lengths)
    assert np.median(np.abs(one.log_prob - draws[0].log_prob)[inside]) < 1e-4
    scored = [law.log_prob(one) for _ in range(3)]
    assert torch.get_num_threads() == 2
    np.testing.assert_array_equal(scored[0], scored[1])
    np.testing.assert_array_equal(scored[0], scored[2])
    np.testing.assert_allclose(scored[0][inside], one.log_prob[inside], atol=1e-3)


def test_a_lane_that_raises_leaves_the_threads_as_they_were(llama: CausalLM, monkeypatch: pytest.MonkeyPatch):
    law = composite_law(llama, block_rows=96)
    before = law.sample(96, seed=5)
    torch.set_num_threads(2)
    calls = []

    def failing(*args: object) -> object:
        calls.append(torch.get_num_threads())
        if len(calls) > 5:
            raise FloatingPointError("a worker failed")
        return real(*args)

    real = next_token.draw
    with monkeypatch.context() as patch:
        patch.setattr(next_token, "draw", failing)
        with pytest.raises(FloatingPointError, match="a worker failed"):
            law.sample(96, seed=5)
    assert set(calls) == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert_equal_bits(law.sample(96, seed=5), before)


# -- weights that change -----------------------------------------------------------------------------------------------


def by_optimizer(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02)


def by_state_dict(model):
    model.load_state_dict(make_llama(seed=9).state_dict())


def by_replacement(model):
    for p in model.parameters():
        p.data = p.data * 1.1


def by_two_replacements(model):
    """The second may lie where the first weights lay."""
    by_replacement(model)
    by_replacement(model)


def by_data(model):
    for p in model.parameters():
        p.data.mul_(1.1)


def by_one_row(model):
    with torch.no_grad():
        model.model.norm.weight[3] += 1


def by_optimizer_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model(torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    optimizer.step()


CHANGES = [by_optimizer, by_state_dict, by_replacement, by_two_replacements, by_data, by_one_row, by_optimizer_step]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_weights_that_changed_are_noticed(change):
    lm = CausalLM(make_llama(), make_tokenizer(64))
    law = composite_law(lm)
    x = law.sample(16)
    unselected = replace(law, selectivity=None)
    before = unselected.log_prob(x)
    change(lm.model)
    after = unselected.log_prob(x)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, naive_log_prob(unselected, x), atol=1e-3)
    assert_right(law)
