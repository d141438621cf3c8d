"""What runs on an accelerator, run on the processor: the same code without CUDA graphs, against full forward passes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.cuda import stepper as steppers  # noqa: E402
from hydrometer.models.causal_lm.cuda.device_llama import DeviceLlama, attend_packed  # noqa: E402
from hydrometer.models.causal_lm.inference import device_sampler, scorer  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.networks import next_token  # noqa: E402
from llama_types import LLAMA_TYPE, PROMPT_SETS, scrambled  # noqa: E402
from naive import PROMPTS, SETTINGS, STOP, assert_right, slug  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402


def as_on_device(model: torch.nn.Module) -> CausalLM:
    """A model that runs as it would on an accelerator."""
    lm = CausalLM(model, make_tokenizer(64))
    assert lm.is_llama
    lm._made = lambda: DeviceLlama(lm.model, lm.holes)
    assert lm.engine is None
    assert lm.on_device is not None
    return lm


@pytest.fixture(scope="module", params=LLAMA_TYPE)
def device_lm(request: pytest.FixtureRequest) -> CausalLM:
    return as_on_device(scrambled(LLAMA_TYPE[request.param]()))


@pytest.mark.parametrize("prompts", PROMPT_SETS)
@pytest.mark.parametrize("selectivity", SETTINGS, ids=slug)
def test_the_device_path_is_the_network(device_lm: CausalLM, selectivity: Selectivity | None, prompts: str) -> None:
    law = device_lm.law(PROMPT_SETS[prompts], max_new_tokens=12, selectivity=selectivity, stop=STOP, block_rows=24)
    assert assert_right(law).stopped.any()


@pytest.mark.parametrize("name", LLAMA_TYPE)
def test_it_is_checked_on_a_twin(name: str) -> None:
    model = scrambled(LLAMA_TYPE[name]())
    assert DeviceLlama.agrees(model)
    assert DeviceLlama.agrees(model.to(torch.bfloat16))


def test_a_network_that_scales_otherwise_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama()
    monkeypatch.setattr(DeviceLlama, "_turned", staticmethod(lambda x, turns: x))
    assert not DeviceLlama.agrees(model)


def test_rows_are_those_of_the_processors_engine() -> None:
    """Long ones too, beyond the span of the first graph, and rows that halving has left."""
    model = make_llama()
    laws = [
        lm.law(PROMPTS, max_new_tokens=70, stop=[1, 20], block_rows=50)
        for lm in (CausalLM(model, make_tokenizer(64)), as_on_device(model))
    ]
    x, y = (law.sample(100, seed=8) for law in laws)
    assert x.lengths.max() == 70 > steppers._SPAN
    width = max(x.ids.shape[1], y.ids.shape[1])
    a, b = (np.pad(z.ids, ((0, 0), (0, width - z.ids.shape[1]))) for z in (x, y))
    same = (a == b).all(-1)
    assert same.mean() >= 0.95
    assert (np.abs(x.log_prob - y.log_prob) / x.lengths)[same].max() < 1e-4
    np.testing.assert_array_equal(x.stopped[same], y.stopped[same])


def test_finished_rows_are_dropped_by_halves_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = steppers.Stepper.__init__

    def counted(self, llama, prompts, rows, room, keys=None) -> None:
        made.append(rows)
        real(self, llama, prompts, rows, room, keys)

    monkeypatch.setattr(device_sampler, "_EVERY", 2)
    law = as_on_device(make_llama()).law(PROMPTS, max_new_tokens=40, stop=STOP[:6], block_rows=160)
    whole = law.sample(160, seed=5)
    monkeypatch.setattr(steppers.Stepper, "__init__", counted)
    halved = law.sample(160, seed=5)
    assert len(made) >= 3
    assert all(after <= before // 2 for before, after in itertools.pairwise(made))
    np.testing.assert_array_equal(whole.ids, halved.ids)
    monkeypatch.setattr(device_sampler, "_FEW", 10**9)  # none is dropped
    kept = law.sample(160, seed=5)
    assert made.count(made[0]) == 2
    assert made[-1] == made[0]
    assert (kept.ids == halved.ids).all(-1).mean() >= 0.98
    assert_right(law, n=160)


def test_a_row_does_not_depend_on_how_blocks_are_asked_for() -> None:
    law = as_on_device(make_llama()).law(PROMPTS, max_new_tokens=12, stop=STOP, block_rows=20)
    whole, tail = law.sample(60, seed=2), law.sample(20, seed=2, start=40)
    np.testing.assert_array_equal(whole.ids[40:, : tail.ids.shape[1]], tail.ids)
    np.testing.assert_array_equal(whole.log_prob[40:], tail.log_prob)


def test_holes_are_never_drawn() -> None:
    lm = as_on_device(make_llama())
    lm.holes = torch.arange(30, 60)
    x = assert_right(lm.law(PROMPTS, max_new_tokens=10, stop=STOP, block_rows=40))
    assert not np.isin(x.ids, np.arange(30, 60)).any()


def test_bfloat16_is_drawn_and_scored_alike() -> None:
    """To within the rounding of large logits: attention is rounded once in drawing, and in two parts in scoring."""
    network = scrambled(make_llama()).to(torch.bfloat16)
    law = as_on_device(network).law(PROMPTS, max_new_tokens=12, stop=STOP)
    x = law.sample(200, seed=1)
    assert x.token_log_prob is not None
    processor = CausalLM(network, make_tokenizer(64)).law(PROMPTS, max_new_tokens=12, stop=STOP)
    for other in (law, processor):
        gap = np.abs(scorer.score_steps(other, x).selected - x.token_log_prob)
        assert gap.sum() / x.lengths.sum() < 0.03


@pytest.mark.parametrize("s", [SETTINGS[0], SETTINGS[-1]], ids=slug)
def test_control_variates_are_those_of_the_processor(s: Selectivity | None) -> None:
    pair = [make_llama(seed=i) for i in (0, 1)]
    found = []
    for make in (lambda m: CausalLM(m, make_tokenizer(64)), as_on_device):
        law, other = (make(m).law(PROMPTS, max_new_tokens=8, selectivity=s, stop=STOP) for m in pair)
        x = CausalLM(pair[0], make_tokenizer(64)).law(PROMPTS, max_new_tokens=8, selectivity=s, stop=STOP).sample(30)
        found.append((x.near_edge, scorer.score_steps(law, x, entropy=True, against=other)))
    (near, a), (_, b) = found
    sure = near == 0
    for name in ("selected", "unselected", "entropy", "other", "cross_entropy"):
        np.testing.assert_allclose(getattr(a, name)[sure], getattr(b, name)[sure], atol=1e-4, err_msg=name)


def test_attention_in_segments_is_attention_in_each() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(7, 4, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    out, mass = attend_packed(q, k, v, torch.tensor([0, 3, 7]), torch.tensor([0, 4, 9]), causal=False, scale=0.3)
    for rows, keys in ((slice(0, 3), slice(0, 4)), (slice(3, 7), slice(4, 9))):
        a, b, c = (x.transpose(0, 1).double() for x in (q[rows], k[keys], v[keys]))
        b, c = (x.repeat_interleave(2, 0) for x in (b, c))
        scores = a @ b.mT * 0.3
        torch.testing.assert_close(out[rows].double(), (scores.softmax(-1) @ c).transpose(0, 1), rtol=0, atol=1e-6)
        torch.testing.assert_close(mass[rows].double(), scores.logsumexp(-1).T, rtol=0, atol=1e-6)


def test_what_is_left_on_the_device_is_what_kernels_draw() -> None:
    torch.manual_seed(1)
    logits, u = 3 * torch.randn(200, 5000), torch.rand(200, dtype=torch.float64)
    for s in SETTINGS:
        ids, kernel = next_token.draw(logits.clone(), 4900, s, u.numpy())
        found = next_token.draw_on_device(logits[:, :4900], s, u)
        same = found.ids.numpy() == ids
        assert same.mean() > 0.98
        np.testing.assert_allclose(found.selected.numpy()[same], kernel.selected[same], atol=1e-5)
        np.testing.assert_allclose(found.unselected.numpy()[same], kernel.unselected[same], atol=1e-5)
