"""Arrays in a .npz file: x and y, and x_test and y_test when the file has a test split of its own."""

import zipfile
from pathlib import Path

import numpy as np

from pipeline.datasets.split import Split


def load_npz(path: str, *, split: str = "train", classes: str = "") -> Split:
    """Images (uint8 [N, H, W] or [N, H, W, C]) or table rows ([N, D], read as float32) from a .npz file.

    Args:
        path: The file. Arrays ``x`` and ``y`` are the training split; ``x_test`` and ``y_test`` the test split. A label
            of -1 marks an unlabelled row. Integers ``group`` (``group_test``) [N] name rows that share a fold.
        split: "train" or "test".
        classes: Number of classes; the default is the largest label of the whole file plus one.

    Raises:
        ValueError: Missing file or arrays, or arrays of another kind.
    """
    spec = f"npz:{path}?split={split}" + (f"&classes={classes}" if classes else "")
    if split not in ("train", "test"):
        raise ValueError(f"{spec}: no split {split!r}; use split=train or split=test")
    suffix = "_test" if split == "test" else ""
    if not Path(path).is_file():
        raise ValueError(f"{spec}: no such file {path!r}; expected a .npz file with arrays x and y")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in (f"x{suffix}", f"y{suffix}") if name not in file]
            if missing:
                raise ValueError(f"{spec}: array {missing[0]!r} is missing; found {', '.join(file.files) or 'none'}")
            samples, labels = file[f"x{suffix}"], file[f"y{suffix}"]
            groups = file.get(f"group{suffix}")
            largest = max(
                (int(file[name].max()) for name in ("y", "y_test") if name in file and file[name].size),
                default=0,
            )
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"{spec}: not a readable .npz file ({error})") from error
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ValueError(f"{spec}: labels are {labels.dtype} {labels.shape}; expected integers [N]")
    if groups is not None and (groups.shape != labels.shape or not np.issubdtype(groups.dtype, np.integer)):
        raise ValueError(f"{spec}: group is {groups.dtype} {groups.shape}; expected integers [{len(labels)}]")
    return Split(
        name=Path(path).stem,
        split=split,
        spec=spec,
        samples=_as_samples(samples, spec),
        labels=labels.astype(np.int64),
        num_classes=int(classes) if classes else largest + 1,
        groups=None if groups is None else groups.astype(np.uint64),
    )


def _as_samples(samples: np.ndarray, spec: str) -> np.ndarray:
    if samples.ndim in (3, 4) and samples.dtype == np.uint8:
        return np.ascontiguousarray(samples[..., None] if samples.ndim == 3 else samples)
    if samples.ndim == 2 and np.issubdtype(samples.dtype, np.number):
        rows = np.ascontiguousarray(samples, dtype=np.float32)
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        if bad:
            raise ValueError(f"{spec}: {bad} rows hold NaN or infinite values; fill or drop them first")
        return rows
    raise ValueError(
        f"{spec}: x is {samples.dtype} {samples.shape}; expected uint8 images [N, H, W] or [N, H, W, C],"
        " or a numeric table [N, D]"
    )
