"""Packed tokens, as nanoGPT and Megatron write them: one long row of ids, memory-mapped and cut into sequences.

Shapes: T tokens of a file, N examples, L tokens of an example.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.classes import MAX_CLASSES
from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.datasets.spec import check_split, read_one, read_whole, said, spell, tell
from logitbank.pipeline.datasets.split import KEY_BYTES, Split
from logitbank.stores.format.schema import MAX_POSITIONS

DTYPES = ("uint16", "uint32", "uint8", "int32", "int64")
LENGTH = "1024"
_READ_AT_ONCE = 2**24  # tokens
_HALVES = 16  # ids of which every second is 0 by chance in no text
_LLM_C = (20240520, 20240801)  # first number of the header of 256 int32 that llm.c writes

Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True)
class PackedTokens:
    """The samples of a split of token sequences: read from the file when they are asked for.

    Attributes:
        tokens: The file's, [T].
        length: L.
        rows: Which sequences of the file, int64 [N]: number r begins at token r L.
    """

    tokens: Tokens
    length: int
    rows: npt.NDArray[np.int64]

    ndim = 2
    dtype = np.dtype(np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.length

    @property
    def key_space(self) -> str:
        return f"tokens {self.length}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.int64]:
        """Ids int64 [B, L]; an int gives one sequence [L]."""
        starts = self.rows[rows] * self.length
        return np.asarray(self.tokens[starts[..., None] + np.arange(self.length)], dtype=np.int64)

    def content_keys(self) -> npt.NDArray[np.uint64]:
        """Of the ids, whatever type the file has them in: BLAKE2b-64 of uint32, uint64 [N]."""
        digests = (hashlib.blake2b(self[row].astype("<u4").data, digest_size=KEY_BYTES) for row in range(len(self)))
        return np.frombuffer(b"".join(digest.digest() for digest in digests), "<u8").astype(np.uint64)

    def subset(self, rows: npt.NDArray[np.integer]) -> "PackedTokens":
        return PackedTokens(self.tokens, self.length, self.rows[rows])

    def next_tokens(self) -> npt.NDArray[np.int64]:
        """What follows each token in the file, int64 [N, L]; -1 behind its last."""
        ends = (self.rows + 1) * self.length
        labels = np.empty(self.shape, np.int64)
        for start in range(0, len(self), max(1, _READ_AT_ONCE // self.length)):
            some = slice(start, start + max(1, _READ_AT_ONCE // self.length))
            labels[some, :-1] = self[some][:, 1:]
        last = self.tokens[np.minimum(ends, len(self.tokens) - 1)].astype(np.int64)
        labels[:, -1] = np.where(ends < len(self.tokens), last, -1)
        return labels


def load_tokens(
    path: str, *, split: str = "train", length: str = LENGTH, dtype: str = "", classes: str = "", test: str = ""
) -> Split:
    """Sequences of L token ids from a file of packed ones; the label of a position is the token that follows.

    Sequences stand side by side, as an epoch over the file sees each token once. What the file ends with short of a
    sequence is left out, but for the first such token, which is a label. A file that ends with its last sequence has
    no label for the last position (-1).

    Args:
        path: The training split: raw numbers, ``.bin``, or a ``.npy`` array [T].
        split: "train" or "test".
        length: L.
        dtype: Of a ``.bin``, little-endian; uint16 when it is left out. A ``.npy`` says it itself.
        classes: Size of the vocabulary; the default is the largest id of the files plus one.
        test: The test split, a file of the same form.

    Raises:
        ValueError: Missing file, another form, a file shorter than a sequence, or ids outside the vocabulary.
    """
    given = said({"length": length, "dtype": dtype, "classes": classes, "test": test}, {"length": LENGTH})
    spec = spell("tokens", path, {"split": split, **given})
    check_split(spec, split)
    if split == "test" and not test:
        raise ValueError(f"{spec}: there is no test split; name its file, test=FILE")
    size = read_whole(spec, "length", length, 1, MAX_POSITIONS, f"tokens of a sequence, 1 to {MAX_POSITIONS}")
    files = {name: _open(file, dtype, spec) for name, file in (("train", path), ("test", test)) if file}
    largest = max(_largest_id(tokens, spec) for tokens in files.values())
    num_classes = max(largest + 1, 2)
    if classes:
        least = f"the size of the vocabulary, {num_classes} to {MAX_CLASSES}: the largest id is {largest}"
        num_classes = read_whole(spec, "classes", classes, num_classes, MAX_CLASSES, least)
    return Split(
        name=Path(path).stem, split=split, spec=spec, num_classes=num_classes, **_cut(files[split], size, spec)
    )


def _cut(tokens: Tokens, length: int, spec: str) -> dict[str, Any]:
    """The sequences of a file and their labels."""
    num_rows = len(tokens) // length
    if not num_rows:
        raise ValueError(f"{spec}: {len(tokens)} tokens are no sequence of {length}; take a smaller length")
    left = len(tokens) - num_rows * length - 1  # the first one behind the last sequence is its label
    if left > 0:
        tell(f"{spec}: the last {left} of {len(tokens)} tokens are no whole sequence, and are left out")
    samples = PackedTokens(tokens, length, np.arange(num_rows))
    check_fits(f"{spec}: the labels of {num_rows} sequences", 8 * num_rows * length)
    return {"samples": samples, "labels": samples.next_tokens()}


def _open(path: str, dtype: str, spec: str) -> Tokens:
    """The tokens of a file, memory-mapped."""
    file = Path(path)
    if not file.is_file() or file.suffix not in (".bin", ".npy"):
        raise ValueError(f"{spec}: no file {path!r} of tokens; expected a .bin of raw ids or a .npy array of them")
    if file.suffix == ".npy":
        if dtype:
            raise ValueError(f"{spec}: dtype does nothing here, since a .npy file says it itself; leave it out")
        return _open_npy(file, spec)
    kind = np.dtype(read_one(spec, "dtype", dtype or DTYPES[0], DTYPES)).newbyteorder("<")
    num_bytes = file.stat().st_size
    if not num_bytes or num_bytes % kind.itemsize:
        raise ValueError(f"{spec}: {path} has {num_bytes} bytes, which are no {kind.name} ids; say dtype=, as written")
    if num_bytes >= 1024 and int(np.fromfile(file, "<i4", 1)[0]) in _LLM_C:
        raise ValueError(f"{spec}: {path} begins with a header of llm.c; write the ids alone, from byte 1,024 on")
    tokens = np.memmap(file, kind, mode="r")
    _refuse_halves(tokens, file, spec)
    return tokens


def _refuse_halves(tokens: Tokens, file: Path, spec: str) -> None:
    """Raises ValueError when every second number is 0, as where ids are read as a type of half their width."""
    wider = {"uint8": "uint16", "uint16": "uint32 or int32", "uint32": "int64", "int32": "int64"}
    name = tokens.dtype.name
    seen = tokens[:_READ_AT_ONCE]
    if name in wider and len(seen) >= _HALVES and not seen[1::2].any() and seen[::2].any():
        raise ValueError(
            f"{spec}: every second id of {file} is 0 when it is read as {name}; it was written as {wider[name]}: say"
            f" dtype={wider[name].split()[0]}"
        )


def _open_npy(file: Path, spec: str) -> Tokens:
    try:
        array: Any = np.lib.format.open_memmap(file, mode="r")  # never unpickles
    except Exception as error:  # numpy parses the header as Python, which raises many kinds
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{spec}: {file} is no readable .npy file ({text}); write it anew with np.save") from error
    if array.ndim != 1 or array.dtype.kind not in "ui" or not len(array):
        raise ValueError(f"{spec}: {file} is {array.dtype} {list(array.shape)}; expected integers [T], one long row")
    return array  # type: ignore[no-any-return]


def _largest_id(tokens: Tokens, spec: str) -> int:
    """Raises ValueError for ids that cannot be classes."""
    low, high = 0, 0
    for part in _parts(tokens):
        low, high = min(low, int(part.min())), max(high, int(part.max()))
    if low < 0 or high >= MAX_CLASSES:
        odd = low if low < 0 else high
        raise ValueError(f"{spec}: {odd} is no token id; expected 0 to {MAX_CLASSES - 1}, and the dtype as written")
    return high


def _parts(tokens: Tokens) -> Iterator[Tokens]:
    for start in range(0, len(tokens), _READ_AT_ONCE):
        yield tokens[start : start + _READ_AT_ONCE]
