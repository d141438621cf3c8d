"""Exact optima of objectives for n-gram students: objective x prefixes x temperature, against descent one by one.

The peers are L-BFGS and Adam in torch, float64, on the table's logits, until no gradient is above 1e-6: the same prefix
weights, and on the student's own prefixes the same rounds, from one start, each from where the last one ended. Checked
first: no value of ours is above that of L-BFGS.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

from functools import partial
from itertools import islice, product
from typing import Any

import hydrometer as hm
import numpy as np
import torch
from hydrometer.core.distillation import Objective
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.optimum import fit_objective, prefixes_of
from hydrometer.models.markov.spec import MarkovTruth
from hydrometer.models.objectives import Divergence, divergence_of

OBJECTIVES = "kl_teacher_student kl_student_teacher jsd jsd(weight=0.1) skew_kl_teacher_student skew_kl_student_teacher"
SOURCES = ("teacher", "truth", "student")
ORDER, N, OF_PEER = 1, 1000, 20


def settings() -> tuple[Markov, Markov, list[tuple[Divergence, str, float]]]:
    truth = MarkovTruth(order=3, vocabulary=8, max_new_tokens=16, concentration=0.5, end=0.2).law()
    teacher = hm.fit_markov(truth.sample(2000), 2, smoothing=0.05, vocabulary=8, max_new_tokens=16).model
    temperatures = np.linspace(0.4, 1.2, 56)
    divergences = [divergence_of(Objective.from_json(o)) for o in OBJECTIVES.split()]
    every = product(temperatures, divergences, SOURCES)
    return truth, teacher, [(d, s, float(t)) for t, d, s in islice(every, N) if d is not None]


def value(d: Divergence, log_q: torch.Tensor, weight: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    q, w = log_q.exp(), d.weight

    def kl(a: Any, b: Any) -> torch.Tensor:
        return (weight[..., None] * a * (a.log() - b.log())).sum()

    m = w * p + (1 - w) * q
    match d.kind:
        case "kl_teacher_student":
            return kl(p, q)
        case "kl_student_teacher":
            return kl(q.expand_as(p), p)
        case "jsd":
            return w * kl(p, m) + (1 - w) * kl(q, m)
        case "skew_kl_teacher_student":
            return kl(p, m)
        case _:
            return kl(q, (1 - w) * p + w * q)


def descend(maker: str, d: Divergence, met: Any, start: torch.Tensor) -> torch.Tensor:
    weight, p = (torch.as_tensor(np.ascontiguousarray(x)) for x in met[:2])
    logits = start.clone().requires_grad_()
    if maker == "L-BFGS":
        step: Any = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-14)
    else:
        step = torch.optim.Adam([logits], lr=0.02)

    def closure() -> torch.Tensor:
        step.zero_grad()
        found = value(d, logits.log_softmax(-1), weight, p)
        found.backward()
        return found

    for _ in range(1 if maker == "L-BFGS" else 20_000):
        step.step(closure)
        assert logits.grad is not None
        if float(logits.grad.abs().max()) < 1e-6:
            break
    return logits.detach().log_softmax(-1)


def by_descent(maker: str, truth: Markov, teacher: Markov, d: Divergence, source: str, temperature: float) -> Any:
    selected = teacher.select(hm.Selectivity(temperature=temperature))
    zero = torch.zeros((teacher.vocabulary + 1) ** ORDER, teacher.vocabulary, dtype=torch.float64)
    q = descend(maker, d, prefixes_of(truth if source == "truth" else selected, selected, ORDER), zero)
    for _ in range(200 if source == "student" else 0):
        student = Markov(q.numpy(), order=ORDER, max_new_tokens=teacher.max_new_tokens)
        after = descend(maker, d, prefixes_of(student, selected, ORDER), q)
        if float((after.exp() - q.exp()).abs().max()) < 1e-6:
            break
        q = after
    return q


def exactly(truth: Markov, teacher: Markov, d: Divergence, source: str, temperature: float) -> Markov:
    selected = teacher.select(hm.Selectivity(temperature=temperature))
    on = {"truth": truth, "teacher": selected, "student": None}[source]
    return fit_objective(selected, on, d, ORDER).model


def main() -> None:
    args = _peers.arguments(__doc__ or "")
    torch.set_num_threads(_peers.THREADS)
    truth, teacher, every = settings()
    few = every[:: len(every) // OF_PEER][:OF_PEER]
    worst = 0.0
    for d, source, t in few:
        mine, peer = exactly(truth, teacher, d, source, t), by_descent("L-BFGS", truth, teacher, d, source, t)
        selected = teacher.select(hm.Selectivity(temperature=t))
        met = prefixes_of({"truth": truth, "teacher": selected, "student": mine}[source], selected, ORDER)
        weight, p = (torch.as_tensor(np.ascontiguousarray(x)) for x in met[:2])
        ours, theirs = (float(value(d, torch.as_tensor(x), weight, p)) for x in (mine.log_table, peer))
        assert ours <= theirs + 1e-9, (d, source, t, ours, theirs)
        worst = max(worst, theirs - ours)
    print(f"the peer ends at most {worst:.1e} nats a row above the optimum")
    works = {
        "hydrometer": _peers.timed(partial(over, exactly, truth, teacher, every), len(every)),
        **{
            f"torch {m}": _peers.timed(partial(over, partial(by_descent, m), truth, teacher, few), len(few))
            for m in ("L-BFGS", "Adam")
        },
    }
    rates = _peers.in_turn(works, args.repeats)
    _peers.finish([_peers.report(f"{len(every)} optima, {len(few)} of them by the peer", rates, "optima/s")], args.json)


def over(work: Any, truth: Markov, teacher: Markov, asked: list[tuple[Divergence, str, float]]) -> None:
    for d, source, t in asked:
        work(truth, teacher, d, source, t)


if __name__ == "__main__":
    main()
