"""What an earlier command found out about files: their content keys, whether they are sound pictures, what is in them.

Notes lie in the cache folder (``$LOGITBANK_CACHE/files``). They are believed of a file as long as its size, its times
of change, its inode and its device are as they were, and, as git has it, only when it had not been changed within the
last two seconds before it was looked at: a change within one tick of a clock leaves the times as they are. Notes
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

from logitbank.pipeline.datasets.remote_files import RemoteFile
from logitbank.stores.files import whole_file
from logitbank.stores.folders import default_cache

KEYED, LOOKED, DECODED, FRAMES, TURNED = 1, 2, 4, 8, 16  # bits of ``flags``
FEWEST = 256  # files: fewer are read in no time
_RACY = 2 * 10**9  # nanoseconds
_MAGIC = b"logitbank file notes 1\n"
_STATE = ("size", "modified", "changed", "inode", "device")
_ROW = np.dtype([(name, "<u8") for name in _STATE])
_START = len(_MAGIC) + 32

Flags = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]


def notes_folder() -> Path:
    """Where notes lie."""
    return default_cache() / "files"


class Notes:
    """Bytes that were found out about a list of files, and which of the files are still as they were then.

    Args:
        paths: The files.
        about: What the bytes are.
    """

    def __init__(self, paths: Sequence[Path | RemoteFile], about: str) -> None:
        listed = hashlib.blake2b(about.encode(), digest_size=16)
        for path in paths:
            listed.update(b"\0" + os.fsencode(path.absolute()))
        self.name = listed.hexdigest()
        self._looked_at = time.time_ns()
        self._states = np.zeros(len(paths), _ROW)
        for row, path in enumerate(paths):
            with contextlib.suppress(OSError):
                found = path.stat()
                state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
                self._states[row] = tuple(number % 2**64 for number in state)

    def recall(self) -> tuple[npt.NDArray[np.bool_], bytes] | None:
        """Which files are as they were, bool [N], and what was noted; None where there are no notes."""
        path = notes_folder() / self.name
        try:
            if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
                return None
            blob = path.read_bytes()
            os.utime(path)  # used now: those not used for long make room for others
        except OSError:
            return None
        content, size = blob[_START:], 8 + self._states.nbytes
        if blob[:_START] != _MAGIC + hashlib.sha256(content).digest() or len(content) < size:
            return None
        looked_at = int(np.frombuffer(content[:8], "<u8")[0])
        noted = np.frombuffer(content[8:size], _ROW)
        settled = np.maximum(noted["modified"], noted["changed"]) < max(looked_at - _RACY, 0)
        return (noted == self._states) & settled & (noted["inode"] > 0), content[size:]

    def write(self, payload: bytes) -> None:
        """Writes notes of the files as they were when this was made, where the cache can be written."""
        content = np.array([self._looked_at], "<u8").tobytes() + self._states.tobytes() + payload
        with contextlib.suppress(OSError):
            notes_folder().mkdir(parents=True, exist_ok=True)
            with whole_file(notes_folder() / self.name) as beside:
                beside.write_bytes(_MAGIC + hashlib.sha256(content).digest() + content)


class FileNotes:
    """Keys and findings of each of many files, of which those that no longer hold are forgotten.

    Args:
        paths: The files; one that is not there has no notes.
        key_space: What the keys are hashes of.

    Attributes:
        keys: uint64 [N]; means something where ``flags`` has ``KEYED``.
        flags: What is known of each file, uint8 [N].
    """

    def __init__(self, paths: Sequence[Path], key_space: str) -> None:
        self._notes = Notes(paths, key_space)
        self.keys: Keys = np.zeros(len(paths), np.uint64)
        self.flags: Flags = np.zeros(len(paths), np.uint8)
        recalled = self._notes.recall()
        if recalled is not None and len(recalled[1]) == self.keys.nbytes + self.flags.nbytes:
            believed, payload = recalled
            self.keys[believed] = np.frombuffer(payload[: self.keys.nbytes], "<u8")[believed]
            self.flags[believed] = np.frombuffer(payload[self.keys.nbytes :], np.uint8)[believed]

    def add(self, flags: Flags, keys: Keys | None = None) -> None:
        """Notes more about all files.

        Args:
            flags: [N].
            keys: [N], with ``KEYED``.
        """
        self.flags |= flags
        if keys is not None:
            self.keys = keys.copy()
        self._notes.write(self.keys.astype("<u8").tobytes() + self.flags.tobytes())
