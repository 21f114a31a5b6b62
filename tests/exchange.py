"""For tests of exports and of teachers that have already spoken: small data, stores of it, and plain readers."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.views import Views

N, C, V = 120, 10, 2
FLIPS = Views(transform="flip-crop", num_views=V, seed=3)
Array = npt.NDArray[Any]


def make_data(path: Path, order: Array | None = None) -> Split:
    """N images of C classes; two are the same to the last bit, one has no label. ``order`` rearranges them."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (N, 8, 8), dtype=np.uint8), np.arange(N) % C
    x[7], y[7], y[11] = x[17], y[17], -1
    order = np.arange(N) if order is None else order
    np.savez(path, x=x[order], y=y[order])
    return load_split(f"npz:{path}?classes={C}")


def make_logits(num_views: int = V, seed: int = 0) -> npt.NDArray[np.float32]:
    """Logits [V, N, C] that know the labels, more or less."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_views, N, C)) * 2
    logits[:, np.arange(N), np.arange(N) % C] += 3
    return logits.astype(np.float32)


def make_store(
    folder: Path, split: Split, encoding: Encoding, *, views: Views = FLIPS, plan: FoldPlan | None = None
) -> Path:
    """A store of ``make_logits`` in blocks of 50 rows."""
    np.save(folder / "logits.npy", make_logits(views.num_views))
    answers = ArrayTeacher(folder / "logits.npy", split, views, plan=plan)
    cache_teacher(answers, folder / "s.zarr", encoding=encoding, block_rows=50, predictor_rows=80)
    return folder / "s.zarr"


def read_plain(path: Path) -> dict[str, Array]:
    """All arrays of an export, [V, N, ...], and ``store``, its document, with numpy, pyarrow and tarfile alone."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name] if name != "store" else json.loads(str(file[name])) for name in file.files}
    if path.suffix == ".parquet":
        return _read_parquet(path)
    return _read_tars(sorted(path.glob("*.tar")) if path.is_dir() else [path])


def _read_parquet(path: Path) -> dict[str, Array]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    found: dict[str, Any] = {"store": json.loads(table.schema.metadata[b"store"])}
    num_views = found["store"]["views"]["num_views"]
    for name in table.column_names:
        dtype = {"key": "uint64"}.get(name) or found["store"]["arrays"].get(name, {}).get("dtype")
        values = np.array(table[name].to_pylist(), dtype=dtype)
        found[name] = values.reshape(num_views, -1, *values.shape[1:])
    views = found.pop("view")
    assert (views == np.arange(num_views)[:, None]).all()
    for name in {"key", "label", "fold"} & set(found):
        assert (found[name] == found[name][0]).all()
        found[name] = found[name][0]
    return found


def _read_tars(paths: list[Path]) -> dict[str, Array]:
    samples: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                file = tar.extractfile(member)
                assert file is not None
                name, _, ending = member.name.partition(".")
                if name == "__store__":
                    found["store"] = json.load(file)
                elif ending == "json":
                    samples.setdefault(name, {}).update(json.load(file))
                else:
                    samples[name][ending.removesuffix(".npy")] = np.load(io.BytesIO(file.read()))
    rows = list(samples.values())
    assert all(name[:16] == row["key"] for name, row in samples.items())
    found["key"] = np.array([int(row.pop("key"), 16) for row in rows], dtype=np.uint64)
    for name in rows[0]:
        dtype = found["store"]["arrays"].get(name, {}).get("dtype")
        values = [row[name] for row in rows]
        if dtype == "float32":  # JSON has no infinity and no NaN
            missing = [np.nan if name == "label_log_prob" and row["label"] < 0 else -np.inf for row in rows]
            values = [
                [gap if number is None else number for number in value] if isinstance(value, list) else value
                for value, gap in zip(values, missing, strict=True)
            ]
        array = np.array(values, dtype=dtype)
        found[name] = array if array.ndim == 1 else np.moveaxis(array, 0, 1)
    return found
