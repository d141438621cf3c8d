"""What a causal LM offers for control variates: zero-mean by enumeration, and the same scores as before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.errors import LawMismatchError, StageError  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import Controlled  # noqa: E402
from hydrometer.models.causal_lm.cpu.llama import Llama  # noqa: E402
from hydrometer.models.causal_lm.inference import scorer  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.networks.hidden_state_cache import HiddenStateCache  # noqa: E402
from naive import PROMPTS, SETTINGS, all_strings, as_sequences, slug  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402


@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_controls_have_mean_zero_over_all_strings(small: CausalLM, selectivity: Selectivity | None):
    law = small.law(None, max_new_tokens=3, selectivity=selectivity)
    other = CausalLM(make_llama(vocab=8, layers=1, seed=9), make_tokenizer(8)).law(None, max_new_tokens=3)
    assert isinstance(law, Controlled)
    x = as_sequences(law, all_strings(law))
    p = np.exp(law.log_prob(x))
    x, p = x.take(np.flatnonzero(p)), p[p > 0]
    found = law.score_beside(x, other)
    assert found.controls.shape == (len(x), 2)
    assert p @ found.controls == pytest.approx(0, abs=2e-5)
    assert found.controls[:, 1].std() > 0.01
    np.testing.assert_allclose(found.own, law.log_prob(x), atol=1e-5)
    np.testing.assert_allclose(found.other, other.log_prob(x), atol=1e-5)
    alone = law.score_beside(x, law)
    np.testing.assert_allclose(alone.controls[:, 0], found.controls[:, 0], atol=1e-5)
    assert alone.controls.shape[1] == 1


def test_states_kept_for_the_next_law_change_no_bit(any_lm: CausalLM, llama: CausalLM, monkeypatch: pytest.MonkeyPatch):
    law, other = (lm.law(PROMPTS, max_new_tokens=10, block_rows=32) for lm in (any_lm, llama))
    x, y = law.sample(40, seed=1), law.sample(40, seed=2)
    monkeypatch.setattr(any_lm, "frozen", True)
    monkeypatch.setattr(any_lm, "hidden_states", None)
    plain = law.score_beside(x, other)
    first, second = (law.score_beside(x, other, again=True) for _ in range(2))
    assert any_lm.hidden_states is not None
    assert any_lm.hidden_states.bytes > 0
    for a in (first, second):
        assert (a.own == plain.own).all()
        assert (a.other == plain.other).all()
        assert (a.controls == plain.controls).all()
    elsewhere = law.score_beside(y, other, again=True)  # other rows: nothing of the first may be taken for them
    assert (elsewhere.own == law.score_beside(y, other).own).all()


def test_what_is_kept_is_bounded_and_only_of_weights_that_stay(llama: CausalLM, monkeypatch: pytest.MonkeyPatch):
    law = llama.law(PROMPTS, max_new_tokens=10, block_rows=32)
    x = law.sample(40, seed=1)
    monkeypatch.setattr(llama, "hidden_states", None)
    law.score_beside(x, law, again=True)
    assert llama.hidden_states is None
    monkeypatch.setattr(llama, "frozen", True)
    monkeypatch.setattr("hydrometer.models.causal_lm.networks.hidden_state_cache.MAX_BYTES", 10)
    kept = law.score_beside(x, law, again=True)
    assert llama.hidden_states is not None
    assert llama.hidden_states.bytes == 0
    assert (kept.own == law.log_prob(x)).all()


def test_rows_of_another_law_and_other_outcomes_are_refused(small: CausalLM, llama: CausalLM):
    law = small.law(None, max_new_tokens=3)
    longer = small.law(None, max_new_tokens=4)
    with pytest.raises(LawMismatchError, match="max_new_tokens"):
        law.score_beside(law.sample(5, seed=0), longer)
    with pytest.raises(StageError, match="cannot say"):
        law.score_beside(longer.sample(50, seed=0), law)
    assert scorer.score_steps(law, law.sample(3, seed=0)).other is None


def test_rounds_longer_than_there_is_room_for_keep_their_first_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hydrometer.models.causal_lm.networks.hidden_state_cache.MAX_BYTES", 80)
    kept, states = HiddenStateCache(), torch.zeros(10)  # 40 bytes

    def ask(name: str) -> bool:
        found = kept.of(name.encode())
        was_there = bool(found)
        if not was_there:
            kept.keep(found, b"batch", states)
        return was_there

    assert [ask(a) for a in "abc"] == [False] * 3
    assert [ask(a) for a in "abc" * 2] == [True, True, False] * 2
    assert kept.bytes == 80
    assert [ask(a) for a in "de"] == [False] * 2  # another stream's rows: what is held may still come
    assert [ask(a) for a in "de"] == [False] * 2  # a round without the old ones has passed
    assert [ask(a) for a in "de"] == [True] * 2
    assert kept.bytes == 80
    assert not ask("a")


def test_states_of_a_block_are_kept_beside_those_of_others(llama: CausalLM, monkeypatch: pytest.MonkeyPatch):
    """The network and its prompts are run once for each block, however many laws its rows are scored beside."""
    law = llama.law(PROMPTS, max_new_tokens=10, block_rows=32)
    other = CausalLM(make_llama(seed=9), make_tokenizer(64)).law(PROMPTS, max_new_tokens=10, block_rows=32)
    monkeypatch.setattr(llama, "frozen", True)
    monkeypatch.setattr(llama, "hidden_states", None)
    blocks = [law.sample(16, seed=s) for s in range(3)]
    calls: list[str] = []
    for name in ("prompts", "forward"):
        monkeypatch.setattr(Llama, name, _noted(calls, name, getattr(Llama, name)))
    first = [law.score_beside(x, other, again=True) for x in blocks]
    both, calls[:] = list(calls), []
    for x, a in zip(blocks, first, strict=True):
        b = law.score_beside(x, other, again=True)
        assert (a.own == b.own).all()
        assert (a.controls == b.controls).all()
    assert len(both) == 2 * len(calls) > 0


def _noted(calls: list[str], name: str, method: Callable[..., object]) -> Callable[..., object]:
    def call(self: object, *given: object) -> object:
        calls.append(name)
        return method(self, *given)

    return call
