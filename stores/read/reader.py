"""Reading a store: open it, ask for a teacher, take one view's rows as a slab.

Nothing read here is returned unchecked: documents against their digest, arrays that are written once against
their sha256, and every block against the checksum in its commit.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.stores.files import PARTIAL
from logitbank.stores.format.attributes import ROOT, check_attributes
from logitbank.stores.format.documents import Document, check_group, examples_sha256, read_document, read_sealed
from logitbank.stores.format.schema import (
    EXAMPLE_ARRAYS,
    FORMAT,
    PROBE,
    VERSIONS,
    StoreError,
    check_name,
    safe_names,
)
from logitbank.stores.read.blocks import check_static, read_static
from logitbank.stores.read.teacher import Teacher


def open_store(path: str | Path, *, allow_incomplete: bool = False) -> "Store":
    """Open a store for reading.

    Args:
        path: Folder of the store.
        allow_incomplete: Also open a store none of whose teachers is finished, and show unfinished teachers.

    Returns:
        The store. Keys, labels and rows are read when they are asked for.

    Raises:
        StoreError: `path` is no store, is of another version, is damaged, or has no finished teacher.
    """
    return Store(path, allow_incomplete=allow_incomplete)


class Store:
    """The examples and teachers of one store. Made by `open_store`.

    Attributes:
        path: Where it is.
        version: Of its format.
        dataset: What it is about: name, split, fingerprint, classes.
        views: How its views are made again.
        num_examples: N.
        num_classes: C.
        num_views: V.
        positions: L, at how many an example is answered; None where it has one answer.
    """

    def __init__(self, path: str | Path, *, allow_incomplete: bool = False) -> None:
        self.path = Path(path)
        self._root = self.path.resolve()
        self._documents = load_root(self.path)
        self._allow_incomplete = allow_incomplete
        self.attributes: dict[str, Any] = self._documents[""]["attributes"]
        self.version: int = self.attributes["version"]
        self.dataset: dict[str, Any] = self.attributes["dataset"]
        self.views: dict[str, Any] = self.attributes["views"]
        self.num_examples: int = self.dataset["num_examples"]
        self.num_classes: int = self.dataset["num_classes"]
        self.num_views: int = self.views["num_views"]
        self.positions: int | None = self.dataset.get("num_positions")
        if not allow_incomplete and not self.teachers and self._teacher_names:
            self._load_teacher(self._teacher_names[0])  # says what is missing

    @cached_property
    def keys(self) -> np.ndarray:
        """Content id of every example, uint64 [N]."""
        return self.static_array("examples/key")

    @cached_property
    def labels(self) -> np.ndarray:
        """The dataset's label of every example, int32 [N], or of its positions, [N, L]; -1 = unlabelled."""
        return self.static_array("examples/label")

    @cached_property
    def folds(self) -> np.ndarray | None:
        """Fold of every example, uint16 [N], or None."""
        return self.static_array("examples/fold") if "examples/fold" in self._documents else None

    @cached_property
    def groups(self) -> np.ndarray | None:
        """Group of every example, uint64 [N], or None."""
        return self.static_array("examples/group") if "examples/group" in self._documents else None

    @cached_property
    def probes(self) -> dict[str, np.ndarray]:
        """Evidence of what the views looked like, by name."""
        folders = [folder for folder in self.static_arrays if folder.startswith("probes/")]
        return {folder.removeprefix("probes/"): self.static_array(folder) for folder in folders}

    @cached_property
    def examples_sha256(self) -> str:
        """What a teacher's document must name to belong to these examples and views."""
        return examples_sha256(self._documents)

    @property
    def static_arrays(self) -> tuple[str, ...]:
        """Paths of the arrays outside the teachers."""
        return tuple(folder for folder in self._documents if "/" in folder)

    def static_array(self, folder: str) -> np.ndarray:
        """Values of one array outside the teachers."""
        group, _, name = folder.partition("/")
        spec = PROBE if group == "probes" else EXAMPLE_ARRAYS[name]
        values = read_static(self._root, folder, self._documents[folder], spec)
        if folder == "examples/label" and not -1 <= int(values.min()) <= int(values.max()) < self.num_classes:
            raise StoreError(
                f"{self.path}: labels must be -1 to {self.num_classes - 1}, found {values.min()} to {values.max()}; do "
                "not use this store"
            )
        return values

    @cached_property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers that can be read, sorted."""
        if self._allow_incomplete:
            return self._teacher_names
        return tuple(name for name in self._teacher_names if is_finished(self._root, name))

    def teacher(self, name: str | None = None) -> Teacher:
        """The teacher called `name`, or the only one."""
        names = self.teachers
        if name is None:
            if len(names) != 1:
                raise StoreError(f"{self.path}: expected one teacher, found {_listed(names)}; name the one to use")
            name = names[0]
        if check_name(name, "teacher") not in self._teacher_names:
            raise StoreError(f"{self.path}: no teacher {name!r}, found {_listed(names)}; name one of these")
        return self._load_teacher(name)

    @cached_property
    def _teacher_names(self) -> tuple[str, ...]:
        return teacher_names(self._root)

    def _load_teacher(self, name: str) -> Teacher:
        return Teacher(self._root, name, self.attributes, self, allow_incomplete=self._allow_incomplete)


def load_root(path: Path) -> dict[str, Document]:
    """All documents of a store outside its teachers, by folder, checked against the store's digest."""
    root = path.resolve()
    try:
        if not root.is_dir():
            found = "a file" if root.exists() else "nothing"
            raise StoreError(f"{path} must be the folder of a store, found {found}")
        if not (root / "zarr.json").exists():
            raise StoreError(f"{path} must be a {FORMAT}, found no zarr.json in it; check the path")
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
    document = read_document(root, "")
    attributes = document.get("attributes", {})
    if attributes.get("format") != FORMAT:
        found = f"format {str(attributes.get('format'))[:100]!r}"
        raise StoreError(f"{path} must be a {FORMAT}, found a Zarr node with {found}; check the path")
    version = attributes.get("version")
    if type(version) is not int or version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise StoreError(
            f"{path} has format version {str(version)[:20]}, this program reads versions {known}; "
            "use a release of logitbank that knows it"
        )
    check_attributes(attributes, ROOT, path)
    if version < 2 and "num_positions" in attributes["dataset"]:
        raise StoreError(f"{path} has positions, which version {version} does not know; do not use this store")
    documents = read_sealed(root, "", document)
    for name in ("examples", "probes", "teachers", "examples/key", "examples/label"):
        if name not in documents:
            raise StoreError(f"{path}: metadata names no {name}; fetch the store again")
    for folder in documents:
        group, _, name = folder.partition("/")
        if not name:
            check_group(documents[folder], root / folder)
        elif group == "probes":
            check_static(documents[folder], PROBE, root / folder)
        elif name not in EXAMPLE_ARRAYS:
            raise StoreError(f"{path}: metadata names unknown {folder[:100]!r}; do not use this store")
        else:
            layout = check_static(documents[folder], EXAMPLE_ARRAYS[name], root / folder)
            expected, said = _example_shape(name, attributes["dataset"])
            if layout.shape != expected:
                raise StoreError(
                    f"{root / folder} must be {list(expected)} as {said} says, found shape {list(layout.shape)}; do "
                    "not use this store"
                )
    return documents


def _example_shape(name: str, dataset: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    """Shape of an array of the examples, and what says so."""
    if name == "label" and "num_positions" in dataset:
        return (dataset["num_examples"], dataset["num_positions"]), "dataset.num_examples and num_positions"
    return (dataset["num_examples"],), "dataset.num_examples"


def teacher_names(root: Path) -> tuple[str, ...]:
    """Names of all teachers in a store, finished or not."""
    try:
        entries = sorted(entry.name for entry in os.scandir(root / "teachers") if _may_be_teacher(entry))
    except OSError as error:
        raise StoreError(f"cannot list {root / 'teachers'}: {error.strerror}; check its permissions") from error
    return tuple(check_name(name, "teacher") for name in entries)


def _may_be_teacher(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder that may be a teacher, and not what file managers leave behind (.DS_Store, ...)."""
    if entry.name.startswith(".") or entry.name.endswith(PARTIAL) or not entry.is_dir():
        return False
    return safe_names([entry.name]) != [] or Path(entry.path, "zarr.json").exists()


def is_finished(root: Path, name: str) -> bool:
    """True when the teacher's own attributes say so."""
    return read_document(root, f"teachers/{name}").get("attributes", {}).get("complete") is True


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
