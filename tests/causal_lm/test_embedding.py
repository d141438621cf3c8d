"""Embeddings against transformers' own hidden states, row by row and without padding."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from hydrometer.core.errors import InputError, LawMismatchError  # noqa: E402
from hydrometer.models.capabilities import Embeds  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402

PROMPTS = ["w3 w4", "w5", "w6 w7 w8 w9"]


def law_of(lm: CausalLM) -> CausalLaw:
    return lm.law(PROMPTS, max_new_tokens=7, block_rows=32)


def means(lm: CausalLM, x: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Mean states over the answers' tokens, after the final norm and before it."""
    before: list[torch.Tensor] = []
    network = copy.deepcopy(lm.model)  # asked for hidden states, transformers leaves hooks in it for good
    body = network.base_model
    norm = body.norm if hasattr(body, "norm") else body.ln_f
    hook = norm.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    out: list[list[np.ndarray]] = [[], []]
    with torch.inference_mode():
        for i in range(len(x)):
            prompt = x.prompt_ids[x.prompt_index[i]]
            found = network(torch.tensor([[*prompt, *x.row(i).tolist()]]), output_hidden_states=True)
            for kept, states in zip(out, (found.hidden_states[-1], before[-1]), strict=True):
                kept.append(states[0, len(prompt) :].mean(0).numpy())
    hook.remove()
    return np.stack(out[0]), np.stack(out[1])


def test_embedding_is_the_mean_last_hidden_state_after_the_norm(any_lm: CausalLM) -> None:
    law = law_of(any_lm)
    x = law.sample(30, seed=3)
    assert len(set(x.lengths.tolist())) > 1
    found = law.embed(x)
    assert found.dtype == np.float32
    after, before = means(any_lm, x)
    assert np.abs(found - after).max() < 1e-4
    assert np.abs(found - before).max() > 1e-2


def test_equal_answers_lie_in_one_place_whoever_is_beside_them(any_lm: CausalLM) -> None:
    law = law_of(any_lm)
    x = law.sample(24, seed=1)
    twice = Sequences.concatenate([x, x.take(slice(5, 12))])
    found = law.embed(twice)
    assert (found[24:] == found[5:12]).all()
    assert np.abs(law.embed(x.take(slice(5, 12))) - found[5:12]).max() < 1e-5
    assert (law.select(hm.Selectivity(top_k=3)).embed(x) == law.embed(x)).all()


def test_a_law_embeds_and_tells_its_texts(llama: CausalLM) -> None:
    law = law_of(llama)
    assert isinstance(law, Embeds)
    assert not isinstance(hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical"), Embeds)
    x = law.sample(6, seed=0)
    words = [[t for t in row.tolist() if t > 2] for row in (x.row(i) for i in range(6))]
    assert [t.split() for t in law.texts(x)[1]] == [llama.tokenizer.convert_ids_to_tokens(w) for w in words]


def test_what_has_no_place_is_refused(llama: CausalLM) -> None:
    law = law_of(llama)
    x = law.sample(4, seed=0)
    empty = Sequences(x.prompt_ids, x.prompt_index, x.ids, x.lengths * 0, x.stopped, x.log_prob)
    unknown = Sequences(x.prompt_ids, x.prompt_index, x.ids + 64, x.lengths, x.stopped, x.log_prob)
    for rows, says in ((empty, "without tokens"), (unknown, "does not know")):
        with pytest.raises(LawMismatchError, match=says):
            law.embed(rows)
    with pytest.raises(LawMismatchError, match="other prompts"):
        llama.law("w3", max_new_tokens=7).embed(x)
    with pytest.raises(InputError, match="Sequences"):
        law.embed(hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical").sample(2))
