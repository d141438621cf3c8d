"""Runs in vLLM's own environment: draws when told, [batch, top_p, rows, tokens] a line."""

import json
import sys
import time

from vllm import LLM, SamplingParams

llm = LLM(model=sys.argv[1], dtype="bfloat16", max_model_len=256, max_num_seqs=256)
for line in sys.stdin:
    batch, top_p, rows, tokens = json.loads(line)
    params = SamplingParams(temperature=1.0, top_p=top_p, max_tokens=tokens, ignore_eos=True, logprobs=0)
    prompt = {"prompt_token_ids": [1]}
    begin = time.perf_counter()
    outs = [o for _ in range(rows // batch) for o in llm.generate([prompt] * batch, params, use_tqdm=False)]
    seconds = time.perf_counter() - begin
    ids = [list(o.outputs[0].token_ids) for o in outs] if rows <= 64 else []
    print("RESULT " + json.dumps({"seconds": seconds, "ids": ids}), flush=True)
