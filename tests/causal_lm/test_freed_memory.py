"""What a process holds after large blocks were made and freed between small ones that stay."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytest.importorskip("torch")

POROUS = """
import sys, torch
from hydrometer.models.causal_lm.cpu import freed_memory as m
m.keep_freed_memory()
m._ROOM = 64 << 20
m._limit[0] = m._resident() + m._ROOM
before = m._resident()
blocks, alive = [], []
for _ in range(20):
    blocks.append(torch.ones(8 << 20))  # 32 MiB
    alive.append(torch.ones(1 << 16))  # between two of them
blocks.clear()
if sys.argv[1] == "bounded":
    m.bound_freed_memory()
print((m._resident() - before) >> 20)
"""


def grown(kind: str) -> int:
    return int(subprocess.run([sys.executable, "-c", POROUS, kind], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_within_a_bound():
    assert grown("kept") > 600
    assert grown("bounded") < 60
