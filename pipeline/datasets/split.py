"""What every data source gives: examples in a fixed order, each with a content key.

Shapes: N examples, L positions, H x W x C pixels, D features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.columns import Feature
from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.spec import canonical

KEY_BYTES = 8


def content_keys(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.uint64]:
    """Content id of each example: BLAKE2b-64 of its raw bytes, independent of order and file name.

    Args:
        samples: Examples, [N, ...].

    Returns:
        Keys, uint64 [N]. Equal examples have equal keys.
    """
    rows = np.ascontiguousarray(samples).reshape(len(samples), -1)
    prefix = f"{samples.dtype.str}{samples.shape[1:]}".encode()
    digests = (hashlib.blake2b(row.data, digest_size=KEY_BYTES, person=_person(prefix)).digest() for row in rows)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _person(prefix: bytes) -> bytes:
    """Shape and dtype take part in the key: 64 grey pixels are not 8 x 8 of them."""
    return hashlib.blake2b(prefix, digest_size=16).digest()


def order_fingerprint(keys: npt.NDArray[np.uint64], labels: npt.NDArray[np.integer]) -> str:
    """SHA-256 of keys and labels in their order, 64 hex digits: another order is another fingerprint."""
    digest = hashlib.sha256(np.ascontiguousarray(keys, dtype="<u8").data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def set_fingerprint(keys: npt.NDArray[np.uint64], labels: npt.NDArray[np.integer]) -> str:
    """SHA-256 of the (key, label) pairs without their order, 64 hex digits; labels [N] or [N, L]."""
    order = np.lexsort((labels if labels.ndim == 1 else content_keys(labels.astype("<i8")), keys))
    return order_fingerprint(keys[order], labels[order])


def check_same_classes(split: "Split", other: "Split") -> None:
    """Raises ValueError when two splits do not have the same classes under the same ids, or columns read otherwise."""
    if split.learnt != other.learnt:
        raise ValueError(
            f"{other.spec} has other columns than {split.spec}, or scales them by other rows; name both files in one"
            " spec, csv:TRAIN?test=TEST"
        )
    if split.num_classes != other.num_classes:
        few, many = sorted((split, other), key=lambda each: each.num_classes)
        raise ValueError(
            f"{other.spec} has {other.num_classes} classes, {split.spec} has {split.num_classes}; when they"
            f" are the same, add classes={many.num_classes} to {few.spec}"
        )
    if not (split.class_names and other.class_names):
        return
    for id_, (mine, theirs) in enumerate(zip(split.class_names, other.class_names, strict=True)):
        if canonical(mine) == canonical(theirs):
            continue
        raise ValueError(
            f"class {id_} is {theirs!r} in {other.spec} and {mine!r} in {split.spec}; pass classes=FILE to both, a file"
            " of all names in one order"
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a dataset.

    Attributes:
        name: Dataset name, such as "CIFAR10".
        split: "train" or "test".
        spec: The text that loads it again, such as "digits?split=train".
        samples: Images as uint8 [N, H, W, C], table rows as float32 [N, D], or token ids as int64 [N, L]; an array, or
            what reads like one: ``Originals``, pictures of any sizes, ``Thumbnails``, or ``PackedTokens`` (indexing,
            ``shape``, ``ndim``, ``dtype``, and ``content_keys`` of its own).
        labels: int64 [N]; -1 marks an unlabelled example. Of examples that are answered at L positions, such as the
            tokens of a text, int64 [N, L].
        num_classes: Number of classes C.
        class_names: Names in label order, or empty.
        groups: uint64 [N], examples that belong together (one patient, one problem), or None.
        readable: bool [N], False where an example could not be read and is blank, or a teacher is not asked about it;
            None: all are. A store masks them.
            Of examples with positions bool [N, L], False where an example has no such position; their label is -1.
        learnt: What was learnt from training rows to make the samples, as a short text; empty when they are as stored.
        features: The same of the columns of a table, in the order of the samples'; empty when they are as stored.
    """

    name: str
    split: str
    spec: str
    samples: npt.NDArray[np.generic]
    labels: npt.NDArray[np.int64]
    num_classes: int
    class_names: tuple[str, ...] = field(default=())
    groups: npt.NDArray[np.uint64] | None = None
    readable: npt.NDArray[np.bool_] | None = None
    learnt: str = ""
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.labels):
            raise ValueError(
                f"{self.spec}: {len(self.samples)} examples but {len(self.labels)} labels; give one label per example"
            )
        if not len(self.samples):
            raise ValueError(f"{self.spec}: no examples; expected at least one")
        ndim = {"uint8": 4, "float32": 2, "int64": 2}.get(self.samples.dtype.name)
        if self.samples.ndim != ndim or 0 in self.samples.shape:
            raise ValueError(
                f"{self.spec}: samples are {self.samples.dtype} {list(self.samples.shape)}; expected images as uint8"
                " [N, H, W, channels], a table as float32 [N, D], or tokens as int64 [N, L]"
            )
        if self.samples.dtype.kind == "f" and not np.isfinite(self.samples).all():
            raise ValueError(f"{self.spec}: samples hold NaN or infinite values; fill or drop them first")
        self._check_positions()
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.spec}: {len(self.class_names)} class names for {self.num_classes} classes; give each its name"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < -1 or high >= self.num_classes:
            raise ValueError(
                f"{self.spec}: labels run from {low} to {high}; expected 0 to {self.num_classes - 1}"
                " (or -1 for unlabelled)"
            )

    def _check_positions(self) -> None:
        """Raises ValueError unless labels, and what can be read, are of examples or of their positions."""
        shape = self.labels.shape
        if self.labels.ndim > 2 or 0 in shape:
            raise ValueError(f"{self.spec}: labels are {list(shape)}; expected one an example, or [N, positions]")
        if self.readable is None:
            return
        if self.readable.shape != shape:
            raise ValueError(f"{self.spec}: readable is {list(self.readable.shape)}; expected {list(shape)} as labels")
        if self.positions is not None and (self.labels[~self.readable] >= 0).any():
            raise ValueError(f"{self.spec}: positions that examples do not have are labelled; label them -1")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def positions(self) -> int | None:
        """L, at how many positions an example is answered; None where it has one answer."""
        return int(self.labels.shape[1]) if self.labels.ndim == 2 else None

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """(C,), or (L, C): the logits of an example."""
        return (*self.labels.shape[1:], self.num_classes)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Examples that have a label and can be read, at one position at least: bool [N]."""
        usable = self.labels >= 0 if self.readable is None else (self.labels >= 0) & self.readable
        return np.asarray(usable if self.positions is None else usable.any(axis=1), np.bool_)

    def refuse_positions(self, what: str) -> None:
        """Raises ValueError where examples are answered at positions, of which ``what`` knows nothing."""
        if self.positions is not None:
            raise ValueError(
                f"{what} takes one label an example, {self.spec} has one at each of {self.positions} positions"
            )

    @property
    def is_image(self) -> bool:
        return self.samples.ndim == 4

    @property
    def is_tokens(self) -> bool:
        return self.samples.dtype.kind == "i"

    @property
    def holds(self) -> str:
        """What the samples are, for errors."""
        return "images" if self.is_image else "tokens" if self.is_tokens else "a table"

    @property
    def originals(self) -> Originals | None:
        """The samples, where they are pictures of any sizes."""
        samples: Any = self.samples
        return samples if isinstance(samples, Originals) else None

    @property
    def near(self) -> tuple[int, int] | None:
        """Rows of a block that comes at once, and how many blocks can be mixed; None: any row comes as fast."""
        found: tuple[int, int] | None = getattr(getattr(self.samples, "source", None), "near", None)
        return found

    def announce(self, groups: Sequence[npt.NDArray[np.integer]]) -> None:
        """Says which rows will be read, group after group, so that they come sooner."""
        source: Any = getattr(self.samples, "source", None)
        if self.near is not None:
            source.announce(groups)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(H, W, C) of an image, (D,) of a table row, or (L,) of tokens."""
        return tuple(self.samples.shape[1:])

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        own = getattr(self.samples, "content_keys", None)
        return content_keys(self.samples) if own is None else own()

    @property
    def key_space(self) -> str:
        """What the keys are hashes of: an example has one key only where this text is the same."""
        own = getattr(self.samples, "key_space", None)
        return f"{own or f'{self.samples.dtype.str} {self.input_shape}'} {self.learnt}".strip()

    def answered_at(self, asked_N: npt.NDArray[np.bool_]) -> "Split":
        """The same examples, of which a teacher's answers count where ``asked_N`` is True; nothing is read again."""
        part = replace(self, readable=asked_N)
        for name in ("keys", "rows_by_key", "fingerprint"):
            if name in vars(self):
                vars(part)[name] = vars(self)[name]
        return part

    def repeated(self, positions: int) -> "Split":
        """The same examples, answered at so many positions, each with the example's label; nothing is read again."""
        again = replace(
            self,
            labels=np.repeat(self.labels[:, None], positions, axis=1),
            readable=None if self.readable is None else np.repeat(self.readable[:, None], positions, axis=1),
        )
        for name in ("keys", "rows_by_key"):
            if name in vars(self):
                vars(again)[name] = vars(self)[name]
        return again

    @cached_property
    def rows_by_key(self) -> npt.NDArray[np.int64]:
        """Row numbers in the order of their keys: the same examples whatever the order of the dataset."""
        return np.argsort(self.keys, kind="stable")

    @cached_property
    def fingerprint(self) -> str:
        return order_fingerprint(self.keys, self.labels)

    def describe(self) -> dict[str, object]:
        """The dataset as a store records it."""
        description: dict[str, object] = {
            "name": self.name,
            "split": self.split,
            "num_examples": len(self),
            "num_classes": self.num_classes,
            "fingerprint": self.fingerprint,
            "fingerprint_unordered": set_fingerprint(self.keys, self.labels),
        }
        if self.positions is not None:
            description["num_positions"] = self.positions
        if self.class_names:
            description["class_names"] = list(self.class_names)
        return description
