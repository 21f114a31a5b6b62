"""Offline teacher-logit cache for knowledge distillation: run the teacher once, train many students.

The names below are the public ones. Each is imported when it is asked for, so ``import logitbank`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitbank.pipeline.alignment import check_data as check_data
    from logitbank.pipeline.answers.dataset import DistillationDataset as DistillationDataset
    from logitbank.pipeline.answers.interface import Answers as Answers
    from logitbank.pipeline.answers.opening import open_answers as open_answers
    from logitbank.pipeline.answers.pass_rates import pass_rates as pass_rates
    from logitbank.pipeline.cache_teacher.begin import begin_pass as begin_pass
    from logitbank.pipeline.cache_teacher.passes import Pass as Pass
    from logitbank.pipeline.cache_teacher.run import cache_teacher as cache_teacher
    from logitbank.pipeline.cache_teacher.settings import Compute as Compute
    from logitbank.pipeline.cache_teacher.teachers.build import build_teacher as build_teacher
    from logitbank.pipeline.datasets import Split as Split
    from logitbank.pipeline.datasets import load_split as load_split
    from logitbank.pipeline.encoding import Encoding as Encoding
    from logitbank.pipeline.fit.training import Training as Training
    from logitbank.pipeline.models import build_model as build_model
    from logitbank.pipeline.models import own_preprocessing as own_preprocessing
    from logitbank.pipeline.models.preprocessing import fit_preprocessing as fit_preprocessing
    from logitbank.pipeline.train_student.fit_transforms import fit_transforms as fit_transforms
    from logitbank.pipeline.train_student.inputs import Inputs as Inputs
    from logitbank.pipeline.train_student.losses import LOSSES as LOSSES
    from logitbank.pipeline.train_student.losses import ExactAnswer as ExactAnswer
    from logitbank.pipeline.train_student.losses import MixedAnswer as MixedAnswer
    from logitbank.pipeline.train_student.losses import Objective as Objective
    from logitbank.pipeline.train_student.losses import RatedAnswer as RatedAnswer
    from logitbank.pipeline.train_student.losses import Step as Step
    from logitbank.pipeline.train_student.losses import own_loss as own_loss
    from logitbank.pipeline.train_student.losses import own_transform as own_transform
    from logitbank.pipeline.train_student.losses import parse_objective as parse_objective
    from logitbank.pipeline.train_student.planned import Event as Event
    from logitbank.pipeline.train_student.planned import Planned as Planned
    from logitbank.pipeline.train_student.planned import run_planned as run_planned
    from logitbank.pipeline.train_student.recipes import from_recipe as from_recipe
    from logitbank.pipeline.train_student.run import train_student as train_student
    from logitbank.pipeline.train_student.spec import Run as Run
    from logitbank.pipeline.train_student.sweep import plan_runs as plan_runs
    from logitbank.pipeline.use_student.export import export_student as export_student
    from logitbank.pipeline.use_student.load import Student as Student
    from logitbank.pipeline.use_student.load import load_student as load_student
    from logitbank.pipeline.views import Views as Views
    from logitbank.stores import Store as Store
    from logitbank.stores import StoreError as StoreError
    from logitbank.stores import Teacher as Teacher
    from logitbank.stores import copy_store as copy_store
    from logitbank.stores import local_store as local_store
    from logitbank.stores import open_store as open_store
    from logitbank.stores import verify_store as verify_store

# name -> the module that has it
_HOMES = {
    "open_store": "stores",
    "verify_store": "stores",
    "copy_store": "stores",
    "local_store": "stores",
    "Store": "stores",
    "Teacher": "stores",
    "StoreError": "stores",
    "load_split": "pipeline.datasets",
    "Split": "pipeline.datasets",
    "Views": "pipeline.views",
    "build_model": "pipeline.models",
    "own_preprocessing": "pipeline.models",
    "fit_preprocessing": "pipeline.models.preprocessing",
    "build_teacher": "pipeline.cache_teacher.teachers.build",
    "Encoding": "pipeline.encoding",
    "cache_teacher": "pipeline.cache_teacher.run",
    "check_data": "pipeline.alignment",
    "Compute": "pipeline.cache_teacher.settings",
    "begin_pass": "pipeline.cache_teacher.begin",
    "Pass": "pipeline.cache_teacher.passes",
    "open_answers": "pipeline.answers.opening",
    "Answers": "pipeline.answers.interface",
    "DistillationDataset": "pipeline.answers.dataset",
    "parse_objective": "pipeline.train_student.losses",
    "Objective": "pipeline.train_student.losses",
    "own_loss": "pipeline.train_student.losses",
    "own_transform": "pipeline.train_student.losses",
    "fit_transforms": "pipeline.train_student.fit_transforms",
    "LOSSES": "pipeline.train_student.losses",
    "Step": "pipeline.train_student.losses",
    "ExactAnswer": "pipeline.train_student.losses",
    "MixedAnswer": "pipeline.train_student.losses",
    "RatedAnswer": "pipeline.train_student.losses",
    "pass_rates": "pipeline.answers.pass_rates",
    "Run": "pipeline.train_student.spec",
    "Training": "pipeline.fit.training",
    "Inputs": "pipeline.train_student.inputs",
    "train_student": "pipeline.train_student.run",
    "from_recipe": "pipeline.train_student.recipes",
    "plan_runs": "pipeline.train_student.sweep",
    "Planned": "pipeline.train_student.planned",
    "run_planned": "pipeline.train_student.planned",
    "Event": "pipeline.train_student.planned",
    "load_student": "pipeline.use_student.load",
    "Student": "pipeline.use_student.load",
    "export_student": "pipeline.use_student.export",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"logitbank.{_HOMES[name]}"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("logitbank")
    raise AttributeError(f"module 'logitbank' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
