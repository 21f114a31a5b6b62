"""Bytes from elsewhere: never more than a file may have, and never slower than somebody would wait for."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from logitbank.stores.format.schema import StoreError

SLOWEST = 1024  # bytes a second
WINDOW = 20.0  # seconds over which they are counted
_PIECE = 1 << 20


class Pace:
    """Counts what comes, and raises TimeoutError when it is less than `SLOWEST` bytes a second for `WINDOW` seconds."""

    def __init__(self) -> None:
        self._since, self._bytes = time.monotonic(), 0

    def add(self, num_bytes: int) -> None:
        """So many bytes have come."""
        self._bytes += num_bytes
        passed = time.monotonic() - self._since
        if passed >= WINDOW:
            if self._bytes < SLOWEST * passed:
                raise TimeoutError(f"only {self._bytes} bytes came in {passed:.0f} s")
            self._since, self._bytes = time.monotonic(), 0


def pieces(read: Callable[[int], bytes], limit: int, what: str) -> Iterator[bytes]:
    """All that `read` gives; StoreError when that is more than `limit` bytes, TimeoutError when it comes too slowly."""
    left, pace = limit, Pace()
    while piece := read(min(_PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise too_long(what, "", limit)
        pace.add(len(piece))
        yield piece


def save(read: Callable[[int], bytes], target: Path, limit: int, what: str) -> int:
    """Write all that `read` gives to a file; the number of bytes."""
    with target.open("wb") as out:
        return sum(out.write(piece) for piece in pieces(read, limit, what))


def too_long(name: str, path: str, limit: int) -> StoreError:
    """The refusal of a file that is longer than what it can hold."""
    return StoreError(f"{name}: {path or 'file'} is longer than the {limit} bytes it may have; do not use this store")
