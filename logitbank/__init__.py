"""Offline teacher-logit cache for knowledge distillation: run the teacher once, train many students.

The names below are the public ones. Each is imported when it is asked for, so ``import logitbank`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitbank.pipeline.answers.dataset import DistillationDataset
    from logitbank.pipeline.answers.opening import open_answers
    from logitbank.pipeline.cache_teacher.run import cache_teacher
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.models import build_model
    from logitbank.pipeline.train_student.losses import LOSSES, ExactAnswer, Step, parse_objective
    from logitbank.pipeline.train_student.run import train_student
    from logitbank.pipeline.views import Views
    from logitbank.stores import copy_store, local_store, open_store, verify_store

# name -> the module that has it
_HOMES = {
    "open_store": "stores",
    "verify_store": "stores",
    "copy_store": "stores",
    "local_store": "stores",
    "load_split": "pipeline.datasets",
    "Views": "pipeline.views",
    "build_model": "pipeline.models",
    "cache_teacher": "pipeline.cache_teacher.run",
    "DistillationDataset": "pipeline.answers.dataset",
    "open_answers": "pipeline.answers.opening",
    "LOSSES": "pipeline.train_student.losses",
    "ExactAnswer": "pipeline.train_student.losses",
    "Step": "pipeline.train_student.losses",
    "parse_objective": "pipeline.train_student.losses",
    "train_student": "pipeline.train_student.run",
}
__all__ = [
    "LOSSES",
    "DistillationDataset",
    "ExactAnswer",
    "Step",
    "Views",
    "build_model",
    "cache_teacher",
    "copy_store",
    "load_split",
    "local_store",
    "open_answers",
    "open_store",
    "parse_objective",
    "train_student",
    "verify_store",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"logitbank.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'logitbank' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
