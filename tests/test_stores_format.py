"""The format as README.md states it and as schema.py has it are one; stores written long ago are still read.

The golden stores are written by `tests/golden/make.py`; its docstring says when.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from logitbank.stores import FORMAT, VERSION, RowArray, StoreError, open_store, verify_store
from logitbank.stores.format.schema import (
    CELL_ARRAYS,
    CONSTANTS,
    EXAMPLE_ARRAYS,
    MAX_BLOCK_ROWS,
    ROW_ARRAYS,
    ArraySpec,
    check_row_arrays,
    constant_spec,
    default_block_rows,
)
from tests.golden.make import KINDS, answers, write

README = Path(__file__).parents[1] / "stores" / "README.md"
GOLDEN = Path(__file__).parent / "golden"


def table() -> str:
    """The table of all arrays, in Markdown."""
    lines = ["| array | dims | dtype | unit | meaning |", "|---|---|---|---|---|"]

    def add(group: str, dims: tuple[str, ...], arrays: dict[str, ArraySpec]) -> None:
        for name, spec in arrays.items():
            shape = ", ".join((*dims, *spec.row_dims)) or "any"
            dtype = ", ".join(spec.dtypes) if len(spec.dtypes) < 6 else "any number"
            lines.append(f"| `{group}{name}` | {shape} | {dtype} | {spec.unit} | {spec.doc} |")

    add("examples/", ("example",), EXAMPLE_ARRAYS)
    add("teachers/*/", ("view", "example"), ROW_ARRAYS)
    add("teachers/*/", ("view", "block"), CELL_ARRAYS)
    add("teachers/*/", (), {name: constant_spec(name) for name in CONSTANTS})
    return "\n".join(lines) + "\n"


def test_readme_has_the_table_of_the_schema() -> None:
    text = README.read_text()
    found = text[text.index("| array |") :] if "| array |" in text else ""
    assert found == table(), "put this at the end of stores/README.md:\n" + table()
    assert f"format version {VERSION}" in text
    assert FORMAT in text


def golden_sums() -> str:
    """A line for each golden file or store: the sha256 of its bytes, or of the names and bytes of its files."""
    lines = []
    for golden in sorted((*GOLDEN.glob("*.zarr"), *(GOLDEN / "decoded").glob("*.*"))):
        digest = hashlib.sha256()
        for file in sorted(golden.rglob("*")) if golden.is_dir() else (golden,):
            if file.is_file():
                digest.update(f"{file.relative_to(GOLDEN).as_posix()}\0{file.stat().st_size}\0".encode())
                digest.update(file.read_bytes())
        lines.append(f"{digest.hexdigest()}  {golden.relative_to(GOLDEN).as_posix()}\n")
    return "".join(lines)


def test_golden_stores_are_never_rewritten() -> None:
    """A new one adds a line."""
    there = (GOLDEN / "SHA256SUMS").read_text()
    assert golden_sums() == there, f"restore what changed; where one was added, SHA256SUMS is\n{golden_sums()}"


@pytest.mark.parametrize("kind", KINDS)
def test_golden_stores_are_read_for_ever(kind: str) -> None:
    path = GOLDEN / f"{kind}.zarr"
    assert verify_store(path, rows=False) == []  # bytes made of integers: no teacher says such things
    store = open_store(path)
    teacher = store.teacher()
    for view in range(store.num_views):
        slab = teacher.slab(view)
        for name, values in answers(kind, view).items():
            assert slab[name].dtype == values.dtype
            np.testing.assert_array_equal(slab[name], values)
            plain = zarr.open_array(str(path / "teachers" / "golden" / name), mode="r")
            np.testing.assert_array_equal(np.asarray(plain[view])[: store.num_examples], values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_store_reads_like_the_golden_one(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "new.zarr")
    new, old = open_store(tmp_path / "new.zarr"), open_store(GOLDEN / f"{kind}.zarr")
    assert new.dataset == old.dataset
    for file in sorted((GOLDEN / f"{kind}.zarr").rglob("zarr.json")):
        document = json.loads(file.read_text())
        again = json.loads((tmp_path / "new.zarr" / file.relative_to(GOLDEN / f"{kind}.zarr")).read_text())
        assert (again["attributes"].pop("examples_sha256", None) is not None) == ("cells_sha256" in again["attributes"])
        for field in ("created", "digest", "examples_sha256"):  # the oldest have no examples_sha256
            document["attributes"].pop(field, None)
            again["attributes"].pop(field, None)
        assert again == document, file
    for view in range(new.num_views):
        one, two = new.teacher().slab(view), old.teacher().slab(view)
        assert {name: values.tobytes() for name, values in one.items()} == {
            name: values.tobytes() for name, values in two.items()
        }


def test_blocks_are_of_a_sensible_size() -> None:
    slim = {"index": RowArray(dtype="uint16", row_shape=(10,))}
    dense = {"logit": RowArray(dtype="float32", row_shape=(21_841,))}
    endless = {"logit": RowArray(dtype="float32", row_shape=(2**31,))}
    assert default_block_rows(100, slim) == 100
    assert default_block_rows(10_000, slim) == 1024
    assert default_block_rows(50_000, slim) == 3328
    assert default_block_rows(1_281_167, slim) == 80_128
    assert default_block_rows(10**9, slim) == MAX_BLOCK_ROWS
    assert default_block_rows(10**7, dense) == 3072
    assert default_block_rows(10**7, endless) == 1


@pytest.mark.parametrize("num_views", [1, 3, 8, 90])
@pytest.mark.parametrize("num_examples", [100, 5_000, 50_000, 1_281_167])
def test_blocks_leave_work_for_every_writer(num_examples: int, num_views: int) -> None:
    """At least four cells each, unless their blocks would have under 256 rows; as for one writer where that has."""
    slim = {"index": RowArray(dtype="uint16", row_shape=(10,))}
    alone = default_block_rows(num_examples, slim, num_views=num_views)
    assert alone == default_block_rows(num_examples, slim)
    for num_writers in (2, 4, 8, 64, 1000, 999_999):
        rows = default_block_rows(num_examples, slim, num_views=num_views, num_writers=num_writers)
        cells = num_views * -(-num_examples // rows)
        assert rows <= alone
        if num_writers <= 4 * num_views:
            assert rows == alone
        elif rows > 256 and num_writers <= 1024:
            assert cells >= 4 * num_writers
        assert cells <= 2 * (num_views * 16 + 4 * 1024)


def test_arrays_must_agree_with_the_encoding() -> None:
    index = RowArray(dtype="uint8", row_shape=(5,))
    check_row_arrays({"index": index}, num_classes=9, encoding={"top_k": 5})
    for arrays in (
        {},
        {"index": RowArray(dtype="uint8", row_shape=(4,))},
        {"index": RowArray(dtype="int8", row_shape=(5,))},
        {"index": RowArray(dtype="uint8")},
        {"index": index, "log_prob": RowArray(dtype="float16", row_shape=(4,))},
        {"log_prob": RowArray(dtype="float16", row_shape=(5,))},
        {"logit": RowArray(dtype="float32", row_shape=(8,))},
        {"surprise": index},
        {"index": RowArray(dtype="object", row_shape=(5,))},
    ):
        with pytest.raises(StoreError):
            check_row_arrays(arrays, num_classes=9, encoding={"top_k": 5})
