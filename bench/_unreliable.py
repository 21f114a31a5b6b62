"""What bench.unreliable_teachers runs: losses, corruptions of a teacher's answers, pairs of a teacher and a student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from logitbank import Training

WARMUP = {"warmup": "1"}  # about a twelfth of the epochs, as 20 of the published 240

Settings = Mapping[str, str]

# Every loss by its recipe, the same for all teachers, students and corruptions: nothing is tuned.
REDISTILL = {
    "redistill, lambda -1/2": ("redistill", {"lambda_": "-0.5"}),  # the same in both orientations
    "redistill, teacher first, 2/3": ("redistill", {"orientation": "teacher_first", "lambda_": "0.6667"}),
    "redistill, student first, 2/3": ("redistill", {"orientation": "student_first", "lambda_": "0.6667"}),
    "redistill, teacher first, 1": ("redistill", {"orientation": "teacher_first", "lambda_": "1"}),
    "redistill, student first, 1": ("redistill", {"orientation": "student_first", "lambda_": "1"}),
}
METHODS: dict[str, tuple[str, Settings]] = {
    "ce": ("ce", {}),
    "kd": ("kd", {}),
    **REDISTILL,
    "rld": ("rld", WARMUP),
    "dkd": ("dkd", WARMUP),
    # T = 1 and the label weighing as much as the answers; added after the others were seen
    **{f"{loss}, preset=imagenet": (loss, {"preset": "imagenet"}) for loss in ("kd", "redistill", "rld", "dkd")},
    "gjs": ("gjs", {}),
    "lr": ("lr", {}),
    "swap": ("swap", {}),
    "kd, weight p_y": ("kd", {"row_weight": "paced", "paced_by": "teacher", "paced_b": "0"}),
}


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """What is done to a teacher's answers: a share of the rows whose top class is exchanged with a random other one,
    and a temperature that all are divided by."""

    swapped: float = 0.0
    temperature: float = 1.0

    def of(self, logits_NC: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
        """Rows with a smaller share are among those with a larger one."""
        rng = np.random.default_rng([seed, 1])
        num_rows, num_classes = logits_NC.shape
        rows = rng.permutation(num_rows)
        other = (logits_NC.argmax(1) + rng.integers(1, num_classes, num_rows)) % num_classes
        rows = rows[: round(self.swapped * num_rows)]
        top, other, found = logits_NC.argmax(1)[rows], other[rows], logits_NC.copy()
        found[rows, top], found[rows, other] = logits_NC[rows, other], logits_NC[rows, top]
        return found / np.float32(self.temperature)


CORRUPTIONS = {
    "as it is": Corruption(),
    "20 % swapped": Corruption(swapped=0.2),
    "40 % swapped": Corruption(swapped=0.4),
    "sharpened": Corruption(temperature=0.5),
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and its student, which reads the images or what a middle layer of the teacher makes of them."""

    about: str
    depth: int
    student: str
    training: Training
    features: bool = False
    methods: Sequence[str] = tuple(METHODS)
    corruptions: Sequence[str] = tuple(CORRUPTIONS)


PAIRS = {
    "features": Pair(
        about="ResNet-56 teaches `mlp:64`, which reads the maps of its second stage",
        depth=56,
        student="mlp:64",
        training=Training(epochs=16, batch_size=256, lr=0.05),
        features=True,
    ),
    "pixels": Pair(
        about="ResNet-20 teaches a small convolutional network, which reads the images",
        depth=20,
        student="bench._students:patches24",
        training=Training(epochs=10, batch_size=256, lr=0.05, channels_last=True),
    ),
}


def tiny(pair: Pair) -> Pair:
    """Two epochs, two losses, two corruptions: does it run?"""
    few = ("as it is", "20 % swapped")
    return replace(pair, training=replace(pair.training, epochs=2), methods=("ce", "kd"), corruptions=few)


def only(pair: Pair, corruptions: Sequence[str]) -> Pair:
    """The pair with some of its corruptions.

    Raises:
        ValueError: One that is not known.
    """
    if unknown := set(corruptions) - set(CORRUPTIONS):
        raise ValueError(f"unknown corruptions {sorted(unknown)}; known: {', '.join(CORRUPTIONS)}")
    return replace(pair, corruptions=[one for one in pair.corruptions if one in corruptions])
