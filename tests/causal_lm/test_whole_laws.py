"""Whole next-token laws along rows, against transformers' own forward over each row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from hydrometer.core.errors import LawMismatchError, ModelError
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.whole_laws import whole_laws
from tiny import make_gpt2, make_llama, make_tokenizer

MAKE: dict[str, Callable[[], PreTrainedModel]] = {"llama": lambda: make_llama(seed=5), "gpt2": lambda: make_gpt2(False)}
PROMPTS = ["w3 w4 w5", "w6", "w7 w8 w9 w10 w11"]


@pytest.mark.parametrize("name", MAKE)
def test_laws_of_rows_of_several_prompts(name: str) -> None:
    lm = CausalLM(MAKE[name](), make_tokenizer(64))
    assert (lm.engine is not None) == (name == "llama")  # packed, and by transformers
    law = lm.law(PROMPTS, max_new_tokens=6)
    x = law.sample(7, seed=1)
    found = whole_laws(law, x)
    log_p, states = [], []
    for i in range(len(x)):
        prompt = law.prompts.ids[int(x.prompt_index[i])]
        ids = torch.tensor([[*prompt, *x.row(i).tolist()]])
        with torch.no_grad():
            out = lm.model(ids, output_hidden_states=True, use_cache=False)
        at = slice(len(prompt) - 1, ids.shape[1] - 1)
        log_p.append(out.logits[0, at].double().log_softmax(-1).numpy())
        states.append(out.hidden_states[-1][0, at].double().numpy())
    np.testing.assert_allclose(found.log_p, np.concatenate(log_p), atol=1e-4)
    np.testing.assert_allclose(found.states, np.concatenate(states), atol=1e-4)


def test_other_rows_and_other_heads_are_refused() -> None:
    lm = CausalLM(make_llama(seed=5), make_tokenizer(64))
    x = lm.law(PROMPTS, max_new_tokens=2).sample(3, seed=0)
    with pytest.raises(LawMismatchError, match="other prompts"):
        whole_laws(lm.law(PROMPTS[:1], max_new_tokens=2), x)
    lm.network.is_split = False
    with pytest.raises(ModelError, match="no product of states and a matrix"):
        whole_laws(lm.law(PROMPTS, max_new_tokens=2), x)
