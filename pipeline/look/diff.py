"""Two teachers side by side: what they are, and how far apart their answers to the same examples lie.

Shapes: N examples that both answer, B batch, C classes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.stores import Store, Teacher
from logitbank.stores.write.match import match_rows

_BATCH = 4096
_IDENTITY = ("architecture", "weights_sha256", "preprocessing", "precision")


class Answers:
    """One teacher's dense logits for any rows of one view.

    Args:
        store: A finished store.
        teacher: One of its teachers.
        view: Which view.
    """

    def __init__(self, store: Store, teacher: Teacher, view: int = 0) -> None:
        self._decoder = TeacherRows(store, teacher)
        self.served = self._decoder.served(view)
        slab = teacher.slab(view, self._decoder.names)
        teacher.check_rows(view, 0, slab)
        self._slab = {name: torch.from_numpy(array) for name, array in slab.items()}

    def logits(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Finite logits, float32 [B, C]."""
        rows_B = torch.from_numpy(rows)
        return self._decoder.logits({name: array[rows_B] for name, array in self._slab.items()}, rows_B)


def diff_teachers(
    first: tuple[Store, str | None], second: tuple[Store, str | None], *, view: int = 0, temperature: float = 1.0
) -> dict[str, Any]:
    """How two teachers differ, over the examples that both answer, matched by content key.

    Args:
        first: A store and the name of a teacher (None: the only one).
        second: Likewise; may be the same store.
        view: Which view, of both.
        temperature: T of the KL divergence, which is multiplied by T^2.

    Returns:
        A JSON-able description: ``identity`` and ``views`` that differ, ``num_rows``, ``agreement`` (same best class),
        ``kl`` first to second and ``kl_reverse`` in nats, accuracies over labelled rows, and ``per_class`` by label.
    """
    if not temperature > 0:
        raise ValueError(f"--temperature is {temperature}; expected more than 0")
    stores, teachers = (first[0], second[0]), (first[0].teacher(first[1]), second[0].teacher(second[1]))
    if stores[0].num_classes != stores[1].num_classes:
        raise ValueError(
            f"the stores have {stores[0].num_classes} and {stores[1].num_classes} classes; compare teachers of the same"
        )
    for store in stores:
        if not 0 <= view < store.num_views:
            raise ValueError(f"--view is {view}; {store.path} has views 0 to {store.num_views - 1}")
    answers = [Answers(store, teacher, view) for store, teacher in zip(stores, teachers, strict=True)]
    matched = match_rows(stores[0].keys, stores[0].labels, stores[0].folds, stores[1])
    if (matched >= 0).sum() < stores[0].num_examples and stores[0].folds is not None:
        matched = match_rows(stores[0].keys, stores[0].labels, None, stores[1])
    both = np.flatnonzero((matched >= 0) & answers[0].served)
    both = both[answers[1].served[matched[both]]]
    if not len(both):
        raise ValueError("the two teachers have no example in common; choose stores of the same data")
    rows = _Rows(answers[0], answers[1], both, matched[both], temperature)
    labels = np.asarray(stores[0].labels)[both]
    names = stores[0].dataset.get("class_names") or []
    return {
        "first": f"{stores[0].path}: {teachers[0].name}",
        "second": f"{stores[1].path}: {teachers[1].name}",
        "identity": _differences(teachers[0].identity, teachers[1].identity, _IDENTITY),
        "encoding": _differences(teachers[0].encoding, teachers[1].encoding, None),
        "views": _differences(stores[0].views, stores[1].views, None),
        "same_order": bool(len(matched) == stores[1].num_examples and np.array_equal(matched, np.arange(len(matched)))),
        "num_examples": [store.num_examples for store in stores],
        "view": view,
        "temperature": temperature,
        **rows.measures(labels, np.ones(len(both), np.bool_)),
        "per_class": [
            {"class": int(label), "name": names[label] if label < len(names) else "", **rows.measures(labels, here)}
            for label in np.unique(labels[labels >= 0])
            if (here := labels == label).any()
        ],
    }


class _Rows:
    """Measures of each row that both teachers answer."""

    def __init__(
        self, first: Answers, second: Answers, rows: npt.NDArray[Any], other: npt.NDArray[Any], temperature: float
    ) -> None:
        found = [
            np.concatenate(parts) for parts in zip(*_measured(first, second, rows, other, temperature), strict=True)
        ]
        self._kl, self._reverse, self._best, self._best_other = found

    def measures(self, labels: npt.NDArray[Any], here: npt.NDArray[np.bool_]) -> dict[str, Any]:
        best, other = self._best[here], self._best_other[here]
        known = labels[here] >= 0
        measured: dict[str, Any] = {
            "num_rows": int(here.sum()),
            "agreement": float((best == other).mean()),
            "kl": float(self._kl[here].mean()),
            "kl_reverse": float(self._reverse[here].mean()),
        }
        if known.any():
            wanted = labels[here][known]
            measured["accuracy"] = [float((found[known] == wanted).mean()) for found in (best, other)]
        return measured


def _measured(
    first: Answers, second: Answers, rows: npt.NDArray[Any], other: npt.NDArray[Any], temperature: float
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    for start in range(0, len(rows), _BATCH):
        here = slice(start, start + _BATCH)
        a_BC, b_BC = first.logits(rows[here]).double(), second.logits(other[here]).double()
        log_a_BC, log_b_BC = (a_BC / temperature).log_softmax(1), (b_BC / temperature).log_softmax(1)
        gap_BC = log_a_BC - log_b_BC
        kl_B = temperature**2 * (log_a_BC.exp() * gap_BC).sum(1)
        reverse_B = temperature**2 * -(log_b_BC.exp() * gap_BC).sum(1)
        yield kl_B.numpy(), reverse_B.numpy(), a_BC.argmax(1).numpy(), b_BC.argmax(1).numpy()


def _differences(a: dict[str, Any], b: dict[str, Any], keys: tuple[str, ...] | None) -> dict[str, list[Any]]:
    wanted = sorted({*a, *b}) if keys is None else keys
    return {key: [a.get(key), b.get(key)] for key in wanted if a.get(key) != b.get(key)}


def format_diff(diff: dict[str, Any], *, classes: int = 20) -> str:
    """The comparison on one screen; of the classes, those with the largest KL."""
    lines = [f"first   {diff['first']}", f"second  {diff['second']}"]
    for what in ("identity", "encoding", "views"):
        lines += [f"{what} {key}: {a} against {b}" for key, (a, b) in diff[what].items()]
    if not any(diff[what] for what in ("identity", "encoding", "views")):
        lines.append("identity, encoding and views are the same")
    order = "" if diff["same_order"] else ", matched by content key"
    lines += [
        f"rows    {diff['num_rows']} in common of {diff['num_examples'][0]} and {diff['num_examples'][1]}{order}",
        f"answers agree on {diff['agreement']:.2%} of the rows; KL T^2 {diff['kl']:.3g} nats first to second,"
        f" {diff['kl_reverse']:.3g} back, at T = {diff['temperature']:g}, view {diff['view']}",
    ]
    if "accuracy" in diff:
        lines.append("accuracy {:.4f} and {:.4f}".format(*diff["accuracy"]))
    worst = sorted(diff["per_class"], key=lambda row: -row["kl"])[:classes]
    if worst:
        lines += ["", f"{'class':>6} {'rows':>7} {'agree':>7} {'KL T^2':>8}  accuracy"]
    for row in worst:
        accuracy = "{:.3f} {:.3f}".format(*row["accuracy"])
        numbers = f"{row['num_rows']:>7} {row['agreement']:>7.3f} {row['kl']:>8.3g}"
        lines.append(f"{row['class']:>6} {numbers}  {accuracy}  {row['name']}".rstrip())
    return "\n".join(lines)
