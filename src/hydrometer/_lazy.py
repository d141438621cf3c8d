"""Names of a package that are imported when they are first used: a start pays for what it uses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Parameters
    ----------
    package : its ``__name__``.
    homes : module within the package to the names that come from it, separated by spaces; ``a=b`` is what the module
        calls ``b`` under the name ``a``.
    """
    found = {name.partition("=")[0]: (home, name.rpartition("=")[2]) for home in homes for name in homes[home].split()}
    bound = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in found:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, its_name = found[name]
        bound[name] = getattr(import_module(f"{package}.{home}"), its_name)
        return bound[name]

    return get, lambda: sorted({*bound, *found})
