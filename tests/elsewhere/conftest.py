from __future__ import annotations

import pytest

pytest.importorskip("torch")

import hydrometer as hm
from chains import lm_spec, write_spec
from elsewhere_world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    home = tmp_path_factory.mktemp("elsewhere")
    source = home / "truth"
    CausalLM(make_llama(), make_tokenizer(64)).save(source)
    made = {
        f"one-{s}": CausalLM(make_llama(layers=1, seed=s, initializer_range=0.1), make_tokenizer(64)) for s in (0, 1)
    }
    made["narrow"] = CausalLM(make_llama(vocab=32, layers=1), make_tokenizer(32))
    for name, lm in made.items():
        lm.save(home / name)
    (home / "prompts.jsonl").write_text('{"prompt": "w3 w4"}\n{"prompt": "w5"}\n')
    truth = {"source": str(source), "max_new_tokens": 6, "prompts": {"file": "prompts.jsonl"}}
    spec = write_spec(lm_spec(source, seeds=2, truth=truth), home)
    result = hm.run(spec, out=home / "run")
    assert not result.failed_cells
    return World(source, {name: home / name for name in made}, home / "run")
