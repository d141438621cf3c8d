"""One cluster of three one-core workers on two nodes for all tests here; runs join it through this process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("torch")

from chains import lm_chain, write_spec  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 0.003, "bf16": False}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A head with one CPU and a second node with two; memory as the machine has it."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small: dict[str, Any] = {"object_store_memory": 100 << 20, "include_dashboard": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
        made.add_node(num_cpus=2, object_store_memory=100 << 20)
        made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[None]:
    """This process as a driver of the cluster, for a module: runs use it, and find its workers warm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=cluster.address, log_to_driver=False, logging_level=40)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama, saved."""
    folder = tmp_path_factory.mktemp("ray-models") / "llama"
    CausalLM(make_llama(), make_tokenizer(64)).save(folder)
    return folder


@pytest.fixture
def small_run(tmp_path: Path, llama_folder: Path) -> Path:
    """Two students and their controls from a tiny truth, as a specification's file; prompts are in a file."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w3 w4"}\n{"prompt": "w5"}\n')
    truth = {"source": str(llama_folder), "max_new_tokens": 6, "prompts": {"file": "prompts.jsonl"}}
    student = {"init": {"layers_of": "truth", "layers": [0]}, "training": TRAINING | {"num_train_epochs": 1}}
    chain = lm_chain(llama_folder, truth=truth, teacher="truth", student=student)
    return write_spec({"name": "tiny-ray", "seeds": 1, "chains": {"lm": chain}}, tmp_path)
