"""Numbers as the compiled kernels store and compute them, and how kernels are compiled.

Stored numbers are float32, or bfloat16 as the uint16 of its bits (numba has no such type). numba's cache on disk looks
at a kernel's own file only: after a change here, delete ``__pycache__``.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from hydrometer.core.watching import during

__all__ = ["bits_of", "entry", "exp32", "exp64", "float_of", "inlined", "kernel", "log32", "narrow", "wide"]

# numba has no type information; what leaves this module is arrays that the caller made.
nb: Any = numba
ty: Any = types
_intrinsic: Any = intrinsic
_overload: Any = overload

# No flag that lets the compiler assume finite numbers: -inf is a value here.


def _compiled(fastmath: set[str], **more: Any) -> Any:
    """Compile without the interpreter's lock; cached on disk, where there is a place to write (else at every start)."""

    def decorate(function: Any) -> Any:
        options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath, **more}
        try:
            return _said(nb.njit(cache=True, **options)(function))
        except RuntimeError:  # neither the package's folder, nor the user's cache, nor NUMBA_CACHE_DIR can be written
            return _said(nb.njit(**options)(function))

    return decorate


def _said(dispatcher: Any) -> Any:
    """Let a kernel say that it is compiled, which takes longest of a first run."""
    compile_here = dispatcher.compile

    def compile_aloud(signature: Any) -> Any:
        with during("compiling, which is done once"):
            return compile_here(signature)

    dispatcher.compile = compile_aloud
    return dispatcher


def entry(dispatcher: Any) -> Any:
    """Let a kernel that calls others always run as the cache on disk holds it.

    Where it is not there yet, another process compiles it, and this one loads it.
    In the process that compiles, LLVM binds its calls to the kernels as they were compiled alone; loaded, to the copies
    that were optimised with it, which add up in another order. The first run of an installation would differ from all
    later ones in the last digits.
    """
    compile_here = dispatcher.compile

    def compile_once(signature: Any) -> Any:
        with _ONE_AT_A_TIME:
            known = signature in dispatcher.overloads
            if not known and _CHILD not in os.environ and dispatcher._cache.cache_path is not None:
                if dispatcher._cache.load_overload(signature, dispatcher.targetctx) is None:
                    _compile_elsewhere(dispatcher, signature)
            return compile_here(signature)

    dispatcher.compile = compile_once
    return dispatcher


def _compile_elsewhere(dispatcher: Any, signature: Any) -> None:
    function = dispatcher.py_func
    code = (
        "import importlib, pickle, sys; module, name, signature = pickle.load(sys.stdin.buffer); "
        "getattr(importlib.import_module(module), name).compile(signature)"
    )
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    # Where it fails the kernel is compiled here, which takes as long and says why it cannot be.
    subprocess.run(
        [sys.executable, "-P", "-c", code],  # -P: no module of the folder that one stands in
        input=pickle.dumps((function.__module__, function.__name__, signature)),
        env=os.environ | {_CHILD: "1", "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


_ONE_AT_A_TIME = threading.RLock()
_CHILD = "HYDROMETER_COMPILES"

kernel = _compiled({"reassoc", "contract", "nsz"})
# A call passes every array as eight numbers; for a loop over 64 entries that costs as much as the loop.
inlined = _compiled({"reassoc", "contract", "nsz"}, inline="always")
_exact = _compiled({"contract"})

f32, u32, u16 = np.float32, np.uint32, np.uint16


def _bitcast(source: Any, target: Any) -> Any:
    """Make the intrinsic that reads the bits of a `source` as a `target` of the same width."""

    def reinterpret(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), generate

    return _intrinsic(reinterpret)


float_of, bits_of = _bitcast(ty.uint32, ty.float32), _bitcast(ty.float32, ty.uint32)
_double_of, _bits_of_double = _bitcast(ty.uint64, ty.float64), _bitcast(ty.float64, ty.uint64)


def wide(x: Any) -> Any:
    """Stored number to float32."""
    raise NotImplementedError


@_overload(wide)
def _wide(x: Any) -> Any:
    def from_bfloat16(x: Any) -> Any:
        return float_of(u32(u32(x) << u32(16)))

    def from_float(x: Any) -> Any:
        return f32(x)  # a float64 would be taken for other bits

    return from_bfloat16 if x == ty.uint16 else from_float


def narrow(x: Any, like: Any) -> Any:
    """Convert float32 to the storage of `like`, rounded to nearest even."""
    raise NotImplementedError


@_overload(narrow)
def _narrow(x: Any, like: Any) -> Any:
    def to_bfloat16(x: Any, like: Any) -> Any:
        bits = bits_of(f32(x))
        rounded = u32(bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1)))
        return u16(rounded >> u32(16))

    def to_float32(x: Any, like: Any) -> Any:
        return f32(x)

    return to_bfloat16 if like == ty.uint16 else to_float32


@_exact
def exp32(x: Any) -> Any:
    """Exponential in float32, relative error 1e-7; below -87 it is exp(-87). After Cephes' expf."""
    x = max(x, f32(-87.0))
    shifted = x * f32(1.44269504) + f32(12582912.0)
    n = shifted - f32(12582912.0)
    r = x - n * f32(0.693359375)
    r = r + n * f32(2.12194440e-4)
    y = f32(1.9875691500e-4) * r + f32(1.3981999507e-3)
    y = y * r + f32(8.3334519073e-3)
    y = y * r + f32(4.1665795894e-2)
    y = y * r + f32(1.6666665459e-1)
    y = y * r + f32(5.0000001201e-1)
    y = y * (r * r) + r + f32(1.0)
    return y * float_of(u32((bits_of(shifted) << u32(23)) + u32(0x3F800000)))


@_exact
def log32(x: Any) -> Any:
    """Natural logarithm of a positive normal float32, relative error 1e-7 (absolute near 1). After Cephes' logf."""
    # Mantissa in [sqrt(1/2), sqrt(2)): the shift by the bits of sqrt(1/2) puts the exponent's step there.
    bits = u32(bits_of(x) - u32(0x3F3504F3))
    e = f32(np.int32(bits) >> np.int32(23))
    r = float_of(u32((bits & u32(0x007FFFFF)) + u32(0x3F3504F3))) - f32(1.0)
    y = f32(7.0376836292e-2) * r - f32(1.1514610310e-1)
    y = y * r + f32(1.1676998740e-1)
    y = y * r - f32(1.2420140846e-1)
    y = y * r + f32(1.4249322787e-1)
    y = y * r - f32(1.6668057665e-1)
    y = y * r + f32(2.0000714765e-1)
    y = y * r - f32(2.4999993993e-1)
    y = y * r + f32(3.3333331174e-1)
    z = r * r
    y = y * r * z - f32(2.12194440e-4) * e - f32(0.5) * z
    return r + y + f32(0.693359375) * e


@_exact
def exp64(x: Any) -> Any:
    """Exponential of x <= 709 in float64, within 2 units in the last place; below -708 it is exp(-708).

    2^n times Taylor's series on [-log(2)/2, log(2)/2], where its 14th term is below rounding. Unlike `math.exp` it is
    computed for a whole vector at a time.
    """
    x = max(x, -708.0)
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = x - n * 0.6931471803691238
    r = r - n * 1.9082149292705877e-10
    y = r * 1.6059043836821613e-10 + 2.08767569878681e-09
    y = y * r + 2.505210838544172e-08
    y = y * r + 2.755731922398589e-07
    y = y * r + 2.7557319223985893e-06
    y = y * r + 2.48015873015873e-05
    y = y * r + 0.0001984126984126984
    y = y * r + 0.001388888888888889
    y = y * r + 0.008333333333333333
    y = y * r + 0.041666666666666664
    y = y * r + 0.16666666666666666
    y = y * r + 0.5
    y = y * (r * r) + r + 1.0
    return y * _double_of((_bits_of_double(shifted) << np.uint64(52)) + np.uint64(0x3FF0000000000000))
