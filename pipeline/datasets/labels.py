"""Labels as people keep them, read where their meaning is clear and refused in one line where it is not.

Shapes: N examples, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.classes import known_classes, number_classes
from logitbank.pipeline.datasets.spec import canonical, shown, tell

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
IGNORED = -100  # what cross-entropy skips by convention
_MANY, _ROWS_EACH = 50, 5
_REMEDY = "distillation here is classification: bin the values, name another label, or pass classes=NUMBER"
Labels = npt.NDArray[np.int64]


def read_labels(raw: npt.NDArray[np.generic], what: str, *, from_one: bool = False) -> npt.NDArray[np.generic]:
    """Labels as int64 [N], -1 where there is none, or as texts [N].

    Whole numbers of any type, booleans and one-hot rows are read; so are NaN and -100, as "no label".

    Args:
        raw: As the data has them.
        what: For errors.
        from_one: Whether they count from 1.

    Raises:
        ValueError: Fractions, probabilities of classes, or another shape; texts, or a label 0, that count from 1.
    """
    labels = _read(raw, what)
    return _from_zero(labels, what) if from_one else labels


def _read(raw: npt.NDArray[np.generic], what: str) -> npt.NDArray[np.generic]:
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim == 2 and raw.shape[1] > 1 and raw.dtype.kind in "buif":
        if not (np.isin(raw, (0, 1)).all() and (raw.sum(axis=1) == 1).all()):
            raise ValueError(f"{what} are {raw.dtype} {list(raw.shape)} and not one-hot; expected class ids [N]")
        return np.asarray(raw.argmax(axis=1), dtype=np.int64)
    if raw.ndim != 1 or raw.dtype.kind not in "buifSU":
        raise ValueError(f"{what} are {raw.dtype} {list(raw.shape)}; expected integers or texts [N]")
    if raw.dtype.kind in "SU":
        return _texts(raw, what)
    if raw.dtype.kind == "f":
        raw = _whole(raw, what)
    if raw.size and raw.dtype.kind == "u" and int(raw.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{what} go up to {raw.max()}; expected class ids")
    labels = raw.astype(np.int64)
    ignored = labels == IGNORED
    if ignored.any():
        tell(f"{what}: {int(ignored.sum())} of {IGNORED} are read as unlabelled")
    return np.where(ignored, -1, labels)


def place_labels(
    parts: Sequence[npt.NDArray[np.generic]], chosen: int, classes: str, spec: str, *, own: Sequence[str] = ()
) -> tuple[Labels, int, tuple[str, ...]]:
    """Class ids of one split, the number of classes and their names.

    Args:
        parts: What ``read_labels`` gave for each split of the data, the training split first.
        chosen: Which of them is wanted.
        classes: The option; see ``known_classes``.
        spec: For errors.
        own: Names that the data set gives its ids.

    Raises:
        ValueError: Labels that are measurements, count from 1, or are not among those of the training split.
    """
    parts = [_without_texts(part) for part in parts]
    if any(part.dtype.kind == "U" for part in parts):
        texts = [_as_texts(part) for part in parts]
        found = class_names(texts[0].tolist(), classes, spec)
        names = known_classes(found, classes, spec)
        return find_labels(texts[chosen].tolist(), names, spec), max(len(names), 2), names if len(names) >= 2 else ()
    numbers = [part.astype(np.int64) for part in parts]
    used = np.unique(np.concatenate(numbers))
    if used.min(initial=0) < -1:
        raise ValueError(f"{spec}: labels run from {used[0]} to {used[-1]}; expected ids from 0, or -1 for unlabelled")
    if used.tolist() == [-1, 1]:
        raise ValueError(f"{spec}: labels are -1 and 1, and -1 stands for no label; write the two classes as 0 and 1")
    used = used[used >= 0]
    highest = int(used.max(initial=-1))
    labels, number, names = number_classes(numbers[chosen], highest, own, classes, spec)
    unseen = [part[(part >= 0) & ~np.isin(part, numbers[0])] for part in numbers[1:]]
    if numbers[0].max(initial=-1) >= 0 and any(map(len, unseen)):
        tell(f"{spec}: {sum(map(len, unseen))} test rows are of classes that no training row has")
    if not classes and not own:
        _check_ids(used, sum(int((part >= 0).sum()) for part in numbers), spec)
    return labels, max(number, 2), names


def class_names(texts: Sequence[str], classes: str, spec: str) -> list[str]:
    """The different labels of the training rows in the order of their ids: numbers by value, then texts.

    Raises:
        ValueError: They look like measurements or names of rows, and ``classes`` does not say otherwise.
    """
    present = [text for text in texts if text.lower() not in MISSING]
    numbers: dict[str, str] = {}  # "1" and "1.0" are one class
    for text in dict.fromkeys(present):
        numbers.setdefault(canonical(text), text)
    found = sorted(numbers.values(), key=_class_order)
    if classes:
        return found
    numeric = all(_is_number(name) for name in found)
    fraction = next((name for name in found if numeric and not float(name).is_integer()), None)
    if fraction is not None:
        raise ValueError(f"{spec}: label {fraction!r} is a measurement, not a class; {_REMEDY}")
    each = _ROWS_EACH if numeric else 1.1
    if len(found) > _MANY and len(present) < each * len(found):
        raise ValueError(f"{spec}: {len(found)} different labels in {len(present)} rows are no classes; {_REMEDY}")
    return found


def find_labels(texts: Sequence[str], names: Sequence[str], spec: str, *, remedy: str = "mend it") -> Labels:
    """Class ids int64 [N] of labels that are texts; -1 where there is none. ``remedy`` is for the error.

    Raises:
        ValueError: A label that is not among the names.
    """
    place = {canonical(name): id_ for id_, name in enumerate(names)}
    labels = np.full(len(texts), -1, dtype=np.int64)
    for row, text in enumerate(texts):
        if text.lower() not in MISSING:
            found = place.get(canonical(text))
            if found is None:
                raise ValueError(
                    f"{spec}: label {text!r} of row {row} is not among the training labels {shown(names)}; {remedy},"
                    " or name all classes with classes=FILE"
                )
            labels[row] = found
    return labels


def one_hot_width(raw: npt.NDArray[np.generic]) -> int:
    """Number of classes that one-hot rows [N, C] have, 0 for labels of another shape."""
    return int(raw.shape[1]) if raw.ndim == 2 and raw.shape[1] > 1 else 0


def _from_zero(labels: npt.NDArray[np.generic], what: str) -> npt.NDArray[np.generic]:
    """Labels that count from 1, counted from 0.

    Raises:
        ValueError: Texts, or a label 0.
    """
    if labels.dtype.kind == "U":
        raise ValueError(f"{what} are texts; first_label=1 is for numbers, leave it out")
    numbers = labels.astype(np.int64)
    if (numbers == 0).any():
        raise ValueError(f"{what}: {int((numbers == 0).sum())} are 0, so they count from 0; leave first_label out")
    return np.where(numbers > 0, numbers - 1, numbers)


def _without_texts(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Texts of which none is a label say nothing of what the other splits' labels are."""
    if part.dtype.kind == "U" and all(text.lower() in MISSING for text in part.tolist()):
        return np.full(len(part), -1, np.int64)
    return part


def _as_texts(part: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """Labels beside texts; a number -1 is no label, and no class of that name either."""
    return part.astype(str) if part.dtype.kind == "U" else np.where(part < 0, "", part.astype(str))


def _check_ids(used: Labels, num_labelled: int, spec: str) -> None:
    """Class ids that nothing but the labels themselves describes."""
    if not len(used):
        tell(f"{spec}: no row has a label, so 2 classes are taken; pass classes=NUMBER, that of the teacher")
        return
    if int(used[0]) == 1:
        raise ValueError(
            f"{spec}: labels run from 1 to {used[-1]} and none is 0; pass first_label=1 when they count from 1, or"
            f" classes={used[-1] + 1} when class 0 has no rows"
        )
    absent = int(used[-1]) + 1 - len(used)
    if absent and len(used) > _MANY and num_labelled < _ROWS_EACH * len(used):
        raise ValueError(f"{spec}: {len(used)} different labels in {num_labelled} rows are no classes; {_REMEDY}")
    if absent:
        tell(f"{spec}: {absent} of {used[-1] + 1} classes have no rows; classes=NUMBER says how many there are")


def _texts(raw: npt.NDArray[Any], what: str) -> npt.NDArray[np.str_]:
    try:
        return np.char.strip(np.char.decode(raw, "utf-8") if raw.dtype.kind == "S" else raw.astype(str))
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} are bytes that are no UTF-8 text ({error}); expected integers or texts") from error


def _whole(raw: npt.NDArray[np.generic], what: str) -> npt.NDArray[np.generic]:
    values = raw.astype(np.float64)
    absent = np.isnan(values)
    values = np.where(absent, -1, values)
    odd = (values != np.floor(values)) | (np.abs(values) > 2**53)
    if odd.any():
        raise ValueError(f"{what}: {values[odd][0]:g} is a measurement, not a class; {_REMEDY}")
    return values


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and np.isfinite(float(text)).item()
    except ValueError:
        return False


def _class_order(name: str) -> tuple[int, float, str]:
    return (0, float(name), name) if _is_number(name) else (1, 0.0, name)
