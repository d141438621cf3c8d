"""The Llama engine and the general path against transformers' own forward: what is recognised, drawn and scored."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hydrometer.core.errors import LawMismatchError  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.inference import scorer  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.networks import next_token  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from llama_types import LLAMA_TYPE, PROMPT_SETS, make, scrambled  # noqa: E402
from naive import PROMPTS, SETTINGS, STOP, assert_right, cross_entropy, entropy, log_law, naive_logits, slug  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402


@pytest.fixture(scope="module", params=LLAMA_TYPE)
def engine_lm(request: pytest.FixtureRequest) -> CausalLM:
    lm = CausalLM(scrambled(LLAMA_TYPE[request.param]()), make_tokenizer(64))
    assert lm.is_llama
    return lm


@pytest.mark.parametrize("prompts", PROMPT_SETS)
@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_the_engine_is_the_network(engine_lm: CausalLM, selectivity, prompts):
    law = engine_lm.law(PROMPT_SETS[prompts], max_new_tokens=12, selectivity=selectivity, stop=STOP, block_rows=24)
    x = assert_right(law)
    assert x.stopped.any()
    assert len(np.unique(x.lengths)) > 2


def test_prompts_are_shared_as_the_names_say(llama: CausalLM):
    ids = {name: llama.law(prompts).prompts.ids for name, prompts in PROMPT_SETS.items()}
    assert len({p[:8] for p in ids["apart"] if len(p) > 8}) == 1
    assert len({p[:9] for p in ids["shared"]}) == len({p[:9] for p in ids["nested"]}) == 1


@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_every_network_records_what_it_scores(any_lm: CausalLM, selectivity):
    assert_right(any_lm.law(PROMPTS, max_new_tokens=10, selectivity=selectivity, stop=STOP, block_rows=24))


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched() -> torch.nn.Module:
    model = make_llama()
    old = model.model.layers[1].mlp.down_proj
    new = Doubled(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    model.model.layers[1].mlp.down_proj = new
    return model


def hooked() -> torch.nn.Module:
    model = make_llama()
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return model


UNLIKE = {
    "window": lambda: make("Mistral", sliding_window=6),
    "dynamic-rope": lambda: make_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    "patched": patched,
    "hooked": hooked,
    "gelu": lambda: make_llama(hidden_act="gelu"),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_only_resembles_a_llama_takes_the_general_path(kind):
    lm = CausalLM(UNLIKE[kind](), make_tokenizer(64))
    assert not lm.is_llama
    assert lm.engine is None
    for prompts in PROMPT_SETS.values():
        assert_right(lm.law(prompts, max_new_tokens=12, selectivity=Selectivity(top_p=0.9), stop=STOP, block_rows=24))


@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_both_paths_draw_the_same_rows(llama: CausalLM, selectivity):
    general = CausalLM(llama.model, llama.tokenizer)
    general.is_llama = False
    x, y = (
        lm.law(PROMPTS, max_new_tokens=10, selectivity=selectivity, stop=STOP, block_rows=50).sample(200, seed=8)
        for lm in (llama, general)
    )
    width = max(x.ids.shape[1], y.ids.shape[1])
    a, b = (np.pad(z.ids, ((0, 0), (0, width - z.ids.shape[1]))) for z in (x, y))
    same = (a == b).all(-1)
    assert same.mean() >= 0.98
    off = np.abs(x.log_prob - y.log_prob) / x.lengths
    assert off[same & (x.near_edge == 0)].max() < 1e-4


@pytest.mark.parametrize("is_llama", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holes_of_the_vocabulary_are_never_drawn(dtype, is_llama):
    lm = CausalLM(make_llama().to(dtype), make_tokenizer(64))
    lm.is_llama, lm.holes = is_llama, torch.arange(30, 60)
    law = lm.law(PROMPTS, max_new_tokens=10, stop=STOP, block_rows=40)
    x = assert_right(law) if dtype == torch.float32 else law.sample(40)
    assert not np.isin(x.ids, np.arange(30, 60)).any()
    assert np.isfinite(x.log_prob).all()
    x.ids[:, 0] = 40
    assert np.isneginf(law.log_prob(x)).all()


def test_a_network_without_an_attention_cache():
    torch.manual_seed(6)
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4, bos_token_id=0,
        eos_token_id=1, pad_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="no attention cache"):
        lm = CausalLM(transformers.MambaForCausalLM(config), make_tokenizer(64))
    assert not lm.has_cache
    for selectivity in (None, SETTINGS[-1]):
        assert_right(lm.law(PROMPTS, max_new_tokens=6, selectivity=selectivity, stop=STOP, block_rows=12), n=12)


# -- what is known at each step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other_selectivity", [None, Selectivity(top_k=50)], ids=slug)
@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_entropy_and_cross_entropy_of_each_step(any_lm: CausalLM, llama: CausalLM, selectivity, other_selectivity):
    law, other = (
        lm.law(PROMPTS, max_new_tokens=8, selectivity=s, stop=STOP, block_rows=12)
        for lm, s in ((any_lm, selectivity), (llama, other_selectivity))
    )
    x = law.sample(12, seed=2)
    steps = scorer.score_steps(law, x, entropy=True, against=other)
    assert steps.near_edge.shape == x.ids.shape
    assert steps.near_edge.dtype == np.bool_
    assert steps.entropy is not None
    assert steps.cross_entropy is not None
    for i in np.flatnonzero(~steps.near_edge.any(-1)):
        p, q = log_law(naive_logits(law, x, i), selectivity), log_law(naive_logits(other, x, i), other_selectivity)
        n = x.lengths[i]
        np.testing.assert_allclose(steps.entropy[i, :n], entropy(p), atol=1e-4)
        np.testing.assert_allclose(steps.cross_entropy[i, :n], cross_entropy(p, q), atol=1e-3)
        assert not steps.entropy[i, n:].any()
        assert not steps.cross_entropy[i, n:].any()
    plain = scorer.score_steps(law, x)
    assert plain.entropy is plain.cross_entropy is None
    with pytest.raises(LawMismatchError, match="max_new_tokens"):
        scorer.score_steps(law, x, against=llama.law(PROMPTS, max_new_tokens=9, stop=STOP))
    with pytest.raises(LawMismatchError, match="other prompts"):
        scorer.score_steps(llama.law("w5", max_new_tokens=8), x)


def test_ids_that_do_not_exist_score_minus_infinity_wherever_they_are(llama: CausalLM):
    law = llama.law(None, max_new_tokens=3, stop=[])
    for answer in ([5, 6, 64], [64, 5, 6], [5, -1, 6]):
        x = Sequences(
            law.prompts.ids, np.zeros(1, np.int64), np.array([answer]), np.array([3]), np.zeros(1, bool), np.zeros(1)
        )
        assert np.isneginf(law.log_prob(x)).all(), answer


@pytest.mark.parametrize("path", ["engine", "general"])
def test_the_scorer_holds_few_logits_at_a_time(llama: CausalLM, monkeypatch: pytest.MonkeyPatch, path):
    lm = llama
    if path == "general":
        lm = CausalLM(llama.model, llama.tokenizer)
        lm.is_llama = False
    law = lm.law(PROMPTS, max_new_tokens=10, block_rows=50)
    x = law.sample(200)
    seen, real = [], next_token.score

    def counted(logits, *args, **options):
        seen.append(logits.shape)
        return real(logits, *args, **options)

    monkeypatch.setattr(next_token, "score", counted)
    law.log_prob(x)
    assert sum(n for n, _ in seen) == x.lengths.sum()
    assert max(n for n, _ in seen) <= scorer._HEAD_POSITIONS
    assert {w for _, w in seen} == {64}
