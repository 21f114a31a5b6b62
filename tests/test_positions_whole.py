"""Stores of 128 positions are killed, resumed, copied, merged, cut, extended and verified as others are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from logitbank.pipeline.alignment import check_data, describe_examples
from logitbank.pipeline.cache_teacher.extend import extend_views
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.views import Views
from logitbank.stores import Cell, RowArray, StoreError, TeacherWriter, copy_store, create_store, open_store
from logitbank.stores.format.schema import ROW_ARRAYS
from logitbank.stores.read.gather import RowReader
from logitbank.stores.read.verify import verify_store
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.positions import LENGTHS, encodings, make_logits, write_files
from tests.sharing import contents
from tests.workers import Telling

L, N, C, BLOCK_ROWS = 128, 24, 8, 6
ENCODING = encodings(C)["topk+tail"]


class Fixed(ArrayTeacher):
    """The same teacher, whatever file its answers are in."""

    def identity(self) -> dict[str, Any]:
        return {"architecture": "fixed", "weights_sha256": ["0"], "preprocessing": [], "precision": "float32"}


def teacher_of(folder: Path, num_views: int = 1, *, limit: str = "") -> Fixed:
    """To the first views of a file of two."""
    split = load_split(f"npz:{folder}/data.npz?positions={L}&classes={C}{limit}")
    path = folder / f"{num_views}.npy"
    if not path.exists():
        np.save(path, np.load(folder / "views.npy")[:num_views])
    return Fixed(path, split, Views(num_views=num_views), plan=FoldPlan(num_folds=2, strategy="group", seed=0))


def cached(folder: Path, out: Path, num_views: int = 1) -> Path:
    teacher = teacher_of(folder, num_views)
    cache_teacher(teacher, out, encoding=ENCODING, predictor_rows=800, block_rows=BLOCK_ROWS)
    return out


def work(folder: Path, out: Path, say: Any) -> None:
    def tell(progress: Any) -> None:
        if progress.rows:
            say.send(progress.done)

    teacher = teacher_of(folder, 2)
    cache_teacher(teacher, out, encoding=ENCODING, predictor_rows=800, block_rows=BLOCK_ROWS, on_progress=tell)


def without_root(path: Path) -> dict[str, bytes]:
    """All files but the store's own document, which says when it was made."""
    return {name: data for name, data in contents(path).items() if name != "zarr.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, two views of logits, and stores ``one`` and ``two`` of as many."""
    folder = tmp_path_factory.mktemp("whole")
    write_files(folder, N, L, C, ragged=True)
    first = np.load(folder / "logits.npy")
    np.save(folder / "views.npy", np.stack([first, make_logits(N, L, C, seed=1)[0]]))
    cached(folder, folder / "one.zarr")
    cached(folder, folder / "two.zarr", 2)
    return folder


def test_killed_passes_end_with_the_bytes_of_an_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    for num_blocks in (1, 2):
        Telling(work, folder, out).kill(num_blocks)
        assert not open_store(out, allow_incomplete=True).teacher().complete
        assert any("unfinished" in problem.message for problem in verify_store(out))
    Telling(work, folder, out).wait()
    assert without_root(out) == without_root(folder / "two.zarr")
    assert verify_store(out) == []


def test_more_views_give_the_bytes_of_all_at_once(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder / "one.zarr", allow_incomplete=True)
    extend_views(store, teacher_of(folder, 2), tmp_path / "grown.zarr")
    assert without_root(tmp_path / "grown.zarr") == without_root(folder / "two.zarr")
    check_data(open_store(tmp_path / "grown.zarr"), teacher_of(folder).split)


def test_parts_put_together_are_the_whole(folder: Path, tmp_path: Path) -> None:
    whole = open_store(folder / "two.zarr")
    order = np.random.default_rng(0).permutation(N)
    parts = []
    for number, rows in enumerate(np.array_split(order, 3)):
        parts.append(tmp_path / f"part{number}.zarr")
        subset_store(folder / "two.zarr", parts[-1], rows, describe=describe_examples)
        assert (open_store(parts[-1]).labels == whole.labels[rows]).all()
    merge_stores(parts, tmp_path / "merged.zarr", describe=describe_examples)
    merged = open_store(tmp_path / "merged.zarr")
    assert verify_store(merged.path) == []
    assert (merged.labels == whole.labels[order]).all()
    for view in range(2):
        slab = whole.teacher().slab(view)
        for name, values in merged.teacher().slab(view).items():
            np.testing.assert_array_equal(values, slab[name][order])
            few = np.array([3, 23, 0])
            np.testing.assert_array_equal(RowReader(merged.teacher()).take(view, few)[name], values[few])


def test_a_teacher_of_some_examples_is_masked_at_all_positions(folder: Path, tmp_path: Path) -> None:
    """Two stores that overlap in a third of the examples, and one whose teacher has another name."""
    for name, rows in (("a", np.arange(16)), ("b", np.arange(8, N))):
        subset_store(folder / "one.zarr", tmp_path / f"{name}.zarr", rows, describe=describe_examples)
    merge_stores(
        [tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "m.zarr", names=["a", "b"], describe=describe_examples
    )
    merged = open_store(tmp_path / "m.zarr")
    assert verify_store(merged.path) == []
    there = open_store(folder / "one.zarr").teacher().slab(0)["mask"]
    for name, rows in (("a", np.arange(16)), ("b", np.arange(8, N))):
        mask = merged.teacher(name).slab(0, ["mask"])["mask"]
        expected = np.zeros_like(there)
        expected[rows] = there[rows]
        np.testing.assert_array_equal(mask, expected)


def test_stores_of_other_positions_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_files(other, N, 7, C)
    split = load_split(f"npz:{other}/data.npz?positions=7&classes={C}")
    cache_teacher(ArrayTeacher(other / "logits.npy", split, Views()), tmp_path / "7.zarr", encoding=ENCODING)
    with pytest.raises(StoreError, match=r"num_positions is 128 .* and 7"):
        merge_stores([folder / "one.zarr", tmp_path / "7.zarr"], tmp_path / "m.zarr", describe=describe_examples)
    with pytest.raises(ValueError, match="has labels at 128 positions, .* has labels at 7 positions"):
        check_data(open_store(folder / "one.zarr"), split)


def test_copies_are_the_same(folder: Path, tmp_path: Path) -> None:
    whole = contents(folder / "two.zarr")
    copy_store(folder / "two.zarr", tmp_path / "s.zarr.zip")
    copy_store(tmp_path / "s.zarr.zip", tmp_path / "back.zarr")
    assert contents(tmp_path / "back.zarr") == whole
    copy_store(folder / "two.zarr", tmp_path / "one.zarr", num_views=1)
    assert verify_store(tmp_path / "one.zarr") == []


@pytest.mark.parametrize("damaged", ["teachers/teacher/index", "teachers/teacher/mask", "examples/label"])
def test_a_flipped_bit_is_found(folder: Path, tmp_path: Path, damaged: str) -> None:
    copy_store(folder / "one.zarr", tmp_path / "s.zarr")
    file = max((p for p in (tmp_path / "s.zarr" / damaged / "c").rglob("*") if p.is_file()), key=str)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(bytes(data))
    assert any(problem.array == damaged for problem in verify_store(tmp_path / "s.zarr"))


@pytest.mark.parametrize("length", LENGTHS)
def test_any_rows_come_back_and_plain_zarr_reads_them(length: int, tmp_path: Path) -> None:
    """Every array that the format knows, in blocks with padding; the file of one position is that of none."""
    rng, top_k, num_views = np.random.default_rng(0), 3, 2
    row_shapes = {"index": (top_k,), "log_prob": (top_k,), "log_prob_code": (top_k,), "logit": (C,), "tail_code": (5,)}
    arrays = {
        name: RowArray(dtype=spec.dtypes[0], row_shape=row_shapes.get(name, (2,) * len(spec.row_dims)))
        for name, spec in ROW_ARRAYS.items()
    }
    made: dict[str, Path] = {}
    for kind, positions in (("positions", length), ("none", None)):
        lead = () if positions is None else (positions,)
        said = {} if positions is None else {"num_positions": positions}
        made[kind] = tmp_path / f"{kind}.zarr"
        create_store(
            made[kind],
            dataset={"num_examples": N, "num_classes": C, **said},
            views={"num_views": num_views},
            keys=np.arange(N, dtype=np.uint64),
            labels=np.zeros((N, *lead), np.int64),
        )
        at = {name: array.at(positions) for name, array in arrays.items()}
        writer = TeacherWriter(made[kind], "t", identity={}, encoding={"top_k": top_k}, arrays=at, block_rows=7)
        rng = np.random.default_rng(0)
        values = {
            name: rng.integers(0, 2, (num_views, N, *array.row_shape)).astype(array.dtype) for name, array in at.items()
        }
        for view, block in writer.cells():
            rows = writer.rows(block)
            writer.write(Cell(view, block), {name: array[view, rows] for name, array in values.items()})
        writer.finish(fidelity={})
        teacher = open_store(made[kind]).teacher()
        assert verify_store(made[kind], rows=False) == []
        for name, array in values.items():
            for view in range(num_views):
                np.testing.assert_array_equal(teacher.slab(view, [name])[name], array[view])
            plain = zarr.open_array(str(made[kind] / "teachers" / "t" / name), mode="r")
            np.testing.assert_array_equal(np.asarray(plain[:])[:, :N], array)
            names = plain.metadata.dimension_names  # type: ignore[union-attr]
            assert names is not None
            assert names[:2] == ("view", "example")
            assert (names[2:3] == ("position",)) == (positions is not None)
    for name, array_of in arrays.items() if length == 1 else ():
        files = [
            made[kind] / "teachers" / "t" / name / "/".join(["c/1/2", *"0" * (len(array_of.row_shape) + more)])
            for kind, more in (("positions", 1), ("none", 0))
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
