"""Every kind of architecture: rows drawn and scored as transformers' own forward says of each alone, or refused."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import GPT2LMHeadModel  # noqa: E402

from campaign import kinds  # noqa: E402
from families import IDS, family_lm, family_network, log_prob_alone, longrope, spread  # noqa: E402
from hydrometer import FitRequest, Stream  # noqa: E402
from hydrometer.core.errors import FitError, HydrometerError, InputError, ModelError, SpecError  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.law import learns_from_whole_rows  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.networks.per_layer import chosen_fields  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from hydrometer.models.causal_lm.training.answer_loss import answer_loss, collate  # noqa: E402
from hydrometer.models.causal_lm.training.initialization import init_model, scratch_config  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from tiny import make_gpt2, make_llama, make_tokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*keeps no attention cache:UserWarning")

SHORT, LONG = "w5", " ".join(f"w{3 + i}" for i in range(30))
PROMPTS = [SHORT, LONG, "w7 w8 w9 w10"]
TRAINING = {"num_train_epochs": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "bf16": False}


def assert_right(law, n: int = 6, seed: int = 3) -> None:
    """Recorded and scored, by token, within 1e-4 nats of what each prefix alone gives."""
    x = law.sample(n, seed=seed)
    scored = law.score_steps(x).selected
    for i in range(n):
        right = log_prob_alone(law, x, i)
        np.testing.assert_allclose(x.token_log_prob[i, : len(right)], right, atol=1e-4)
        np.testing.assert_allclose(scored[i, : len(right)], right, atol=1e-4)


# A kind each: windows; soft caps; scaled logits; experts; latent attention; states beside attention, in every layer or
# in some; states alone; convolutions; a cache of its own; a body by another name; an encoder's decoder.
@pytest.mark.parametrize(
    "kind",
    kinds(
        "mistral", "gemma2", "qwen3_moe", "jamba", "opt",
        campaign="granite deepseek_v3 falcon_h1 bamba mamba2 rwkv lfm2 recurrent_gemma minimax llama4_text gpt_neo "
        "bart modernbert-decoder",
    ),
)  # fmt: skip
def test_rows_are_what_transformers_says_of_each_alone(kind):
    assert_right(family_lm(kind).law(PROMPTS, max_new_tokens=6, block_rows=6))


# -- rows that depend on their neighbours, or on their length ----------------------------------------------------------


class Crowded(GPT2LMHeadModel):
    """What it says of a row depends on the rows beside it."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + out.logits.mean(0, keepdim=True)
        return out


class Stretched(GPT2LMHeadModel):
    """What it says depends on the length of the longest row beside it, from a length on that no field names."""

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids, **kwargs)
        past = kwargs.get("past_key_values")
        seen = input_ids.shape[1] if past is None else past.get_seq_length()
        out.logits = out.logits * (0.5 if seen > 24 else 1.0)
        return out


class Remembers(GPT2LMHeadModel):
    """What it says of a long row depends on the longest that it was ever run on."""

    longest = 0

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids, **kwargs)
        self.longest = max(self.longest, input_ids.shape[1])
        out.logits = out.logits * (1.0 + (self.longest if input_ids.shape[1] > 16 else 0) / 16)
        return out


def own_lm(kind) -> CausalLM:
    return CausalLM(kind(make_gpt2(tied=True).config), make_tokenizer(IDS))


def test_rows_that_depend_on_their_neighbours_are_run_alone():
    lm = own_lm(Crowded)
    law = lm.law(PROMPTS, max_new_tokens=4, block_rows=6)
    assert law.way == "alone"
    assert_right(law)
    assert not learns_from_whole_rows(law)
    level = LevelSpec.model_validate({"init": "truth", "training": TRAINING})
    with pytest.raises(ModelError, match="class of its own"):
        fit(FitRequest(law.sample(4), None, law, None, level, "teacher", "mle", Stream(0)))


def test_rows_that_depend_on_the_longest_are_run_by_length():
    lm = own_lm(Stretched)
    short, long = (lm.law(p, max_new_tokens=4, block_rows=6) for p in (SHORT, PROMPTS))
    assert (short.way, long.way) == ("cached", "by length")
    assert_right(short)
    assert_right(long)


def test_a_row_that_depends_on_rows_before_it_is_refused():
    lm = own_lm(Remembers)
    assert_right(lm.law(SHORT, max_new_tokens=4, block_rows=6))
    with pytest.raises(InputError, match="depends on the rows that it was run on before"):
        lm.law(LONG, max_new_tokens=4)


def test_what_looks_ahead_is_not_causal():
    with pytest.raises(ModelError, match="not causal"):
        family_lm("bert")
    assert_right(family_lm("bert", is_decoder=True).law(PROMPTS, max_new_tokens=4, block_rows=6))


@pytest.mark.parametrize("kind", ["phi3", "llama"])
def test_factors_that_change_with_the_length_are_those_of_the_row_itself(kind):
    lm = CausalLM(longrope(kind), make_tokenizer(IDS))
    within = lm.law(SHORT, max_new_tokens=12, block_rows=6)
    assert within.way == "cached"
    assert_right(within)
    beside = lm.law(PROMPTS, max_new_tokens=6, block_rows=6)
    assert beside.way == "by length"
    assert_right(beside)
    crossing = lm.law(" ".join(["w9"] * 20), max_new_tokens=10, block_rows=4, stop=[])
    assert_right(crossing, n=4)
    x = crossing.sample(4, seed=1)
    np.testing.assert_allclose(crossing.embed(x)[:1], crossing.embed(x.take(slice(0, 1))), atol=1e-5)
    level = LevelSpec.model_validate({"init": "truth", "training": TRAINING})
    with pytest.raises(FitError, match="within 24 tokens"):
        fit(FitRequest(x, None, crossing, None, level, "teacher", "mle", Stream(0)))


def test_the_doctor_says_before_a_run_that_such_rows_cannot_be_learnt(tmp_path: Path):
    CausalLM(longrope(), make_tokenizer(IDS)).save(tmp_path)
    codes = [
        {f.code for f in CAUSAL_LM.examine(chain(tmp_path, "truth", max_new_tokens=n)) if f.is_fatal} for n in (8, 40)
    ]
    assert codes == [set(), {"looks-ahead"}]


# -- what is found on a fresh network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "is_split"),
    [("llama", True), ("opt", True), ("mamba", True), ("gemma2", False), ("granite", False), ("cohere", False)],
)
def test_how_logits_are_made_is_seen_in_a_network_that_gives_none(kind, is_split):
    network = family_network(kind, fresh=True, tie_word_embeddings=False)
    torch.nn.init.zeros_(network.get_output_embeddings().weight)
    assert CausalLM(network, make_tokenizer(IDS)).is_split == is_split


@pytest.mark.parametrize("kind", kinds("llama", "gemma2", campaign="granite cohere2 opt recurrent_gemma falcon_h1 mpt"))
def test_loss_held_out_and_judged_score_are_one(kind, tmp_path: Path):
    """Of weights that grew after the network was opened, as in a fit; rows of unlike length, padded together."""
    cap = {"final_logit_softcapping": 30.0} if kind == "gemma2" else {}
    lm = CausalLM(family_network(kind, fresh=True, **cap), make_tokenizer(IDS))
    spread(lm.model, 1, scale=4.0)
    law = lm.law(PROMPTS, max_new_tokens=5, block_rows=6)
    x = law.sample(6, seed=2)
    rows = [
        {"input_ids": [*p, *a], "labels": [-100] * len(p) + a}
        for p, a in ((x.prompt_ids[int(j)], x.row(i).tolist()) for i, j in enumerate(x.prompt_index))
    ]
    batch = collate(rows)
    with torch.no_grad():
        loss = float(answer_loss(lm, batch["input_ids"], batch["labels"], 1.0))
    held_out = law.log_prob(x)
    lm.save(tmp_path)
    judged = CausalLM.from_pretrained(tmp_path, device="cpu").law(PROMPTS, max_new_tokens=5, block_rows=6).log_prob(x)
    alone = np.array([sum(log_prob_alone(law, x, i)) for i in range(len(x))])
    np.testing.assert_allclose(held_out, alone, atol=1e-3)
    np.testing.assert_allclose(judged, alone, atol=1e-3)
    assert math.isclose(-loss, alone.sum(), abs_tol=1e-2)


# -- layers of another network -----------------------------------------------------------------------------------------


def passed_on(forward, hidden_states, *args, **kwargs):
    said = forward(hidden_states, *args, **kwargs)
    return (hidden_states, *said[1:]) if isinstance(said, tuple) else hidden_states


def in_turn(network, chosen):
    """The network's own logits where all layers but the chosen pass on what they are given."""
    network = copy.deepcopy(network)
    n = network.config.num_hidden_layers
    layers = next(m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n)
    for i in set(range(n)) - set(chosen):
        layers[i].forward = partial(passed_on, layers[i].forward)
    return network(input_ids=ROW, use_cache=False).logits


ROW = torch.arange(3, 33)[None]
CHOICES = ([0, 2], [1, 3], [0, 3])
# A layer whose constants depend on its number, or that lacks a part where it is the first, cannot be moved.
REFUSED = {"diffllama": CHOICES, "modernbert-decoder": ([1, 3],)}


@pytest.mark.parametrize(
    "kind",
    kinds(
        "llama", "gemma2", "jamba", "diffllama",
        campaign="gemma3_text smollm3 gpt_oss qwen3_moe deepseek_v3 bamba lfm2 recurrent_gemma llama4_text gpt_neo "
        "modernbert-decoder",
    ),
)  # fmt: skip
@torch.no_grad()
def test_layers_say_what_they_say_in_the_network_they_are_taken_from(kind, tmp_path: Path):
    lm = family_lm(kind)
    for chosen in CHOICES:
        level = LevelSpec(init=FromLayers(layers_of="truth", layers=tuple(chosen)))
        if chosen in REFUSED.get(kind, ()):
            with pytest.raises(ModelError, match="the chosen layers"):
                init_model(level, lm, lm, seed=0)
            continue
        cut = init_model(level, lm, lm, seed=0)
        wanted = in_turn(lm.model, chosen)
        torch.testing.assert_close(cut.model(input_ids=ROW, use_cache=False).logits, wanted, atol=1e-4, rtol=1e-4)
        cut.save(tmp_path / str(chosen))
        again = CausalLM.from_pretrained(tmp_path / str(chosen), device="cpu").model
        torch.testing.assert_close(again(input_ids=ROW, use_cache=False).logits, wanted, atol=1e-4, rtol=1e-4)


def test_layers_in_another_order_are_compared_too():
    lm = family_lm("smollm3")
    for chosen in ((3, 0), (1, 1)):
        init_model(LevelSpec(init=FromLayers(layers_of="truth", layers=chosen)), lm, lm, seed=0)
    other = family_lm("diffllama")
    with pytest.raises(ModelError, match="do not say what they say"):
        init_model(LevelSpec(init=FromLayers(layers_of="truth", layers=(3, 0))), other, other, seed=0)


def test_the_owner_is_left_as_it_was():
    lm = family_lm("smollm3")
    before = (lm.model.config.to_json_string(), lm.model(input_ids=ROW).logits)
    for chosen in ((3, 0), (0, 2)):
        init_model(LevelSpec(init=FromLayers(layers_of="truth", layers=chosen)), lm, lm, seed=0)
    assert lm.model.config.to_json_string() == before[0]
    assert torch.equal(lm.model(input_ids=ROW).logits, before[1])


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"kinds_by_layer": ["a", "b", "c", "d"]}, {"kinds_by_layer": ["b", "d"]}),
        ({"layer_windows": [4, None, 8, 16]}, {"layer_windows": [None, 16]}),
        ({"sparse_layers": [0, 3]}, {"sparse_layers": [1]}),
        ({"no_rope_layers": [1, 0, 1, 0, 1, 0]}, {"no_rope_layers": [0, 0]}),
        ({"kv_sources": {"1": "x", "2": "y"}}, {"kv_sources": {"0": "x"}}),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, {"decoder_sparse_step": 1, "mlp_only_layers": [1]}),
        ({"num_dense_layers": 2}, {"num_dense_layers": 1}),
        ({"eos_token_id": [1, 2, 3, 0], "rope_parameters": {"short_factor": [1, 2, 3, 4]}, "vocab_size": 3}, {}),
    ],
)
def test_what_is_said_layer_by_layer_is_told_by_its_form(fields, wanted):
    assert chosen_fields(fields, [1, 3], 4) == wanted


# -- one line ----------------------------------------------------------------------------------------------------------


def chain(folder: Path, init: object, architecture: dict[str, object] | None = None, **truth: object) -> CausalLMChain:
    student = {"init": init, "training": TRAINING} | ({"architecture": architecture} if architecture else {})
    return CausalLMChain.model_validate(
        {
            "family": "causal_lm", "truth": {"source": str(folder), "max_new_tokens": 4, "prompts": SHORT, **truth},
            "teacher": "truth", "student": student, "selectivity": [{"temperature": 1}],
            "data": {"train": 8, "validate": 4, "distill": 8, "evaluate": 4}, "block_rows": 4, "threads": 1,
        }
    )  # fmt: skip


@pytest.mark.parametrize("kind", kinds("mamba", "gpt_neo", campaign="mamba2 rwkv bamba falcon_h1 lfm2 minimax"))
def test_a_scratch_student_is_planned_and_fitted_or_refused_in_one_line(kind, tmp_path: Path):
    truth = family_lm(kind)
    truth.save(tmp_path)
    own = chain(tmp_path, "scratch", {"num_hidden_layers": 2})
    CAUSAL_LM.check(own)
    assert CAUSAL_LM.footprint(own, "fit", "student", 8).memory_least > 0
    assert CAUSAL_LM.cost(own, "fit", "student", 8) > 0
    assert not [f for f in CAUSAL_LM.examine(own) if f.is_fatal]
    law = truth.law(PROMPTS, max_new_tokens=4, block_rows=8)
    fitted = fit(FitRequest(law.sample(8), law.sample(4), law, None, own.student, "truth", "mle", Stream(0))).model
    assert fitted.lm.model.config.num_hidden_layers == 2
    assert np.isfinite(fitted.log_prob(law.sample(4))).all()


def test_sizes_that_an_architecture_does_not_take_are_one_line():
    with pytest.raises(SpecError, match="architecture"):
        scratch_config(family_network("mamba2").config, {"hidden_size": 16})
    rwkv = family_lm("rwkv")
    with pytest.raises(ModelError, match="cannot be built"):
        init_model(LevelSpec(architecture={"num_hidden_layers": 1}), rwkv, rwkv, seed=0)


def test_an_error_of_a_network_is_one_line_that_says_what_was_done(monkeypatch: pytest.MonkeyPatch):
    lm = CausalLM(make_gpt2(tied=True), make_tokenizer(IDS))
    law = lm.law(SHORT, max_new_tokens=4, block_rows=2)
    x = law.sample(2)

    def fails(*args, **kwargs):
        raise LookupError("no such\nplace")

    monkeypatch.setattr(lm.model.transformer.h[1], "forward", fails)
    for use in (
        lambda: law.sample(2),
        lambda: law.log_prob(x),
        lambda: law.embed(x),
        lambda: answer_loss(lm, torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long), 1.0),
        lambda: CausalLM(lm.model, lm.tokenizer),
    ):
        with pytest.raises(ModelError, match=r"running .* failed: no such place; got 'GPT2LMHeadModel'"):
            use()


@pytest.mark.parametrize("kind", [transformers.AutoModel, transformers.AutoModelForSequenceClassification])
def test_a_network_without_a_vocabulary_is_not_called_a_language_model(kind):
    network = kind.from_config(make_gpt2(tied=True).config)
    with pytest.raises(ModelError, match="gives no logits"):
        CausalLM(network, make_tokenizer(IDS))


@pytest.mark.parametrize("field", ["num_hidden_layers", "rms_norm_eps", "hidden_size", "rope_parameters", "head_dim"])
def test_an_infinity_in_a_configuration_leaves_no_traceback(field, tmp_path: Path):
    CausalLM(make_llama(), make_tokenizer(IDS)).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: math.inf}))
    own = chain(tmp_path, "scratch", {"num_hidden_layers": 1})
    for use in (
        lambda: CausalLM.from_pretrained(tmp_path, device="cpu").law(SHORT, max_new_tokens=3, block_rows=2).sample(2),
        lambda: CAUSAL_LM.check(own),
        lambda: CAUSAL_LM.examine(own),
    ):
        with contextlib.suppress(HydrometerError):  # what is not finite here may be so in another architecture
            use()
