"""What an earlier command found out about files: their content keys, and whether they are sound pictures.

Notes lie in the cache folder (``$LOGITBANK_CACHE/files``). They are believed of a file as long as its size, its times
of change, its inode and its device are as they were, and, as git has it, only when it had not been changed within the
last two seconds before the notes were written: a change within one tick of a clock leaves the times as they are. Notes
of another user, or with another digest than their content has, are no notes.

Shapes: N files.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.stores.files import whole_file
from logitbank.stores.share.cache import default_cache

KEYED, LOOKED, DECODED, FRAMES, TURNED = 1, 2, 4, 8, 16  # bits of ``flags``
FEWEST = 256  # files: fewer are read in no time
_RACY = 2 * 10**9  # nanoseconds
_MAGIC = b"logitbank file notes 1\n"
_STATE = ("size", "modified", "changed", "inode", "device")
_ROW = np.dtype([*((name, "<u8") for name in _STATE), ("key", "<u8"), ("flags", "u1")])

Flags = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]


class FileNotes:
    """Notes about a list of files, of which those that no longer hold are forgotten.

    Args:
        paths: The files; one that is not there has no notes.
        key_space: What the keys are hashes of.
    """

    def __init__(self, paths: Sequence[Path], key_space: str) -> None:
        listed = hashlib.blake2b(key_space.encode(), digest_size=16)
        for path in paths:
            listed.update(b"\0" + os.fsencode(path.absolute()))
        self._file = default_cache() / "files" / listed.hexdigest()
        self._rows = np.zeros(len(paths), _ROW)
        for row, path in enumerate(paths):
            with contextlib.suppress(OSError):
                found = path.stat()
                state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
                self._rows[row] = (*(number % 2**64 for number in state), 0, 0)
        self._recall()

    @property
    def flags(self) -> Flags:
        """What is known of each file, uint8 [N]."""
        return self._rows["flags"].copy()

    @property
    def keys(self) -> Keys:
        """uint64 [N]; means something where ``flags`` has ``KEYED``."""
        return self._rows["key"].copy()

    def add(self, flags: Flags, keys: Keys | None = None) -> None:
        """Notes more about all files and writes it down, where the cache can be written.

        Args:
            flags: [N].
            keys: [N], with ``KEYED``.
        """
        self._rows["flags"] |= flags
        if keys is not None:
            self._rows["key"] = keys
        content = np.array([time.time_ns()], "<u8").tobytes() + self._rows.tobytes()
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._file) as beside:
                beside.write_bytes(_MAGIC + hashlib.sha256(content).digest() + content)

    def _recall(self) -> None:
        start = len(_MAGIC) + 32
        try:
            there = self._file.stat()
            own = not hasattr(os, "getuid") or there.st_uid == os.getuid()
            if not own or there.st_size != start + 8 + self._rows.nbytes:
                return
            blob = self._file.read_bytes()
        except OSError:
            return
        content = blob[start:]
        if blob[:start] != _MAGIC + hashlib.sha256(content).digest() or len(content) != 8 + self._rows.nbytes:
            return
        written = int(np.frombuffer(content[:8], "<u8")[0])
        noted = np.frombuffer(content[8:], _ROW)
        same = np.logical_and.reduce([noted[name] == self._rows[name] for name in _STATE])
        settled = np.maximum(noted["modified"], noted["changed"]) < max(written - _RACY, 0)
        believed = same & settled & (self._rows["inode"] > 0)
        self._rows["key"][believed] = noted["key"][believed]
        self._rows["flags"][believed] = noted["flags"][believed]
