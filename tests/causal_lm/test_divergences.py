"""Divergences between next-token laws: values and gradients against autograd on the dense form, and their limits."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.training import losses  # noqa: E402
from hydrometer.models.causal_lm.training.divergences import (  # noqa: E402
    KINDS,
    _to_gradient_by_torch,
    to_gradient,
)
from hydrometer.models.causal_lm.training.losses import TeacherRows, linear_divergence  # noqa: E402
from hydrometer.models.objectives import WEIGHTS, Divergence  # noqa: E402

V, W = 300, 310
WEIGHTED = [kind for kind, usual in WEIGHTS.items() if usual is not None]
TEACHER_KEEPS_ALL = [None, Selectivity(temperature=0.6)]
TRUNCATED = [Selectivity(temperature=0.8, top_k=7), Selectivity(top_p=0.7), Selectivity(min_p=0.1)]


def logits(seed: int, m: int = 12, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(m, W, generator=g, dtype=torch.float64)).to(dtype)


def dense(d: Divergence, student, teacher, s: Selectivity | None):
    """The formulas of the papers, by autograd over all logits."""
    x = teacher[:, :V].double()
    if s is not None:
        x = x / (s.temperature or 1.0)
        if s.top_k is not None:
            x = torch.where(x < x.topk(s.top_k, -1).values[:, -1:], -torch.inf, x)
        if s.top_p is not None:
            ordered, at = x.softmax(-1).sort(-1, descending=True)
            last = (ordered.cumsum(-1) < s.top_p).sum(-1, keepdim=True)
            x = torch.where(x < x.gather(-1, at.gather(-1, last)), -torch.inf, x)  # ties are kept
        if s.min_p is not None:
            x = torch.where(x.softmax(-1) < s.min_p * x.softmax(-1).amax(-1, keepdim=True), -torch.inf, x)
    p = (x / d.temperature).softmax(-1)
    if d.kind == "generalised_kl":
        whole = (teacher[:, :V].double() / ((s.temperature if s else None) or 1.0) / d.temperature).softmax(-1)
        p = torch.where(x == -torch.inf, 0.0, whole)
    z = student[:, :V].detach().double().requires_grad_()
    q = (z / d.temperature).softmax(-1)
    w = d.weight

    def kl(a, b):
        return torch.where(a > 0, a * ((a + (a == 0)).log() - b.log()), 0.0).sum()

    value = {
        "kl_teacher_student": lambda: kl(p, q),
        "kl_student_teacher": lambda: kl(q, p),
        "jsd": lambda: w * kl(p, w * p + (1 - w) * q) + (1 - w) * kl(q, w * p + (1 - w) * q),
        "skew_kl_teacher_student": lambda: kl(p, w * p + (1 - w) * q),
        "skew_kl_student_teacher": lambda: kl(q, (1 - w) * p + w * q),
        "skew_kl_student_teacher_detached": lambda: kl(q, (1 - w) * p + w * q.detach()),
        "adaptive_kl": lambda: adaptive(p, q, w),
        "generalised_kl": lambda: kl(p, q) + (q - p)[x > -torch.inf].sum(),
        "total_variation": lambda: (p - q).abs().sum() / 2,
    }[d.kind.removesuffix("_scaled")]() * d.temperature**2
    if d.kind == "jsd_scaled":
        value = value / (w * (1 - w))
    value.backward()
    return value.item(), z.grad


def adaptive(p, q, mass):
    """Row by row, as the paper has it: its algorithm's weights are constants."""
    value = 0.0
    for a, b in zip(p, q, strict=True):
        order = a.argsort(descending=True)
        head = a >= a[order[int((a[order].cumsum(0) < mass).sum())]]  # ties are kept
        gap = (a - b.detach()).abs()
        share = gap[head].sum() / gap.sum()
        value = value + share * (a * (a / b).log()).sum() + (1 - share) * (b * (b / a).log()).sum()
    return value


def cases():
    for kind in KINDS:
        allowed = TEACHER_KEEPS_ALL if kind in ("kl_student_teacher", "adaptive_kl") else TEACHER_KEEPS_ALL + TRUNCATED
        for s in allowed:
            for weight in (0.1, 0.5) if kind in WEIGHTED else (0.5,):
                for temperature in (1.0, 2.0):
                    yield Divergence(kind, weight, temperature), s


@pytest.mark.parametrize(("d", "s"), list(cases()))
def test_value_and_gradient_are_those_of_autograd(d, s):
    student, teacher = logits(1), logits(2)
    value, gradient = dense(d, student, teacher, s)
    mine = student.clone()
    assert to_gradient(mine, teacher, V, s, d, 0.5) == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(mine[:, :V], gradient / 2, rtol=1e-9, atol=1e-9)
    assert not mine[:, V:].any()


@pytest.mark.parametrize(("d", "s"), list(cases()))
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
def test_kernels_make_the_same_in_float32_and_bfloat16(d, s, dtype, near):
    student, teacher = logits(1, dtype=dtype), logits(2, dtype=dtype)
    value, gradient = dense(d, student, teacher, s)
    mine = student.clone()
    assert to_gradient(mine, teacher, V, s, d, 1.0) == pytest.approx(value, rel=3e-6)
    largest = float(gradient.abs().max())
    torch.testing.assert_close(mine[:, :V].double(), gradient, rtol=near, atol=near * largest)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_laws_have_no_divergence_and_no_gradient(kind):
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        mine = logits(3, dtype=dtype)
        assert abs(to_gradient(mine, logits(3, dtype=dtype), V, None, Divergence(kind, 0.3), 1.0)) <= near
        assert float(mine.abs().max()) <= near


@pytest.mark.parametrize(
    ("kind", "weight", "plain", "near"),
    [
        ("jsd_scaled", 1e-9, "kl_teacher_student", 1e-4),
        ("jsd_scaled", 1 - 1e-10, "kl_student_teacher", 1e-4),
        ("skew_kl_teacher_student", 0.0, "kl_teacher_student", 1e-12),
        ("skew_kl_student_teacher", 0.0, "kl_student_teacher", 1e-12),
        ("skew_kl_student_teacher_detached", 0.0, "kl_student_teacher", 1e-12),
        ("generalised_kl", 0.5, "kl_teacher_student", 1e-12),
        ("adaptive_kl", 1 - 1e-15, "kl_teacher_student", 1e-6),  # all ids are the head
    ],
)
def test_the_ends_of_the_weights(kind, weight, plain, near):
    student, other = logits(1), logits(1)
    value = to_gradient(student, logits(2), V, None, Divergence(kind, weight), 1.0)
    assert value == pytest.approx(to_gradient(other, logits(2), V, None, Divergence(plain), 1.0), rel=near)
    torch.testing.assert_close(student, other, rtol=near, atol=near)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_detached_mixture_has_the_value_of_the_other_and_the_gradient_of_a_jsd(temperature):
    """Of JSD the mixture is the law that its two KLs are least for together, so its own change adds nothing."""
    student, other, jsd = logits(1), logits(1), logits(1)
    plain, detached, _ = (
        to_gradient(z, logits(2), V, None, Divergence(kind, weight, temperature), 1.0)
        for z, kind, weight in (
            (student, "skew_kl_student_teacher", 0.3),
            (other, "skew_kl_student_teacher_detached", 0.3),
            (jsd, "jsd", 0.7),
        )
    )
    assert plain == detached
    assert float((student - other).abs().max()) > 0.01
    torch.testing.assert_close(other, jsd / 0.3, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_which_gradients_vanish_where_a_student_has_all_but_excluded_an_id(kind):
    """The teacher is sure of an id that the student gives exp(-40); the student of one that the teacher gives that."""
    found = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 40.0, 0.0]], dtype=torch.float64)
    value = to_gradient(found, teacher, 3, None, Divergence(kind), 1.0)
    assert value > 0.3
    if kind in ("kl_teacher_student", "generalised_kl", "adaptive_kl"):
        assert float(found[0, 1]) < -0.3
    else:
        assert float(found.abs().max()) < 1e-13


def test_a_generalised_kl_leaves_the_mass_that_a_teacher_drops_alone():
    """Zero, with its gradient, where the student has the teacher's own probabilities of the ids that it keeps."""
    teacher, s = logits(2), Selectivity(top_k=9)
    student = teacher.clone()
    dropped = student < student[:, :V].topk(9, -1).values[:, -1:]
    student[:, :V][dropped[:, :V]] = (
        (teacher[:, :V].exp() * dropped[:, :V])
        .sum(-1, keepdim=True)
        .div(dropped[:, :V].sum(-1, keepdim=True))
        .log()
        .expand(-1, V)[dropped[:, :V]]
    )  # the rest spread evenly
    assert abs(to_gradient(student, teacher, V, s, Divergence("generalised_kl"), 1.0)) < 1e-9
    assert float(student.abs().max()) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_that_drops_what_the_student_may_say_is_infinitely_far(dtype):
    mine = logits(1, dtype=dtype)
    s = Selectivity(top_k=5)
    for kind in ("kl_student_teacher", "adaptive_kl"):
        assert to_gradient(mine.clone(), logits(2, dtype=dtype), V, s, Divergence(kind), 1.0) == math.inf


def test_holes_of_the_vocabulary_have_no_part():
    for dtype in (torch.float32, torch.float64):
        student, teacher = logits(1, dtype=dtype), logits(2, dtype=dtype)
        holes = [3, 70]
        student[:, holes] = teacher[:, holes] = -torch.inf
        rest = [v for v in range(V) if v not in holes]
        for kind in KINDS:
            mine, other = student.clone(), student[:, rest].clone()
            a = to_gradient(mine, teacher, V, None, Divergence(kind), 1.0)
            b = to_gradient(other, teacher[:, rest].clone(), len(rest), None, Divergence(kind), 1.0)
            assert a == pytest.approx(b, rel=1e-6)
            assert not mine[:, holes].any()
            torch.testing.assert_close(mine[:, rest], other, rtol=1e-5, atol=1e-7)


def test_one_direction_covers_and_the_other_seeks():
    """A two-mode teacher, and a student that is a discretised Gaussian: a vocabulary of eight."""
    v = torch.arange(8, dtype=torch.float64)
    teacher = torch.logaddexp(-((v - 1) ** 2) * 2, -((v - 6) ** 2) * 2 - 0.3)[None]

    def fitted(kind: str) -> tuple[float, float]:
        theta = torch.tensor([3.0, 0.0], dtype=torch.float64, requires_grad=True)
        step = torch.optim.Adam([theta], lr=0.05)
        for _ in range(1500):
            z = -((v - theta[0]) ** 2) * theta[1].exp()
            gradient = z.detach()[None].clone()
            _to_gradient_by_torch(gradient, teacher.clone(), 8, None, Divergence(kind), 1.0)
            step.zero_grad()
            z.backward(gradient[0])
            step.step()
        q = z.detach().softmax(-1)
        return float(q[[0, 1, 2]].sum()), float(q[[5, 6, 7]].sum())

    left, right = fitted("kl_teacher_student")
    assert min(left, right) > 0.25
    left, right = fitted("kl_student_teacher")
    assert left > 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_states_and_output_matrix(kind, threads, monkeypatch):
    """Through two heads of different widths, in chunks, against autograd over all logits in float64."""
    monkeypatch.setattr(losses, "_CHUNK", 64)
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(5)
    m, n, d, s = 150, 90.0, Divergence(kind, 0.3, 1.5), Selectivity(temperature=0.7)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    h, w, b = (x.requires_grad_() for x in (normal(m, 24), normal(W, 24) * 0.5, normal(W)))
    teacher = TeacherRows(normal(m, 40), normal(W, 40) * 0.4, normal(W), None, s)
    loss = linear_divergence(h, (w, b), torch.zeros(m, dtype=torch.long), (teacher, d), n_items=n, vocab_size=V)
    (3 * loss).backward()
    student_logits = (h @ w.t() + b).detach()
    value, gradient = dense(d, student_logits, teacher.states @ teacher.weight.t() + teacher.bias, s)
    assert loss.item() == pytest.approx(value / n, rel=1e-9)
    gradient = torch.nn.functional.pad(gradient, (0, W - V)) * 3 / n
    for mine, theirs in ((h.grad, gradient @ w), (w.grad, gradient.t() @ h), (b.grad, gradient.sum(0))):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_logit_that_is_no_number_makes_a_value_that_is_none(kind, dtype, whose):
    student, teacher = logits(1, dtype=dtype), logits(2, dtype=dtype)
    (student if whose == "student" else teacher)[3, 17] = torch.nan
    assert math.isnan(to_gradient(student, teacher, V, None, Divergence(kind), 1.0))


def test_a_mixture_of_weight_0_is_the_law_itself_far_below_its_maximum():
    for kind, plain in (
        ("skew_kl_teacher_student", "kl_teacher_student"),
        ("skew_kl_student_teacher", "kl_student_teacher"),
        ("skew_kl_student_teacher_detached", "kl_student_teacher"),
    ):
        student, teacher = torch.tensor([[0.0, -100.0]]), torch.tensor([[0.0, 0.0]])
        again = student.clone()
        value = to_gradient(student, teacher, 2, None, Divergence(kind, 0.0), 1.0)
        assert value == to_gradient(again, teacher, 2, None, Divergence(plain), 1.0)
        assert torch.equal(student, again)
