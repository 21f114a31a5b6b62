"""Merges and subsets: rows follow their content keys; what does not belong together is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.pipeline.alignment import describe_examples
from logitbank.stores import RowArray, StoreError, TeacherWriter, create_store, open_store, verify_store
from logitbank.stores.format.schema import Cell
from logitbank.stores.read import gather
from logitbank.stores.write.gathered import Gathered
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.test_stores_kill import contents

C, V = 4, 2
ALL = np.arange(40)


def make(
    path: Path,
    ids: np.ndarray,
    name: str = "t",
    *,
    offset: int = 0,
    labels: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    views: Mapping[str, Any] | None = None,
    pixels: int = 0,
    **identity: object,
) -> Path:
    """A store of the examples `ids`; the teacher's answer to an example is made of its id."""
    keys = keys_of(ids)
    labels = ids % C if labels is None else labels
    dataset = {"name": "toy", "split": "train", "num_examples": len(ids), "num_classes": C}
    shown = {"num_views": V, "transform": "none", "seed": 0, "versions": {}, **(views or {})}
    rows = np.array([0, len(ids) - 1], dtype=np.uint32)
    probes: dict[str, np.ndarray] = {
        "row": rows,
        "digest": np.stack([keys[rows] + np.uint64(v + pixels) for v in range(shown["num_views"])]),
    }
    create_store(
        path,
        dataset=describe_examples(dataset, shown, keys, labels),
        views=shown,
        keys=keys,
        labels=labels,
        folds=folds,
        probes=probes,
        attributes={"license": f"L-{name}"},
    )
    writer = TeacherWriter(
        path,
        name,
        identity={"architecture": name, **identity},
        encoding={"kind": "dense", "num_classes": C, "bits": 32, "top_k": 0, "tail_bits": 0},
        arrays={"logit": RowArray(dtype="float32", row_shape=(C,)), "label_rank": RowArray(dtype="uint8")},
        folds=None if folds is None else {"num_folds": int(folds.max()) + 1, "strategy": "kfold", "seed": 0},
        block_rows=min(16, len(ids)),
    )
    for view, block in writer.pending():
        here = writer.rows(block)
        writer.write(Cell(view, block), answers(ids[here], view, offset))
    writer.finish(fidelity={"1": 0.0}, summary={"accuracy": 0.5, "kind": "in-sample"})
    return path


def keys_of(ids: np.ndarray) -> np.ndarray:
    keys: np.ndarray = ids.astype(np.uint64) * np.uint64(11_400_714_819_323_198_485)
    return keys


def answers(ids: np.ndarray, view: int, offset: int = 0) -> dict[str, np.ndarray]:
    logits = (ids[:, None] * 10 + np.arange(C) + view * 1000 + offset).astype(np.float32)
    return {"logit": logits, "label_rank": (C - ids % C).astype(np.uint8)}


def merge(out: Path, *paths: Path, names: tuple[str, ...] = ()) -> Any:
    return merge_stores(paths, out, describe=describe_examples, names=names)


def test_another_order_is_put_right_by_key(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(ALL)
    a, b = make(tmp_path / "a", ALL, "x"), make(tmp_path / "b", order, "y", offset=7)
    merged = merge(tmp_path / "c", a, b)
    store = open_store(tmp_path / "c")
    assert merged.served == {"x": 40, "y": 40}
    assert store.dataset == open_store(a).dataset
    assert store.attributes["license"] == "L-x AND L-y"
    for view in range(V):
        assert np.array_equal(store.teacher("x").slab(view)["logit"], answers(ALL, view)["logit"])
        assert np.array_equal(store.teacher("y").slab(view)["logit"], answers(ALL, view, 7)["logit"])
    assert "mask" not in store.teacher("y").arrays
    assert [step["operation"] for step in store.attributes["lineage"]] == ["merge"]
    assert set(store.probes["row"].tolist()) == {0, 39, int(order[0]), int(order[-1])}
    assert verify_store(tmp_path / "c") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_clients_with_their_own_examples_get_masks(tmp_path: Path) -> None:
    first, second = ALL[:25], ALL[::-1][:20]
    a, b = make(tmp_path / "a", first, "x"), make(tmp_path / "b", second, "y", offset=7)
    merged = merge(tmp_path / "c", a, b)
    store = open_store(tmp_path / "c")
    assert merged.num_examples == 40
    assert merged.served == {"x": 25, "y": 20}
    ids = np.concatenate([first, np.setdiff1d(second, first)[::-1]])
    np.testing.assert_array_equal(store.labels, ids % C)
    for name, own, offset in (("x", first, 0), ("y", second, 7)):
        slab = store.teacher(name).slab(1)
        np.testing.assert_array_equal(slab["mask"], np.isin(ids, own))
        expected = answers(ids, 1, offset)["logit"]
        np.testing.assert_array_equal(slab["logit"][slab["mask"]], expected[slab["mask"]])
        assert store.teacher(name).summary["measured_on"]
    keys = keys_of(ids)
    described = describe_examples(open_store(a).dataset, store.views, keys, ids % C)
    assert store.dataset == described
    assert verify_store(tmp_path / "c") == []


def test_parts_of_one_pass_become_one_teacher(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", ALL[:24]), make(tmp_path / "b", ALL[20:])
    assert merge(tmp_path / "c", a, b).served == {"t": 40}
    store = open_store(tmp_path / "c")
    assert "mask" not in store.teacher().arrays
    np.testing.assert_array_equal(store.teacher().slab(0)["logit"], answers(ALL, 0)["logit"])
    whole = subset_store(tmp_path / "c", tmp_path / "d", ALL[::-1][:30], describe=describe_examples)
    assert whole.num_examples == 30
    np.testing.assert_array_equal(
        open_store(tmp_path / "d").teacher().slab(1)["logit"], answers(ALL[::-1][:30], 1)["logit"]
    )


def test_equal_examples_are_told_apart_by_their_folds(tmp_path: Path) -> None:
    ids, folds = np.array([5, 5, 6, 7]), np.array([1, 0, 0, 1])
    order = np.array([3, 1, 0, 2])
    a = make(tmp_path / "a", ids, "x", folds=folds)
    b = make(tmp_path / "b", ids[order], "y", folds=folds[order])
    merge(tmp_path / "c", a, b)
    np.testing.assert_array_equal(open_store(tmp_path / "c").folds, folds)


def test_parts_of_a_store_with_equal_examples_become_that_store_again(tmp_path: Path) -> None:
    """Also when their labels differ, and when a part holds only the second of two; parts may overlap."""
    ids = np.concatenate([ALL, ALL[:10]])
    labels = ids % C
    labels[45:] = (labels[45:] + 1) % C
    whole = make(tmp_path / "whole", ids, labels=labels, folds=ids % 3)
    for name, rows in (("x", np.arange(25)), ("y", np.r_[0, 20:42]), ("z", np.arange(50)[::-1][:8])):
        subset_store(whole, tmp_path / name, rows, describe=describe_examples)
    merged = merge(tmp_path / "m", tmp_path / "x", tmp_path / "y", tmp_path / "z")
    store, order = open_store(tmp_path / "m"), np.r_[0:42, np.arange(42, 50)[::-1]]
    assert merged.served == {"t": 50}
    for name in ("keys", "labels", "folds"):
        np.testing.assert_array_equal(getattr(store, name), getattr(open_store(whole), name)[order])
    np.testing.assert_array_equal(store.teacher().slab(1)["logit"], answers(ids[order], 1)["logit"])
    merge(tmp_path / "n", tmp_path / "x", make(tmp_path / "other", ALL, "u", folds=ALL % 3))  # no parts of one store
    assert open_store(tmp_path / "n").num_examples == 40


def test_a_masked_teacher_stays_masked(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", ALL[:25], "x"), make(tmp_path / "b", ALL[20:], "y")
    merge(tmp_path / "c", a, b)
    merge(tmp_path / "e", tmp_path / "c", make(tmp_path / "z", ALL[::-1], "z"))
    store = open_store(tmp_path / "e")
    assert int(store.teacher("x").slab(0)["mask"].sum()) == 25
    assert "mask" not in store.teacher("z").arrays


def test_a_killed_merge_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(tmp_path / "a", ALL, "x"), make(tmp_path / "b", ALL, "y", offset=7)
    with monkeypatch.context() as patch:
        calls: list[Cell] = []
        original = TeacherWriter.write

        def write(self: TeacherWriter, cell: Cell, arrays: Mapping[str, np.ndarray], **same: Any) -> None:
            calls.append(cell)
            if len(calls) == 3:
                raise KeyboardInterrupt
            original(self, cell, arrays, **same)

        patch.setattr(TeacherWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path / "c", a, b)
        assert not (tmp_path / "c").exists()
        calls[:] = [Cell(0, 0)] * 3
        merge(tmp_path / "c", a, b)
        assert len(calls) == 3 + 12 - 2
    assert verify_store(tmp_path / "c") == []


def test_cells_that_are_there_are_linked_and_others_are_gathered_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also cells of a teacher that serves only some rows, and of one whose other rows come from elsewhere."""
    a, b = make(tmp_path / "a", ALL, "x"), make(tmp_path / "b", ALL[:30], "y", offset=7)
    merge(tmp_path / "c", a, b)
    with monkeypatch.context() as patch:
        patch.setattr(Gathered, "_link", lambda *_: False)
        merge(tmp_path / "d", a, b)
    assert contents(tmp_path / "c/teachers") == contents(tmp_path / "d/teachers")
    linked = [file for file in (tmp_path / "c").rglob("*") if file.is_file() and file.stat().st_nlink > 1]
    assert len(linked) == 2 * V * 3  # arrays, views and blocks of x; blocks of y are of another size in the merge
    merge(tmp_path / "e", tmp_path / "c", make(tmp_path / "z", ALL[::-1], "z"))
    again = [file for file in (tmp_path / "e/teachers/y/mask").rglob("0") if file.is_file()]
    assert again
    assert all(file.stat().st_nlink == 2 for file in again)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_parts_each_row_is_its_examples_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Parts of any examples in any order, gathered one cell at a time or many, are one teacher."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(gather, "GROUP_BYTES", int(rng.integers(1, 2000)))
    stores, served = [], set()
    for number in range(3):
        ids = np.sort(rng.choice(ALL, rng.integers(4, 40), replace=False))
        ids = ids if number % 2 else rng.permutation(ids)
        stores.append(make(tmp_path / f"{number}", ids, "x"))
        if number == 1:  # its teacher gets a mask
            merge(tmp_path / "masked", stores.pop(), make(tmp_path / "all", ALL, "other"))
            stores.append(tmp_path / "masked")
        served |= set(ids.tolist())
    merged = merge(tmp_path / "m", *stores)
    assert merged.served["x"] == len(served)
    store = open_store(tmp_path / "m")
    of_key = dict(zip(keys_of(ALL).tolist(), ALL.tolist(), strict=True))
    ids = np.array([of_key[key] for key in store.keys.tolist()])
    for view in range(V):
        slab = store.teacher("x").slab(view)
        mask = slab.get("mask", np.ones(len(ids), np.bool_))
        assert set(ids[mask].tolist()) == served
        np.testing.assert_array_equal(slab["logit"][mask], answers(ids, view)["logit"][mask])
    assert verify_store(tmp_path / "m") == []


def test_rows_that_a_source_masks_are_taken_of_the_one_that_serves_them(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", ALL[:25], "x"), make(tmp_path / "b", ALL[20:], "y")
    merge(tmp_path / "c", a, b)
    merged = merge(tmp_path / "d", tmp_path / "c", make(tmp_path / "rest", ALL[20:], "x"))
    slab = open_store(tmp_path / "d").teacher("x").slab(1)
    assert merged.served == {"x": 40, "y": 20}
    np.testing.assert_array_equal(slab["logit"], answers(ALL, 1)["logit"])
    assert slab["mask"].all()


FOLDS = ALL % 3


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"name": "x"}, {"name": "x", "offset": 7, "weights": "other"}, "--teacher-name"),
        ({"name": "x"}, {"name": "y", "labels": (ALL + 1) % C}, "other labels on 40 examples"),
        ({"name": "x"}, {"name": "y", "views": {"seed": 1}}, "views.seed"),
        ({"name": "x"}, {"name": "y", "views": {"num_views": 1}}, "copy --views"),
        ({"name": "x"}, {"name": "y", "pixels": 9}, "other pixels"),
        ({"name": "x", "folds": FOLDS}, {"name": "y", "folds": (FOLDS + 1) % 3}, "other folds"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    a, b = make(tmp_path / "a", ALL, **first), make(tmp_path / "b", ALL, **second)
    with pytest.raises(StoreError, match=message) as raised:
        merge(tmp_path / "c", a, b)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_clients_without_folds_do_not_mix_with_cross_fitted_ones(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", ALL[:20], "x", folds=FOLDS[:20]), make(tmp_path / "b", ALL[20:], "y")
    with pytest.raises(StoreError, match="folds"):
        merge(tmp_path / "c", a, b)


def test_views_of_two_examples_keep_their_dataset(tmp_path: Path) -> None:
    store = make(tmp_path / "a", ALL)
    with pytest.raises(ValueError, match="mixes an example"):
        describe_examples({}, {"num_views": 1, "transform": "mixup", "seed": 0}, ALL.astype(np.uint64), ALL)
    for rows in (np.array([0, 0]), np.array([40]), np.array([], dtype=int)):
        with pytest.raises(StoreError, match="distinct rows"):
            subset_store(store, tmp_path / "d", rows, describe=describe_examples)
    with pytest.raises(StoreError, match="no probed example"):
        subset_store(store, tmp_path / "d", np.array([5]), describe=describe_examples)


def test_new_names_and_an_occupied_place(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", ALL), make(tmp_path / "b", ALL, offset=7, weights="other")
    merge(tmp_path / "c", a, b, names=("one", "two"))
    assert open_store(tmp_path / "c").teachers == ("one", "two")
    assert merge(tmp_path / "c", a, b, names=("one", "two")).already_there
    with pytest.raises(StoreError, match="is there and is something else"):
        merge(tmp_path / "c", a, b, names=("one", "three"))
    with pytest.raises(StoreError, match="have 2 teachers"):
        merge(tmp_path / "d", a, b, names=("one",))
    with pytest.raises(StoreError, match="two stores or more"):
        merge(tmp_path / "d", a)
