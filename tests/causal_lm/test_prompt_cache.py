"""Prompts run once for all rows that answer them: what is kept, and what running them takes besides."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.models.causal_lm.cpu.llama import Cache, Llama  # noqa: E402
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool  # noqa: E402
from tiny import make_llama  # noqa: E402


@pytest.mark.parametrize("shared", [0, 20])
def test_prompts_are_run_a_few_at_a_time_and_each_as_alone(monkeypatch: pytest.MonkeyPatch, shared: int) -> None:
    rng = np.random.default_rng(0)
    head = rng.integers(3, 64, shared).tolist()
    prompts = [(*head, *rng.integers(3, 64, n).tolist()) for n in rng.integers(1, 40, 30)]
    engine = Llama(make_llama(max_position_embeddings=64).eval())
    made: list[int] = []
    cache = engine.cache

    def counted(rows: int, room: int, *, shared: bool = False) -> Cache:
        made.append(rows)
        return cache(rows, room, shared=shared)

    monkeypatch.setattr(engine, "cache", counted)
    with torch.inference_mode():
        together = engine.prompts(prompts, ThreadPool(1))
        assert made[0] == len(prompts)
        assert 1 < max(made[1:]) <= 8
        for i, prompt in enumerate(prompts):
            alone = engine.prompts([prompt], ThreadPool(1))
            assert torch.equal(together.states[i], alone.states[0])
            for ours, theirs in zip(together.cache.keys, alone.cache.keys, strict=True):
                np.testing.assert_array_equal(ours[i, :, : len(prompt)], theirs[0])
