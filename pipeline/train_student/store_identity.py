"""Which stored answers a student learned from."""

from typing import Any

from logitbank.pipeline.answers.ensemble import Ensemble
from logitbank.pipeline.answers.interface import Answers
from logitbank.stores import Store


def store_identity(store: Store, answers: Answers) -> dict[str, Any]:
    """Which stored answers a student learned from: enough to find the same store again, wherever it lies."""
    parts = answers.parts
    first = parts[0].teacher
    identity: dict[str, Any] = {
        "dataset_fingerprint": store.dataset["fingerprint"],
        "teacher": first.name,
        "digest": first.digest,
        "identity": dict(first.identity),
        "encoding": dict(first.encoding),
        "views": {name: store.views[name] for name in ("num_views", "transform", "seed")},
        "num_folds": None if first.folds is None else first.folds["num_folds"],
    }
    if isinstance(answers, Ensemble):
        identity["teachers"] = {
            part.teacher.name: {
                "weight": weight,
                "digest": part.teacher.digest,
                "identity": dict(part.teacher.identity),
                "encoding": dict(part.teacher.encoding),
            }
            for part, weight in zip(parts, answers.weights_M.tolist(), strict=True)
        }
        identity["teacher"] = ",".join(part.teacher.name for part in parts)
    return identity
