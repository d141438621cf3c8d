"""Run folders made up for tests; figures near those measured on the real SmolLM2 chain and on the paper's mixture."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]

# name: precision, se, recall, se, entropy; the truth's entropy is 91.3 nats per answer.
SEQUENCES: dict[str, tuple[float, float, float, float, float]] = {
    "teacher": (-148.3, 4.1, -166.2, 5.0, 90.2),
    "direct": (-174.7, 4.2, -173.0, 5.1, 110.2),
    "direct@0.8": (-126.9, 2.9, -192.9, 5.9, 73.7),
    "direct@0.6": (-92.8, 2.5, -236.5, 7.5, 45.7),
    "distilled1": (-181.3, 4.5, -189.7, 5.6, 104.5),
    "distilled1@0.8": (-133.0, 3.3, -207.5, 6.0, 70.1),
    "distilled1@0.6": (-98.9, 2.7, -246.0, 7.2, 43.9),
    "distilled0.8": (-130.9, 3.7, -199.6, 6.0, 71.9),
    "distilled0.6": (-100.2, 2.9, -212.5, 6.2, 50.1),
}
H_TRUTH = 91.3
TOKENS = 33.4
# beta: precision, se, recall, se, entropy of the distilled student, entropy of the teacher
MIXTURE: dict[float, tuple[float, float, float, float, float, float]] = {
    1.0: (-7.49, 0.02, -2.599, 0.001, 2.58, 1.62),
    3.0: (-7.51, 0.023, -2.68, 0.007, 2.56, 1.52),
    10.0: (-6.49, 0.093, -4.97, 0.35, 2.12, 1.21),
    30.0: (-4.61, 0.126, -19.8, 1.4, 1.13, 0.64),
    100.0: (-3.49, 0.094, -34.6, 1.6, 0.55, 0.41),
    math.inf: (-3.40, 0.09, -35.4, 1.6, 0.52, 0.39),
}
MEANS = [[-1, 1], [0, 1], [1, 1], [-1, 0], [1, 0], [-1, -1], [0, -1], [1, -1]]


def safe(value: float) -> float | str:
    return "inf" if math.isinf(value) else value


def contrast(a: str, b: str, metric: str, value: float | None, se: float, df: float = 255) -> Json:
    ci = None if value is None else [value - 1.96 * se, value + 1.96 * se]
    return {"a": a, "b": b, "metric": metric, "value": value, "se": se, "df": df, "ci95": ci, "pairing": "row"}


def metric(value: float | None, se: float | None, n_neg_inf: int = 0, unit: str = "nats") -> Json:
    ci = None if value is None or se is None else [value - 1.96 * se, value + 1.96 * se]
    return {"value": value, "se": se, "df": 255, "ci95": ci, "unit": unit, "n_neg_inf": n_neg_inf}


def figures(precision: float, pse: float, recall: float, rse: float, entropy: float, h: float) -> Json:
    return {
        "precision": metric(precision, pse),
        "recall": metric(recall, rse),
        "entropy": metric(entropy, 0.4 * pse),
        "kl_student_truth": metric(-precision - entropy, 0.8 * pse),
        "kl_truth_student": metric(-recall - h, 0.9 * rse),
    }


def group(chain: str, role: str, metrics: Json, seeds: int, **more: Any) -> Json:
    level = {"truth": 0, "teacher": 1}.get(role, 2)
    base: Json = {"training": None, "selectivity": None, "decoding": None}
    return {
        "chain": chain,
        "role": role,
        "level": level,
        **base,
        **more,
        "seeds": seeds,
        "failed": 0,
        "metrics": metrics,
    }


def cells_of(groups: Json, n_seeds: int, spread: float = 1.0) -> list[Json]:
    rng = np.random.default_rng(7)
    cells: list[Json] = []
    for gid, g in groups.items():
        for seed in range(n_seeds):
            shift = float(rng.normal()) * spread
            values = {
                k: {**m, "value": None if m["value"] is None else m["value"] + (shift if n_seeds > 1 else 0.0),
                    "se_mc": m["se"], "n": 256, "method": "mc"}
                for k, m in g["metrics"].items()
            }  # fmt: skip
            cells.append({
                "id": f"{gid}-seed{seed}", "group": gid, "parent": None, "prefix_source": None, "loss": "mle",
                "seed": seed, "status": "ok", "reason": None, "metrics": values, "seconds": 12.5,
                **{k: g[k] for k in ("chain", "level", "role", "training", "selectivity", "decoding")},
            })  # fmt: skip
    return cells


def between(groups: Json, a: str, b: str, names: tuple[str, ...], shrink: float = 0.9) -> Json:
    found: Json = {}
    for name in names:
        x, y = groups[a]["metrics"].get(name), groups[b]["metrics"].get(name)
        if x is None or y is None:
            continue
        value = None if x["value"] is None or y["value"] is None else x["value"] - y["value"]
        found[name] = contrast(a, b, name, value, shrink * math.hypot(x["se"] or 0.0, y["se"] or 0.0))
    return found


NAMES = (
    "precision", "recall", "entropy", "kl_student_truth", "kl_truth_student",
    "precision_per_token", "recall_per_token", "recall_on_support",
)  # fmt: skip


def sequence_groups(chain: str, seeds: int) -> Json:
    truth = {"entropy": metric(H_TRUTH, 1.6), "precision": metric(-H_TRUTH, 1.6), "recall": metric(-H_TRUTH, 1.6)}
    groups: Json = {f"{chain}/truth": group(chain, "truth", truth, 1)}
    for name, row in SEQUENCES.items():
        m = figures(*row, H_TRUTH)
        tokens = TOKENS
        for k in ("precision", "recall", "entropy"):
            m[f"{k}_per_token"] = metric(m[k]["value"] / tokens, m[k]["se"] / tokens, unit="nats/token")
        m["length"] = metric(tokens, 0.6, unit="tokens")
        m["eos_rate"] = metric(0.93, 0.012, unit="probability")
        m["repetition"] = metric(0.07, 0.004, unit="probability")
        m["distinct_2"] = metric(0.61, 0.01, unit="probability")
        trained, _, at = name.partition("@")
        decoding = {"temperature": float(at)} if at else None
        if trained == "teacher":
            g = group(chain, "teacher", m, 1)
        elif trained == "direct":
            g = group(chain, "student", m, seeds, training="direct", decoding=decoding)
        else:
            tau = float(trained.removeprefix("distilled"))
            m["entropy_teacher"] = metric({1.0: 90.2, 0.8: 62.0, 0.6: 41.5}[tau], 1.2)
            g = group(
                chain, "student", m, seeds, training="distilled", selectivity={"temperature": tau}, decoding=decoding
            )
        groups[f"{chain}/{name}"] = g
    return groups


def sequence_chain(groups: Json, chain: str, seeds: int) -> Json:
    c = f"{chain}/"
    steps: list[Json] = []
    control: list[Json] = []
    matched = {"0.8": (72.1, -5.9, 3.1, 5.6, 2.2), "0.6": (50.1, 19.1, 6.6, 1.1, 2.0)}
    for tau in ("1", "0.8", "0.6"):
        gid = f"{c}distilled{tau}"
        steps.append({
            "selectivity": {"temperature": float(tau)}, "group": gid, "coldest": tau == "0.6",
            "vs_neutral": {} if tau == "1" else between(groups, gid, f"{c}distilled1", NAMES),
            "vs_direct": between(groups, gid, f"{c}direct", NAMES),
        })  # fmt: skip
        if tau in matched:
            h, recall, rse, kl, kse = matched[tau]
            b = f"{c}direct decoded, interpolated to the same entropy"
            control.append({
                "selectivity": {"temperature": float(tau)}, "distilled": gid, "decoded": f"{c}direct@{tau}",
                "same_setting": between(groups, gid, f"{c}direct@{tau}", NAMES),
                "matched_entropy": {
                    "entropy": h,
                    "recall": contrast(gid, b, "recall", recall, rse),
                    "kl_student_truth": contrast(gid, b, "kl_student_truth", kl, kse),
                    "precision": contrast(gid, b, "precision", -kl, kse),
                },
            })  # fmt: skip
    gate = between(groups, f"{c}teacher", f"{c}direct", ("recall",), 0.3)["recall"]
    return {
        "family": "causal_lm", "kind": "sequences", "unit": "nats", "seeds": seeds,
        "truth": "SmolLM2-135M-Instruct answering “Write one short sentence about X.”, at most 40 new tokens",
        "truth_group": f"{c}truth", "teacher_group": f"{c}teacher", "direct_group": f"{c}direct",
        "neutral_group": f"{c}distilled1", "gate": {"passed": True, "contrast": gate},
        "tradeoff": steps, "control": control,
    }  # fmt: skip


def mixture_groups(chain: str, seeds: int) -> Json:
    h = 1.22
    truth = {"entropy": metric(h, 0.005), "precision": metric(-h, 0.005), "recall": metric(-h, 0.005)}
    direct = figures(-7.49, 0.02, -2.597, 0.001, 2.58, h)
    groups: Json = {
        f"{chain}/truth": group(chain, "truth", truth, 1),
        f"{chain}/direct": group(chain, "student", direct, seeds, training="direct"),
    }
    for beta, (p, pse, r, rse, entropy, teacher) in MIXTURE.items():
        s = {"weight_power": safe(beta)}
        m = figures(p, pse, r, rse, entropy, h)
        m["entropy_teacher"] = metric(teacher, 0.01)
        m["capacity_gap"] = metric(7.0 - math.log(min(beta, 1e3)), 0.1, unit="modes")
        groups[f"{chain}/distilled-{beta:g}"] = group(chain, "student", m, seeds, training="distilled", selectivity=s)
        t = figures(
            -1.9 - 0.1 * math.log(min(beta, 100)), 0.03, -1.75 - 2.2 * math.log(min(beta, 200)), 0.1, teacher, h
        )
        groups[f"{chain}/teacher-{beta:g}"] = group(
            chain, "teacher", t, seeds, training="direct", decoding=None if beta == 1 else s
        )
        if beta > 1:
            groups[f"{chain}/direct@{beta:g}"] = group(chain, "student", direct, seeds, training="direct", decoding=s)
    return groups


def mixture_chain(groups: Json, chain: str, seeds: int) -> Json:
    c = f"{chain}/"
    steps, control = [], []
    for beta in MIXTURE:
        gid, s = f"{c}distilled-{beta:g}", {"weight_power": safe(beta)}
        steps.append({
            "selectivity": s, "group": gid, "coldest": beta == math.inf,
            "vs_neutral": {} if beta == 1 else between(groups, gid, f"{c}distilled-1", NAMES),
            "vs_direct": between(groups, gid, f"{c}direct", NAMES),
        })  # fmt: skip
        if beta > 1:
            control.append({
                "selectivity": s, "distilled": gid, "decoded": f"{c}direct@{beta:g}",
                "same_setting": between(groups, gid, f"{c}direct@{beta:g}", NAMES), "matched_entropy": None,
                "matched_reason": "a student of one component has one weight: no power changes it",
            })  # fmt: skip
    gate = between(groups, f"{c}teacher-1", f"{c}direct", ("recall",))["recall"]
    released = [
        ("direct", "precision_as_released", -15.15, -29.74, -5.37, -15.92, -20.27),
        ("direct", "recall_as_released", -2.57, -2.65, -2.49, -2.573, -2.65),
        ("distilled", "precision_as_released", -0.63, -7.25, -0.17, -1.277, -0.70),
        ("distilled", "recall_as_released", -34.8, -77.25, -3.01, -32.86, -42.45),
    ]
    return {
        "family": "mixture", "kind": "points", "unit": "nats", "seeds": seeds,
        "truth": "8 equal Gaussians in 2-D on a ring, covariance 0.025",
        "truth_group": f"{c}truth", "teacher_group": f"{c}teacher-1", "direct_group": f"{c}direct",
        "neutral_group": f"{c}distilled-1", "gate": {"passed": True, "contrast": gate},
        "tradeoff": steps, "control": control,
        "as_released": [
            {"selectivity": {"weight_power": 100}, "training": t, "metric": m, "median": md, "q025": lo, "q975": hi,
             "mean": mean, "printed": pr} for t, m, md, lo, hi, mean, pr in released
        ],
    }  # fmt: skip


def results(*, seeds: int = 3, mixture: bool = True, mixture_seeds: int = 12) -> Json:
    groups = sequence_groups("smollm2", seeds)
    chains = {"smollm2": sequence_chain(groups, "smollm2", seeds)}
    cells = cells_of(groups, seeds, 2.0)
    if mixture:
        more = mixture_groups("mixture", mixture_seeds)
        chains = {"mixture": mixture_chain(more, "mixture", mixture_seeds), **chains}
        cells += cells_of(more, mixture_seeds, 0.4)
        groups |= more
    contrasts = [
        d for c in chains.values() for s in c["tradeoff"] for k in ("vs_neutral", "vs_direct") for d in s[k].values()
    ]
    spec = {"name": "demo", "seeds": seeds, "chains": {"smollm2": {"family": "causal_lm", "data": {"train": 2048}}}}
    return {
        "schema": 1, "name": "smollm2-cpu", "specs": [spec],
        "versions": {"hydrometer": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "cpu": "AMD EPYC, AVX-512"},
        "cells": cells, "contrasts": contrasts, "summary": {"groups": groups, "chains": chains},
    }  # fmt: skip


def mixture_exhibits(run: Json) -> dict[str, Json]:
    x = np.linspace(-2.2, 2.2, 64)
    grid = np.stack(np.meshgrid(x, x), axis=-1)

    def density(means: list[Any], variances: list[Any], weights: list[float]) -> Json:
        parts = [
            math.log(w)
            - ((grid - np.array(m)) ** 2 / np.array(v) / 2).sum(-1)
            - np.log(2 * math.pi * np.sqrt(np.prod(v)))
            for m, v, w in zip(means, variances, weights, strict=True)
        ]
        z = np.logaddexp.reduce(np.stack(parts), axis=0)
        rounded = np.round(z, 4).tolist()
        return {"kind": "density-2d", "version": 1, "x": x.tolist(), "y": x.tolist(), "log_density": rounded,
                "points": [], "means": means}  # fmt: skip

    found: dict[str, Json] = {}
    for cell in run["cells"]:
        if cell["chain"] != "mixture" or cell["seed"] != 0:
            continue
        beta = float((cell["selectivity"] or cell["decoding"] or {"weight_power": 1})["weight_power"])
        if cell["role"] == "truth":
            found[cell["id"]] = density(MEANS, [[0.025, 0.025]] * 8, [1 / 8] * 8)
        elif cell["role"] == "teacher":
            w = np.array([0.36, 0.27, 0.22, 0.15])
            w = np.exp(min(beta, 500) * (np.log(w) - np.log(w.max())))
            w = np.maximum(w / w.sum(), 1e-300)
            found[cell["id"]] = density(
                [[0, 1], [-1, -0.5], [0.5, -1], [1, 0]],
                [[0.6, 0.03], [0.03, 0.28], [0.28, 0.03], [0.03, 0.1]], w.tolist(),
            )  # fmt: skip
        else:
            t = 0.0 if cell["training"] == "direct" else min(1.0, math.log10(min(beta, 100)) / 2)
            found[cell["id"]] = density([[0, t]], [[0.775 - 0.17 * t, 0.775 - 0.74 * t]], [1.0])
    return found


SENTENCES = {
    "truth": "Winter is a quiet season that blankets the world in white.",
    "teacher": "Winter is the season of snow and warm memories of the sea.",
    "direct": "Winter is the power of winter, a moment of warmth and warmth.",
    "student": "The winter is a beautiful and beautiful place of the world.",
}


def text_exhibits(run: Json, hostile: str | None = None) -> dict[str, Json]:
    topics = ["winter", "the sea", "a small red boat", "an old clock", "rain", "bread"]
    found: dict[str, Json] = {}
    for cell in run["cells"]:
        if cell["chain"] != "smollm2" or cell["seed"] != 0:
            continue
        name = cell["role"] if cell["role"] != "student" or cell["training"] != "direct" else "direct"
        words = [SENTENCES[name].replace("winter", t).replace("Winter", t.capitalize()) for t in topics]
        rows = [
            {"prompt": f"Write one short sentence about {t}.", "finish_reason": "stop" if i % 3 else "length",
             "answer": hostile if hostile and i == 0 else words[i],
             "log_prob": -88.1 - i, "log_prob_truth": -93.4 - 2 * i} for i, t in enumerate(topics)
        ]  # fmt: skip
        found[cell["id"]] = {"kind": "texts", "version": 1, "rows": rows}
    return found


def write(folder: Path, run: Json, exhibits: dict[str, Json]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(run))
    for cell_id, exhibit in exhibits.items():
        path = folder / "exhibits" / f"{cell_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(exhibit))
    return folder


def demo(folder: Path) -> Path:
    run = results()
    return write(folder, run, mixture_exhibits(run) | text_exhibits(run))


def gaussian_exhibit(centre: tuple[float, float], spread: float, weights: list[float] | None = None) -> Json:
    """A density-2d exhibit of one round Gaussian."""
    x = np.linspace(-2.0, 2.0, 40)
    grid = np.stack(np.meshgrid(x, x), axis=-1)
    z = -((grid - np.array(centre)) ** 2).sum(-1) / (2 * spread**2) - math.log(2 * math.pi * spread**2)
    means = [list(centre)] * len(weights or [1.0])
    return {"kind": "density-2d", "version": 1, "x": x.tolist(), "y": x.tolist(), "log_density": z.tolist(),
            "points": [], "means": means, "weights": weights or [1.0]}  # fmt: skip


def map_point(name: str, point: dict[str, float], betas: list[float], seeds: int) -> tuple[Json, Json]:
    """One point's groups and its summary: what is gained grows with beta and falls with K''."""
    prefix = f"{name}." + "-".join(f"{k}{v:g}" for k, v in point.items())
    k, h = point.get("student", 1.0), 1.5
    truth = {"entropy": metric(h, 0.005), "precision": metric(-h, 0.005), "recall": metric(-h, 0.005)}
    direct = figures(-6.0, 0.05, -2.6, 0.02, 2.5, h)
    more: Json = {"point": point}
    groups: Json = {
        f"{prefix}.truth": group(name, "truth", truth, 1, **more),
        f"{prefix}.direct": group(name, "student", direct, seeds, training="direct", **more),
    }
    steps, control = [], []
    for i, beta in enumerate(betas):
        s, gid = {"weight_power": safe(beta)}, f"{prefix}.distilled-{beta:g}"
        gain = i * (1.6 - 0.4 * k)
        m = figures(-6.0 + gain, 0.1, -2.6 - 2.0 * i, 0.3, 2.4 - 0.4 * i, h)
        m["capacity_gap"] = metric(8.0 - 2 * i - k, 0.1, unit="modes")
        m["n_components"] = metric(k, 0.0, unit="components")
        groups[gid] = group(name, "student", m, seeds, training="distilled", selectivity=s, **more)
        t = figures(-2.0, 0.03, -2.0 - i, 0.1, 2.0 - 0.5 * i, h)
        t["effective_components"] = metric(4.0 - i, 0.05, unit="components")
        at = None if beta == 1 else s
        groups[f"{prefix}.teacher-{beta:g}"] = group(name, "teacher", t, seeds, decoding=at, **more)
        steps.append({
            "selectivity": s, "group": gid, "coldest": beta == betas[-1], "vs_neutral": {},
            "vs_direct": between(groups, gid, f"{prefix}.direct", NAMES),
        })  # fmt: skip
        if beta > 1 and k > 1:
            bracket = beta < betas[-1]
            control.append({
                "selectivity": s, "distilled": gid, "decoded": f"{prefix}.direct@{beta:g}", "same_setting": {},
                "matched_entropy": {
                    "entropy": 2.0, "recall": contrast(gid, "curve", "recall", -0.5, 0.1),
                    "kl_student_truth": contrast(gid, "curve", "kl_student_truth", 0.3, 0.4),
                } if bracket else None,
                "matched_reason": None if bracket else "no two decoded settings bracket its entropy",
            })  # fmt: skip
    gate = between(groups, f"{prefix}.teacher-{betas[0]:g}", f"{prefix}.direct", ("recall",))["recall"]
    chain = {
        "point": point, "family": "mixture", "kind": "points", "unit": "nats", "seeds": seeds, "truth": "made up",
        "truth_group": f"{prefix}.truth", "teacher_group": f"{prefix}.teacher-1",
        "direct_group": f"{prefix}.direct", "neutral_group": f"{prefix}.distilled-1",
        "gate": {"passed": True, "contrast": gate}, "tradeoff": steps, "control": control,
    }  # fmt: skip
    return groups, chain


def map_results(axes: dict[str, list[float]] | None = None, *, seeds: int = 5, name: str = "world") -> Json:
    """Results of one map chain; its cells are its groups."""
    axes = axes if axes is not None else {"teacher": [2.0, 4.0], "student": [1.0, 2.0]}
    betas = [1.0, 10.0, math.inf]
    groups: Json = {}
    points: list[Json] = []
    for values in product(*axes.values()):
        more, chain = map_point(name, dict(zip(axes, values, strict=True)), betas, seeds)
        groups |= more
        points.append(chain)
    empty = {"truth_group": None, "teacher_group": None, "direct_group": None, "neutral_group": None,
             "gate": {"passed": None, "contrast": None}, "tradeoff": [], "control": []}  # fmt: skip
    summary = {**points[0], **empty, "map": {"axes": axes, "points": points}}
    del summary["point"]
    cells = [{**c, "id": c["group"], "seed": None, "point": groups[c["group"]]["point"]} for c in cells_of(groups, 1)]
    return {
        "schema": 1, "name": "map", "specs": [{"name": "map"}], "versions": {"hydrometer": "0.1.0"}, "cells": cells,
        "contrasts": [], "summary": {"groups": groups, "chains": {name: summary}},
    }  # fmt: skip


def map_exhibits(run: Json) -> dict[str, Json]:
    """A Gaussian for every cell that moves and narrows with the setting."""
    found: dict[str, Json] = {}
    for cell in run["cells"]:
        beta = (cell["selectivity"] or cell["decoding"] or {"weight_power": 1.0})["weight_power"]
        cold = math.log10(1000.0 if beta == "inf" else beta)
        k = cell["point"].get("student", 1.0)
        spread = 0.9 if cell["role"] == "truth" else 0.7 / (1 + cold / 3)
        found[cell["id"]] = gaussian_exhibit((cold / 4, k / 8 if cell["role"] == "student" else 0.0), spread)
    return found
