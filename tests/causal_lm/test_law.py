"""The laws: enumeration, equivalence of paths, invariance to how rows are asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM  # noqa: E402

from hydrometer.core.errors import InputError, LawMismatchError, SpecError  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.networks import next_token  # noqa: E402
from hydrometer.models.causal_lm.networks.selected_logits import selected_log_weights  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from naive import PROMPTS, SETTINGS, all_strings, as_sequences, naive_log_prob, slug  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402


@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_probabilities_of_all_strings_sum_to_one_and_draws_follow_them(small: CausalLM, selectivity):
    law = small.law(None, max_new_tokens=3, selectivity=selectivity, block_rows=20_000)
    strings = all_strings(law)
    log_p = law.log_prob(as_sequences(law, strings))
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)

    n = 200_000
    x = law.sample(n, seed=11)
    index = {s: i for i, s in enumerate(strings)}
    counts = np.bincount([index[tuple(x.row(i).tolist())] for i in range(n)], minlength=len(strings))
    expected = n * np.exp(log_p)
    assert not counts[expected == 0].any()
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_a_law_shows_its_model_setting_and_sizes_in_a_line(small: CausalLM) -> None:
    law = small.law(["The sea"] * 500, max_new_tokens=3, selectivity=Selectivity(temperature=0.8))
    assert repr(law).startswith("<CausalLaw model=<CausalLM source=")
    assert "selectivity=temperature 0.8 prompts=500 max_new_tokens=3" in repr(law)
    assert len(repr(law)) <= 300
    weights = sum(p.numel() for p in small.model.parameters())
    assert f"weights={weights:,}" in repr(small)
    assert "temperature 0.8" in law._repr_html_()
    assert len(repr(law.sample(600, seed=0))) < 100


@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_sampler_scorer_and_naive_forward_agree(any_lm: CausalLM, selectivity):
    law = any_lm.law(PROMPTS, max_new_tokens=12, selectivity=selectivity, block_rows=32)
    x = law.sample(40, seed=3)
    assert np.isfinite(x.log_prob).all()
    assert (x.ids < any_lm.vocab_size).all()
    inside = ~at_an_edge(law, x)
    assert inside.mean() > 0.9
    scored, naive = law.log_prob(x), naive_log_prob(law, x)
    np.testing.assert_allclose((scored / x.lengths)[inside], (x.log_prob / x.lengths)[inside], atol=1e-4)
    np.testing.assert_allclose((naive / x.lengths)[inside], (x.log_prob / x.lengths)[inside], atol=1e-4)


def at_an_edge(law: CausalLaw, x: Sequences) -> np.ndarray:
    """Whether a rounding error could move a token of a row's kept sets in or out."""
    s, moved = law.selectivity, np.zeros(len(x), bool)
    for factor in (1 - 2e-6, 1 + 2e-6):
        fields = {k: getattr(s, k) * factor for k in ("top_p", "min_p") if s is not None and getattr(s, k)}
        if s is not None and fields:
            near = replace(law, selectivity=s.model_copy(update=fields))
            moved |= np.abs(naive_log_prob(near, x) - naive_log_prob(law, x)) > 1e-5
    return moved


def test_rows_do_not_depend_on_how_they_are_asked_for(any_lm: CausalLM):
    law = any_lm.law(PROMPTS, max_new_tokens=8, block_rows=8)
    whole, part = law.sample(20, seed=4), law.sample(15, seed=4, start=5)
    cut = whole.take(slice(5, 20))
    for name in ("prompt_index", "lengths", "stopped", "log_prob", "ids"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(part, name))
    assert (whole.prompt_index == np.arange(20) % 3).all()


def test_finish_reasons(llama: CausalLM):
    x = llama.law(PROMPTS, max_new_tokens=10, stop=["<eos>", 5, "w6", 7, 8, 9]).sample(200, seed=1)
    last = x.ids[np.arange(200), x.lengths - 1]
    assert 0 < x.stopped.mean() < 1
    assert (np.isin(last, [1, 5, 6, 7, 8, 9]) == x.stopped).all()
    assert (x.lengths[~x.stopped] == 10).all()
    assert x.finish_reason[0] == ("stop" if x.stopped[0] else "length")
    assert llama.law(stop=[]).stop_ids == ()
    with pytest.raises(SpecError, match="does not know"):
        llama.law(stop=["nowhere"])


def test_what_the_process_cannot_give_scores_minus_infinity(small: CausalLM):
    law = small.law(None, max_new_tokens=3)
    bad = [(3, 4), (1, 3, 4), (3, 1, 1), (3, 4, 99)]
    assert np.isneginf(law.log_prob(as_sequences(law, bad))).all()
    greedy = law.select(Selectivity(top_k=1))
    scores = greedy.log_prob(as_sequences(law, all_strings(law)))
    assert np.isneginf(scores).sum() == len(scores) - 1
    assert scores.max() == 0


def test_ids_beyond_the_tokenizer_do_not_exist():
    model = make_llama(vocab=80)
    with torch.no_grad():
        model.lm_head.weight[64:] *= 100  # a padded row would win every draw
    lm = CausalLM(model, make_tokenizer(64))
    law = lm.law(max_new_tokens=4)
    x = law.sample(50)
    assert x.ids.max() < 64
    np.testing.assert_allclose(naive_log_prob(law, x), x.log_prob, atol=4e-4)


def test_a_tokenizer_larger_than_the_network_is_refused():
    with pytest.raises(LawMismatchError, match="fewer output rows"):
        CausalLM(make_llama(vocab=32), make_tokenizer(64))


def test_scaled_logits_take_the_slow_and_right_path():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=3.0, initializer_range=0.4, max_position_embeddings=64,
    )  # fmt: skip
    lm = CausalLM(GraniteForCausalLM(config), make_tokenizer(64))
    assert not lm.is_split
    law = lm.law(PROMPTS, max_new_tokens=6)
    x = law.sample(20)
    np.testing.assert_allclose(law.log_prob(x), x.log_prob, atol=6e-4)
    np.testing.assert_allclose(naive_log_prob(law, x), x.log_prob, atol=6e-4)


def test_ties_are_kept():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    kept = lambda s: torch.isfinite(selected_log_weights(logits, s)[0])[0].tolist()  # noqa: E731
    assert kept(Selectivity(top_k=2)) == [True, True, True, True, False]
    assert kept(Selectivity(top_p=0.6)) == [True, True, True, True, False]
    assert kept(Selectivity(top_p=0.4)) == [True, False, False, False, False]
    assert kept(Selectivity(min_p=math.exp(-1) * 0.999)) == [True, True, True, True, False]
    assert kept(Selectivity(min_p=1)) == [True, False, False, False, False]
    assert kept(Selectivity(top_k=9)) == [True] * 5
    assert kept(Selectivity(temperature=1e-40)) == [True, False, False, False, False]


def test_the_nucleus_of_a_large_flat_vocabulary_is_found_by_the_full_sort():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5000, generator=generator) * torch.tensor([[0.1], [1.0], [9.0]])
    w = selected_log_weights(logits, Selectivity(top_p=0.9)).log_weights
    p = logits.double().softmax(-1)
    for row in range(3):
        kept = torch.isfinite(w[row])
        assert p[row][kept].sum() >= 0.9
        assert p[row][kept].sum() - p[row][kept].min() < 0.9


def draw_by_kernels(logits, vocab_size, selectivity, u):
    return next_token.draw(logits, vocab_size, selectivity, u)


def draw_by_torch(logits, vocab_size, selectivity, u):
    return next_token._draw_by_torch(logits[:, :vocab_size], selectivity, u)


both_paths = pytest.mark.parametrize("draw", [draw_by_kernels, draw_by_torch])


@both_paths
@pytest.mark.parametrize("u", [1e-16, 0.5, 1 - 2**-53])
def test_a_dropped_id_is_never_drawn(draw, u):
    w = torch.full((2, 700), -math.inf)
    w[0, 300], w[0, 420], w[1, 0] = 0.0, -90.0, 3.0
    ids, found = draw(w, 700, None, np.full(2, u))
    assert ids.tolist() == [300, 0]
    assert found.selected.tolist() == found.unselected.tolist() == [0, 0]


@both_paths
def test_draw_inverts_the_cdf(draw):
    w = torch.randn(1, 1000, generator=torch.Generator().manual_seed(1))
    cdf = w.double().softmax(-1).cumsum(-1)[0].numpy()
    u = np.linspace(0.0005, 0.9995, 500)
    ids, found = draw(w.expand(500, -1), 1000, None, u)
    assert (ids == np.searchsorted(cdf, u)).mean() > 0.99
    np.testing.assert_allclose(found.selected, w[0].double().log_softmax(-1)[ids], atol=1e-6)


def test_selecting_twice(small: CausalLM):
    law = small.law()
    assert law.select(Selectivity(temperature=1)) is law
    twice = law.select(Selectivity(temperature=0.5)).select(Selectivity(temperature=0.5))
    assert twice.selectivity == Selectivity(temperature=0.25)
    with pytest.raises(InputError, match="already selected"):
        twice.select(Selectivity(top_p=0.9))
    with pytest.raises(InputError, match="token selectivities"):
        law.select(Selectivity(weight_power=2))


def test_laws_over_other_outcomes_are_told_apart(llama: CausalLM, small: CausalLM):
    law = llama.law(PROMPTS, max_new_tokens=8)
    law.compatible(law.select(Selectivity(top_p=0.9)))
    for other, word in [
        (replace(law, max_new_tokens=9), "max_new_tokens"),
        (replace(law, stop_ids=(1, 2)), "stop sets"),
        (llama.law(["w5"], max_new_tokens=8), "prompts"),
        (small.law(["w5", "w6", "w7"], max_new_tokens=8), "vocabularies"),
    ]:
        with pytest.raises(LawMismatchError, match=word):
            law.compatible(other)
    with pytest.raises(LawMismatchError, match="other prompts"):
        law.log_prob(llama.law(max_new_tokens=8).sample(3))
    with pytest.raises(InputError, match="max_position_embeddings"):
        llama.law(max_new_tokens=500)


def test_bfloat16_draws_record_their_own_law(llama_folder):
    lm = CausalLM.from_pretrained(llama_folder, dtype="bfloat16", device="cpu")
    x = lm.law(PROMPTS, max_new_tokens=6).sample(30, seed=2)
    assert np.isfinite(x.log_prob).all()
    assert lm.float32().dtype == torch.float32


def test_bfloat16_rounds_what_transformers_rounds(llama_folder):
    """Weights, and not the rotary frequencies, which are computed in float32."""
    mine = CausalLM.from_pretrained(llama_folder, dtype="bfloat16", device="cpu").model
    theirs = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16)
    for kind in ("named_parameters", "named_buffers"):
        found, wanted = dict(getattr(mine, kind)()), dict(getattr(theirs, kind)())
        assert found.keys() == wanted.keys()
        assert all(found[n].dtype == w.dtype and torch.equal(found[n], w) for n, w in wanted.items())
    assert mine.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_network_that_diverged_scores_nan_not_impossible(llama: CausalLM) -> None:
    x = llama.law("w5", max_new_tokens=4, block_rows=4).sample(4, seed=0)
    network = make_llama()
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    broken = CausalLM(network, make_tokenizer(64)).law("w5", max_new_tokens=4, block_rows=4)
    assert np.isnan(broken.log_prob(x)).all()
    assert np.isnan(broken.select(Selectivity(top_p=0.5)).log_prob(x)).all()
