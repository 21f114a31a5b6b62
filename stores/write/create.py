"""What is written once and whole: a store with its examples, a teacher's group with its constants."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.stores.files import (
    make_folders,
    partial_path,
    remove_abandoned,
    short_name,
    sync_folder,
    write_document,
    writing,
)
from logitbank.stores.format.address import check_folder
from logitbank.stores.format.documents import Document, as_json, canonical, group_document, sealed, static_document
from logitbank.stores.format.schema import (
    EXAMPLE_ARRAYS,
    FORMAT,
    MAX_CLASSES,
    MAX_EXAMPLES,
    MAX_POSITIONS,
    MAX_VIEWS,
    POSITION,
    PROBE,
    RESERVED,
    VERSION,
    ArraySpec,
    StoreError,
    check_name,
)
from logitbank.stores.read.blocks import open_array
from logitbank.stores.read.reader import load_root


def create_store(
    path: str | Path,
    *,
    dataset: Mapping[str, Any],
    views: Mapping[str, Any],
    keys: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    probes: Mapping[str, np.ndarray] | None = None,
    attributes: Mapping[str, Any] | None = None,
    version: int = VERSION,
) -> None:
    """Create a store without teachers, all at once, or accept the one that is there when it says the same.

    Args:
        path: Folder of the store.
        dataset: name, split, num_examples, num_classes, fingerprint, and class_names when known; num_positions where
            an example is answered at several.
        views: num_views, transform, seed, versions of the libraries that make the views.
        keys: Content id of each example, uint64 [N].
        labels: Label of each example, [N], or of each of its positions, [N, L]; -1 = unlabelled.
        folds: Fold of each example, [N].
        groups: Group of each example, uint64 [N].
        probes: Evidence of what the views look like, by name.
        attributes: More about the store: lineage, license, description.
        version: Of the format; an older one for what goes on with an older store.

    Raises:
        StoreError: the description is wrong, or `path` holds something else.
    """
    path = Path(path)
    check_folder(path)
    plan = _store_plan(dataset, views, keys, labels, folds, groups, probes or {}, attributes or {}, version)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        _check_same(path, plan)
        return
    with writing(str(path)):
        make_folders(path.absolute().parent)
        remove_abandoned(path.absolute().parent, f".{short_name(path.name)}.")
        if not build_folder(path, *plan):
            _check_same(path, plan)


Plan = tuple[dict[str, Document], dict[str, np.ndarray]]  # documents and values, both by folder


def _store_plan(
    dataset: Mapping[str, Any],
    views: Mapping[str, Any],
    keys: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray | None,
    groups: np.ndarray | None,
    probes: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    version: int,
) -> Plan:
    dataset, views = as_json(dict(dataset), "dataset"), as_json(dict(views), "views")
    num_examples = _count(dataset, "num_examples", "dataset", MAX_EXAMPLES)
    num_classes = _count(dataset, "num_classes", "dataset", MAX_CLASSES)
    _count(views, "num_views", "views", MAX_VIEWS)
    positions = _positions(dataset, version)
    taken = sorted(set(attributes) & set(RESERVED))
    if taken:
        raise StoreError(f"attributes must not use {', '.join(RESERVED)}, found {taken[0]}; rename it")
    given = {"key": keys, "label": labels, "fold": folds, "group": groups}
    at_positions = {"label": positions}
    examples = {
        name: _example_array(name, values, (num_examples, *at_positions.get(name, ())))
        for name, values in given.items()
        if values is not None
    }
    bounds = int(examples["label"].min()), int(examples["label"].max())
    if bounds[0] < -1 or bounds[1] >= num_classes:
        raise StoreError(f"labels must be -1 to {num_classes - 1}, found {bounds[0]} to {bounds[1]}; fix num_classes")
    values = {f"examples/{name}": array for name, array in examples.items()}
    dims = ("example", POSITION)
    documents = {
        folder: static_document(array, EXAMPLE_ARRAYS[folder[9:]], dims[: array.ndim])
        for folder, array in values.items()
    }
    for name, probe in probes.items():
        folder = f"probes/{check_name(name, 'probe')}"
        values[folder], documents[folder] = static_array(folder, probe, PROBE)
    root = {
        "format": FORMAT,
        "version": version,
        "dataset": dataset,
        "views": views,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **as_json(dict(attributes), "attributes"),
    }
    groups_of = {folder: group_document({}) for folder in ("examples", "probes", "teachers")}
    return sealed({"": group_document(root), **groups_of, **documents}), values


def _count(section: Mapping[str, Any], name: str, what: str, most: int) -> int:
    value = section.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise StoreError(f"{what}.{name} must be 1 to {most}, found {value!r}; pass a count")
    return value


def _positions(dataset: Mapping[str, Any], version: int) -> tuple[int, ...]:
    """(L,) where an example is answered at L positions, else nothing."""
    if "num_positions" not in dataset:
        return ()
    if version < 2:
        raise StoreError(f"format version {version} has no positions; write a store of version {VERSION}")
    return (_count(dataset, "num_positions", "dataset", MAX_POSITIONS),)


def _example_array(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    dtype = EXAMPLE_ARRAYS[name].dtypes[0]
    values = np.asarray(values)
    if values.shape != shape or values.dtype.kind not in "iu":
        each = "examples" if len(shape) == 1 else f"examples and each of {shape[1]} positions"
        raise StoreError(
            f"{name} must be one integer for each of {shape[0]} {each}, found {values.dtype} "
            f"{list(values.shape)}; pass the data that num_examples counts"
        )
    if name == "key" and values.dtype != np.uint64:
        raise StoreError(f"key must be uint64, found {values.dtype}; pass unsigned content ids")
    cast = values.astype(dtype)
    if not np.array_equal(cast, values):
        raise StoreError(f"{name} must fit {dtype}, found {values.min()} to {values.max()}; renumber it")
    return cast


def static_array(what: str, values: np.ndarray, spec: ArraySpec) -> tuple[np.ndarray, Document]:
    values = np.asarray(values)
    if values.dtype.name not in spec.dtypes or values.size == 0 or values.ndim > 8:
        raise StoreError(f"{what} must be a non-empty array of numbers, found {values.dtype} {list(values.shape)}")
    dims = tuple(f"axis_{axis}" for axis in range(values.ndim))
    return values, static_document(values, spec, dims)


def build_folder(path: Path, documents: Mapping[str, Document], values: Mapping[str, np.ndarray]) -> bool:
    """Build a folder beside `path` and rename it; False when another process was first."""
    building = partial_path(path.absolute())
    try:
        building.mkdir()
        for folder, document in documents.items():
            write_document(building / folder, document)
        for folder, array in values.items():
            open_array(building.resolve(), folder)[...] = array
        try:
            building.rename(path)
        except OSError:
            if path.exists():
                return False
            raise
        sync_folder(path.absolute().parent)
        return True
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_same(path: Path, plan: Plan) -> None:
    """Raise StoreError unless the store at `path` describes the examples and views of `plan`."""
    there, wanted = load_root(path), plan[0]
    has, wants = there[""]["attributes"], wanted[""]["attributes"]
    differences = [first_difference(part, has[part], wants[part]) for part in ("dataset", "views")]
    given = (name for name in wants if name not in RESERVED)  # such as lineage
    differences += [first_difference(name, has.get(name), wants[name]) for name in given]
    for folder in sorted({*there, *plan[1]} - {"", "examples", "probes", "teachers"}):
        sums = [side.get(folder, {}).get("attributes", {}).get("sha256") for side in (there, wanted)]
        differences.append("" if sums[0] == sums[1] else f"{folder} differs")
    difference = next(filter(None, differences), None)
    if difference:
        raise StoreError(
            f"{path} was written for {_dataset(has)}, this run has {_dataset(wants)}: {difference}; "
            "choose another path or the same data, folds and views"
        )


def _dataset(attributes: Mapping[str, Any]) -> str:
    dataset = attributes["dataset"]
    return f"{dataset.get('name')} {dataset.get('split')} (fingerprint {str(dataset.get('fingerprint'))[:8]})"


def first_difference(what: str, has: object, wants: object) -> str:
    """Where two JSON values differ, as a phrase, or nothing."""
    if isinstance(has, dict) and isinstance(wants, dict):
        for key in sorted({*has, *wants}):
            found = first_difference(f"{what}.{key}", has.get(key), wants.get(key))
            if found:
                return found
        return ""
    if canonical(has) == canonical(wants):
        return ""
    return f"{what} is {canonical(has)[:200]} in the store and {canonical(wants)[:200]} here"
