"""One teacher of a store: its rows, checked block by block."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from logitbank.stores.format.documents import check_array, codec_layout
from logitbank.stores.format.layout import Layout, file_name
from logitbank.stores.format.schema import (
    CELL_ARRAYS,
    RowArray,
    StoreError,
    check_block_rows,
    check_row_arrays,
    constant_spec,
)
from logitbank.stores.read.blocks import REMEDY, in_threads, read_file, read_static
from logitbank.stores.read.cells import Fault, array_plan, checksum_value, declared_arrays, load_teacher, read_commits
from logitbank.stores.read.memory import check_memory
from logitbank.stores.read.rows import broken_rows
from logitbank.stores.read.tails import Tails

_SHIFTS_READ = 4  # of a block, whose shifts are judged whenever it is read; verify judges all


class Examples(Protocol):
    """What a teacher's answers are about: a store."""

    @property
    def examples_sha256(self) -> str:
        """What its documents are tied to."""

    @property
    def labels(self) -> np.ndarray:
        """int32 [N], or [N, L]; -1 = unlabelled."""

    @property
    def folds(self) -> np.ndarray | None:
        """uint16 [N], or None."""


class Teacher:
    """Answers of one teacher. Made by `Store.teacher`.

    Args:
        root: Resolved folder of the store.
        name: Name of the teacher, checked.
        attributes: The store's attributes.
        examples: What the answers are about.
        allow_incomplete: Also read a teacher that is not finished.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        attributes: Mapping[str, Any],
        examples: Examples,
        *,
        allow_incomplete: bool = False,
    ) -> None:
        self.name = name
        self._examples = examples
        self._root = root
        self._where = root / "teachers" / name
        self.num_examples: int = attributes["dataset"]["num_examples"]
        self.num_classes: int = attributes["dataset"]["num_classes"]
        self.num_views: int = attributes["views"]["num_views"]
        self.positions: int | None = attributes["dataset"].get("num_positions")
        self._documents = load_teacher(root, name, examples.examples_sha256)
        own = self._documents[""]["attributes"]
        self.digest: str = own["digest"]
        self.identity: dict[str, Any] = own["identity"]
        self.encoding: dict[str, Any] = own["encoding"]
        self.folds: dict[str, Any] | None = own.get("folds")
        self._cells_sha256 = own.get("cells_sha256", "none")
        self.fidelity: dict[str, Any] = own["fidelity"]
        self.summary: dict[str, Any] = own["summary"]
        self.complete: bool = own["complete"]
        self.row_arrays: dict[str, RowArray] = declared_arrays(own)
        self.arrays: tuple[str, ...] = tuple(sorted(self.row_arrays))
        check_row_arrays(
            self.row_arrays,
            num_classes=self.num_classes,
            encoding=self.encoding,
            positions=self.positions,
            version=attributes["version"],
        )
        self.block_rows = check_block_rows(own["block_rows"], self.num_examples, self.num_views, self.row_arrays)
        self.num_blocks = -(-self.num_examples // self.block_rows)
        self._layouts = {name: self._checked_layout(name) for name in (*self.arrays, *CELL_ARRAYS)}
        if not self.complete and not allow_incomplete:
            missing, total = int((self._cells[0] == 0).sum()), self.num_views * self.num_blocks
            raise StoreError(
                f"{self._where}: teacher is unfinished ({missing} of {total} cells to go); run the "
                "command that writes it again"
            )

    @cached_property
    def tails(self) -> Tails | None:
        """What the constants say of the tails of rows, when those hold their shift."""
        if "tail_shift" not in self.row_arrays:
            return None
        num_folds = 1 if self.folds is None else self.folds["num_folds"]
        try:
            return Tails(self.constants(), self.num_classes, num_folds)
        except StoreError as error:
            raise StoreError(f"{self._where}: {error}") from error

    @property
    def constant_names(self) -> tuple[str, ...]:
        """Names of the arrays that belong to the encoding and not to a row, sorted."""
        return tuple(sorted(set(self._documents) - {"", *self.arrays, *CELL_ARRAYS}))

    def constant(self, name: str) -> np.ndarray:
        """One array that belongs to the encoding and not to a row."""
        values = read_static(self._root, f"teachers/{self.name}/{name}", self._documents[name], constant_spec(name))
        if not np.isfinite(values).all():
            raise StoreError(
                f"{self._where / name} holds NaN or infinity where a number must be; do not use this store"
            )
        return values

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
            Arrays [N, *row_shape] by name; where examples have positions the shape begins with them.

        Raises:
            StoreError: a block is not committed, or does not hold what was committed.
        """
        names = self._names(names)
        self._check_committed(view, range(self.num_blocks))
        size = self.num_examples * sum(self.row_arrays[name].row_bytes for name in names)
        check_memory(size, f"{self._where} view {view}")
        slab = {name: self._empty(name, self.num_examples) for name in names}
        self._fill(view, range(self.num_blocks), slab)
        return slab

    def block(self, view: int, block: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The rows of one block of one view, by array name; the same promise as `slab`."""
        names, rows = self._names(names), self.rows(block)
        self._check_committed(view, [block])
        values = {name: self._empty(name, rows.stop - rows.start) for name in names}
        self._fill(view, [block], values)
        return values

    @cached_property
    def row_folds(self) -> np.ndarray | None:
        """Fold of every example, uint16 [N], when this teacher is cross-fitted; others of the store may be."""
        if self.folds is None:
            return None
        folds, num_folds = self._examples.folds, self.folds.get("num_folds")
        if folds is None or type(num_folds) is not int or int(folds.max()) >= num_folds:
            raise StoreError(f"{self._where}: its folds are not those of the examples; do not use this store")
        return folds

    def answers(self, view: int, block: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """`block`, for those who use what rows mean: refused when a row cannot be an answer to its example."""
        values, rows = self.block(view, block, names), self.rows(block)
        self.check_rows(view, np.arange(rows.start, rows.stop), values)
        return values

    def check_rows(self, view: int, rows_R: npt.NDArray[np.int64], arrays: Mapping[str, np.ndarray]) -> None:
        """Raise StoreError when a row contradicts itself or its example.

        Args:
            view: Whose rows.
            rows_R: Their numbers.
            arrays: Arrays [R, *row_shape] by name.
        """
        arrays = self._with_mask(view, rows_R, arrays)
        for words, places in self.broken_rows(rows_R, arrays, shifts=_SHIFTS_READ):
            raise StoreError(f"{self._where}: {self.place(view, rows_R, places[0])} {words}; do not use this store")

    def place(self, view: int, rows_R: npt.NDArray[np.int64], place: int) -> str:
        """Which of the answers to some rows of a view it is, in words."""
        row, position = divmod(int(place), self.positions or 1)
        return f"view {view} row {rows_R[row]}{'' if self.positions is None else f' position {position}'}"

    def broken_rows(
        self, rows_R: npt.NDArray[np.int64], arrays: Mapping[str, np.ndarray], *, shifts: int | None = None
    ) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """The laws that answers break, with their places among all that the rows hold: R, or R times positions.

        Args:
            rows_R: Row numbers.
            arrays: Arrays [R, *row_shape] of these rows, by name.
            shifts: Of how many answers the shifts of predicted tails are judged, which takes a look at every class; all
                when left out.
        """
        labels_P, each = self._examples.labels[rows_R].reshape(-1), self.positions or 1
        if self.positions is not None:  # an answer at a position is judged as the answer to an example is
            arrays = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
        every_P = np.arange(len(labels_P))
        judged = [(every_P, shifts is None)]
        if shifts is not None and "tail_shift" in arrays:
            judged.append((np.unique(np.linspace(0, len(every_P) - 1, shifts).round().astype(np.int64)), True))
        for own_P, every_class in judged:
            tails = self.tails if every_class else None
            folds_N = None if tails is None else self.row_folds
            part = arrays if own_P is every_P else {name: array[own_P] for name, array in arrays.items()}
            folds_P = None if folds_N is None else folds_N[rows_R[own_P // each]]
            for words, broken in broken_rows(part, labels_P[own_P], self.num_classes, tails=tails, folds_R=folds_P):
                yield words, own_P[broken]

    def _with_mask(
        self, view: int, rows_R: npt.NDArray[np.int64], arrays: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """The arrays with the rows' `mask`, where there is one."""
        if "mask" in arrays or "mask" not in self.row_arrays:
            return arrays
        mask_R, block_R = (
            np.empty((len(rows_R), *self.row_arrays["mask"].row_shape), np.bool_),
            rows_R // self.block_rows,
        )
        for block in np.unique(block_R).tolist():
            own = block_R == block
            mask_R[own] = self.block(view, block, ["mask"])["mask"][rows_R[own] - self.rows(block).start]
        return {**arrays, "mask": mask_R}

    def bytes_on_disk(self) -> int:
        """Bytes of all files of this teacher."""
        return _bytes_below(self._where)

    def constant_bytes_on_disk(self) -> int:
        """Bytes of what is stored once, however many rows there are: the tail predictor."""
        return sum(_bytes_below(self._where / name) for name in self.constant_names)

    def bytes_per_row(self) -> float:
        """Bytes on disk of an answer to one view of one example, or position of it, without what is stored once."""
        answers = self.num_views * self.num_examples * (self.positions or 1)
        return (self.bytes_on_disk() - self.constant_bytes_on_disk()) / answers

    def committed(self) -> np.ndarray:
        """Commits of all cells, uint32 [V, num_blocks], 0 = not there."""
        return self._sound_cells()[0]

    def uncommitted(self) -> list[tuple[int, int]]:
        """Cells (view, block) that are not there, in order."""
        return [(int(view), int(block)) for view, block in np.argwhere(self.committed() == 0)]

    def commit_faults(self) -> list[Fault]:
        """Every commit that cannot be trusted."""
        return self._cells[2]

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
            name, self.row_arrays, self.num_views, self.num_examples, self.block_rows, self.positions
        )
        check_array(document, expected, where)
        return codec_layout(document, layout, where)

    @cached_property
    def _cells(self) -> tuple[np.ndarray, np.ndarray, list[Fault]]:
        """`committed` [V, blocks], `checksum` [V, blocks, arrays] and what is wrong with them."""
        sha256 = self._cells_sha256 if self.complete else None
        return read_commits(self._where, self._root, self._layouts, sha256)

    def _sound_cells(self) -> tuple[np.ndarray, np.ndarray]:
        committed, checksum, problems = self._cells
        if problems:
            raise StoreError(problems[0][3])
        return committed, checksum

    def _check_committed(self, view: int, blocks: Iterable[int]) -> None:
        """Raise StoreError unless these cells are committed."""
        if not 0 <= view < self.num_views:
            raise StoreError(f"{self._where}: view must be 0 to {self.num_views - 1}, found {view}")
        for block in blocks:
            if self._sound_cells()[0][view, block] == 0:
                path = self._where / "committed" / file_name((view, block))
                raise StoreError(f"{path} is missing: the cell is not committed; run the command that writes it again")

    def _empty(self, name: str, num_rows: int) -> np.ndarray:
        array = self.row_arrays[name]
        return np.empty((num_rows, *array.row_shape), dtype=np.dtype(array.dtype).newbyteorder("<"))

    def _fill(self, view: int, blocks: Iterable[int], out: Mapping[str, np.ndarray]) -> None:
        """Decode blocks one after the other into `out`, which has the rows of just these blocks."""
        jobs: list[Callable[[], None]] = []
        start = 0
        for block in blocks:
            stop = start + self.rows(block).stop - self.rows(block).start
            jobs += [partial(self._read, name, view, block, array[start:stop]) for name, array in out.items()]
            start = stop
        pieces = [self._layouts[name].chunk_bytes for name in out]
        in_threads(jobs, sum(array.nbytes for array in out.values()), max(pieces, default=1))

    def _read(self, name: str, view: int, block: int, out: np.ndarray) -> None:
        """Decode one block of one array into `out` and compare it with its checksum."""
        position = (view, block, *(0 for _ in self.row_arrays[name].row_shape))
        read_file(self._root, f"teachers/{self.name}/{name}", position, self._layouts[name], out)
        if checksum_value(out) != self._sound_cells()[1][view, block, self.arrays.index(name)]:
            raise StoreError(
                f"{self._where / name}: view {view} block {block} does not hold the rows committed; {REMEDY}"
            )


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
