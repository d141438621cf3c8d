"""Fits of a table of the last token, by every objective on every source of rows, against the exact optimum.

Prompts are one token and no row stops, so all prefixes can be enumerated, and so can their weights on own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.optimize import brentq  # noqa: E402
from scipy.special import logsumexp, wrightomega  # noqa: E402

from campaign import kinds  # noqa: E402
from hydrometer.core.distillation import Objective, Prefixes  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training.answer_loss import Answers, Matched, answer_loss, collate  # noqa: E402
from hydrometer.models.causal_lm.training.losses import TeacherRows  # noqa: E402
from hydrometer.models.causal_lm.training.teacher_laws import TeacherLaws  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from hydrometer.models.markov.optimum import nearest  # noqa: E402
from hydrometer.models.objectives import divergence_of  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

V, L, PROMPTS = 8, 3, (3, 4, 5)
COLD = Selectivity(temperature=0.7)
DIVERGENCES = (
    "kl_teacher_student jsd(weight=0.3) jsd_scaled skew_kl_teacher_student skew_kl_student_teacher total_variation "
    "skew_kl_student_teacher_detached(weight=0.4) adaptive_kl generalised_kl kl_teacher_student(temperature=2.0)"
)
ON_DATA = kinds("mle", "kl_student_teacher", campaign="jsd(mle=0.3) " + DIVERGENCES)
ON_OWN = kinds("kl_student_teacher", campaign=DIVERGENCES)


def law(scale: float, seed: int) -> CausalLaw:
    """Of two layers, with logits of that many times 2.3 nats or so."""
    lm = CausalLM(make_llama(V, layers=2, seed=seed), make_tokenizer(V))
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(scale)
    return lm.law([f"w{p}" for p in PROMPTS], max_new_tokens=L, block_rows=300, stop=[])


@pytest.fixture(scope="module")
def sharp() -> CausalLaw:
    """Of logits that are 39 nats apart or so at the temperature of its rows."""
    return law(12, 1)


@pytest.fixture(scope="module")
def mild() -> CausalLaw:
    return law(1, 1)


def table(log_q: torch.Tensor | None = None) -> torch.nn.Module:
    """A network without layers, whose embeddings are too large to be moved: a parameter for each pair of tokens."""
    network = make_llama(V, layers=0, seed=5, hidden_size=16)
    with torch.no_grad():
        network.get_input_embeddings().weight.copy_(2.0**20 * torch.eye(V, 16))  # 4 after the norm, exactly
        if log_q is not None:
            network.double().get_output_embeddings().weight[:, :V] = log_q.T / 4
    return network


def request(teacher: CausalLaw, loss: str, source: str, rows: int, **training: object) -> FitRequest:
    truth = law(1, 2)
    settings = {"per_device_train_batch_size": rows, "bf16": False, **training}
    level = LevelSpec(init="truth", training=Training.model_validate(settings))
    data = (teacher.select(COLD) if source.startswith("teacher") else truth).sample(rows, seed=3)
    return FitRequest(data, None, truth, teacher, level, source, loss, Stream(7), selectivity=COLD)


@dataclass
class Enumerated:
    """Every prefix: the teacher's law there, the last token, and how often it comes.

    A prefix is a row of prompts, with a column for no token, each first one, and each pair.
    """

    log_p: torch.Tensor
    before: torch.Tensor
    given: torch.Tensor
    said: torch.Tensor

    def weight(self, source: str, log_q: torch.Tensor) -> torch.Tensor:
        share = Prefixes.from_json(source).own
        return (1 - share) * self.given + share * own_chances(log_q) / L / len(PROMPTS)


def own_chances(log_q: torch.Tensor) -> torch.Tensor:
    """The student's probabilities of every prefix after each prompt."""
    q = log_q.exp()
    first = q[list(PROMPTS)]
    return torch.cat([torch.ones_like(first[:, :1]), first, (first[..., None] * q).flatten(1)], 1).flatten()


def enumerated(teacher: CausalLaw, data: Sequences) -> Enumerated:
    pairs = [[p, a, b] for p in PROMPTS for a in range(V) for b in range(V)]
    with torch.no_grad():
        z = teacher.lm.model(input_ids=torch.tensor(pairs)).logits[..., :V].double() / COLD.temperature
    z = z.log_softmax(-1).reshape(len(PROMPTS), V, V, L, V)
    log_p = torch.cat([z[:, :1, 0, 0], z[:, :, 0, 1], z[:, :, :, 2].flatten(1, 2)], 1).flatten(0, 1)
    ids = torch.arange(V)
    before = torch.cat([torch.cat([torch.tensor([p]), ids, ids.repeat(V)]) for p in PROMPTS])
    met, own = met_by(data)
    one = torch.full((len(own),), 1 / len(own), dtype=torch.float64)
    given = torch.zeros(len(before), dtype=torch.float64).index_add_(0, met, one)
    said = torch.zeros(V, V, dtype=torch.float64).index_put_((before[met], own), one, accumulate=True)
    return Enumerated(log_p, before, given, said)


def met_by(data: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefix and token at each position of each row."""
    rows = torch.tensor([data.row(i).tolist() for i in range(len(data))])
    a, b = rows[:, 0], rows[:, 1]
    at = torch.stack([torch.zeros_like(a), 1 + a, 1 + V + V * a + b], 1)
    first = torch.as_tensor(data.prompt_index).long() * (1 + V + V * V)
    return (first[:, None] + at).flatten(), rows.flatten()


def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(a > 0, a * (torch.where(a > 0, a, 1.0).log() - torch.where(a > 0, b, 1.0).log()), 0.0).sum(-1)


def head_share(p: torch.Tensor, q: torch.Tensor, mass: float) -> torch.Tensor:
    ranked, order = p.sort(-1, descending=True)
    gap = (p - q).abs().gather(-1, order)
    head = (gap * (ranked.cumsum(-1) - ranked < mass)).sum(-1)
    share = (head / gap.sum(-1)).nan_to_num(0.5)  # of equal laws both directions are 0
    return share.clip(max=1 - 1e-6)  # `adaptive_best` divides by the rest


def value(name: str, x: Enumerated, weight: torch.Tensor, log_q: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """The papers' formulas, mean over positions, parts that a gradient holds fixed as at the law `held`."""
    d = divergence_of(Objective.from_json(name))
    likelihood = torch.where(x.said > 0, x.said * log_q, 0.0).sum()
    if d is None:
        return -likelihood
    p, q, fixed = ((z / d.temperature).softmax(-1) for z in (x.log_p, log_q[x.before], held[x.before]))
    w, share = d.weight, head_share(p, fixed, d.weight)
    m = w * p + (1 - w) * q
    found = {
        "kl_teacher_student": lambda: kl(p, q),
        "generalised_kl": lambda: kl(p, q),  # of laws that drop nothing
        "kl_student_teacher": lambda: kl(q, p),
        "jsd": lambda: w * kl(p, m) + (1 - w) * kl(q, m),
        "jsd_scaled": lambda: (w * kl(p, m) + (1 - w) * kl(q, m)) / (w * (1 - w)),
        "skew_kl_teacher_student": lambda: kl(p, m),
        "skew_kl_student_teacher": lambda: kl(q, (1 - w) * p + w * q),
        "skew_kl_student_teacher_detached": lambda: kl(q, (1 - w) * p + w * fixed),
        "adaptive_kl": lambda: share * kl(p, q) + (1 - share) * kl(q, p),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
    }[d.kind]()
    return (1 - d.mle) * d.temperature**2 * (weight * found).sum() - d.mle * likelihood


def best(name: str, x: Enumerated, weight: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The optimum on those prefixes; where a part is held fixed, at the law `log_q`."""
    d = divergence_of(Objective.from_json(name))
    if d is None:
        said = x.said + (x.said.sum(-1, keepdim=True) == 0)  # uniform in a context that no row has
        return torch.log(said / said.sum(-1, keepdim=True))
    if d.kind == "adaptive_kl":
        return adaptive_best(x, weight, head_share(x.log_p.exp(), log_q[x.before].exp(), d.weight))
    # Of a detached mixture the gradient is that of this divergence, divided by the weight.
    same = {"generalised_kl": "kl_teacher_student", "skew_kl_student_teacher_detached": "jsd"}.get(d.kind, d.kind)
    d = replace(d, kind=same, weight=1 - d.weight if d.kind.endswith("detached") else d.weight)
    at = np.arange(len(x.before))
    of_contexts = np.zeros((len(at), V))
    of_contexts[at, x.before.numpy()] = weight.numpy()
    p = np.repeat(x.log_p.exp().numpy()[:, None], V, axis=1)
    return torch.as_tensor(nearest(of_contexts, p, x.said.numpy(), d))


def adaptive_best(x: Enumerated, weight: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Of every context the root of -a / q + b log q - c = multiplier, by the function that solves u + log u = z."""
    out = torch.full((V, V), -np.log(V), dtype=torch.float64)
    for context in range(V):
        of = (x.before == context) & (weight > 0)
        if not of.any():
            continue
        w, h, log_p = weight[of, None].numpy(), share[of, None].numpy(), x.log_p[of].numpy()
        a, b, c = (w * h * np.exp(log_p)).sum(0), (w * (1 - h)).sum(), (w * (1 - h) * log_p).sum(0)

        def log_roots(multiplier: float, a=a, b=b, c=c) -> np.ndarray:
            return (multiplier + c) / b + wrightomega(np.log(np.maximum(a / b, 1e-300)) - (multiplier + c) / b)

        far = 1e3 * w.sum()
        most = brentq(lambda m, of=log_roots: logsumexp(of(m)), -far, far, xtol=1e-15)
        out[context] = torch.as_tensor(log_roots(most))
    return out


def at_rest(name: str, source: str, x: Enumerated) -> torch.Tensor:
    """The law that is the optimum on its own prefixes, and with its own parts held fixed."""
    log_q = torch.full((V, V), -np.log(V), dtype=torch.float64)
    for _ in range(500):
        after = best(name, x, x.weight(source, log_q), log_q)
        moved, log_q = float((after.exp() - log_q.exp()).abs().max()), after
        if moved < 1e-11:
            return log_q
    raise AssertionError(f"{name} on rows of the {source} moves by {moved:.1e} a round")


def trained(asked: FitRequest, monkeypatch) -> torch.Tensor:
    """The table that a fit ends with."""
    from hydrometer.models.causal_lm.training import trainer

    network = table()
    monkeypatch.setattr(trainer, "init_model", lambda *_: CausalLM(network, make_tokenizer(V)))
    fit(asked)
    with torch.no_grad():
        return network(input_ids=torch.arange(V)[:, None]).logits[:, 0].double().log_softmax(-1)


def gap(name: str, source: str, x: Enumerated, found: torch.Tensor) -> float:
    """Nats a token by which a law is above the optimum, where prefixes and held parts are as there."""
    least = at_rest(name, source, x)
    weight = x.weight(source, least)
    if name.startswith("skew_kl_student_teacher_detached"):
        w = divergence_of(Objective.from_json(name)).weight
        scaled = f"jsd(weight={1 - w})"
        return float(value(scaled, x, weight, found, found) - value(scaled, x, weight, least, least)) / w
    return float(value(name, x, weight, found, least) - value(name, x, weight, least, least))


@pytest.mark.filterwarnings("ignore:LlamaForCausalLM keeps no attention cache")
@pytest.mark.parametrize("source", ["teacher", "truth"])
@pytest.mark.parametrize("name", ON_DATA)
def test_on_given_rows_a_fit_ends_at_the_optimum_however_sharp_the_teacher(sharp, name, source, monkeypatch):
    asked = request(sharp, name, source, 60, num_train_epochs=800, learning_rate=0.1, decay_ratio=0.7)
    found = trained(asked, monkeypatch)
    assert -1e-9 <= gap(name, source, enumerated(sharp, asked.data), found) <= 1e-3


@pytest.mark.filterwarnings("ignore:LlamaForCausalLM keeps no attention cache")
@pytest.mark.parametrize("source", ["student", "teacher(student=0.5)"])
@pytest.mark.parametrize("name", ON_OWN)
def test_on_own_rows_a_fit_ends_where_it_is_its_own_optimum(mild, name, source, monkeypatch):
    asked = request(mild, name, source, 120, num_train_epochs=300, learning_rate=0.05, decay_ratio=0.9)
    found = trained(asked, monkeypatch)
    assert -1e-9 <= gap(name, source, enumerated(mild, asked.data), found) <= 1e-3


@pytest.mark.filterwarnings("ignore:LlamaForCausalLM keeps no attention cache")
@pytest.mark.parametrize("name", ["kl_student_teacher", "jsd(mle=0.3)", *DIVERGENCES.split()])
def test_at_the_optimum_the_loss_has_its_value_and_no_gradient(sharp, mild, name):
    """In float64, under laws as far apart as those of the fits. `total_variation` has a corner there."""
    teacher = mild if name == "adaptive_kl" else sharp
    data = teacher.select(COLD).sample(60, seed=3)
    x, d = enumerated(teacher, data), divergence_of(Objective.from_json(name))
    log_q = at_rest(name, "teacher", x).clip(min=-300.0)
    student, met = CausalLM(table(log_q), make_tokenizer(V)), met_by(data)[0]

    class Known(TeacherLaws):
        def rows(self, ids_BT, labels_BT):
            return TeacherRows(x.log_p[met])

    laws = Known(teacher, None, lambda *_: x.log_p)
    batch = collate([Answers(data)[i] for i in range(len(data))])
    matched = Matched(laws, d, laws)
    found = answer_loss(student, batch["input_ids"], batch["labels"], len(met), dtype=torch.float64, matched=matched)
    found.backward()
    assert found.item() == pytest.approx(float(value(name, x, x.given, log_q, log_q)), rel=1e-9)
    if name != "total_variation":
        assert float(student.model.get_output_embeddings().weight.grad.abs().max()) < 1e-9


def of_rows(x: Enumerated, log_q: torch.Tensor) -> torch.Tensor:
    """KL between the laws of whole rows, divided by their length."""
    return value("kl_student_teacher", x, x.weight("student", log_q), log_q, log_q)


def least_of_rows(x: Enumerated, start: torch.Tensor) -> torch.Tensor:
    z = start.clone().requires_grad_()
    step = torch.optim.LBFGS([z], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        step.zero_grad()
        found = of_rows(x, z.log_softmax(-1))
        found.backward()
        return found

    step.step(closure)
    return z.detach().log_softmax(-1)


@pytest.mark.filterwarnings("ignore:LlamaForCausalLM keeps no attention cache")
@pytest.mark.parametrize(
    "name",
    kinds(
        "policy_gradient_reward_to_go(baseline=1)",
        campaign="policy_gradient_token policy_gradient_token(baseline=1) policy_gradient_reward_to_go",
    ),
)
def test_each_policy_gradient_ends_by_the_optimum_of_its_name(mild, name, monkeypatch):
    """The noise of its rows leaves it a little above; the other's optimum is far."""
    asked = request(mild, name, "student", 300, num_train_epochs=200, learning_rate=0.05, decay_ratio=0.9)
    found, x = trained(asked, monkeypatch), enumerated(mild, asked.data)
    by_row = least_of_rows(x, at_rest("kl_student_teacher", "student", x))
    above = {
        "policy_gradient_token": gap("kl_student_teacher", "student", x, found),
        "policy_gradient_reward_to_go": float(of_rows(x, found) - of_rows(x, by_row)),
    }
    own = above.pop(name.partition("(")[0])
    assert -1e-9 <= own <= 0.02
    assert min(above.values()) > 0.1
