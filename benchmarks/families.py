"""Every family of causal language models that transformers has, tiny and random: how it is drawn, and how well.

    python benchmarks/families.py [family ...] [--write docs/families.md]

Each is built from the common small sizes of `tests/families.py`, drawn from and scored; the differences are the largest
of any token from transformers' own float32 forward of the row alone, without padding and without a cache, nats. With
--write the table is put into that page, after its marker.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
import torch
from families import IDS, family_config, family_network, log_prob_alone
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from hydrometer import CausalLM, HydrometerError

MARKER = "<!-- written by benchmarks/families.py -->\n"
MOST = 20_000_000  # parameters of what still counts as tiny
PROMPTS = ["w5", " ".join(f"w{3 + i}" for i in range(30)), "w7 w8 w9 w10"]
ROWS, TOKENS = 6, 6
HEAD = "| family | drawn | head | recorded | scored |\n|---|---|---|---|---|\n"


def built(kind: str) -> torch.nn.Module | str:
    """Return a family's tiny network, or why there is none."""
    try:
        config = family_config(kind)
        if config.get_text_config() is not config:
            return "text and more: no tiny sizes here"
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        return family_network(kind) if size <= MOST else "no tiny sizes here"
    except Exception as e:  # the common sizes are not for this family; what it raises then has no common base
        return f"no tiny sizes here ({type(e).__name__})"


def row(kind: str) -> tuple[str, bool]:
    """Return a family's row of the table, and whether it is right or refused."""
    network = built(kind)
    if isinstance(network, str):
        return f"| {kind} | {network} | | | |", True
    try:
        lm = CausalLM(network, make_tokenizer(IDS))
        law = lm.law(PROMPTS, max_new_tokens=TOKENS, block_rows=ROWS)
        x = law.sample(ROWS, seed=1)
        scored = law.score_steps(x).selected
    except HydrometerError as e:
        return f"| {kind} | refused: {e.what} | | | |", True
    worst = [0.0, 0.0]
    for i in range(ROWS):
        right = np.array(log_prob_alone(law, x, i))
        for at, found in enumerate((x.token_log_prob, scored)):
            worst[at] = max(worst[at], float(np.abs(found[i, : len(right)] - right).max()))
    way = "packed engine" if lm.is_llama else law.way
    head = "a product" if lm.is_split else "more than a product"
    return f"| {kind} | {way} | {head} | {worst[0]:.0e} | {worst[1]:.0e} |", max(worst) <= 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows: list[str] = []
    wrong: list[str] = []
    for kind in asked.families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        line, is_right = row(kind)
        rows.append(line)
        wrong += [] if is_right else [kind]
        print(line, flush=True)
    if asked.write is not None:
        page = asked.write.read_text(encoding="utf-8").partition(MARKER)[0]
        asked.write.write_text(page + MARKER + "\n" + HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(wrong)} wrong: {', '.join(wrong)}" if wrong else "none is wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
