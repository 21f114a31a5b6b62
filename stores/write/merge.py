"""Several stores as one, and some rows of a store as another: rows are matched by content key, never by position.

Shapes: N examples of the result, M of a source.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.stores.format.address import check_folder
from logitbank.stores.format.documents import raw_sha256
from logitbank.stores.format.schema import StoreError, check_name
from logitbank.stores.read.lineage import last_step, own_attributes, with_lineage
from logitbank.stores.read.reader import Store, open_store
from logitbank.stores.read.teacher import Teacher
from logitbank.stores.write.building import build
from logitbank.stores.write.create import create_store, first_difference
from logitbank.stores.write.gathered import Gathered, SourceRows
from logitbank.stores.write.match import match_rows, merged_examples, merged_probes, pick, twins
from logitbank.stores.write.writer import TeacherWriter

Describe = Callable[[Mapping[str, Any], Mapping[str, Any], np.ndarray, np.ndarray], Mapping[str, Any]]
"""(dataset, views, keys, labels) -> the dataset attributes of these examples; ValueError when views forbid it."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A store that was put together: number of examples, how many of them each teacher serves, whether it was there."""

    num_examples: int
    served: dict[str, int]
    already_there: bool = False


def merge_stores(
    paths: Sequence[str | Path], out: str | Path, *, describe: Describe, names: Sequence[str] = ()
) -> Merged:
    """Put the teachers of several stores of the same views into one.

    The examples are those of the first store in its order, then those that only later stores have. A teacher serves
    the examples of its own store; where that is not all of them its rows have a mask. Teachers of one name must be
    the same teacher, and their rows are put together.

    Args:
        paths: Two or more stores.
        out: The store to write.
        describe: Describes a set of examples that is not the first store's.
        names: New names for all teachers, store by store; empty keeps them.

    Raises:
        StoreError: they differ in views, classes, labels or folds, or names collide.
    """
    stores = [open_store(path) for path in paths]
    if len(stores) < 2:
        raise StoreError(f"a merge needs two stores or more, found {len(stores)}; name them all")
    for store in stores[1:]:
        check_alike(stores[0], store)
    keys, labels, rows = merged_examples(stores)
    first = stores[0]
    same = all((found >= 0).all() for found in rows)
    dataset = first.dataset if len(keys) == first.num_examples else describe(first.dataset, first.views, keys, labels)
    teachers = _named(stores, rows, names)
    if not same:
        _check_folds_of_parts([part for parts in teachers.values() for part in parts])
    licences = dict.fromkeys(str(store.attributes["license"]) for store in stores if "license" in store.attributes)
    attributes = own_attributes(first)
    if licences:
        attributes["license"] = " AND ".join(licences)
    step: dict[str, Any] = {"operation": "merge", "stores": [_origin(store, store.teachers) for store in stores]}
    if names:
        step["names"] = list(names)
    arrays = {name: pick(stores, rows, name) for name in ("folds", "groups")}
    version = max(store.version for store in stores)
    examples = {"dataset": dataset, "views": first.views, "keys": keys, "labels": labels, "version": version, **arrays}
    return _write(Path(out), examples, merged_probes(stores, rows), attributes, step, teachers)


def subset_store(
    path: str | Path, out: str | Path, rows: np.ndarray, *, describe: Describe, teachers: Sequence[str] | None = None
) -> Merged:
    """Write some rows of a store, in the order given, as a store.

    Args:
        path: The store.
        out: The store to write.
        rows: Row numbers, each at most once.
        describe: Describes these examples.
        teachers: Only these; all finished ones when left out.
    """
    store = open_store(path)
    if not len(rows) or len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= store.num_examples:
        raise StoreError(
            f"expected distinct rows, 0 to {store.num_examples - 1}, at least one; found {len(rows)}; choose others"
        )
    keys, labels = store.keys[rows], store.labels[rows]
    names = store.teachers if teachers is None else tuple(teachers)
    chosen = {name: [SourceRows(store, store.teacher(name), rows)] for name in names}
    step = {"operation": "subset", **_origin(store, names), "rows_sha256": raw_sha256(rows.astype("<i8"))}
    step["twins"] = twins(store, rows)
    arrays = {name: pick([store], [rows], name) for name in ("folds", "groups")}
    dataset = describe(store.dataset, store.views, keys, labels)
    examples = {"dataset": dataset, "views": store.views, "keys": keys, "labels": labels, **arrays}
    examples["version"] = store.version
    return _write(Path(out), examples, merged_probes([store], [rows]), own_attributes(store), step, chosen)


def rows_of(store: Store, keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The store's row of each of these examples, [N]; StoreError when it lacks one."""
    rows = match_rows(keys, labels, None, store)
    if (rows < 0).any():
        raise StoreError(
            f"{store.path} lacks {int((rows < 0).sum())} of the {len(keys)} examples; choose data that it was made of"
        )
    return rows


def check_alike(first: Store, other: Store) -> None:
    """Raise StoreError unless two stores answer about the same views of examples of the same classes."""
    parts = {
        "dataset.num_classes": (first.num_classes, other.num_classes),
        "dataset.num_positions": (first.positions, other.positions),
        "dataset.class_names": (first.dataset.get("class_names"), other.dataset.get("class_names")),
        **{
            f"views.{key}": (first.views.get(key), other.views.get(key))
            for key in sorted({*first.views, *other.views} - {"versions"})
        },
    }
    for what, (has, wants) in parts.items():
        difference = first_difference(what, has, wants)
        if difference:
            said = difference.replace("in the store", f"in {first.path}").replace("here", f"in {other.path}")
            advice = "cut the longer with copy --views" if what == "views.num_views" else "they cannot be merged"
            raise StoreError(f"{said}; {advice}")


def _named(stores: Sequence[Store], rows: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, list[SourceRows]]:
    """Parts of every teacher of the result, by its name."""
    pairs = [(store, found, name) for store, found in zip(stores, rows, strict=True) for name in store.teachers]
    if names and len(names) != len(pairs):
        had = ", ".join(name for _, _, name in pairs)
        raise StoreError(f"the stores have {len(pairs)} teachers ({had}), found {len(names)} new names; name each")
    teachers: dict[str, list[SourceRows]] = {}
    for (store, found, old), name in zip(pairs, names or [name for _, _, name in pairs], strict=True):
        part = SourceRows(store, store.teacher(old), found)
        for other in teachers.setdefault(check_name(name, "teacher"), []):
            _check_same_teacher(name, other.teacher, part.teacher)
        teachers[name].append(part)
    return teachers


def _check_same_teacher(name: str, first: Teacher, other: Teacher) -> None:
    constants = [{key: raw_sha256(array) for key, array in t.constants().items()} for t in (first, other)]
    parts: dict[str, tuple[object, object]] = {
        "identity": (first.identity, other.identity),
        "encoding": (first.encoding, other.encoding),
        "folds": (first.folds, other.folds),
        "constants": (constants[0], constants[1]),
    }
    for what, (has, wants) in parts.items():
        if first_difference(what, has, wants):
            raise StoreError(
                f"two stores have a teacher {name!r} and they are not the same (other {what}); name each teacher anew"
                " with --teacher-name"
            )


def _check_folds_of_parts(parts: Sequence[SourceRows]) -> None:
    counts = {part.teacher.folds["num_folds"] if part.teacher.folds else 0 for part in parts}
    if len(counts) > 1:
        raise StoreError(
            f"stores of different examples must be cross-fitted alike, found {sorted(counts)} folds; merge only those"
            " of one kind"
        )


def _write(
    out: Path,
    examples: dict[str, Any],
    probes: Mapping[str, np.ndarray],
    attributes: dict[str, Any],
    step: dict[str, Any],
    teachers: Mapping[str, Sequence[SourceRows]],
) -> Merged:
    """Build the store that one more step of its lineage, `step`, describes whole."""
    check_folder(out)

    def make(built: Path) -> None:
        create_store(built, **examples, probes=probes, attributes=with_lineage(attributes, step))
        for name, parts in teachers.items():
            _write_teacher(built, name, parts)

    def same(there: Path) -> bool:
        with contextlib.suppress(StoreError):
            store = open_store(there)
            return last_step(store.attributes) == step and set(teachers) <= set(store.teachers)
        return False

    written = build(out, make, request=step, same=same)
    served = {name: int(np.any([part.served for part in parts], axis=0).sum()) for name, parts in teachers.items()}
    return Merged(num_examples=len(examples["keys"]), served=served, already_there=not written)


def _write_teacher(folder: Path, name: str, parts: Sequence[SourceRows]) -> None:
    first, gathered = parts[0].teacher, Gathered(parts)
    writer = TeacherWriter(
        folder,
        name,
        identity=first.identity,
        encoding=first.encoding,
        arrays=gathered.arrays,
        folds=first.folds,
        constants=first.constants(),
        block_rows=gathered.block_rows,
    )
    gathered.write(writer, folder)
    summary = first.summary
    if len(parts) > 1 or len(parts[0].rows) != first.num_examples:
        summary = {**summary, "measured_on": _digest(parts[0].store)}
    writer.finish(fidelity=first.fidelity, summary=summary)


def _digest(store: Store) -> str:
    return str(store.attributes["digest"])


def _origin(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """What was taken of a store: its examples, and the teachers of these names."""
    digests = {name: store.teacher(name).digest for name in names}
    return {"digest": _digest(store), "num_examples": store.num_examples, "teachers": digests}
