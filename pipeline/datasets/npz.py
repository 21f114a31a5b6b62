"""Arrays in a .npz file: x and y, and x_test and y_test when the file has a test split of its own."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.labels import one_hot_width, place_labels, read_labels
from logitbank.pipeline.datasets.limits import check_declared
from logitbank.pipeline.datasets.samples import as_samples
from logitbank.pipeline.datasets.spec import check_split, read_one, read_whole, said, shown, spell, tell
from logitbank.pipeline.datasets.split import Split
from logitbank.stores.format.schema import MAX_POSITIONS

ARRAYS = ("x", "y", "group", "x_test", "y_test", "group_test")
LENGTHS = ("length", "length_test")  # read with positions alone
YS: tuple[str, ...] = ("y", "y_test")


def load_npz(
    path: str, *, split: str = "train", classes: str = "", first_label: str = "0", positions: str = ""
) -> Split:
    """Images (uint8 [N, H, W] or [N, H, W, C]) or table rows ([N, D], read as float32) from a .npz file.

    Args:
        path: The file. Arrays ``x`` and ``y`` are the training split; ``x_test`` and ``y_test`` the test split. Labels
            are whole numbers, texts, or one-hot rows; -1 marks an unlabelled row. Integers ``group`` (``group_test``)
            [N] name rows that share a fold.
        split: "train" or "test".
        classes: Number of classes, or a file of their names; the default is the largest label of the file plus one.
        first_label: 1 when labels count from 1.
        positions: L, where examples are answered at L positions each: labels are whole numbers [N, L]. Integers
            ``length`` (``length_test``) [N] say how many of them an example has, the first ones; default: all.

    Raises:
        ValueError: Missing file or arrays, or arrays of another kind.
    """
    given = said({"classes": classes, "first_label": first_label, "positions": positions}, {"first_label": "0"})
    spec = spell("npz", path, {"split": split, **given})
    check_split(spec, split)
    from_one = read_one(spec, "first_label", first_label, ("0", "1")) == "1"
    suffix = "_test" if split == "test" else ""
    num_positions = read_whole(spec, "positions", positions, 1, MAX_POSITIONS, "a number") if positions else 0
    also = (f"group{suffix}", *YS, *((f"length{suffix}",) if positions else ()))
    arrays = _read_arrays(path, (f"x{suffix}", f"y{suffix}"), also, spec)
    samples = as_samples(arrays[f"x{suffix}"], f"{spec}: x{suffix}")
    found = [name for name in YS if name in arrays]
    if positions:
        arrays |= {name: _flat(arrays[name], num_positions, f"{spec}: labels {name}") for name in found}
    parts = {name: read_labels(arrays[name], f"{spec}: labels {name}", from_one=from_one) for name in found}
    chosen = list(parts).index(f"y{suffix}")
    classes = classes or str(one_hot_width(arrays[f"y{suffix}"]) or "")
    labels, num_classes, names = place_labels(list(parts.values()), chosen, classes, spec)
    readable = None
    if positions:
        labels = labels.reshape(-1, num_positions)
        readable = _within(arrays.get(f"length{suffix}"), labels.shape, spec)
        labels = labels if readable is None else np.where(readable, labels, -1)
    return Split(
        name=Path(path).stem,
        split=split,
        spec=spec,
        samples=samples,
        labels=labels,
        num_classes=num_classes,
        class_names=names,
        groups=_as_groups(arrays.get(f"group{suffix}"), len(labels), spec),
        readable=readable,
    )


def load_npz_rows(path: str, *, split: str = "train") -> npt.NDArray[np.generic]:
    """The samples of a file whose labels do not count, or that has none: its array ``x``, or ``x_test``.

    Raises:
        ValueError: As for ``load_npz``.
    """
    spec = spell("npz", path, {"split": split})
    check_split(spec, split)
    name = "x_test" if split == "test" else "x"
    return as_samples(_read_arrays(path, (name,), (), spec)[name], f"{spec}: {name}")


def _flat(labels: npt.NDArray[Any], num_positions: int, what: str) -> npt.NDArray[Any]:
    """Labels [N, L] one after the other, [N * L]."""
    if labels.ndim != 2 or labels.shape[1] != num_positions or labels.dtype.kind not in "iu":
        raise ValueError(f"{what} are {labels.dtype} {list(labels.shape)}; expected whole numbers [N, {num_positions}]")
    return labels.reshape(-1)


def _within(lengths: npt.NDArray[Any] | None, shape: tuple[int, ...], spec: str) -> npt.NDArray[np.bool_] | None:
    """Positions that examples have, bool [N, L]; None: all."""
    if lengths is None:
        return None
    sound = lengths.shape == shape[:1] and lengths.dtype.kind in "iu"
    if not sound or not 0 <= int(lengths.min()) <= int(lengths.max()) <= shape[1]:
        raise ValueError(f"{spec}: length is {lengths.dtype} {list(lengths.shape)}; expected 0 to {shape[1]} a row")
    return np.arange(shape[1]) < lengths[:, None]


def _as_groups(groups: npt.NDArray[Any] | None, num_rows: int, spec: str) -> npt.NDArray[np.uint64] | None:
    if groups is None:
        return None
    if groups.shape != (num_rows,) or not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(f"{spec}: group is {groups.dtype} {list(groups.shape)}; expected integers [{num_rows}]")
    return groups.astype(np.uint64)


def _read_arrays(path: str, needed: tuple[str, ...], also: tuple[str, ...], spec: str) -> dict[str, npt.NDArray[Any]]:
    if not Path(path).is_file():
        raise ValueError(f"{spec}: no such file {path!r}; expected a .npz file with arrays x and y")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in needed if name not in members]
            if missing:
                raise ValueError(f"array {missing[0]!r} is missing; found {shown(members, 12) or 'none'}")
            unread = [name for name in members if name not in (*ARRAYS, *(LENGTHS if set(also) & set(LENGTHS) else ()))]
            if unread:
                tell(f"{spec}: arrays that are not read: {shown(unread)}")
            return {name: _read_array(archive, members[name]) for name in (*needed, *also) if name in members}
    except ValueError as error:
        raise ValueError(f"{spec}: {' '.join(str(error).split())}") from error
    except Exception as error:  # zip, its codecs and numpy raise many kinds on damaged bytes
        said_ = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{spec}: not a readable .npz file ({said_}); write it anew with np.savez") from error


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """One array, whose declared size is compared with what is stored first."""
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as file:
        shape, dtype, offset = _read_header(file)
        if dtype.hasobject:
            raise ValueError(
                f"array {name!r} holds Python objects, which are never unpickled; save it as numbers, without"
                " allow_pickle, such as np.stack(rows)"
            )
        declared = math.prod(shape) * dtype.itemsize
        if declared + offset != info.file_size:
            raise ValueError(f"array {name!r} is damaged: {list(shape)} of {dtype} are not {info.file_size} bytes")
        check_declared(f"array {name!r}", declared, info.compress_size, "store it with np.savez, uncompressed")
    with archive.open(info) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and length of the header of a .npy file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype, file.tell()
