"""Writing a teacher's rows: whole cells that are there or not there."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from logitbank.stores.files import (
    PARTIAL,
    claim_file,
    make_folders,
    partial_path,
    remove_abandoned,
    sync_folder,
    write_document,
    write_file,
    writing,
)
from logitbank.stores.format.documents import Document, as_json, group_document, raw_sha256, sealed
from logitbank.stores.format.layout import file_name
from logitbank.stores.format.schema import (
    CELL_ARRAYS,
    Cell,
    RowArray,
    StoreError,
    check_block_rows,
    check_name,
    check_row_arrays,
    constant_spec,
    default_block_rows,
)
from logitbank.stores.read.blocks import REMEDY, open_array
from logitbank.stores.read.cells import array_plan, checksum_value, commit_value, encoded, load_teacher
from logitbank.stores.read.reader import open_store
from logitbank.stores.read.teacher import Teacher
from logitbank.stores.write.create import build_folder, first_difference, static_array

_NOTES = "notes"  # a folder that the format does not name, gone when the teacher is finished


def link_file(there: Path, path: Path) -> bool:
    """Make `path` another name of the file `there`, durably; False when it cannot be: another disk, or no hard links.

    No file of a store is ever changed in place, so stores may share them.
    """
    building = partial_path(path)
    make_folders(path.parent)
    try:
        os.link(there.resolve(), building)
        building.replace(path)
    except OSError:
        return False
    finally:
        building.unlink(missing_ok=True)  # when both are names of one file, the rename does nothing
    sync_folder(path.parent)
    return True


class TeacherWriter:
    """Writes one teacher's rows, cell by cell; any number of processes may do so for disjoint parts.

    Args:
        path: Folder of a store.
        name: Name of the teacher in the store.
        identity: What makes the teacher this teacher: architecture, sha256 of its weights, preprocessing, ...
        encoding: How logits became arrays.
        arrays: Arrays of a row, by the names of the format.
        folds: Folds of a cross-fitted teacher.
        constants: Arrays that belong to the encoding and not to a row.
        block_rows: Rows of a block; when left out those of the teacher that is there, or chosen.
        num_writers: How many processes will write; blocks that are chosen leave cells for each.
        summary: What is known of a teacher that is begun here, such as what decided its encoding; `finish` replaces it.

    Raises:
        StoreError: the teacher is there already and differs, or the description is wrong.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        *,
        identity: Mapping[str, Any],
        encoding: Mapping[str, Any],
        arrays: Mapping[str, RowArray],
        folds: Mapping[str, Any] | None = None,
        constants: Mapping[str, np.ndarray] | None = None,
        block_rows: int | None = None,
        num_writers: int = 1,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        self._store = open_store(path, allow_incomplete=True)
        self._root = Path(path).resolve()
        self._where = self._root / "teachers" / check_name(name, "teacher")
        self.name = name
        self.arrays: Mapping[str, RowArray] = dict(arrays)
        attributes = {
            "identity": as_json(dict(identity), "identity"),
            "encoding": as_json(dict(encoding), "encoding"),
            "folds": None if folds is None else as_json(dict(folds), "folds"),
            "arrays": {key: {"dtype": a.dtype, "row_shape": list(a.row_shape)} for key, a in sorted(arrays.items())},
        }
        check_row_arrays(
            arrays,
            num_classes=self._store.num_classes,
            encoding=attributes["encoding"],
            positions=self._store.positions,
            version=self._store.version,
        )
        with writing(str(self._where)):
            self._create_or_check(
                attributes, constants or {}, block_rows, num_writers, as_json(dict(summary or {}), "summary")
            )
        self._teacher = self._load()
        self.block_rows: int = self._teacher.block_rows
        self.num_blocks: int = self._teacher.num_blocks
        self._targets = {key: open_array(self._root, f"teachers/{name}/{key}") for key in self.arrays}

    def cells(self) -> list[Cell]:
        """All cells, in order."""
        return [Cell(view, block) for view in range(self._store.num_views) for block in range(self.num_blocks)]

    def pending(self) -> list[Cell]:
        """Cells without a commit, in order."""
        return [Cell(view, block) for view, block in self._load().uncommitted()]

    def is_committed(self, cell: Cell) -> bool:
        """Whether a cell is there by now, whoever wrote it."""
        return self._commit_path(Cell(*cell)).exists()

    def rows(self, block: int) -> slice:
        """Rows of a block."""
        return self._teacher.rows(block)

    def files(self, cell: Cell) -> list[Path]:
        """The files of a cell in the order in which they are written: its rows, its checksums, its commit."""
        checksum = self._where / "checksum" / file_name((*cell, 0))
        return [*(self._row_path(name, cell) for name in sorted(self.arrays)), checksum, self._commit_path(cell)]

    def reserve(self, cell: Cell) -> bool:
        """Whether nobody else answers a cell: in a folder that all share, locks beside the store say that."""
        return True

    def gather(self) -> None:
        """Bring what `finish` needs: in a folder, it is there."""

    def write(
        self,
        cell: Cell,
        arrays: Mapping[str, np.ndarray],
        *,
        same_files: Mapping[str, Path] | None = None,
        note: bytes | None = None,
    ) -> None:
        """Write the rows of one cell durably, then commit it.

        A cell that holds these very rows already is left alone.

        Args:
            cell: View and block.
            arrays: [rows, *row_shape] for every array of the teacher; the shape begins with the positions, if any.
            same_files: Files that hold these very rows as this teacher would write them, by array name: they get
                another name instead of being written, where the disk can do so.
            note: What whoever finishes the teacher is to know of these rows.

        Raises:
            StoreError: an array is missing or of another shape or dtype, the disk refuses, or another writer
                has put other rows into this cell.
        """
        cell = Cell(*cell)
        view, block = cell
        rows = self.rows(block)
        if not 0 <= view < self._store.num_views:
            raise StoreError(f"view must be 0 to {self._store.num_views - 1}, found {view}")
        self._check_rows(arrays, rows.stop - rows.start)
        checksums = np.array([checksum_value(arrays[name]) for name in sorted(self.arrays)], dtype=np.uint32)
        commit = commit_value(checksums)
        found = self._committed(cell)
        if found == commit:
            return
        if found:
            raise self._disagreement(cell, "holds")
        with writing(f"view {view} block {block} of {self._where}"):
            whole = slice(block * self.block_rows, (block + 1) * self.block_rows)
            for name, values in sorted(arrays.items()):
                there = (same_files or {}).get(name)
                if there is None or not link_file(there, self._row_path(name, cell)):
                    self._targets[name][view, whole] = self._padded(values)
            write_file(self._where / "checksum" / file_name((view, block, 0)), encoded(checksums))
            if note is not None:
                write_file(self._note_path(cell), _note_file(note, commit))
            path = self._commit_path(cell)
            if not claim_file(path, encoded(np.array([commit]))) and self._committed(cell) != commit:
                path.unlink(missing_ok=True)  # nobody knows whose bytes lie there now
                raise self._disagreement(cell, "was given")

    def note(self, cell: Cell) -> bytes | None:
        """What was noted of the very rows that are committed in a cell; None where there is nothing sound."""
        try:
            data = self._note_path(Cell(*cell)).read_bytes()
        except OSError:
            return None
        note = data[4:-4]
        return note if data == _note_file(note, self._committed(Cell(*cell))) else None

    def finish(self, *, fidelity: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> None:
        """Declare the teacher complete and record what was measured.

        Args:
            fidelity: How close decoded rows are to the teacher's answers.
            summary: Other figures about the teacher, such as its out-of-fold accuracy.

        Raises:
            StoreError: a cell is not committed.
        """
        measured = {
            "fidelity": as_json(dict(fidelity), "fidelity"),
            "summary": as_json(dict(summary or {}), "summary"),
        }
        teacher = self._load()
        missing = teacher.uncommitted()
        if missing:
            total = self._store.num_views * self.num_blocks
            first = f"first view {missing[0][0]} block {missing[0][1]}"
            raise StoreError(
                f"{self._where}: cannot finish, {len(missing)} of {total} cells are not committed, {first}; "
                "run the command that writes it again"
            )
        documents = load_teacher(self._root, self.name, self._store.examples_sha256)
        done = {
            "complete": True,
            "examples_sha256": self._store.examples_sha256,
            "cells_sha256": raw_sha256(teacher.committed()),
            **measured,
        }
        top = {**documents[""], "attributes": {**documents[""]["attributes"], **done}}
        with writing(str(self._where)):
            self._remove_abandoned()
            shutil.rmtree(self._where / _NOTES, ignore_errors=True)  # a finished store does not tell how it was written
            write_document(self._where, sealed({**documents, "": top})[""])

    def _load(self) -> Teacher:
        """The teacher as it lies there now."""
        return Teacher(self._root, self.name, self._store.attributes, self._store, allow_incomplete=True)

    def _create_or_check(
        self,
        attributes: dict[str, Any],
        constants: Mapping[str, np.ndarray],
        block_rows: int | None,
        num_writers: int,
        summary: dict[str, Any],
    ) -> None:
        for name in constants:
            if check_name(name, "constant") in {*self.arrays, *CELL_ARRAYS}:
                raise StoreError(f"constant {name!r} has the name of an array per row; rename it")
        statics = {name: static_array(name, values, constant_spec(name)) for name, values in constants.items()}
        remove_abandoned(self._where.parent)
        if not self._where.exists():
            size, positions = (self._store.num_examples, self._store.num_views), self._store.positions
            chosen = default_block_rows(
                size[0], self.arrays, positions=positions, num_views=size[1], num_writers=num_writers
            )
            rows = check_block_rows(chosen if block_rows is None else block_rows, *size, self.arrays)
            top = {
                **attributes,
                "examples_sha256": self._store.examples_sha256,
                "block_rows": rows,
                "complete": False,
                "fidelity": {},
                "summary": summary,
            }
            documents = {"": group_document(top)}
            for name in (*sorted(self.arrays), *CELL_ARRAYS):
                documents[name] = array_plan(name, self.arrays, size[1], size[0], rows, positions)[1]
            documents |= {name: document for name, (_, document) in statics.items()}
            build_folder(self._where, sealed(documents), {name: values for name, (values, _) in statics.items()})
        self._check_same(attributes, statics, block_rows)

    def _check_same(
        self,
        attributes: dict[str, Any],
        statics: Mapping[str, tuple[np.ndarray, Document]],
        block_rows: int | None,
    ) -> None:
        there = load_teacher(self._root, self.name, self._store.examples_sha256)
        has = there[""]["attributes"]
        wants = {**attributes, "block_rows": block_rows or has["block_rows"]}
        differences = [first_difference(part, has[part], value) for part, value in wants.items()]
        for name in sorted({*there, *statics} - {"", *has["arrays"], *CELL_ARRAYS}):
            old = there[name]["attributes"].get("sha256") if name in there else None
            new = statics[name][1]["attributes"]["sha256"] if name in statics else None
            differences.append(first_difference(f"constant {name}", old, new))
        difference = next(filter(None, differences), None)
        if difference:
            raise StoreError(f"{self._where} is another teacher: {difference}; use another name or the same settings")
        if not has["complete"]:
            self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        """What killed writers were writing."""
        for folder, folders, files in os.walk(self._where):  # what another one removes meanwhile is passed over
            if any(name.endswith(PARTIAL) for name in (*folders, *files)):
                remove_abandoned(Path(folder))

    def _check_rows(self, arrays: Mapping[str, np.ndarray], num_rows: int) -> None:
        if set(arrays) != set(self.arrays):
            raise StoreError(f"a cell must have {', '.join(sorted(self.arrays))}, found {', '.join(sorted(arrays))}")
        for name, array in self.arrays.items():
            shape, found = (num_rows, *array.row_shape), arrays[name]
            if found.shape != shape or found.dtype != np.dtype(array.dtype):
                want = f"{array.dtype} {list(shape)}"
                raise StoreError(f"array {name} must be {want}, found {found.dtype} {list(found.shape)}")

    def _padded(self, values: np.ndarray) -> np.ndarray:
        if len(values) == self.block_rows:
            return np.ascontiguousarray(values)
        padded = np.zeros((self.block_rows, *values.shape[1:]), dtype=values.dtype)
        padded[: len(values)] = values
        return padded

    def _committed(self, cell: Cell) -> int:
        """The cell's commit, 0 when there is none."""
        path = self._commit_path(cell)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return 0
        value = int.from_bytes(data[:4], "little")
        if data != encoded(np.array([value])):
            raise StoreError(f"{path} is damaged; {REMEDY}")
        return value

    def _row_path(self, name: str, cell: Cell) -> Path:
        return self._where / name / file_name((*cell, *(0 for _ in self.arrays[name].row_shape)))

    def _note_path(self, cell: Cell) -> Path:
        return self._where / _NOTES / file_name(cell)

    def _commit_path(self, cell: Cell) -> Path:
        return self._where / "committed" / file_name(cell)

    def _disagreement(self, cell: Cell, what: str) -> StoreError:
        return StoreError(
            f"{self._where}: view {cell.view} block {cell.block} {what} other rows than those to be written: "
            "two writers disagree; use one teacher on one kind of machine, or another name; then run again"
        )


def _note_file(note: bytes, commit: int) -> bytes:
    """The commit of the rows that a note is about, the note, and the crc32c of both."""
    data = commit.to_bytes(4, "little") + note
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")
