"""Recompute a cell's figures from its run's folder, using only numpy (and pyarrow for rows of tokens).

    python examples/recompute.py RUNS/NAME CELL_ID [--artifacts DIR]

It imports nothing from hydrometer: docs/schema.md describes the formats. Precision is the mean of log p* over the
law's rows, recall the mean of log q over the truth's, entropy that of -log q over the law's own. Each is printed with
its standard error beside the value in results.json; the exit code is 1 if they differ by more than the tolerance:

mixture     the parameters of both laws; new rows are drawn. Five standard errors of the difference.
markov      the tables of both laws; summed over all rows exactly. Five standard errors of the stored figure.
causal_lm   the stored log-probabilities of every row: 1e-9. And the first row is scored again by the network (Llama)
            from its stored weights, in float64: 1e-3 nats.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

REDRAWN = 200_000
METRICS = ("precision", "recall", "entropy")


# -- mixtures ---------------------------------------------------------------------------------------------------------


def read_mixture(path):
    """Read log weights (K,), means (K, d) and covariances as (K, d, d)."""
    m = json.loads(path.read_text())
    log_weights = np.array([float(w) for w in m["log_weights"]])
    means, given = np.array(m["means"]), np.array(m["covariances"])
    k, d = means.shape
    match m["covariance_type"]:
        case "full":
            covariances = given
        case "tied":
            covariances = np.broadcast_to(given, (k, d, d))
        case "diag":
            covariances = given[:, :, None] * np.eye(d)
        case "spherical":
            covariances = given[:, None, None] * np.eye(d)
    return log_weights, means, covariances


def draw_points(law, n, rng):
    log_weights, means, covariances = law
    weights = np.exp(log_weights)
    k = rng.choice(weights.size, size=n, p=weights / weights.sum())
    noise = rng.standard_normal((n, means.shape[1]))
    return means[k] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances)[k], noise)


def log_density(law, x):
    terms = []
    for log_weight, mean, covariance in zip(*law, strict=True):
        z = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
        log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
        terms.append(log_weight - 0.5 * (z**2).sum(axis=0) - 0.5 * log_det)
    return np.logaddexp.reduce(terms, axis=0)


def mixture(truth, fit):
    p, q = (read_mixture(path) for path in (truth[0], fit / "mixture.json" if fit else truth[0]))
    rng = np.random.default_rng(0)
    of_truth, own = draw_points(p, REDRAWN, rng), draw_points(q, REDRAWN, rng)
    columns = log_density(p, own), log_density(q, of_truth), -log_density(q, own)
    return {m: (c.mean(), c.std(ddof=1) / math.sqrt(c.size)) for m, c in zip(METRICS, columns, strict=True)}


# -- n-gram chains ----------------------------------------------------------------------------------------------------


def read_chain(path):
    """Read log_table (C, V) or (L, C, V), the order m and the most tokens L."""
    with np.load(path) as archive:
        order, longest = archive["shape"].tolist()
        return archive["log_table"], order, longest


def expected_log(r, s):
    """Sum p_r(y) log p_s(y) over all rows y, step by step over contexts of the longer of both orders."""
    (table_r, order_r, longest), (table_s, order_s, _) = r, s
    v = table_r.shape[-1]
    size = (v + 1) ** max(order_r, order_s)
    contexts = np.arange(size)
    reached = np.zeros(size)
    reached[-1] = 1.0  # nothing was said yet: every digit is V
    total = 0.0
    for t in range(longest):
        log_r = (table_r if table_r.ndim == 2 else table_r[t])[contexts % (v + 1) ** order_r]
        log_s = (table_s if table_s.ndim == 2 else table_s[t])[contexts % (v + 1) ** order_s]
        joint = reached[:, None] * np.exp(log_r)
        total += (joint[joint > 0] * log_s[joint > 0]).sum()
        reached = np.zeros(size)
        for token in range(1, v):  # token 0 ends the row
            np.add.at(reached, (contexts * (v + 1) + token) % size, joint[:, token])
    return total


def markov(truth, fit):
    p = read_chain(truth[0])
    q = read_chain(fit / "markov.npz") if fit else p
    return {"precision": (expected_log(q, p), 0.0), "recall": (expected_log(p, q), 0.0),
            "entropy": (-expected_log(q, q), 0.0)}  # fmt: skip


# -- language models --------------------------------------------------------------------------------------------------


def read_scores(folders):
    """Read `own` and `other` of blocks, in order: under the law that drew the rows, and under the other."""
    parts = []
    for folder in folders:
        with np.load(folder / "scores.npz") as archive:
            parts.append((archive["own"], archive["other"]))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def read_rows(folders):
    """Read the prompt's number and the ids of every row, the prompts, and whether these are a sample."""
    import pyarrow.parquet as pq

    numbers, ids = [], []
    for folder in folders:
        table = pq.read_table(folder / "rows.parquet")
        numbers += table.column("prompt").to_pylist()
        ids += table.column("ids").to_pylist()
    prompts = pq.read_table(folders[0] / "rows.prompts.parquet")
    sampled = (prompts.schema.metadata or {}).get(b"prompts_are") == b"sample"
    return np.array(numbers), ids, prompts.column("ids").to_pylist(), sampled


def mean_and_error(values, prompt, sampled):
    """Mean over rows: prompts are strata where they are the experiment's own list, clusters where they are a sample."""
    n, (_, group, counts) = values.size, np.unique(prompt, return_inverse=True, return_counts=True)
    if sampled:
        sums = np.bincount(group, weights=values - values.mean())
        variance = counts.size / (counts.size - 1) * (sums**2).sum() / n**2
    elif counts.min() >= 2:
        away = values - (np.bincount(group, weights=values) / counts)[group]
        variance = (away**2 * (counts / (counts - 1))[group]).sum() / n**2
    else:
        variance = values.var(ddof=1) / n
    return values.mean(), math.sqrt(variance)


def causal_lm(draws, scores):
    own_rows, truth_rows = read_rows(draws["own"]), read_rows(draws["truth"])
    _, on_truth = read_scores(scores["truth"])
    own, other = read_scores(scores["own"] or scores["truth"])  # the truth's own cell has one side
    return {
        "precision": mean_and_error(other, own_rows[0], own_rows[3]),
        "recall": mean_and_error(on_truth, truth_rows[0], truth_rows[3]),
        "entropy": mean_and_error(-own, own_rows[0], own_rows[3]),
    }


def read_safetensors(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    out = {}
    for name, facts in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            if facts["dtype"] != "F32":
                sys.exit(f"{name} is {facts['dtype']}: only float32 weights are read here")
            begin, end = (8 + size + o for o in facts["data_offsets"])
            out[name] = np.frombuffer(raw[begin:end], "<f4").reshape(facts["shape"]).astype(np.float64)
    return out


def llama_logits(config, w, ids):
    """Run a Llama in float64: ids (T,) to logits (T, V)."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width, t = config.get("head_dim") or config["hidden_size"] // heads, len(ids)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default" or config.get("attention_bias") or config.get("mlp_bias"):
        sys.exit("the network has scaled rotations or biases: only a plain Llama is computed here")
    theta = rope.get("rope_theta") or config.get("rope_theta", 10_000.0)
    angle = np.arange(t)[:, None] * theta ** (-np.arange(0, width, 2) / width)
    cos, sin = (np.concatenate([f(angle)] * 2, axis=1)[:, None] for f in (np.cos, np.sin))

    def norm(x, name):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config["rms_norm_eps"]) * w[name + ".weight"]

    def turned(x):
        first, second = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-second, first], axis=-1) * sin

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        h = norm(x, at + "input_layernorm")
        q, k, v = (
            (h @ w[f"{at}self_attn.{n}_proj.weight"].T).reshape(t, c, width)
            for n, c in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        k, v = (np.repeat(y, heads // kv_heads, axis=1) for y in (turned(k), v))
        score = np.einsum("ihd,jhd->hij", turned(q), k) / math.sqrt(width)
        score = np.where(np.tri(t, dtype=bool), score, -np.inf)
        share = np.exp(score - score.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", share, v).reshape(t, -1) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm")
        gate, up = (h @ w[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, "model.norm") @ w[head].T


def rescored(fit, draws, scores):
    """Score the law's first row by its stored weights; return that log-probability and the stored one."""
    numbers, rows, prompts, _ = read_rows(draws["own"][:1])
    config = json.loads((fit / "config.json").read_text())
    if config["model_type"] != "llama":
        sys.exit(f"the network is a {config['model_type']}: only Llama is computed here")
    prompt, answer = prompts[numbers[0]], rows[0]
    logits = llama_logits(config, read_safetensors(fit / "model.safetensors"), np.array(prompt + answer))
    before = logits[len(prompt) - 1 : -1]
    log_p = before - np.logaddexp.reduce(before, axis=-1, keepdims=True)
    return log_p[np.arange(len(answer)), answer].sum(), read_scores(scores["own"][:1])[0][0]


# -- a cell -----------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("cell")
    parser.add_argument("--artifacts", type=Path, help="where the run's --cache was; RUN/artifacts by default")
    given = parser.parse_args()
    results = json.loads((given.run / "results.json").read_text())
    cell = next((c for c in results["cells"] if c["id"] == given.cell), None)
    if cell is None or cell["status"] != "ok" or cell["decoding"] is not None or "judge" not in cell["artifacts"]:
        sys.exit(f"{given.cell}: give the id of a judged cell without decoding")
    root, made = given.artifacts or given.run / "artifacts", cell["artifacts"]
    fit = root / made["fit"] if made["fit"] else None
    truth = [given.run / name for name in made["truth"]]
    draws, scores = ({k: [root / n for n in names] for k, names in made[x].items()} for x in ("draws", "scores"))
    family = results["summary"]["chains"][cell["chain"]]["family"]
    match family:
        case "mixture":
            found = mixture(truth, fit)
        case "markov":
            found = markov(truth, fit)
        case "causal_lm":
            found = causal_lm(draws, scores)
        case _:
            sys.exit(f"{family}: mixture, markov and causal_lm are computed here")
    wrong = 0
    for name, (value, se) in found.items():
        stored = cell["metrics"][name]
        if family == "causal_lm" and stored["method"] == "cv":
            stored = {"value": stored["plain"], "se": stored["plain_se"]}
        if stored["value"] is None:
            same = not math.isfinite(value)
        elif family == "causal_lm":
            same = math.isclose(value, stored["value"], rel_tol=1e-9) and math.isclose(se, stored["se"], rel_tol=1e-9)
        else:
            same = abs(value - stored["value"]) <= 5 * math.hypot(se, stored["se"]) + 1e-9
        said = f"{float(value)!r} {float(se)!r} stored {stored['value']} {stored['se']}"
        print(f"{name} {said} {'agrees' if same else 'DIFFERS'}")
        wrong += not same
    if family == "causal_lm" and fit:
        value, stored = rescored(fit, draws, scores)
        same = abs(value - stored) <= 1e-3
        print(f"first-row {float(value)!r} stored {float(stored)!r} {'agrees' if same else 'DIFFERS'}")
        wrong += not same
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
