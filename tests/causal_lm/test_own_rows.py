"""Students that learn from rows which they draw themselves: which rows, how often, from which weights; and gradients
estimated from their tokens, against enumeration of every row of a small language model.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.distillation import Objective, Prefixes  # noqa: E402
from hydrometer.core.errors import SpecError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training import answer_loss as losses  # noqa: E402
from hydrometer.models.causal_lm.training.teacher_laws import TeacherLaws  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from hydrometer.models.objectives import check_prefixes, divergence_of  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

V, L, STOP, PROMPT = 5, 3, 1, 3
WARM = Selectivity(temperature=1.3)


def model(seed: int, vocab: int = V) -> CausalLM:
    return CausalLM(make_llama(vocab, layers=1, seed=seed), make_tokenizer(vocab))


def rows_of_all() -> list[list[int]]:
    """Every row: up to the stop id, or cut after three tokens."""
    out, going = [], [[]]
    for t in range(L):
        longer = [[*x, v] for x in going for v in range(V)]
        out += [x for x in longer if x[-1] == STOP or t == L - 1]
        going = [x for x in longer if x[-1] != STOP]
    return out


def log_laws(lm: CausalLM, rows: list[list[int]], temperature: float = 1.0) -> list[torch.Tensor]:
    """Next-token log-laws along each row, (length, V), with a graph."""
    padded = torch.tensor([[PROMPT, *x, *[0] * (L - len(x))] for x in rows])
    logits = lm.model(input_ids=padded).logits[:, :-1, :V] / temperature
    return [z[: len(x)] for z, x in zip(logits.log_softmax(-1), rows, strict=True)]


def flat(lm: CausalLM) -> torch.Tensor:
    """Take the gradient of all parameters."""
    out = torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]).double()
    lm.model.zero_grad()
    return out


@pytest.fixture(scope="module")
def world():
    """A student and a teacher, all rows, the student's probabilities, and both exact gradients."""
    student, teacher, rows = model(1), model(2), rows_of_all()
    log_q = log_laws(student, rows)
    with torch.no_grad():
        log_p = log_laws(teacher, rows, WARM.temperature)
    own = [torch.tensor(x)[:, None] for x in rows]

    def whole(laws: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([z.gather(-1, x).sum() for z, x in zip(laws, own, strict=True)])

    weight = whole(log_q).exp()
    assert float(weight.detach().sum()) == pytest.approx(1, abs=1e-5)
    fixed = weight.detach()
    kl = torch.stack([(q.exp() * (q - p)).sum() for q, p in zip(log_q, log_p, strict=True)])
    ((fixed * kl).sum()).backward(retain_graph=True)
    by_position = flat(student)
    (weight * (whole(log_q) - whole(log_p))).sum().backward()
    return student, teacher, rows, fixed.double().numpy(), by_position, flat(student)


def estimates(world, name: str) -> torch.Tensor:
    """The gradient that each row makes alone, (rows, parameters)."""
    student, teacher, rows, *_ = world
    law = teacher.law("w3", max_new_tokens=L, stop=[STOP])
    states = partial(losses.answer_states, dtype=torch.float32, packs=False)
    laws = TeacherLaws(law, WARM, states)
    matched = losses.Matched(laws, divergence_of(Objective.from_json(name)), laws)
    out = []
    for x in rows:
        ids, labels = torch.tensor([[PROMPT, *x]]), torch.tensor([[-100, *x]])
        losses.answer_loss(student, ids, labels, 1.0, matched=matched).backward()
        out.append(flat(student))
    return torch.stack(out)


@pytest.fixture(scope="module")
def each(world):
    names = ["policy_gradient_token", "policy_gradient_reward_to_go"]
    return {n: estimates(world, n) for n in [*names, *(f"{n}(baseline=1)" for n in names)]}


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) < 1e-4 * float(b.abs().max())


@pytest.mark.parametrize("options", ["", "(baseline=1)"])
def test_each_policy_gradient_has_the_expectation_of_its_name(world, each, options):
    *_, q, by_position, of_rows = world
    token = each[f"policy_gradient_token{options}"]
    to_go = each[f"policy_gradient_reward_to_go{options}"]
    assert near(torch.from_numpy(q) @ token, by_position)
    assert near(torch.from_numpy(q) @ to_go, of_rows)
    assert not near(by_position, of_rows)


def test_draws_agree_with_the_enumeration(world, each):
    student, _, rows, _, by_position, of_rows = world
    law = student.law("w3", max_new_tokens=L, stop=[STOP])
    drawn = law.sample(4000, seed=5)
    index = {tuple(x): i for i, x in enumerate(rows)}
    at = [index[tuple(drawn.row(i).tolist())] for i in range(len(drawn))]
    for name, exact in (("policy_gradient_token", by_position), ("policy_gradient_reward_to_go", of_rows)):
        for options in ("", "(baseline=1)"):
            found = each[name + options][at] @ exact / exact.norm()  # along the gradient itself
            assert abs(float(found.mean() - exact.norm())) < 5 * float(found.std()) / len(at) ** 0.5


def test_length_normalisation_divides_by_the_tokens_to_go(world):
    """A row of one token is as without; of the last token of a longer one, too."""
    student, teacher, *_ = world
    law = teacher.law("w3", max_new_tokens=L, stop=[STOP])
    laws = TeacherLaws(law, None, partial(losses.answer_states, dtype=torch.float32, packs=False))
    ids, labels = (
        torch.tensor([[PROMPT, 2, 4, 2], [PROMPT, 1, 0, 0]]),
        torch.tensor([[-100, 2, 4, 2], [-100, 1, -100, -100]]),
    )
    states = losses.answer_states(student, ids, labels, dtype=torch.float32, packs=False).detach()
    args = student, states, torch.tensor([2, 4, 2, 1]), np.array([3, 4]), laws.rows(ids, labels)
    ratio, plain = losses._advantages(*args, divergence_of(Objective("policy_gradient_reward_to_go")))
    _, normalised = losses._advantages(
        *args, divergence_of(Objective.from_json("policy_gradient_reward_to_go(length_normalised=1)"))
    )
    torch.testing.assert_close(plain, torch.stack([ratio[:3].sum(), ratio[1:3].sum(), ratio[2], ratio[3]]))
    torch.testing.assert_close(normalised, plain / torch.tensor([3.0, 2.0, 1.0, 1.0]))


# -- fits --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth() -> CausalLaw:
    return model(4, 12).law(["w3 w4", "w5"], max_new_tokens=5, block_rows=16)


def asked(truth: CausalLaw, loss: str, source: str, partial: Path | None = None, **fields: object) -> FitRequest:
    settings = {
        "num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 0.02, "bf16": False, **fields,
    }  # fmt: skip
    level = LevelSpec(
        architecture={"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
        training=Training.model_validate(settings),
    )
    return FitRequest(
        truth.sample(12, seed=3), truth.sample(8, seed=4), truth, truth, level, source, loss, Stream(7),
        partial=partial, selectivity=WARM,
    )  # fmt: skip


def test_rows_are_those_that_the_student_draws_with_its_weights_of_that_step(truth, monkeypatch):
    """Every batch learnt, against the student's law drawn again from the stream."""
    learnt: list[tuple[int, list[list[int]], list[list[int]]]] = []
    real = losses.OwnRows.step

    def step(self: losses.OwnRows, step: int):
        for batch in real(self, step):
            of = [self.law.prompts.ids[p] for p in self._prompts(step)]
            got = [x[x != -100].tolist() for x in batch["labels"]]
            u = self.stream.child("rows").uniforms(step * 4, 4, 5)
            again = self.law.draw(u, self._prompts(step))
            assert [list(p) for p in of] == [
                ids[: len(p)].tolist() for ids, p in zip(batch["input_ids"], of, strict=True)
            ]
            learnt.append((step, got, [again.row(i).tolist() for i in range(4)]))
            yield batch

    monkeypatch.setattr(losses.OwnRows, "step", step)
    found = fit(asked(truth, "kl_student_teacher", "student"))
    assert [s for s, *_ in learnt] == list(range(9))
    assert all(got == again for _, got, again in learnt)
    assert found.info["tokens"] == sum(len(x) for _, got, _ in learnt for x in got)
    objective = [e["objective"] for e in found.info["validation"]]
    assert objective[-1] < objective[0]
    assert fit(asked(truth, "kl_student_teacher", "student")).info["validation"] == found.info["validation"]


def test_adapters_and_accumulated_batches_learn_from_own_rows(truth, monkeypatch):
    pytest.importorskip("peft")
    sizes: list[list[int]] = []
    real = losses.OwnRows.step

    def step(self: losses.OwnRows, step: int):
        batches = list(real(self, step))
        sizes.append([len(b["labels"]) for b in batches])
        return iter(batches)

    monkeypatch.setattr(losses.OwnRows, "step", step)
    request = asked(truth, "jsd", "student", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    settings = request.level.training.model_dump() | {"lora": {"r": 4}, "num_train_epochs": 8}
    level = LevelSpec(init="truth", training=Training.model_validate(settings))
    found = fit(replace(request, level=level))
    # Twelve rows make three batches: of what the last step of an epoch draws it learns one.
    assert sizes == [[4, 4]] * 16
    objective = [e["objective"] for e in found.info["validation"]]
    assert min(objective) < 0.8 * objective[0]


def test_every_prompt_of_the_data_is_answered_once_before_any_again(truth):
    request = asked(truth, "jsd", "student", per_device_train_batch_size=5)
    data = request.data.take(np.arange(12))
    own = losses.OwnRows(truth, lambda: None, data.prompt_index, Prefixes("student"), request.level.training, Stream(1))
    prompts = np.concatenate([own._prompts(t) for t in range(12)])  # five times the data
    for turn in prompts.reshape(5, 12):
        assert sorted(turn) == sorted(data.prompt_index)


def test_a_share_of_the_steps_and_windows(truth):
    training = Training(per_device_train_batch_size=2)
    source = check_prefixes("teacher(student=0.3, every=4)")
    own = losses.OwnRows(truth, lambda: None, np.arange(2), source, training, Stream(2))
    taken = [t for t in range(2000) if own.takes(t)]
    assert abs(len(taken) / 2000 - 0.3) < 5 * (0.21 / 2000) ** 0.5
    drawn: list[list[int]] = []
    real = own._draw
    own._draw = lambda steps: (drawn.append(steps), real(steps))[1]
    for t in taken[:20]:
        assert len(next(iter(own.step(t)))["labels"]) == 2
    assert all(len({t // 4 for t in steps}) == 1 for steps in drawn)
    assert sorted(t for steps in drawn for t in steps)[:20] == taken[:20]


class Killed(BaseException):
    pass


def test_a_killed_fit_draws_the_same_rows_again(truth, tmp_path):
    source = "teacher(student=0.5, every=2)"
    request = asked(truth, "jsd", source, tmp_path / "partial", save_steps=4)

    def tick(done: float, total: float, what: str) -> None:
        if what == "steps" and done == 7:
            raise Killed

    with pytest.raises(Killed):
        fit(replace(request, tick=tick))
    again, whole = fit(request), fit(asked(truth, "jsd", source))
    assert again.info["resumed"] == "checkpoint-4"
    ours, theirs = (x.model.lm.model.state_dict() for x in (again, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert (again.info["validation"], again.info["tokens"]) == (whole.info["validation"], whole.info["tokens"])


@pytest.mark.parametrize("loss", ["policy_gradient_token", "policy_gradient_reward_to_go(baseline=1)"])
def test_a_policy_gradient_brings_the_student_nearer(truth, loss):
    found = fit(asked(truth, loss, "student", per_device_train_batch_size=32, num_train_epochs=12))
    objective = [e["objective"] for e in found.info["validation"]]
    assert min(objective) < 0.8 * objective[0]


@pytest.mark.parametrize(
    ("loss", "source"),
    [
        ("mle", "student"),
        ("jsd(mle=0.5)", "teacher(student=0.5)"),
        ("policy_gradient_token", "teacher"),
        ("policy_gradient_token", "student(every=2)"),
    ],
)
def test_rows_that_teach_an_objective_nothing_are_refused(truth, loss, source):
    with pytest.raises(SpecError, match="learns nothing") as e:
        fit(asked(truth, loss, source))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_workers": 2}, "fit of one process"),
        ({"save_steps": 3}, "a multiple of 2"),
    ],
)
def test_fits_that_would_not_be_reproducible_are_refused(truth, fields, said):
    with pytest.raises(SpecError, match=said):
        fit(asked(truth, "jsd", "student(every=2)", **fields))


@pytest.mark.parametrize(
    "text",
    ["teachers", "student(student=0.5)", "teacher(student=1)", "teacher(every=2)", "student(every=0)", "truth(x=1)"],
)
def test_sources_that_are_not(text):
    with pytest.raises(SpecError) as e:
        check_prefixes(text)
    assert "\n" not in str(e.value)
