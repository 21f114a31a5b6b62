"""``classes=``: how many classes there are, or a file that names them in the order of their ids.

With it a data set that has some of a teacher's classes keeps the teacher's ids.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.spec import read_whole, shown

MAX_CLASSES = 1_000_000
_MAX_BYTES = 2**26


def known_classes(found: Sequence[str], classes: str, spec: str) -> tuple[str, ...]:
    """The names of all classes, in the order of their ids, for data whose labels are names.

    Args:
        found: Names of the training data's classes, in the order that they have without ``classes``.
        classes: Empty; or a number: names that are all whole numbers below it are the ids themselves, else there must
            be as many; or a file with one name a line.
        spec: For errors.

    Raises:
        ValueError: Names that the file lacks, or a number that does not say which ids they have.
    """
    if not classes:
        return tuple(found)
    if not classes.isdecimal():
        names = _read_names(classes, spec)
        unnamed = [name for name in found if name not in set(names)]
        if unnamed:
            raise ValueError(f"{spec}: {classes} lacks {len(unnamed)} classes of the data: {shown(unnamed)}; name all")
        return names
    number = read_whole(spec, "classes", classes, 2, MAX_CLASSES, f"2 to {MAX_CLASSES}, or a file of names")
    if all(_is_id(name, number) for name in found):
        return tuple(map(str, range(number)))
    if number != len(found):
        raise ValueError(
            f"{spec}: classes={number} does not say which ids the {len(found)} classes {shown(found, 3)} have; name all"
            f" {number} in a file, one a line, and pass classes=FILE"
        )
    return tuple(found)


def number_classes(
    labels: npt.NDArray[np.int64], highest: int, own: Sequence[str], classes: str, spec: str
) -> tuple[npt.NDArray[np.int64], int, tuple[str, ...]]:
    """Labels, number of classes and their names, for data whose labels are numbers.

    Args:
        labels: int64 [N], -1 for unlabelled.
        highest: Largest label of the whole data set, other splits included.
        own: Names that the data set gives its ids, or none.
        classes: As for ``known_classes``; a file that names the data set's own classes moves their ids.
        spec: For errors.

    Raises:
        ValueError: Fewer classes than the labels name.
    """
    names, number = tuple(own), len(own) or highest + 1
    if classes and not classes.isdecimal():
        names = known_classes(own, classes, spec)
        if own:
            place = np.array([*map({name: id_ for id_, name in enumerate(names)}.__getitem__, own), -1])
            labels = place[labels]
            highest = int(place.max())
        number = len(names)
    elif classes:
        number = read_whole(spec, "classes", classes, 2, MAX_CLASSES, f"2 to {MAX_CLASSES}, or a file of names")
        names = (*names, *map(str, range(len(names), number))) if names else ()
    if number <= highest or number < len(own):
        raise ValueError(
            f"{spec}: {number} classes, but the data has {max(highest + 1, len(own))}; pass classes=NUMBER of all"
        )
    if number > MAX_CLASSES:
        raise ValueError(f"{spec}: the largest label is {highest}; expected class ids below {MAX_CLASSES}")
    return labels, number, names


def _is_id(name: str, number: int) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 7 and str(int(name)) == name and int(name) < number


def _read_names(file: str, spec: str) -> tuple[str, ...]:
    path = Path(file)
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{spec}: classes is {file!r}, no number and no file of names; give one of them")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{spec}: classes is {file!r}, no number and no readable file of names ({error})") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    again = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not 2 <= len(names) <= MAX_CLASSES or again:
        what = f"names twice: {shown(again)}" if again else f"{len(names)} names"
        raise ValueError(f"{spec}: {file} holds {what}; expected 2 to {MAX_CLASSES} names, one a line, none twice")
    return names
