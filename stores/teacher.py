"""One teacher of a store: its rows, checked block by block."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stores.blocks import REMEDY, check_file, check_memory, open_array, read_into, read_static
from stores.cells import (
    array_plan,
    checksum_value,
    commit_value,
    declared_arrays,
    load_teacher,
    read_cells,
)
from stores.documents import check_array, codec_layout, raw_sha256
from stores.layout import Layout, file_name
from stores.schema import (
    CELL_ARRAYS,
    RowArray,
    StoreError,
    check_block_rows,
    check_row_arrays,
    constant_spec,
)

Fault = tuple[str, int | None, int | None, str]  # array, view, block, message

READ_BYTES = 4 * 2**20  # one call of zarr reads at least this, so that its threads have work


class Teacher:
    """Answers of one teacher. Made by `Store.teacher`.

    Args:
        root: Resolved folder of the store.
        name: Name of the teacher, checked.
        attributes: The store's attributes.
        allow_incomplete: Also read a teacher that is not finished.
    """

    def __init__(
        self, root: Path, name: str, attributes: Mapping[str, Any], *, allow_incomplete: bool = False
    ) -> None:
        self.name = name
        self._root = root
        self._where = root / "teachers" / name
        self.num_examples: int = attributes["dataset"]["num_examples"]
        self.num_views: int = attributes["views"]["num_views"]
        self._opened: dict[str, Any] = {}
        self._documents = load_teacher(root, name)
        own = self._documents[""]["attributes"]
        self.identity: dict[str, Any] = own["identity"]
        self.encoding: dict[str, Any] = own["encoding"]
        self.folds: dict[str, Any] | None = own.get("folds")
        self._cells_sha256 = own.get("cells_sha256")
        self.fidelity: dict[str, Any] = own["fidelity"]
        self.summary: dict[str, Any] = own["summary"]
        self.complete: bool = own["complete"]
        self.row_arrays: dict[str, RowArray] = declared_arrays(own, self._where)
        self.arrays: tuple[str, ...] = tuple(sorted(self.row_arrays))
        check_row_arrays(
            self.row_arrays, num_classes=attributes["dataset"]["num_classes"], encoding=self.encoding
        )
        self.block_rows = check_block_rows(
            own["block_rows"], self.num_examples, self.num_views, self.row_arrays
        )
        self.num_blocks = -(-self.num_examples // self.block_rows)
        self._layouts = {name: self._checked_layout(name) for name in (*self.arrays, *CELL_ARRAYS)}
        if not self.complete and not allow_incomplete:
            missing, total = int((self._cells[0] == 0).sum()), self.num_views * self.num_blocks
            raise StoreError(
                f"{self._where}: teacher is unfinished ({missing} of {total} cells to go); run the "
                "command that writes it again"
            )

    @property
    def constant_names(self) -> tuple[str, ...]:
        """Names of the arrays that belong to the encoding and not to a row, sorted."""
        return tuple(sorted(set(self._documents) - {"", *self.arrays, *CELL_ARRAYS}))

    def constant(self, name: str) -> np.ndarray:
        """One array that belongs to the encoding and not to a row."""
        return read_static(
            self._root, f"teachers/{self.name}/{name}", self._documents[name], constant_spec(name)
        )

    def constants(self) -> dict[str, np.ndarray]:
        """All arrays that belong to the encoding and not to a row, by name."""
        return {name: self.constant(name) for name in self.constant_names}

    def rows(self, block: int) -> slice:
        """Rows of a block."""
        if not 0 <= block < self.num_blocks:
            raise StoreError(f"{self._where}: block must be 0 to {self.num_blocks - 1}, found {block}")
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.num_examples))

    def slab(self, view: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """All rows of one view.

        Args:
            view: The view.
            names: The arrays wanted; all when left out.

        Returns:
            Arrays [N, *row_shape] by name.

        Raises:
            StoreError: a block is not committed, or does not hold what was committed.
        """
        names = self._names(names)
        for block in range(self.num_blocks):
            self._check_files(view, block, names)
        size = self.num_examples * sum(self.row_arrays[name].row_bytes for name in names)
        check_memory(size, f"{self._where} view {view}")
        return {name: self._read(name, view, 0, self.num_blocks) for name in names}

    def block(self, view: int, block: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The rows of one block of one view, by array name; the same promise as `slab`."""
        names = self._names(names)
        self._check_files(view, block, names)
        return {name: self._read(name, view, block, block + 1) for name in names}

    def shuffled_blocks(
        self, view: int, seed: int, memory_budget: int, names: Sequence[str] | None = None
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """All rows of one view in random order, without ever holding more than `memory_budget` bytes.

        Blocks are drawn at random into groups and rows are shuffled inside a group, so two rows that are
        neighbours in the data meet more often than chance has it unless the budget holds many blocks.

        Args:
            view: The view.
            seed: The same seed gives the same order.
            memory_budget: Bytes for rows, shuffled rows and decoding together.
            names: The arrays wanted; all when left out.

        Yields:
            Row ids [R] and arrays [R, *row_shape] by name.
        """
        names = self._names(names)
        widest = max(self.row_arrays[name].row_bytes for name in names)
        row_bytes = 16 + sum(self.row_arrays[name].row_bytes for name in names)
        decoding = 2 * widest * self.block_rows
        per_block = (2 * row_bytes + widest) * self.block_rows  # given out, being built, and one array's pool
        group = min((memory_budget - decoding) // per_block, self.num_blocks)
        if group < 1:
            raise StoreError(
                f"{self._where}: shuffling blocks needs a memory budget of {decoding + per_block} bytes, "
                f"found {memory_budget}; raise it"
            )
        rng = np.random.default_rng(seed)
        order = rng.permutation(self.num_blocks)
        for start in range(0, self.num_blocks, group):
            yield self._shuffled_group(
                view, [int(block) for block in order[start : start + group]], names, rng
            )

    def bytes_on_disk(self) -> int:
        """Bytes of all files of this teacher."""
        return sum(path.lstat().st_size for path in self._where.rglob("*") if path.is_file())

    def committed(self) -> np.ndarray:
        """Commits of all cells, uint32 [V, num_blocks], 0 = not there."""
        return self._sound_cells()[0]

    def uncommitted(self) -> list[tuple[int, int]]:
        """Cells (view, block) that are not there, in order."""
        return [(int(view), int(block)) for view, block in np.argwhere(self.committed() == 0)]

    def commit_faults(self) -> list[Fault]:
        """Every commit that cannot be trusted."""
        return self._cells[2]

    def _shuffled_group(
        self, view: int, blocks: list[int], names: Sequence[str], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        slices = [self.rows(block) for block in blocks]
        ids = np.concatenate([np.arange(rows.start, rows.stop) for rows in slices])
        order = rng.permutation(len(ids))
        arrays = {}
        for name in names:
            pool = np.empty((len(ids), *self.row_arrays[name].row_shape), dtype=self.row_arrays[name].dtype)
            start = 0
            for block, rows in zip(blocks, slices, strict=True):
                self._check_files(view, block, [name])
                stop = start + rows.stop - rows.start
                self._read(name, view, block, block + 1, out=pool[start:stop])
                start = stop
            arrays[name] = np.take(pool, order, axis=0)
        return ids[order], arrays

    def _names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            return self.arrays
        missing = [name for name in names if name not in self.row_arrays]
        if missing:
            raise StoreError(f"{self._where} has no array {missing[0]!r}, it has {', '.join(self.arrays)}")
        return tuple(names)

    def _checked_layout(self, name: str) -> Layout:
        document, where = self._documents[name], self._where / name
        layout, expected = array_plan(
            name, self.row_arrays, self.num_views, self.num_examples, self.block_rows
        )
        check_array(document, expected, where)
        return codec_layout(document, layout, where)

    @cached_property
    def _cells(self) -> tuple[np.ndarray, np.ndarray, list[Fault]]:
        """`committed` [V, blocks], `checksum` [V, blocks, arrays] and what is wrong with them."""
        prefix = f"teachers/{self.name}"
        committed, damaged = read_cells(self._root, f"{prefix}/committed", self._layouts["committed"])
        problems: list[Fault] = [("committed", *where) for where in damaged]
        checksum, damaged = read_cells(self._root, f"{prefix}/checksum", self._layouts["checksum"])
        problems += [("checksum", *where) for where in damaged if committed[where[:2]]]
        known = {(view, block) for _, view, block, _ in problems}
        for view, block in np.argwhere(committed).tolist():
            if (view, block) not in known and commit_value(checksum[view, block]) != committed[view, block]:
                fault = f"checksums of view {view} block {block} are not those committed"
                problems.append(("checksum", view, block, f"{self._where}: {fault}; {REMEDY}"))
        finished = self.complete and not problems and committed.all()
        if finished and raw_sha256(committed) != self._cells_sha256:
            fault = "commits are not those of the finished teacher"
            problems.append(("committed", None, None, f"{self._where}: {fault}; fetch the store again"))
        return committed, checksum, problems

    def _sound_cells(self) -> tuple[np.ndarray, np.ndarray]:
        committed, checksum, problems = self._cells
        if problems:
            raise StoreError(problems[0][3])
        return committed, checksum

    def _open(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = open_array(self._root, f"teachers/{self.name}/{name}")
        return self._opened[name]

    def _check_files(self, view: int, block: int, names: Sequence[str]) -> None:
        """Raise StoreError unless the cell is committed and its files are there and well framed."""
        if not 0 <= view < self.num_views:
            raise StoreError(f"{self._where}: view must be 0 to {self.num_views - 1}, found {view}")
        self.rows(block)
        if self._sound_cells()[0][view, block] == 0:
            path = self._where / "committed" / file_name((view, block))
            raise StoreError(
                f"{path} is missing: the cell is not committed; run the command that writes it again"
            )
        for name in names:
            position = (view, block, *(0 for _ in self.row_arrays[name].row_shape))
            check_file(self._root, f"teachers/{self.name}/{name}", position, self._layouts[name])

    def _read(self, name: str, view: int, first: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of blocks first to stop - 1 of one array, decoded in place, compared with their checksums."""
        array = self.row_arrays[name]
        offset = self.rows(first).start
        if out is None:
            out = np.empty((self.rows(stop - 1).stop - offset, *array.row_shape), dtype=array.dtype)
        block_bytes = self.block_rows * array.row_bytes
        step = max(1, max(READ_BYTES, (stop - first) * block_bytes // 8) // block_bytes)
        source = self._open(name)
        column = self.arrays.index(name)
        for start in range(first, stop, step):
            end = min(start + step, stop)
            rows = slice(self.rows(start).start, self.rows(end - 1).stop)
            part = out[rows.start - offset : rows.stop - offset]
            rest = tuple(slice(None) for _ in array.row_shape)
            read_into(source, (slice(view, view + 1), rows, *rest), part[np.newaxis], self._where / name)
            for block in range(start, end):
                own = self.rows(block)
                found = checksum_value(out[own.start - offset : own.stop - offset])
                if found != self._cells[1][view, block, column]:
                    raise StoreError(
                        f"{self._where / name}: view {view} block {block} does not hold the rows that were "
                        f"committed; {REMEDY}"
                    )
        return out
