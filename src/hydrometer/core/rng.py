"""Named streams of random numbers, from a counter-based generator.

A stream is a root seed and a path of names, for example ``Stream(3).child("distill", "teacher")``. Its numbers are
Philox-4x64-10 words (Salmon et al., SC 2011) under a 128-bit key hashed from seed and path, so streams with other names
are disjoint for all purposes, and row `i` of a stream is the same in whatever order and blocks rows are drawn.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arguments import whole

__all__ = ["Stream", "as_stream"]

_WORDS_PER_COUNT = 4  # Philox-4x64 yields four 64-bit words a counter


@dataclass(frozen=True, slots=True)
class Stream:
    """A named stream of uniforms addressed by (row, step).

    Parameters
    ----------
    seed : root seed. Zero is a seed like any other.
    path : names that tell this stream from its siblings.

    Raises
    ------
    InputError : a seed that is not a whole number.

    Examples
    --------
    >>> s = Stream(0).child("train", "truth")
    >>> whole = s.uniforms(0, 4, 3)
    >>> bool((whole[2:] == s.uniforms(2, 2, 3)).all())
    True
    """

    seed: int
    path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            object.__setattr__(self, "seed", whole(self.seed, "seed", None))

    def child(self, *names: str) -> Stream:
        """Return the stream one or more names further down the path."""
        return Stream(self.seed, (*self.path, *names))

    def _digest(self) -> bytes:
        canonical = json.dumps([self.seed, list(self.path)], separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=16, person=b"hydrometer.rng").digest()

    def integer(self) -> int:
        """Return a 31-bit seed for libraries that take an integer (scikit-learn, torch)."""
        return int.from_bytes(self._digest()[:4], "little") & 0x7FFF_FFFF

    def uniforms(self, start: int, n: int, width: int) -> NDArray[np.float64]:
        """Uniforms of rows ``start .. start + n``, each row `width` numbers strictly inside (0, 1).

        A row occupies ``ceil(width / 4)`` counters, so rows are independent of where a block begins. `width` is part
        of the address: another width is another layout.

        Returns
        -------
        (n, width) float64

        Raises
        ------
        InputError : n or start is not a whole number of at least 0.
        """
        n, start = whole(n, "n, the number of rows,"), whole(start, "start, the first row,")
        if width < 1:
            raise ValueError(f"a row has at least one number; got width={width}")
        counts = -(-width // _WORDS_PER_COUNT)
        key = np.frombuffer(self._digest(), dtype="<u8")
        generator = np.random.Philox(counter=start * counts, key=key)
        words = generator.random_raw(n * counts * _WORDS_PER_COUNT).reshape(n, counts * _WORDS_PER_COUNT)
        # 52 bits and a half step: exactly representable, never 0 and never 1, so quantile functions stay finite.
        return ((words[:, :width] >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def as_stream(seed: int | Stream) -> Stream:
    """Return `seed` itself if it is a stream, else the root stream of that seed."""
    return seed if isinstance(seed, Stream) else Stream(seed)
