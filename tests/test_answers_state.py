"""No call decides what another returns: answers to any sequence of calls are those of an object that is asked once."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from logitbank.pipeline.answers.ensemble import Ensemble
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.tail_warnings import tail_warnings
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models.weights import load_state, weights_digest
from logitbank.pipeline.train_student.folder import WEIGHTS
from logitbank.stores import Store, StoreError, open_store
from tests.exchange import FLIPS, C, N, V, make_data, make_logits
from tests.students import train

BLOCK = 20
ENCODINGS = {
    "dense32": Encoding(kind="dense", num_classes=C, bits=32),
    "dense8": Encoding(kind="dense", num_classes=C, bits=8),
    "topk": Encoding(kind="topk", num_classes=C, top_k=3),
    "topk16": Encoding(kind="topk", num_classes=C, top_k=3, bits=16),
    "tail": Encoding(kind="topk+tail", num_classes=C, top_k=3, tail_bits=2),
}
Options = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_data(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture(scope="module")
def stores(data: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Two teachers, two views, six blocks; by encoding."""
    folder = tmp_path_factory.mktemp("stores")
    for seed, name in enumerate("ab"):
        np.save(folder / f"{name}.npy", make_logits(seed=seed))
        for kind, encoding in ENCODINGS.items():
            teacher = ArrayTeacher(folder / f"{name}.npy", data, FLIPS)
            options: Options = {"encoding": encoding, "block_rows": BLOCK, "predictor_rows": 60}
            cache_teacher(teacher, folder / f"{kind}.zarr", name=name, **options)
    return {kind: open_store(folder / f"{kind}.zarr") for kind in ENCODINGS}


def least_budget(store: Store, teacher: str) -> int:
    """The least that is not refused: one block is mixed at a time."""
    for size in range(500, 1_000_000, 500):
        try:
            open_answers(store, teacher=teacher, memory_budget=size)
        except StoreError:
            continue
        return size
    raise AssertionError("no such budget")


VIEW = st.integers(0, V - 1)
ROWS = st.lists(st.integers(0, N - 1), min_size=1, max_size=30)
CALL = st.one_of(
    st.tuples(st.just("logits"), ROWS, st.one_of(VIEW, st.just("mixed")), st.sampled_from([1.0, 4.0])),
    st.tuples(st.just("later"), ROWS, VIEW, st.sampled_from([1.0, 4.0])),
    st.tuples(st.just("read_ahead"), VIEW, st.booleans(), st.integers(0, 9)),
    st.tuples(st.sampled_from(["served", "warnings", "close", "copy"]), VIEW),
)


def view_of(rows: list[int], view: int | str) -> int | Tensor:
    return torch.tensor([row % V for row in rows]) if isinstance(view, str) else int(view)


def students(rows: list[int], temperature: float) -> Tensor:
    return torch.randn(len(rows), C, generator=torch.Generator().manual_seed(sum(rows) + int(temperature)))


class Asked:
    """Answers that are asked one thing after another, beside fresh ones that are asked that thing alone."""

    def __init__(self, store: Store, options: Options, budget: int | None) -> None:
        self.store, self.options = store, options
        self.answers: StoredAnswers | Ensemble = open_answers(store, **options, memory_budget=budget)
        self.later: list[tuple[Any, list[int], int, float]] = []

    def logits(self, rows: list[int], view: int | str, temperature: float) -> None:
        found = self.answers.logits(
            torch.tensor(rows),
            view_of(rows, view),
            student_BC=students(rows, temperature),
            temperature=temperature,
        )
        assert torch.equal(found, self.expected(rows, view, temperature))

    def expected(self, rows: list[int], view: int | str, temperature: float) -> Tensor:
        fresh = open_answers(self.store, **self.options)
        asked = torch.tensor(rows), view_of(rows, view)
        return fresh.logits(*asked, student_BC=students(rows, temperature), temperature=temperature)

    def call(self, name: str, *given: Any) -> None:
        if name == "logits":
            self.logits(*given)
        elif name == "later":  # what was asked for before the other calls is decoded after them
            self.later.append((self.answers.of(torch.tensor(given[0]), given[1]), *given))
        elif name == "read_ahead":
            view, grouped, seed = given
            grouping, generator = self.answers.grouping, torch.Generator().manual_seed(seed)
            groups = grouping.groups(torch.arange(N), generator) if grouping is not None and grouped else []
            self.answers.read_ahead(view, groups)
        elif name == "served":
            assert self.answers.served(given[0]).all()
        elif name == "warnings":
            assert tail_warnings(self.answers, 4.0) == tail_warnings(open_answers(self.store, **self.options), 4.0)
        elif name == "close":
            self.answers.close()
        elif isinstance(self.answers, StoredAnswers):  # a copy, as a worker gets it
            self.answers = pickle.loads(pickle.dumps(self.answers))  # noqa: S301

    def finish(self) -> None:
        for answer, rows, view, temperature in self.later:
            student = students(rows, temperature)
            assert torch.equal(answer.logits(student, temperature), self.expected(rows, view, temperature))
        self.answers.close()


@pytest.mark.parametrize("kind", ENCODINGS)
def test_answers_do_not_depend_on_what_was_asked_before(kind: str, stores: dict[str, Store]) -> None:
    """All encodings and tail rules, one teacher and two, whole slabs and blocks."""
    store = stores[kind]
    tails = [""] if kind.startswith("dense") else ["predicted", "bucket", "uniform", "renormalise"]
    budgets = {teacher: least_budget(store, teacher) for teacher in ("a", "a,b")}
    for teacher, budget in budgets.items():
        assert open_answers(store, teacher=teacher, memory_budget=budget).grouping is not None

    @settings(max_examples=25, deadline=None)
    @given(
        calls=st.lists(CALL, min_size=2, max_size=8),
        tail=st.sampled_from(tails),
        teacher=st.sampled_from(sorted(budgets)),
        blocked=st.booleans(),
    )
    def law(calls: list[tuple[Any, ...]], tail: str, teacher: str, blocked: bool) -> None:
        asked = Asked(store, {"teacher": teacher, "tail": tail}, budgets[teacher] if blocked else None)
        for call in calls:
            asked.call(*call)
        asked.finish()

    law()


def test_what_other_programs_take_of_the_memory_does_not_change_a_run(
    stores: dict[str, Store], data: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with little memory free sees its rows in the order of one with much."""

    def digest(name: str) -> str:
        train(stores["topk"], data, None, tmp_path / name, student="linear", epochs=2, teacher="a")
        return weights_digest(load_state(tmp_path / name / WEIGHTS))

    much, little, read_text = digest("much"), 2 * least_budget(stores["topk"], "a") // 1024, Path.read_text

    def busy(path: Path, *args: Any, **options: Any) -> str:
        text = read_text(path, *args, **options)
        is_memory = path == Path("/proc/meminfo")
        return re.sub(r"MemAvailable: +[0-9]+", f"MemAvailable: {little}", text) if is_memory else text

    monkeypatch.setattr(Path, "read_text", busy)
    assert digest("little") == much
