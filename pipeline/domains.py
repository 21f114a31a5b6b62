"""What an option may be: each has a domain, declared once, which the command line and the library both ask.

Imports nothing heavy, so that ``--help`` answers at once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from logitbank.pipeline.spelling import unknown

LARGEST = 2**31 - 1  # of whole numbers, unless something smaller is
LARGEST_SEED = 2**32 - 1  # scikit-learn's


@dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number of an interval.

    Attributes:
        low, high: The ends.
        open_low, open_high: An open end is outside.
        whole: Whole numbers only.
        among: If given, one of these.
        without: Numbers inside that make no sense.
    """

    low: float = 0.0
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    among: tuple[float, ...] = ()
    without: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the value lies in the domain."""
        if not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        if self.among or value in self.without:
            return value in self.among
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.among:
            return f"one of {', '.join(f'{value:g}' for value in self.among)}"
        kind = "a whole number" if self.whole else "a finite number"
        ends = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        if self.high not in (math.inf, LARGEST):
            ends += f" and {'below' if self.open_high else 'at most'} {self.high:.10g}"
        return f"{ends}{''.join(f', not {value:g}' for value in self.without)}, {kind}"

    def check(self, option: str, value: float) -> None:
        """Raises ValueError when the value lies outside."""
        if not self.holds(value):
            raise ValueError(f"{option} is {value}; expected {self}")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers with commas between, as text; empty says none."""

    each: Number

    def read(self, option: str, text: str) -> tuple[float, ...]:
        """The numbers; ValueError when one is none or lies outside."""
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            raise ValueError(
                f"{option} is {text!r}; expected numbers with commas between, such as 0.5,0.5,0.5"
            ) from None
        for value in values:
            if not self.each.holds(value):
                raise ValueError(f"{option} is {text!r}, which holds {value}; expected each {self.each}")
        return values

    def check(self, option: str, value: str) -> None:
        """Raises ValueError when a number is none or lies outside."""
        if value:
            self.read(option, value)


@dataclass(frozen=True)
class Words:
    """One of some words."""

    words: tuple[str, ...]

    def check(self, option: str, value: str) -> None:
        """Raises ValueError, with the nearest word, for another."""
        if value not in self.words:
            raise ValueError(unknown(option.removeprefix("--"), value, self.words))


Domain = Number | Numbers | Words


def whole(low: float = 0, high: float = LARGEST, *, among: Iterable[float] = ()) -> Number:
    """A domain of whole numbers."""
    return Number(low=low, high=high, whole=True, among=tuple(among))


COUNT, AT_LEAST_ONE, SEED = whole(0), whole(1), whole(0, LARGEST_SEED)
POSITIVE, NOT_NEGATIVE = Number(open_low=True), Number()
SHARE = Number(high=1.0, open_high=True)
TEMPERATURE = Number(low=0.01, high=1000.0)
TEMPERATURES = Numbers(each=TEMPERATURE)
MEANS = Numbers(each=Number(low=-LARGEST, high=LARGEST))
STDS = Numbers(each=Number(high=LARGEST, open_low=True))
PRECISIONS = Words(("float32", "bfloat16", "float16"))

FOLDS = Number(low=0, high=2**16, whole=True, without=(1,))
FOLD_STRATEGIES = Words(("stratified", "kfold", "group", "hash"))
VIEWS = whole(1, 2**20)
BITS, TAIL_BITS = whole(among=(8, 16, 32)), Number(low=0.1, high=4.0)
ENCODINGS = Words(("auto", "topk", "topk+tail", "dense"))
TAIL_RULES = Words(("", "predicted", "bucket", "uniform", "renormalise"))  # none: the first, and none was asked for
DECODE_RULES = Words(tuple(rule for rule in TAIL_RULES.words if rule != "bucket"))
COMBINES = Words(("mean-prob", "mean-logit"))
# measure of a classifier -> whether higher is better
METRICS = {
    "accuracy": True,
    "top5_accuracy": True,
    "balanced_accuracy": True,
    "f1": True,
    "auc": True,
    "nll": False,
    "brier": False,
    "ece": False,
}
# measure of a student beside its teacher -> whether higher is better
BESIDE_TEACHER = {"agreement": True, "kl": False}
# likewise, of the rows that the teacher gets right or wrong
WHERE_TEACHER_ERRS = {
    "accuracy_teacher_right": True,
    "accuracy_teacher_wrong": True,
    "agreement_teacher_wrong": False,
}
SELECT = Words(("last", "best", *(f"best:{metric}" for metric in (*METRICS, *BESIDE_TEACHER))))
COMPARED = Words((*METRICS, *BESIDE_TEACHER, *WHERE_TEACHER_ERRS))
STUDENT_FORMATS = Words(("torch-export", "onnx", "safetensors"))
FORMATS = Words(("", "npz", "parquet", "webdataset"))


def check_input(mean: str, std: str, transform: str) -> None:
    """Raises ValueError when what is said of a network's input does not go together."""
    if transform and (mean or std):
        raise ValueError("--mean and --std are parts of --input-transform; write mean=...,std=... there")
    if bool(mean) != bool(std):
        raise ValueError("--mean and --std belong together; pass both or neither")
