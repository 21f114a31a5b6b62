"""What the numbers of an epoch and of a result are called, the same in every logger."""

from collections.abc import Mapping
from typing import Any

from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.metrics import METRICS

_OF_EPOCH = {
    "loss": "loss/training",
    "train_accuracy": "accuracy/training",
    "val_accuracy": "accuracy/validation",
    "val_nll": "nll/validation",
    "val_selected": "selected/validation",
    "val_proxy": "proxy/validation",
    "val_golden": "golden/validation",
    "lr": "lr",
    "seconds": "seconds",
}


def of_epoch(record: EpochRecord) -> dict[str, float]:
    """By name; what was not measured is left out."""
    found = {name: getattr(record, field) for field, name in _OF_EPOCH.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def of_result(result: Mapping[str, Any]) -> dict[str, float]:
    """Measures on the test data, and against the teacher."""
    test, teacher = result.get("test") or {}, result.get("against_teacher") or {}
    found = {f"{name}/test": test.get(name) for name in METRICS}
    found |= {f"{name}/teacher": teacher.get(name) for name in ("agreement", "kl")}
    return {name: float(value) for name, value in found.items() if value is not None}
