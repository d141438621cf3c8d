"""Laws along a language model's answers, and what `top_k_teachers` finds there, against transformers and numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hydrometer.claims.measures.top_k_teachers import World, measure
from hydrometer.claims.model_world import Along, CutModelWorld, along_answers
from hydrometer.core.errors import InputError, MissingDependencyError
from hydrometer.core.rng import Stream
from hydrometer.models.causal_lm.data.prompts import read_prompts
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.truth_spec import PromptsFile
from hydrometer.recipes import __file__ as recipes
from tiny import make_llama, make_tokenizer

V, LEFT_OUT = 24, 1
Laws = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(M, V) of the teacher and of the student, and the student's (M, D) states."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> CutModelWorld:
    folder = tmp_path_factory.mktemp("model")
    make_llama(vocab=V, seed=3).save_pretrained(folder)
    make_tokenizer(V).save_pretrained(folder)
    return CutModelWorld(
        source=str(folder), prompts=4, longest=60, max_new_tokens=9, positions=4, left_out=((LEFT_OUT,),)
    )


@pytest.fixture(scope="module")
def expected(world: CutModelWorld) -> list[Laws]:
    """By transformers, of the answers that the world draws."""
    lm = CausalLM.from_pretrained(world.source)
    every = read_prompts(
        PromptsFile(file=str(Path(recipes).with_name("user-instructions.jsonl")), chat=True), lm.tokenizer
    )
    prompts = every.take([i for i, p in enumerate(every.ids) if len(p) <= world.longest][: world.prompts])
    x = lm.law(prompts, max_new_tokens=world.max_new_tokens).sample(4, seed=STREAM)
    teacher, student = make_llama(vocab=V, seed=3).eval(), make_llama(vocab=V, seed=3).eval()
    del student.model.layers[LEFT_OUT]
    out: list[Laws] = []
    for i, prompt in enumerate(prompts.ids):
        n, ids = int(x.lengths[i]), torch.tensor([[*prompt, *x.row(i).tolist()]])
        at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)[np.unique(np.linspace(0, n - 1, min(n, 4)).round())]
        with torch.no_grad():
            p, q = (m(ids, use_cache=False).logits[0, at].double().softmax(-1).numpy() for m in (teacher, student))
            states = student.model(ids, use_cache=False).last_hidden_state[0, at].double().numpy()
        out.append((p, q, states))
    return out


STREAM = Stream(0).child("top-k-teachers", "answers")


def test_laws_along_answers_are_those_of_transformers(world: CutModelWorld, expected: list[Laws]) -> None:
    found: list[Along] = list(along_answers(world, STREAM))
    assert len(found) == world.prompts
    for along, (p, q, states) in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.exp(along.teacher.log_p), p, atol=1e-5)
        np.testing.assert_allclose(np.exp(along.students[0].log_p), q, atol=1e-5)
        np.testing.assert_allclose(along.students[0].states, states, atol=1e-4)


def test_figures_are_those_of_the_dense_laws(world: CutModelWorld, expected: list[Laws]) -> None:
    asked = World(kept=(3, V), exponents=(1.0,), vocabulary=V, language_model=world, batch=2)
    found = {
        (c.condition, c.figure): c.estimate for c in measure(asked, range(2)).checks if "layer fewer" in c.condition
    }
    angles = [
        np.mean([angle(renormalised(p[t : t + 1], q[t : t + 1], 3), (q - p)[t : t + 1]) for t in range(len(p))])
        for p, q, _ in expected
    ]
    condition = f"top_k_renormalised of 3, teacher {world.source}, student of a layer fewer"
    check = found[condition, "angle from the dense gradient, degrees"]
    assert check.value == pytest.approx(np.mean(angles), rel=1e-3)
    assert check.se == pytest.approx(np.std(angles, ddof=1) / 2, rel=1e-3)  # over four prompts
    both = (
        [np.concatenate(x) for x in zip(*expected[:2], strict=True)],
        [np.concatenate(x) for x in zip(*expected[2:], strict=True)],
    )
    batches = [angle(renormalised(p, q, 3).T @ h, (q - p).T @ h) for p, q, h in both]
    batch = found[condition, "the same, of a batch of 2 prompts"]
    assert batch.value == pytest.approx(np.mean(batches), rel=1e-3)
    mass = [np.mean(1 - np.sort(p, axis=1)[:, -3:].sum(1)) for p, _, _ in expected]
    assert found[condition, "mass of these ids at the optimum minus the teacher's"].value == pytest.approx(
        np.mean(mass), rel=1e-3
    )
    whole = [e.value for (name, _), e in found.items() if f" of {V}," in name]
    assert len(whole) == 5
    np.testing.assert_allclose(np.array(whole, float), 0, atol=1e-6)


def renormalised(p: np.ndarray, q: np.ndarray, k: int) -> np.ndarray:
    kept = np.where(p >= np.sort(p, axis=1)[:, [-k]], p, 0.0)
    return q - kept / kept.sum(1, keepdims=True)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))))


def test_what_is_missing_is_said_in_a_line(world: CutModelWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"too few prompts .*; set prompts to \d+"):
        next(along_answers(world.model_copy(update={"longest": 3}), STREAM))
    with pytest.raises(InputError, match="layers are counted from 0 to 2; got \\[7\\]"):
        next(along_answers(world.model_copy(update={"left_out": ((7,),)}), STREAM))
    monkeypatch.setattr("hydrometer.models.causal_lm.loading.libraries.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hydrometer\[lm\]'"):
        next(along_answers(world, STREAM))
