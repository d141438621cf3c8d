"""Check of a GGUF file's header before a library reads it: every length and offset must lie within the file.

Layout (ggml, docs/gguf.md, versions 2 and 3, little-endian): magic, version, number of tensors, number of key-values;
the key-values; name, shape, type and offset of each tensor; padding to `general.alignment`; the tensors' data. The
check costs time and memory in proportion to the file's size, whatever the header claims. `gguf.GGUFReader` makes
some 700 bytes of every number, and of an array of arrays, 160 bytes of file, 1.8 GB in 10 s; it takes 28 times as long.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from hydrometer.core.errors import ModelError

__all__ = ["check_gguf"]

MAX_TENSORS = 1_000_000
MAX_KEYS = 100_000
MAX_VALUES = 8_000_000  # strings, and numbers in arrays: a reader makes an object of each
MAX_NAME = 1024
MAX_VALUE = 16_000_000
MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
# Bytes of a value, by type: integers of 8 to 32 bits, float32, bool, integers of 64 bits, float64.
_WIDTH = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_INTEGER = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_SIZES = (
    ".block_count",
    ".embedding_length",
    ".feed_forward_length",
    ".context_length",
    ".vocab_size",
    ".attention.head_count",
    ".expert_count",
    ".nextn_predict_layers",
)


@dataclass(slots=True)
class _Cursor:
    """A read position that stays within the file."""

    data: mmap.mmap
    at: int = 0
    values: int = 0

    def skip(self, n: int) -> int:
        begin = self.at
        if n > len(self.data) - begin:
            raise ValueError("it ends before what its header announces")
        self.at += n
        return begin

    def count(self, n: int) -> None:
        """Count values of which a reader makes objects."""
        self.values += n
        if self.values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} strings and numbers")

    def number(self, form: str) -> int:
        return int(struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0])

    def text(self, most: int) -> bytes:
        n = self.number("<Q")
        self.count(1)
        if n > most:
            raise ValueError(f"a string of {n} bytes where at most {most} are read")
        begin = self.skip(n)
        return self.data[begin : begin + n]


def check_gguf(file: Path) -> None:
    """Refuse a GGUF file with an inconsistent header.

    Raises
    ------
    ModelError : no GGUF, truncated, impossible counts or sizes, or tensors that overlap or exceed the file.
    """
    fix = "fetch it again; a file that was not damaged on the way should not be trusted"
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Cursor(data))
    except (OSError, ValueError) as e:  # ValueError: of an invalid header
        raise ModelError(f"the GGUF file cannot be opened: {e}", got=str(file), fix=fix) from None


def _check(c: _Cursor) -> None:
    if c.data[c.skip(4) : c.at] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = c.number("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format is not read, only 2 and 3")
    tensors, keys = c.number("<Q"), c.number("<Q")
    if not 1 <= tensors <= MAX_TENSORS or keys > MAX_KEYS:
        raise ValueError(f"{tensors} tensors and {keys} keys are announced")
    alignment, seen = 32, set[bytes]()
    for _ in range(keys):
        key = c.text(MAX_NAME)
        if key in seen:
            raise ValueError(f"the key {key!r} is there twice")
        seen.add(key)
        name = key.decode(errors="replace")
        value = _value(c, wanted=name.endswith(_SIZES) or name == "general.alignment")
        if name.endswith(_SIZES):
            if value is None:
                raise ValueError(f"{name} is no whole number")
            _check_sizes(name, value, tensors)
        elif name == "general.alignment":
            alignment = value[0] if value is not None and len(value) == 1 else 0
    if alignment < 8 or alignment > 2**20 or alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment} bytes")
    _check_tensors(c, tensors, alignment)


def _value(c: _Cursor, *, wanted: bool) -> list[int] | None:
    """Skip a value; return an integer, or a wanted array of integers, else None."""
    kind = c.number("<I")
    if kind == _STRING:
        c.text(MAX_VALUE)
    elif kind == _ARRAY:
        inner, n = c.number("<I"), c.number("<Q")
        if inner == _STRING:
            for _ in range(n):  # ends with the file: each holds eight bytes at least
                c.text(MAX_VALUE)
        elif inner in _WIDTH:
            begin = c.skip(n * _WIDTH[inner])
            c.count(n)
            if wanted and inner in _INTEGER:
                return list(struct.unpack_from(f"<{n}{_INTEGER[inner][1]}", c.data, begin))
        else:
            raise ValueError(f"an array of values of type {inner}")
    elif kind in _INTEGER:
        return [c.number(_INTEGER[kind])]
    elif kind in _WIDTH:
        c.skip(_WIDTH[kind])
    else:
        raise ValueError(f"a value of type {kind}")
    return None


def _check_sizes(name: str, values: list[int], tensors: int) -> None:
    least = 1 if name.endswith((".block_count", ".embedding_length")) else 0
    most = tensors if name.endswith(".block_count") else 2**16 if name.endswith(".expert_count") else 2**27
    for value in values:  # some architectures have one a layer
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}")


def _check_tensors(c: _Cursor, tensors: int, alignment: int) -> None:
    from gguf import constants

    kinds = {int(k): v for k, v in constants.GGML_QUANT_SIZES.items()}
    places: list[tuple[int, int]] = []
    names: set[bytes] = set()
    for _ in range(tensors):
        name = c.text(MAX_NAME)
        if name in names:
            raise ValueError(f"the tensor {name!r} is there twice")
        names.add(name)
        n = c.number("<I")
        if not 1 <= n <= MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {n} dimensions")
        shape = [c.number("<Q") for _ in range(n)]
        kind, offset = c.number("<I"), c.number("<Q")
        if kind not in kinds:
            raise ValueError(f"a tensor of type {kind}")
        block, width = kinds[kind]
        if prod(shape) < 1 or shape[0] % block:
            raise ValueError(f"a tensor of shape {shape} in blocks of {block}")
        if offset % alignment:
            raise ValueError(f"a tensor at offset {offset}, aligned to {alignment}")
        places.append((offset, prod(shape) // block * width))
    begin = -(-c.at // alignment) * alignment
    end = 0
    for offset, size in sorted(places):
        if offset < end:
            raise ValueError("two tensors lie in one place")
        end = offset + size
    if end > len(c.data) - begin:
        raise ValueError("its tensors are larger than the file")
