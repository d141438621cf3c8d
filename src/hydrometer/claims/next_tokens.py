"""Worlds of a language model's next tokens: its exact laws in contexts along its answers, and students of its states.

A context is a prompt and the beginning of an answer; what is drawn there is one token. The truth is the model, held to
the ids that are likeliest over a world's contexts. Students, and teachers that are fitted, are softmax regressions on
states of the model's first layers, so that every figure is a sum, and every fit a convex problem.

Shapes: C contexts, K ids, D directions of states and a constant. float64, nats.
"""

# scipy leaves the type of what it finds open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from scipy.optimize import minimize
from scipy.special import log_softmax, xlogy

from hydrometer.claims.model_world import Answers, ModelWorld, answers_of, spaced
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import FitError, InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import as_tuple
from hydrometer.core.watching import doing

__all__ = ["Contexts", "TokenWorld", "at_temperature", "drawn", "fitted", "leading", "token_figures", "token_worlds"]

_STEPS, _SLOPE = 2000, 1e-4


class TokenWorld(ModelWorld):
    """Next tokens of a language model along its own answers; each world has prompts of its own.

    Of the positions of its prompts' answers each is a context, and all weigh alike. A law of n layers is a softmax
    regression on the states that the network has after its first n (after all, those that its output matrix is given),
    scaled to mean square 1: on their leading principal directions over the world's contexts, each scaled to variance 1,
    and a constant.

    Attributes
    ----------
    positions : of an answer, evenly spaced; all of a shorter one.
    worlds : that the prompts are dealt to, equally. ids : K of a world, its likeliest over its contexts; the truth is
        the model's law given that the token is one of them.
    layers : n of the laws that can be fitted. directions : at most.
    penalty : times half the squared norm of the weights is added to a fit's loss, the sum of -log q over its rows, or,
        of a fit to a law's probabilities themselves, over as many rows as is said.
    """

    prompts: int = Field(default=128, ge=4, le=252)
    positions: int = Field(default=16, ge=1)
    worlds: int = Field(default=16, ge=2)
    ids: int = Field(default=256, ge=2)
    layers: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = Field(default=(3, 6, 12, 30), min_length=1)
    directions: int = Field(default=24, ge=1)
    penalty: float = Field(default=1.0, gt=0)


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """One world.

    Attributes
    ----------
    log_p : (C, K) the truth. texts : of its K ids.
    states : after each number of `layers`, (C, D).
    """

    log_p: Floats
    texts: tuple[str, ...]
    states: tuple[Floats, ...]


def token_worlds(world: TokenWorld, stream: Stream) -> Iterator[Contexts]:
    """Draw answers, and yield the worlds along them.

    Raises
    ------
    MissingDependencyError : torch, or the model's package, is not installed.
    InputError : fewer prompts are short enough, or a world has none.
    SpecError : the model has fewer layers.
    """
    each = world.prompts // world.worlds
    if each < 1:
        raise InputError("a world has a prompt or more of its own", got=world.prompts, fix="lower worlds")
    found = answers_of(world, stream)
    for w in range(world.worlds):
        doing(f"contexts {w + 1} of {world.worlds}")
        along = [_along(found, i, world) for i in range(w * each, (w + 1) * each)]
        log_p = np.concatenate([of_answer for of_answer, _ in along])
        ids = np.sort(np.argsort(-np.exp(log_p).mean(axis=0), kind="stable")[: world.ids])
        states = tuple(
            _directions(np.concatenate([s[i] for _, s in along]), world.directions) for i in range(len(world.layers))
        )
        laws = np.asarray(log_softmax(log_p[:, ids], axis=1), np.float64)
        texts = tuple(str(found.lm.tokenizer.decode([i])) for i in ids.tolist())
        yield Contexts(laws, texts, states)


def _along(found: Answers, row: int, world: TokenWorld) -> tuple[Floats, list[Floats]]:
    """Laws (M, V), and states (M, width) after each number of layers, at some positions of one answer; one pass."""
    from hydrometer.models.causal_lm.inference.whole_laws import layer_states

    at = spaced(int(found.rows.lengths[row]), world.positions)
    along = layer_states(found.law, found.rows, row, at, world.layers)
    return along.log_p, [s / np.sqrt(np.mean(s * s, axis=1, keepdims=True)) for s in along.states]


def _directions(states: Floats, n: int) -> Floats:
    """Return principal directions, of mean 0 and variance 1, and a constant, (C, D), D at most n + 1."""
    centred = states - states.mean(axis=0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    n = int(min(n, (size > size[0] * 1e-6).sum()))
    return np.column_stack([left[:, :n] * np.sqrt(len(states)), np.ones(len(states))])


def leading(states: Floats, directions: int) -> Floats:
    """Return the leading directions and the constant of states, (C, D), D at most directions + 1."""
    return np.column_stack([states[:, :-1][:, :directions], states[:, -1]])


def at_temperature(log_p: Floats, temperature: float) -> Floats:
    """Return the laws at a temperature, (C, K)."""
    return np.asarray(log_softmax(log_p / temperature, axis=1), np.float64)


def drawn(log_p: Floats, rows: int, stream: Stream) -> Floats:
    """Draw rows, each a context and a token of its law, and count them, (C, K)."""
    joint = np.exp(log_p).ravel()
    rng = np.random.default_rng(stream.integer())
    return rng.multinomial(rows, joint / joint.sum()).reshape(log_p.shape).astype(np.float64)


def fitted(states: Floats, counts: Floats, penalty: float) -> Floats:
    """Fit a softmax regression by penalised maximum likelihood, and return its laws, (C, K).

        the least   -sum counts log q + penalty / 2 |W|^2,   q = softmax(states W)

    Parameters
    ----------
    states : (C, D). counts : (C, K) of tokens, whole or not. penalty : above 0, so the least is one point.

    Raises
    ------
    FitError : the search ended elsewhere.
    """
    width, rows = states.shape[1], float(counts.sum())
    share, weight = counts / rows, penalty / rows
    each = share.sum(axis=1, keepdims=True)
    shape = width, counts.shape[1]
    of_id = share.sum(axis=0)
    scale = 1 / np.sqrt(of_id * (1 - of_id) + weight)  # so that curvatures are alike

    def loss(flat: NDArray[np.float64]) -> tuple[float, Floats]:
        w = flat.reshape(shape) * scale
        logits = states @ w
        logits -= logits.max(axis=1, keepdims=True)
        q = np.exp(logits)
        mass = q.sum(axis=1, keepdims=True)
        nats = float(np.sum(each * np.log(mass))) - float(np.vdot(share, logits))
        slope = weight * w - states.T @ (share - q * (each / mass))
        return weight / 2 * float(np.vdot(w, w)) + nats, (slope * scale).ravel()

    options = {"maxiter": _STEPS, "gtol": _SLOPE, "ftol": 0.0}
    found = minimize(loss, np.zeros(width * counts.shape[1]), jac=True, method="L-BFGS-B", options=options)
    if float(np.abs(found.jac).max()) > 10 * _SLOPE:
        raise FitError("a softmax regression has not settled", got=f"slope {np.abs(found.jac).max():.1g}")
    return np.asarray(log_softmax(states @ (found.x.reshape(shape) * scale), axis=1), np.float64)


def token_figures(log_p: Floats, log_q: Floats) -> dict[str, float]:
    """Return figures of laws against the truth, (C, K) both, nats a token, mean over contexts.

    Examples
    --------
    >>> one, other = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> round(token_figures(one, other)["kl_student_truth"], 6)
    0.130812
    """
    p, q = np.exp(log_p), np.exp(log_q)
    n = len(p)
    precision, recall = float(np.sum(q * log_p)) / n, float(np.sum(p * log_q)) / n
    entropy, of_truth = (-float(np.sum(xlogy(x, x))) / n for x in (q, p))
    return {
        "precision": precision,
        "recall": recall,
        "entropy": entropy,
        "kl_student_truth": -entropy - precision,
        "kl_truth_student": -of_truth - recall,
    }
