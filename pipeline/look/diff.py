"""Two teachers side by side: what they are, and how far apart their answers to the same examples lie.

Shapes: N examples that both answer, B batch, C classes. Where examples are answered at positions, each answer is a row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.encoding import finite
from logitbank.stores import Store
from logitbank.stores.write.match import match_rows

_IDENTITY = ("architecture", "weights_sha256", "preprocessing", "precision", "embedding")


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
    answers = [TeacherRows(store, teacher) for store, teacher in zip(stores, teachers, strict=True)]
    matched = match_rows(stores[0].keys, stores[0].labels, stores[0].folds, stores[1])
    if (matched >= 0).sum() < stores[0].num_examples and stores[0].folds is not None:
        matched = match_rows(stores[0].keys, stores[0].labels, None, stores[1])
    both = np.flatnonzero((matched >= 0) & answers[0].served(view))
    both = both[answers[1].served(view)[matched[both]]]
    if not len(both):
        raise ValueError("the two teachers have no example in common; choose stores of the same data")
    measured = _measured((answers[0], answers[1]), view, both, matched[both], temperature)
    labels = np.asarray(stores[0].labels)[both].astype(np.int64).reshape(-1)
    if stores[0].positions is not None:
        common = (answers[0].answered(view)[both] & answers[1].answered(view)[matched[both]]).reshape(-1)
        if not common.any():
            raise ValueError("the two teachers have no position in common; choose stores of the same data")
        measured, labels = _Measured(*(values_N[common] for values_N in measured)), labels[common]
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
        **_of_all(measured, labels),
        "per_class": _of_classes(measured, labels, stores[0].dataset.get("class_names") or []),
    }


class _Measured(NamedTuple):
    """Measures of each row that both teachers answer."""

    kl_N: npt.NDArray[np.float64]
    reverse_N: npt.NDArray[np.float64]
    best_N: npt.NDArray[np.int64]
    other_N: npt.NDArray[np.int64]


def _measured(
    teachers: tuple[TeacherRows, TeacherRows],
    view: int,
    rows_N: npt.NDArray[np.int64],
    other_rows_N: npt.NDArray[np.int64],
    temperature: float,
) -> _Measured:
    """Goes through both teachers side by side, a batch at a time."""
    each = teachers[0].teacher.positions or 1
    size = len(rows_N) * each  # one place for all: small arrays made batch by batch would pin what lies between them
    measured = _Measured(np.empty(size), np.empty(size), np.empty(size, np.int64), np.empty(size, np.int64))
    pairs = zip(teachers[0].decoded(view, rows_N), teachers[1].decoded(view, other_rows_N), strict=True)
    for (here, first_BC), (_, second_BC) in pairs:
        a_BC, b_BC = (finite(logits).double().reshape(-1, logits.shape[-1]) for logits in (first_BC, second_BC))
        here = slice(here.start * each, here.stop * each)
        log_a_BC, log_b_BC = (a_BC / temperature).log_softmax(1), (b_BC / temperature).log_softmax(1)
        gap_BC = log_a_BC - log_b_BC
        kl_B = temperature**2 * (log_a_BC.exp() * gap_BC).sum(1)
        reverse_B = temperature**2 * -(log_b_BC.exp() * gap_BC).sum(1)
        for values_N, values_B in zip(measured, (kl_B, reverse_B, a_BC.argmax(1), b_BC.argmax(1)), strict=True):
            values_N[here] = values_B.numpy()
    return measured


def _of_all(measured: _Measured, labels_N: npt.NDArray[np.int64]) -> dict[str, Any]:
    known_N = labels_N >= 0
    found: dict[str, Any] = {
        "num_rows": len(labels_N),
        "agreement": float((measured.best_N == measured.other_N).mean()),
        "kl": float(measured.kl_N.mean()),
        "kl_reverse": float(measured.reverse_N.mean()),
    }
    if known_N.any():
        both = measured.best_N, measured.other_N
        found["accuracy"] = [float((best_N == labels_N)[known_N].mean()) for best_N in both]
    return found


def _of_classes(measured: _Measured, labels_N: npt.NDArray[np.int64], names: Sequence[Any]) -> list[dict[str, Any]]:
    """The same of the rows of each label, all classes in one pass."""
    known_N = labels_N >= 0
    labels = labels_N[known_N]
    counts_C = np.bincount(labels)

    def means(values_N: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        sums_C = np.bincount(labels, weights=values_N[known_N])
        return np.divide(sums_C, counts_C, out=np.zeros(len(counts_C)), where=counts_C > 0)

    agreement_C, kl_C, reverse_C = map(means, (measured.best_N == measured.other_N, measured.kl_N, measured.reverse_N))
    accuracy_C = [means(best_N == labels_N) for best_N in (measured.best_N, measured.other_N)]
    return [
        {
            "class": label,
            "name": names[label] if label < len(names) else "",
            "num_rows": int(counts_C[label]),
            "agreement": float(agreement_C[label]),
            "kl": float(kl_C[label]),
            "kl_reverse": float(reverse_C[label]),
            "accuracy": [float(of_C[label]) for of_C in accuracy_C],
        }
        for label in np.flatnonzero(counts_C).tolist()
    ]


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
