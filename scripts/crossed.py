"""Modules of the package that one tiny causal-LM chain goes through: those of which `hydrometer.run` calls a function.

Prints their names, one a line. Every module is imported first, so that what an import calls does not count. Compiled
kernels are not seen by a profiler: a module counts, too, if one of its kernels has been called. Other processes (the
renderer of chat templates) are not followed.
"""

from __future__ import annotations

import pkgutil
import sys
import tempfile
import threading
from importlib import import_module
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE / "tests"), str(HERE / "src")]
SKIPPED = (
    "hydrometer.run.execution.on_ray",  # need ray
    "hydrometer.models.causal_lm.cuda.draw_kernel",  # need triton
    "hydrometer.models.causal_lm.cuda.loss_kernels",
)


def main() -> None:
    """Run the chain under a profiler."""
    import hydrometer as hm
    from chains import lm_spec, write_spec
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    modules = [
        import_module(m.name)
        for m in pkgutil.walk_packages(hm.__path__, "hydrometer.")
        if not m.name.startswith(SKIPPED) and not m.name.endswith("__main__")
    ]
    names = {m.__file__: m.__name__ for m in modules}
    seen: set[str] = set()

    def called(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    with tempfile.TemporaryDirectory() as folder:
        CausalLM(make_llama(), make_tokenizer(64)).save(Path(folder) / "model")
        spec = write_spec(lm_spec(Path(folder) / "model"), Path(folder))
        threading.setprofile(called)
        sys.setprofile(called)
        try:
            result = hm.run(spec, out=Path(folder) / "out")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    assert not result.failed_cells, result.failed_cells
    found = {names[file] for file in seen if file in names}
    for m in modules:
        if any(getattr(v, "signatures", None) and v.__module__ == m.__name__ for v in vars(m).values()):
            found.add(m.__name__)
    print(*sorted(found), sep="\n")


if __name__ == "__main__":
    main()
