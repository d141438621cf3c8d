"""Divergences from what is kept of a teacher's next-token laws, against autograd over the whole vocabulary."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.distillation import Objective, TeacherLaw  # noqa: E402
from hydrometer.core.errors import FitError, InputError, LawMismatchError, SpecError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import FitRequest, KeptLaws  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training import losses  # noqa: E402
from hydrometer.models.causal_lm.training.answer_loss import Answers, collate  # noqa: E402
from hydrometer.models.causal_lm.training.divergences import to_gradient  # noqa: E402
from hydrometer.models.causal_lm.training.keeping import keep  # noqa: E402
from hydrometer.models.causal_lm.training.kept_rows import KeptRows  # noqa: E402
from hydrometer.models.causal_lm.training.losses import linear_divergence  # noqa: E402
from hydrometer.models.causal_lm.training.teacher_laws import LawsAlongRows  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from hydrometer.models.objectives import WEIGHTS, Divergence, refuse_unkept  # noqa: E402
from hydrometer.models.rows.kept_laws import bytes_a_token, load_kept  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

V, W, M, K = 300, 310, 12, 9
LIKELIEST = ("top_k", "top_k_renormalised", "top_k_bucket")


def logits(seed: int, m: int = M, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(m, W, generator=g, dtype=torch.float64)).to(dtype)


TEACHER = logits(2)[:, :V].log_softmax(-1)


def allowed(kind: str, law: TeacherLaw, temperature: float = 1.0) -> bool:
    usual = WEIGHTS[kind]
    known = {} if usual is None else {"head" if kind == "adaptive_kl" else "weight": 0.3}
    objective = Objective(kind, tuple({**known, "temperature": temperature}.items()))
    try:
        refuse_unkept(objective, law, None)
    except SpecError:
        return False
    return True


def kept(name: str, k: int = K, log_p=TEACHER) -> KeptRows:
    found, ids = log_p.topk(k, -1)
    rest = log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
    return KeptRows.of(TeacherLaw(name, (("k", k),)), ids, found, rest)


def dense(d: Divergence, name: str, student):
    """By autograd, over measures written out on the whole vocabulary, or on k + 1 outcomes."""
    z = student[:, :V].detach().double().requires_grad_()
    q = (z / d.temperature).softmax(-1)
    _, ids = TEACHER.topk(K, -1)
    of_kept = torch.zeros_like(TEACHER).scatter(-1, ids, 1.0)
    p = TEACHER.exp() * of_kept
    if name == "top_k_renormalised":
        p = p ** (1 / d.temperature) * of_kept
        p = p / p.sum(-1, keepdim=True)
    if name == "top_k_bucket":
        p, q = (torch.cat([x.gather(-1, ids), (1 - x.gather(-1, ids).sum(-1, keepdim=True))], -1) for x in (p, q))
        p[:, -1] = (TEACHER.exp() * (1 - of_kept)).sum(-1)
    w = d.weight

    def kl(a, b):
        return torch.where(a > 0, a * ((a + (a == 0)).log() - (b + (a == 0)).log()), 0.0).sum()

    value = {
        "kl_teacher_student": lambda: kl(p, q),
        "kl_student_teacher": lambda: kl(q, p),
        "jsd": lambda: w * kl(p, w * p + (1 - w) * q) + (1 - w) * kl(q, w * p + (1 - w) * q),
        "skew_kl_teacher_student": lambda: kl(p, w * p + (1 - w) * q),
        "skew_kl_student_teacher": lambda: kl(q, (1 - w) * p + w * q),
        "skew_kl_student_teacher_detached": lambda: kl(q, (1 - w) * p + w * q.detach()),
        "generalised_kl": lambda: kl(p, q) + ((q - p) * of_kept).sum(),
        "total_variation": lambda: (p - q).abs().sum() / 2,
    }[d.kind.removesuffix("_scaled")]() * d.factor
    value.backward()
    return value.item(), z.grad


CASES = [
    (kind, name, t)
    for kind in WEIGHTS
    for name in LIKELIEST
    for t in (1.0, 2.0)
    if allowed(kind, TeacherLaw(name, (("k", K),)), t)
]


def test_which_objectives_have_meaning_with_which_form():
    finite = {k for k in WEIGHTS if k not in ("kl_student_teacher", "adaptive_kl")}
    assert {k for k, n, t in CASES if (n, t) == ("top_k", 1)} == finite
    assert {k for k, n, t in CASES if (n, t) == ("top_k_renormalised", 2)} == finite - {"generalised_kl"}
    assert {k for k, n, t in CASES if (n, t) == ("top_k_bucket", 1)} == finite - {"generalised_kl"} | {
        "kl_student_teacher"
    }
    assert {n for _, n, t in CASES if t == 2} == {"top_k_renormalised"}
    drawn = TeacherLaw("sampled", (("k", K),))
    assert {k for k in WEIGHTS if allowed(k, drawn)} == {"kl_teacher_student"}
    for text, name in (("generalised_kl", "top_k"), ("skew_kl_student_teacher(weight=0)", "top_k_renormalised")):
        with pytest.raises(SpecError, match="has no meaning from") as e:
            refuse_unkept(Objective.from_json(text), TeacherLaw(name, (("k", K),)), Selectivity(top_p=0.9))
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(("kind", "name", "temperature"), CASES)
def test_value_and_gradient_are_those_of_autograd(kind, name, temperature):
    d = Divergence(kind, 0.3, temperature)
    value, gradient = dense(d, name, logits(1))
    mine = logits(1)
    assert kept(name).to_gradient(mine, slice(0, M), V, d, 0.5) == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(mine[:, :V], gradient / 2, rtol=1e-9, atol=1e-9)
    assert not mine[:, V:].any()
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 4e-3)):  # by kernels
        rounded = logits(1, dtype=dtype)
        value, gradient = dense(d, name, rounded)
        assert kept(name).to_gradient(rounded, slice(0, M), V, d, 1.0) == pytest.approx(value, rel=1e-5)
        largest = float(gradient.abs().max())
        torch.testing.assert_close(rounded[:, :V].double(), gradient, rtol=near, atol=near * largest)
        assert not rounded[:, V:].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LIKELIEST)
def test_the_whole_vocabulary_kept_is_the_dense_law(name, dtype):
    for kind in {k for k, n, _ in CASES if n == name}:
        d = Divergence(kind, 0.3)
        mine, other = logits(1, dtype=dtype), logits(1, dtype=dtype)
        whole = torch.nn.functional.pad(TEACHER, (0, W - V)).to(dtype)
        near = 1e-12 if dtype == torch.float64 else 1e-5
        value = to_gradient(other, whole, V, None, d, 1.0)
        assert kept(name, V).to_gradient(mine, slice(0, M), V, d, 1.0) == pytest.approx(value, rel=near)
        torch.testing.assert_close(mine, other, rtol=near, atol=near)


def test_renormalised_is_a_teacher_that_drops_the_rest():
    """The law of `top_k` as a selectivity, by the dense kernels."""
    mine, other = logits(1, dtype=torch.float32), logits(1, dtype=torch.float32)
    d, teacher = Divergence("jsd", 0.4, 1.5), torch.nn.functional.pad(TEACHER, (0, W - V)).float()
    value = to_gradient(other, teacher, V, Selectivity(top_k=K), d, 1.0)
    assert kept("top_k_renormalised").to_gradient(mine, slice(0, M), V, d, 1.0) == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_bucket_by_hand():
    """Four ids, the likeliest kept: teacher (0.7, 0.1, 0.1, 0.1), student (0.4, 0.3, 0.2, 0.1)."""
    law = TeacherLaw("top_k_bucket", (("k", 1),))
    rows = KeptRows.of(law, torch.tensor([[0]]), torch.tensor([[math.log(0.7)]]), torch.tensor([math.log(0.3)]))
    z = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    value = rows.to_gradient(z, slice(0, 1), 4, Divergence("kl_teacher_student"), 1.0)
    assert value == pytest.approx(0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6), rel=1e-7)
    # q_v - p_v of the kept id; of the others q_v - p_t q_v / q_t
    assert z[0].tolist() == pytest.approx([-0.3, 0.3 - 0.15, 0.2 - 0.1, 0.1 - 0.05], rel=1e-6)


@pytest.mark.parametrize("kind", ["kl_teacher_student", "kl_student_teacher", "jsd", "total_variation"])
def test_a_bucket_is_no_further_than_the_whole_law_and_nothing_between_equal_laws(kind):
    """The data-processing inequality: merging outcomes takes distance away, and never makes some."""
    d = Divergence(kind, 0.3)
    whole = to_gradient(logits(1), torch.nn.functional.pad(TEACHER, (0, W - V)), V, None, d, 1.0)
    found = [kept("top_k_bucket", k).to_gradient(logits(1), slice(0, M), V, d, 1.0) for k in (1, 4, 30, 299)]
    assert found == sorted(found)
    assert found[-1] <= whole * (1 + 1e-12)
    mine = logits(2)
    assert abs(kept("top_k_bucket").to_gradient(mine, slice(0, M), V, d, 1.0)) < 1e-12
    if kind != "total_variation":  # which has a kink there
        assert float(mine.abs().max()) < 1e-12


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_states_and_output_matrix(threads, monkeypatch):
    """In chunks and by threads, on the output matrix and its bias."""
    monkeypatch.setattr(losses, "_CHUNK", 64)
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(5)
    h, w, b = (torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in ((150, 24), (W, 24), (W,)))
    log_p = torch.randn(150, V, generator=g, dtype=torch.float64).log_softmax(-1)
    ids = torch.randint(V, (150,), generator=g)
    target = kept("top_k_renormalised", K, log_p), Divergence("kl_teacher_student")
    linear_divergence(h, (w, b), ids, target, n_items=90.0, vocab_size=V).backward()
    log_q = (h @ w.t() + b)[:, :V].log_softmax(-1)
    p = torch.zeros_like(log_p).scatter(-1, log_p.topk(K, -1).indices, log_p.topk(K, -1).values.softmax(-1))
    value = torch.where(p > 0, p * ((p + (p == 0)).log() - log_q), 0.0).sum() / 90
    for mine, theirs in zip((h.grad, w.grad, b.grad), torch.autograd.grad(value, (h, w, b)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_logit_that_is_no_number_makes_a_value_that_is_none():
    for dtype in (torch.float32, torch.float64):
        for at in (int(TEACHER[3].argmax()), int(TEACHER[3].argmin())):
            student = logits(1, dtype=dtype)
            student[3, at] = torch.nan
            for name in LIKELIEST:
                assert math.isnan(kept(name).to_gradient(student.clone(), slice(0, M), V, Divergence("jsd"), 1.0))


# -- kept along rows ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth() -> CausalLaw:
    lm = CausalLM(make_llama(64, layers=2, seed=1), make_tokenizer(64))
    with torch.no_grad():  # a law that says something
        lm.model.get_output_embeddings().weight.mul_(8)
    return lm.law(["w3 w4", "w5"], max_new_tokens=5, block_rows=16, stop=[1])


def said(law: CausalLaw, x, s: Selectivity):
    """(M, V) log-law at every answer token, by transformers' own forward."""
    out = []
    for i in range(len(x)):
        prompt, row = list(x.prompt_ids[int(x.prompt_index[i])]), x.row(i).tolist()
        with torch.no_grad():
            z = law.lm.model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1, :64].double()
        out.append((z / (s.temperature or 1.0)).log_softmax(-1))
    return torch.cat(out)


COLD = Selectivity(temperature=0.7)
TOP = TeacherLaw("top_k", (("k", 5),))
DRAWN = TeacherLaw("sampled", (("k", 6),))


def test_what_is_kept_along_rows(truth):
    x = truth.sample(20, seed=3)
    found = keep(truth.select(COLD), x, TOP, Stream(1), 0)
    log_p = said(truth, x, COLD)
    values, ids = log_p.topk(5, -1)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.log_p, values, atol=2e-5)
    np.testing.assert_allclose(found.rest, log_p.scatter(-1, ids, -math.inf).logsumexp(-1), atol=2e-4)
    np.testing.assert_allclose(found.whole, log_p[torch.from_numpy(found.whole_at)], atol=2e-4)
    assert found.ids.dtype == np.uint8
    assert bytes_a_token(TOP, 64) * len(found.rest) == found.ids.nbytes + found.log_p.nbytes + found.rest.nbytes
    assert keep(truth.select(COLD), x, TOP, Stream(1), 16).whole is None
    with pytest.raises(InputError, match="fewer ids than are to be kept"):
        keep(truth, x, TeacherLaw("top_k", (("k", 65),)), Stream(1), 0)


def test_drawn_ids_are_unbiased_over_seeds(truth):
    """Shares, value and gradient of KL(p, q), over 400 streams; and each id is drawn k p times, rounded."""
    x = truth.sample(4, seed=3)
    log_p = said(truth, x, COLD)
    m, n = len(log_p), 400
    g = torch.Generator().manual_seed(9)
    student = torch.randn(m, 64, generator=g, dtype=torch.float64)
    whole, d = student.clone(), Divergence("kl_teacher_student")
    value = to_gradient(whole, log_p.clone(), 64, None, d, 1.0)
    values, gradients, shares = [], [], []
    for seed in range(n):
        found = keep(truth.select(COLD), x, DRAWN, Stream(seed), 0)
        rows = KeptRows.of(DRAWN, torch.from_numpy(found.ids.astype(np.int64)), None, torch.from_numpy(found.rest))
        mine = student.clone()
        values.append(rows.to_gradient(mine, slice(0, m), 64, d, 1.0))
        gradients.append(mine.numpy())
        counts = np.stack([np.bincount(row, minlength=64) for row in found.ids])
        assert (np.abs(counts - 6 * log_p.exp().numpy()) < 1 + 1e-4).all()
        shares.append(counts / 6)
    for sample, exact in (
        (np.array(values), value), (np.array(gradients), whole.numpy()), (np.array(shares), log_p.exp().numpy()),
    ):  # fmt: skip
        se = sample.std(0, ddof=1) / math.sqrt(n)
        assert (np.abs(sample.mean(0) - exact) <= 5 * se + 2 / 6 / n).all()  # ids of almost no mass are never drawn
    assert np.std(values) > 0


def test_drawn_ids_by_kernels_and_by_torch(truth):
    found = keep(truth, truth.sample(8, seed=3), DRAWN, Stream(0), 0)
    assert any(len(set(row)) < len(row) for row in found.ids.tolist())  # some are drawn twice
    rows = KeptRows.of(DRAWN, torch.from_numpy(found.ids.astype(np.int64)), None, torch.from_numpy(found.rest))
    m, d = len(found.rest), Divergence("kl_teacher_student")
    a, b = (logits(1, m, dtype)[:, :64].contiguous() for dtype in (torch.float64, torch.float32))
    assert rows.to_gradient(a, slice(0, m), 64, d, 1.0) == pytest.approx(rows.to_gradient(b, slice(0, m), 64, d, 1.0))
    torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-6)


# -- fits --------------------------------------------------------------------------------------------------------------


def asked(truth: CausalLaw, loss: str, law: TeacherLaw | None, folder: Path, **fields: object) -> FitRequest:
    teacher = truth.select(COLD)
    settings = {
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.01, "bf16": False, **fields,
    }  # fmt: skip
    level = LevelSpec(init=FromLayers(layers_of="truth", layers=(0,)), training=Training.model_validate(settings))
    rows, held_out = teacher.sample(40, seed=3), teacher.sample(16, seed=4)
    found = None
    if law is not None:
        parts = [("a", rows.take(slice(0, 24)), 0), ("b", rows.take(slice(24, 40)), 24), ("c", held_out, 0)]
        for name, x, start in parts:
            (folder / name).mkdir(parents=True)
            CAUSAL_LM.keep_law(teacher, x, law.stored, folder / name, stream=Stream(2), start=start)
        found = KeptLaws(law, [folder / "a", folder / "b"], [folder / "c"])
    return FitRequest(rows, held_out, truth, truth, level, "teacher", loss, Stream(7), selectivity=COLD, kept=found)


def all_of(name: str) -> TeacherLaw:
    return TeacherLaw(name, (("k", 64),))


@pytest.mark.parametrize(
    ("loss", "name"), [("jsd(mle=0.2)", "top_k_renormalised"), ("kl_student_teacher", "top_k_bucket")]
)
def test_a_fit_to_all_ids_is_the_fit_to_the_teacher(truth, tmp_path, loss, name):
    """The teacher is not opened: the truth stands for its start alone."""
    kept_, whole = (fit(asked(truth, loss, law, tmp_path)) for law in (all_of(name), None))
    mine, theirs = ([e["objective"] for e in f.info["validation"]] for f in (kept_, whole))
    assert mine == pytest.approx(theirs, rel=1e-4)
    about = kept_.info["teacher_law"]
    assert about["bytes_a_token"] == 64 * 5 + 4
    assert about["positions"] == 64
    assert about["difference"]["value"] == pytest.approx(0, abs=1e-5)
    assert (about["gradient_cosine"], about["gradient_norm"]) == pytest.approx((1, 1), abs=1e-5)


def test_what_a_fit_says_of_what_was_left_out(truth, tmp_path):
    """Against the student as it begins, run by transformers, and autograd over its weights."""
    request = asked(truth, "kl_teacher_student", TeacherLaw("top_k_renormalised", (("k", 1),)), tmp_path)
    about = fit(request).info["teacher_law"]
    from hydrometer.models.causal_lm.training.initialization import init_model

    lm = init_model(request.level, truth.lm, truth.lm, request.stream.integer())
    at = torch.from_numpy(np.array(load_kept(tmp_path / "a").whole_at))
    found, grads = [], []
    for cut in (False, True):
        lm.model.zero_grad()
        values, done = [], 0
        for i in range(24):
            prompt, row = list(request.data.prompt_ids[int(request.data.prompt_index[i])]), request.data.row(i).tolist()
            z = lm.model.requires_grad_(True)(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
            log_p = said(truth, request.data.take(slice(i, i + 1)), COLD)
            if cut:
                log_p = torch.where(log_p < log_p.topk(1, -1).values[:, -1:], -math.inf, log_p).log_softmax(-1)
            p = log_p.exp()
            kl = torch.where(p > 0, p * (log_p - z[:, :64].double().log_softmax(-1)), 0.0).sum(-1)
            here = at[(at >= done) & (at < done + len(row))] - done
            values.append(kl[here])
            done += len(row)
        torch.cat(values).mean().backward()
        found.append(torch.cat(values).detach())
        grads.append(torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]).double())
    gap = found[1] - found[0]
    assert about["whole"] == pytest.approx(float(found[0].mean()), rel=1e-4)
    assert about["difference"]["value"] == pytest.approx(float(gap.mean()), rel=1e-4)
    assert about["difference"]["se"] == pytest.approx(float(gap.std() / 8), rel=1e-4)
    cosine = float(grads[0] @ grads[1] / grads[0].norm() / grads[1].norm())
    assert 1 - about["gradient_cosine"] == pytest.approx(1 - cosine, rel=1e-2)
    assert about["gradient_norm"] == pytest.approx(float(grads[1].norm() / grads[0].norm()), rel=1e-4)
    assert cosine < 0.9999


def test_laws_of_other_rows_or_in_another_form_are_refused(truth, tmp_path):
    request = asked(truth, "kl_teacher_student", TOP, tmp_path)
    with pytest.raises(LawMismatchError, match="kept along other rows"):
        fit(replace(request, data=truth.sample(24, seed=8)))
    changed = replace(request.data, ids=(request.data.ids + 1) * request.data.within)
    for x in (request.data.take(np.arange(39, -1, -1)), changed):
        with pytest.raises(LawMismatchError, match="kept along other rows"):
            fit(replace(request, data=x))
    along = LawsAlongRows(TOP, request.kept.data, request.data, 64)
    batch = collate([Answers(changed)[0]])
    with pytest.raises(FitError, match="were not kept along a row"):
        along.rows(batch["input_ids"], batch["labels"])
    with pytest.raises(LawMismatchError, match="is not what was kept of a teacher"):
        fit(replace(request, kept=replace(request.kept, law=TeacherLaw("top_k", (("k", 6),)))))
    with pytest.raises(LawMismatchError, match="is not what was kept of a teacher"):
        fit(replace(request, kept=replace(request.kept, law=TeacherLaw("sampled", (("k", 5),)))))
    with pytest.raises(SpecError, match="the student may say ids that are not kept"):
        fit(replace(request, loss="kl_student_teacher"))
