"""The only description of a student run: command line, run.json, resuming, sweeps and the Python API come from it.

Imports nothing heavy, so that ``--help`` answers at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitbank.pipeline.described import Idle, check_settings, option, part, settings_of
from logitbank.pipeline.domains import (
    AT_LEAST_ONE,
    COMBINES,
    COUNT,
    MEANS,
    NOT_NEGATIVE,
    SHARE,
    STDS,
    TAIL_RULES,
    check_input,
)
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.estimators import is_estimator, read_estimator
from logitbank.pipeline.fit.training import EVAL_BATCH_SIZE
from logitbank.pipeline.train_student.loggers.spec import read_loggers

if TYPE_CHECKING:
    from logitbank.pipeline.models import Given
    from logitbank.pipeline.train_student.losses import Objective

GIGABYTE = 1e9
LABELS = "labels"
OF_NETWORKS = (
    *(setting.name for setting in settings_of(Training) if setting.name != "seed"),
    *("init", "mean", "std", "input_transform", "device", "checkpoint_every", "golden"),
)
"""Settings that say nothing to a student without gradients."""


def read_settings(pairs: list[str]) -> dict[str, str]:
    """Values by name from texts as ``temperature=4``."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r}: expected option=value, such as temperature=4")
        if name.strip() in settings:
            raise ValueError(f"--set {name.strip()} is given twice; give it once")
        settings[name.strip()] = value.strip()
    return settings


@dataclass(frozen=True, kw_only=True)
class Run:
    """One student run, as text and numbers that fit for another process; each setting says what it is."""

    store: str = option(help="A store that cache-teacher wrote")
    data: str = option("digits", help="Data spec, see `cli datasets`; for example torchvision:CIFAR10?root=data")
    eval_data: str = option(
        "", help="Data spec of the test data, evaluated once, at the end; default: the data's split=test"
    )
    student: str = option("mlp:32", help="Architecture of the student, see `cli models`, or sklearn:NAME?option=value")
    init: str = option("", help="Weights that the student starts from")
    loss: str = option(
        "kd", help="Loss: a name of `cli losses`, your own file.py:function, or a sum such as 'kd:0.9 + ce:0.1'"
    )
    settings: Mapping[str, str | float] = option(
        {}, help="Option of the loss, option=value; may be repeated", spelled="--set", texts=read_settings
    )
    label_smoothing: float = option(0.0, help="Label smoothing of the loss's hard-label part, 0 to 1", domain=SHARE)
    teacher: str = option(
        "",
        help="Name of a teacher of the store, or several with their weights: a,b or a:2,b:1",
        spelled="--teacher-name",
    )
    combine: str = option("mean-prob", help="How several teachers become one: mean-prob or mean-logit", domain=COMBINES)
    tail: str = option(
        "", help="Tail rule: predicted (the usual one), bucket, uniform or renormalise", domain=TAIL_RULES
    )
    transform: str = option(
        "",
        help="How examples are shown: your file.py:factory, when the store's views were made by it; of label maps the"
        " crops, such as rrc",
    )
    training: Training = part(Training)
    val_share: float = option(0.0, help="Share of the training rows held out for validation", domain=SHARE)
    golden: str = option(
        "",
        help="Measure after every epoch how far held-out answers are from the teacher's and from the truth, which is"
        " labels, or another store: STORE or STORE?teacher=NAME",
    )
    leave_out: str = option(
        "", help="A fold of the store that is not trained on: the student may answer it, as a fold teacher"
    )
    mean: str = option("", help="Input mean, one number a channel, on the 0..1 scale: 0.485,0.456,0.406", domain=MEANS)
    std: str = option("", help="Input standard deviation, likewise", domain=STDS)
    input_transform: str = option(
        "",
        help="Changes to the network's own: resize=256,crop=224,interpolation=bicubic,mode=center,mean=...,std=...;"
        " parts that are left out stay",
    )
    memory_budget: float = option(
        0.0,
        help="GB for the teacher's slabs, larger ones are read block by block; 0: half of the machine's memory",
        domain=NOT_NEGATIVE,
        decides=False,
    )
    eval_batch_size: int = option(
        EVAL_BATCH_SIZE,
        help="Examples of a forward pass where a student is measured; changes speed and rounding",
        domain=AT_LEAST_ONE,
        decides=False,
    )
    workers: int = option(1, help="Threads that read and transform the next batches", domain=COUNT, decides=False)
    checkpoint_every: int = option(
        0,
        help="Save the run after so many steps too; 0: at the end of each epoch alone",
        domain=COUNT,
        decides=False,
    )
    logger: Sequence[str] = option(
        (),
        help="Where epochs are logged: tensorboard, wandb?project=NAME or mlflow?experiment=NAME; may be repeated",
        decides=False,
        texts=tuple,
    )
    device: str = option("auto", help="Device: cpu, cuda, cuda:1, mps, or auto: a GPU if there is one", decides=False)
    threads: int = option(
        0, help="CPU threads; 0 leaves it to torch. Tiny models are fastest with 1", domain=COUNT, decides=False
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check_input(self.mean, self.std, self.input_transform)
        read_loggers(self.logger)
        if is_estimator(self.student):
            read_estimator(self.student)

    def idle(self) -> Iterator[Idle]:
        """Settings that do nothing beside the others."""
        if "," not in self.teacher:
            yield ("combine",), "there is one teacher; name several with --teacher-name a,b"
        if is_estimator(self.student):
            yield OF_NETWORKS, f"{self.student.partition('?')[0]} is fitted by scikit-learn in one go"

    def objective(self, num_classes: int | None = None) -> "Objective":
        """What is minimised; a loss of one's own is tried with so many classes, or not yet.

        Raises:
            ValueError: The loss or a setting of it is unknown, outside its domain, or does nothing.
        """
        from logitbank.pipeline.train_student.own_loss import read_objective

        settings = dict(self.settings)
        if self.label_smoothing:
            if not any(term.name == "ce" for term in read_objective(self.loss, settings, None).terms):
                because = f"loss {self.loss!r} has no hard-label part"
                raise ValueError(f"--label-smoothing does nothing here, because {because}; leave it out")
            if "ce.smoothing" in settings:
                raise ValueError("--label-smoothing and --set ce.smoothing are the same; give one")
            settings["ce.smoothing"] = str(self.label_smoothing)
        return read_objective(self.loss, settings, num_classes)

    def preprocessing(self) -> "Given | None":
        """What was asked of the student's input, over what its network says itself."""
        from logitbank.pipeline.models import read_given

        return read_given(self.mean, self.std, self.input_transform)

    @property
    def tail_rule(self) -> str:
        """The rule that holds, whether or not one was asked for."""
        return self.tail or "predicted"

    @property
    def trained(self) -> dict[str, Any]:
        """How the student is trained, fit for JSON: what decides its result."""
        if is_estimator(self.student):
            return {"seed": self.training.seed}
        return self.training.attributes()

    @property
    def num_epochs(self) -> int:
        """How many records a whole run tells of."""
        return 1 if is_estimator(self.student) else self.training.epochs

    @property
    def budget(self) -> int | None:
        """Bytes for slabs; None: half of the machine's memory."""
        return round(self.memory_budget * GIGABYTE) or None
