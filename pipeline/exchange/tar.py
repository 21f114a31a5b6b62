"""An export as tar files that the webdataset library reads: one sample for each example, named by its content key.

A sample holds all views of its example: a tar pads every member to 512 bytes and puts 512 before it, which for one
view would be many times the K numbers themselves. Members of a sample: ``KEY.json`` (key, label, fold and the numbers
of which there is one a view), ``KEY.log_prob.npy`` [V, K or C], ``KEY.index.npy`` [V, K], ``KEY.logit.npy`` [V, C]. An
example that is there twice to the last bit has ``KEY-1`` for its second sample. The first member, ``__store__``, is
the document; readers of webdataset take no name without a dot for a sample.

Shapes: V views, N examples, K kept classes, C classes.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.exchange.npz import npy_header
from logitbank.pipeline.exchange.values import Values

SHARD_BYTES = 2**28
DOCUMENT = "__store__"
SHARD = "{number:06d}.tar"
_RECORD = tarfile.RECORDSIZE
_BLOCK = tarfile.BLOCKSIZE


def write_tar(values: Values, document: str, path: Path) -> None:
    """Writes an export as one tar file.

    Args:
        values: What is exported.
        document: Its document.
        path: The file.
    """
    with path.open("wb") as file:
        shard = _Shard(file, document)
        for sample in _samples(values):
            shard.add(sample)
        shard.close()


def write_shards(values: Values, document: str, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes an export as tar files of at most ``shard_bytes`` each, unless one sample is larger.

    Args:
        values: What is exported.
        document: Its document, in every shard and in ``store.json``.
        folder: An empty folder.
        shard_bytes: Bytes of a shard.
    """
    (folder / "store.json").write_text(document)
    samples = _samples(values)
    sample = next(samples, None)
    number = 0
    while sample is not None:
        with (folder / SHARD.format(number=number)).open("wb") as file:
            shard = _Shard(file, document)
            empty = True
            while sample is not None and (empty or shard.size_with(sample) <= shard_bytes):
                shard.add(sample)
                sample, empty = next(samples, None), False
            shard.close()
        number += 1


def document_of(shards: Sequence[Path], num_examples: int) -> str:
    """The document that whole shards carry; "" where they are of several exports, or a sample is missing."""
    texts, samples = set(), 0
    for path in shards:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                samples += info.name.endswith(".json")
                file = tar.extractfile(info) if info.name == DOCUMENT else None
                texts |= {file.read().decode()} if file is not None else set()
    return texts.pop() if len(texts) == 1 and samples == num_examples else ""


class _Shard:
    """A tar file that is being written: plain ustar, owner and time 0, the same bytes for the same store."""

    def __init__(self, file: BinaryIO, document: str) -> None:
        self._file, self._size = file, 0
        self._add(DOCUMENT, document.encode())

    def add(self, sample: dict[str, bytes]) -> None:
        for name, data in sample.items():
            self._add(name, data)

    def size_with(self, sample: dict[str, bytes]) -> int:
        """Bytes of the file if the sample were its last."""
        return _padded(self._size + sum(_BLOCK + _padded(len(data), _BLOCK) for data in sample.values()) + 2 * _BLOCK)

    def close(self) -> None:
        self._file.write(bytes(_padded(self._size + 2 * _BLOCK) - self._size))

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        piece = info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(_padded(len(data), _BLOCK) - len(data))
        self._file.write(piece)
        self._size += len(piece)


def _padded(size: int, unit: int = _RECORD) -> int:
    """A size rounded up to whole units."""
    return -(-size // unit) * unit


def _samples(values: Values) -> Iterator[dict[str, bytes]]:
    """Every example's members, by name, in order."""
    vectors = {name: array for name, array in values.arrays.items() if array.row_shape}
    headers = {
        name: npy_header(np.dtype(array.dtype), (values.num_views, *array.row_shape)) for name, array in vectors.items()
    }
    repeats = _repeats(values.store.keys)
    seen: Counter[int] = Counter()
    for rows, chunk in values.chunks_of_all_views():
        for place, row in enumerate(range(rows.start, rows.stop)):
            key = int(values.store.keys[row])
            name = f"{key:016x}"
            said: dict[str, Any] = {"key": name, "label": int(values.store.labels[row])}
            if values.folds is not None:
                said["fold"] = int(values.folds[row])
            said |= {name: _listed(chunk[name][:, place]) for name in values.arrays if name not in vectors}
            if key in repeats:
                name += f"-{seen[key]}" if seen[key] else ""
                seen[key] += 1
            sample = {f"{name}.json": json.dumps(said, allow_nan=False).encode()}
            for array in vectors:
                sample[f"{name}.{array}.npy"] = headers[array] + chunk[array][:, place].tobytes()
            yield sample


def _repeats(keys: npt.NDArray[np.uint64]) -> set[int]:
    found, counts = np.unique(keys, return_counts=True)
    return set(found[counts > 1].tolist())


def _listed(values: npt.NDArray[np.generic]) -> list[Any]:
    """Numbers for JSON, which has neither infinities nor NaN."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    return [value if np.isfinite(value) else None for value in values.tolist()]
