"""Stores of both versions: the first is read for ever and stays the first, the second keeps the shift of tails."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.alignment import describe_examples
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import TAIL_RULES, Encoding
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.views import Views, probe
from logitbank.stores import (
    RowArray,
    Store,
    StoreError,
    TeacherWriter,
    copy_store,
    create_store,
    open_store,
    verify_store,
)
from logitbank.stores.write.extend import extend_store
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.golden.make_decoded import N, write
from tests.test_stores_hostile import edit

TAILED = ("topk", "topk-tail")
TEACHER = "teachers/golden"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind, one teacher's answers in a store of each version."""
    folder = tmp_path_factory.mktemp("versions")
    for kind in TAILED:
        write(kind, folder)
        write(f"v2-{kind}", folder)
    return {kind: (folder / f"{kind}.zarr", folder / f"v2-{kind}.zarr") for kind in TAILED}


def logits(path: Path, tail: str = "predicted", name: str | None = None) -> torch.Tensor:
    student = torch.linspace(-2, 2, 12).expand(N, 12)
    return StoredAnswers(open_store(path), name=name, tail=tail).logits(torch.arange(N), 0, student_BC=student)


@pytest.mark.parametrize("tail", TAIL_RULES)
@pytest.mark.parametrize("kind", TAILED)
def test_both_versions_decode_to_the_same_bits(pairs: dict[str, tuple[Path, Path]], kind: str, tail: str) -> None:
    first, second = pairs[kind]
    assert [open_store(path).version for path in (first, second)] == [1, 2]
    assert ["tail_shift" in open_store(path).teacher().arrays for path in (first, second)] == [False, True]
    assert torch.equal(logits(first, tail), logits(second, tail))


def test_stores_made_of_the_first_version_stay_so(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    first, second = pairs["topk"]
    for version, path in enumerate((first, second), 1):
        subset_store(path, tmp_path / f"{version}-part", np.arange(40), describe=describe_examples)
        copy_store(path, tmp_path / f"{version}-copy")
        merge_stores([path, path], tmp_path / f"{version}-both", describe=describe_examples)
        for name in ("part", "copy", "both"):
            made = tmp_path / f"{version}-{name}"
            assert open_store(made).version == version
            assert ("tail_shift" in open_store(made).teacher().arrays) == (version == 2)
            assert verify_store(made) == []


def test_more_views_of_a_store_are_of_its_version(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    for version, path in enumerate(pairs["topk"], 1):
        store = open_store(path, allow_incomplete=True)
        writer = extend_store(store, tmp_path / str(version), num_views=2, probes={})
        writer.write(writer.pending()[0], store.teacher().slab(0))
        writer.finish(fidelity={})
        more = open_store(tmp_path / str(version))
        assert (more.version, more.teacher().arrays) == (version, store.teacher().arrays)
        assert verify_store(tmp_path / str(version)) == []


def test_a_merge_of_both_versions_is_of_the_second(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    first, second = pairs["topk"]
    apart = merge_stores([first, second], tmp_path / "apart", describe=describe_examples, names=["old", "new"])
    assert set(apart.served) == {"old", "new"}
    store = open_store(tmp_path / "apart")
    assert store.version == 2
    assert ["tail_shift" in store.teacher(name).arrays for name in ("old", "new")] == [False, True]
    assert torch.equal(logits(store.path, name="old"), logits(store.path, name="new"))
    subset_store(first, tmp_path / "a", np.arange(40), describe=describe_examples)
    subset_store(second, tmp_path / "b", np.arange(40, N), describe=describe_examples)
    for number, paths in enumerate((["a", "b"], ["b", "a"])):  # one teacher, a part of which has no shift
        one = tmp_path / f"one-{number}"
        merge_stores([tmp_path / path for path in paths], one, describe=describe_examples)
        assert open_store(one).version == 2
        assert "tail_shift" not in open_store(one).teacher().arrays
        assert verify_store(one) == []
        assert torch.equal(logits(one).sort(dim=0).values, logits(first).sort(dim=0).values)


def test_what_is_added_to_an_old_store_is_as_old(digits: Split, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(len(digits), 2)) @ rng.normal(size=(2, 10)) * 3 + rng.normal(size=(len(digits), 10))
    np.save(tmp_path / "logits.npy", drawn.astype(np.float32))
    create_store(
        tmp_path / "old",
        dataset=digits.describe(),
        views={**Views().attributes(), "versions": library_versions()},
        keys=digits.keys,
        labels=digits.labels,
        probes=probe(digits, Views()),
        version=1,
    )
    encoding = Encoding(kind="topk", num_classes=10, top_k=3)
    for name in ("old", "new"):
        teacher = ArrayTeacher(tmp_path / "logits.npy", digits, Views())
        cache_teacher(teacher, tmp_path / name, encoding=encoding, predictor_rows=1000)
    old, new = (open_store(tmp_path / name) for name in ("old", "new"))
    assert set(new.teacher().arrays) - set(old.teacher().arrays) == {"tail_shift"}
    rows = torch.arange(len(digits))
    assert torch.equal(StoredAnswers(old).logits(rows, 0), StoredAnswers(new).logits(rows, 0))


def test_the_first_version_has_no_shift(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    path = tmp_path / "s"
    copy_store(pairs["topk"][1], path)
    edit(path, lambda document: document["attributes"].update(version=1))
    with pytest.raises(StoreError, match="'tail_shift' is not in format version 1; it knows index"):
        open_store(path).teacher()
    with pytest.raises(StoreError, match="'tail_shift' is not in format version 1"):
        TeacherWriter(path, "t", identity={}, encoding={}, arrays={"tail_shift": RowArray(dtype="float32")})


def test_positions_that_the_root_does_not_name_are_refused(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    path = tmp_path / "s"
    copy_store(pairs["topk"][1], path)

    def several(document: dict[str, dict[str, dict[str, dict[str, list[int]]]]]) -> None:
        document["attributes"]["arrays"]["index"]["row_shape"] = [7, 3]

    dims = ["view", "example", "position", "kept"]
    edit(path, lambda document: document.update(dimension_names=dims, shape=[1, N, 7, 3]), f"{TEACHER}/index")
    edit(path, several, TEACHER)
    with pytest.raises(StoreError, match="must have row dimensions .'kept'., found shape .7, 3."):
        open_store(path).teacher()
    assert "row dimensions" in verify_store(path)[0].message


def with_shifts(path: Path, out: Path, shifts: Mapping[int, float], left_out: str = "") -> Store:
    """The store with other shifts in some rows, under sound checksums, and without one of its constants."""
    there = open_store(path)
    teacher = there.teacher()
    create_store(out, dataset=there.dataset, views=there.views, keys=there.keys, labels=there.labels, folds=there.folds)
    constants = {name: values for name, values in teacher.constants().items() if name != left_out}
    writer = TeacherWriter(
        out,
        "golden",
        identity=teacher.identity,
        encoding=teacher.encoding,
        arrays=teacher.row_arrays,
        folds=teacher.folds,
        constants=constants,
        block_rows=N,
    )
    arrays = {name: values.copy() for name, values in teacher.slab(0).items()}
    for row, shift in shifts.items():
        arrays["tail_shift"][row] += np.float32(shift)
    writer.write(writer.pending()[0], arrays)
    writer.finish(fidelity={})
    return open_store(out)


@pytest.mark.parametrize("kind", TAILED)
def test_a_wrong_shift_is_named(pairs: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str) -> None:
    assert verify_store(with_shifts(pairs[kind][1], tmp_path / "sound", {}).path) == []
    for number, wrong in enumerate((0.5, -0.5, 100.0, -np.inf)):
        path = with_shifts(pairs[kind][1], tmp_path / str(number), {41: wrong}).path
        (problem,) = verify_store(path)
        assert problem.message.startswith("view 0 row 41 has a tail_shift that does not give its tail the mass")
    first = with_shifts(pairs[kind][1], tmp_path / "first", {0: 0.5})
    with pytest.raises(StoreError, match="view 0 row 0 has a tail_shift"):
        StoredAnswers(first).logits(torch.arange(3), 0)
    StoredAnswers(first, tail="uniform").logits(torch.arange(3), 0)  # which does not take it
    for number, wrong in enumerate((np.nan, np.inf)):  # these wherever they are
        with pytest.raises(StoreError, match="row 41 holds NaN or infinity"):
            with_shifts(pairs[kind][1], tmp_path / f"none-{number}", {41: wrong}).teacher().answers(0, 0)


def test_constants_that_judge_no_shift_are_refused(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    for kind, name in (("topk", "tail_matrix"), ("topk", "tail_gauge"), ("topk-tail", "tail_width")):
        store = with_shifts(pairs[kind][1], tmp_path / name, {}, left_out=name)
        assert any(name in problem.message for problem in verify_store(store.path))
        with pytest.raises(StoreError, match=name):
            store.teacher().answers(0, 0)
