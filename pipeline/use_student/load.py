"""A trained student, out of its run's folder: ready to be asked about new examples.

A folder may come from anybody: weights are safetensors, no code in it is run, and what it says of itself is checked
before memory is spent on it.

Shapes: N examples, C classes, H x W pixels, D features.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.columns import Column
from logitbank.pipeline.datasets.new_rows import Reads, encode_rows
from logitbank.pipeline.datasets.new_values import NewValues
from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.pictures import open_image, whole_image
from logitbank.pipeline.datasets.split import KEY_BYTES
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.models import build_model, spell_model
from logitbank.pipeline.models.causal_lm import CAUSAL_LM
from logitbank.pipeline.models.signature import SIGNATURE, Signature, read_signature
from logitbank.pipeline.models.weights import load_weights
from logitbank.pipeline.processes.device import find_device
from logitbank.pipeline.train_student.folder import WEIGHTS
from logitbank.pipeline.user_code import is_factory

EXPORTED = "model.safetensors"

Images = Sequence[Path | str | Image.Image]
Inputs = npt.NDArray[Any] | Images | Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Student:
    """A trained student.

    Attributes:
        folder: Its run's.
        signature: What it reads and answers: input transform, class names, columns of a table.
        model: The network, in evaluation mode; it maps what the input transform gives to logits.
        device: Where it runs.
        given: Its architecture as the user named it, where that is code of the user's own.
    """

    folder: Path
    signature: Signature
    model: nn.Module
    device: torch.device
    given: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; their numbers where they have none."""
        return self.signature.classes

    @property
    def reads(self) -> Reads:
        """What it reads, for ``new_rows``."""
        said = self.signature
        return Reads(input_shape=said.input_shape, originals=said.preprocessing.fit is not None, features=said.features)

    def logits(self, inputs: Inputs) -> Tensor:
        """Logits of some examples, float32 [N, C], or [N, L, C] of tokens, on the CPU.

        Args:
            inputs: Pictures: their files, or as PIL has them, or uint8 [N, H, W, channels] of the size that the student
                reads. Rows of a table: columns by name, such as a data frame, or float32 [N, D] where it was trained on
                arrays. Tokens: their ids [N, L].

        Raises:
            ValueError: They are not what the student reads.
        """
        return self.ask(self.split(inputs))

    def predict(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Probabilities float32 [N, C] of some examples, which are given as to ``logits``."""
        return np.asarray(torch.softmax(self.logits(inputs), dim=-1).numpy())

    def ask(self, split: Split, *, batch_size: int = 500, workers: int = 0) -> Tensor:
        """Logits of all examples of a split, float32 [N, C] on the CPU."""
        return predict(
            self.model,
            split,
            preprocessing=self.signature.preprocessing,
            device=self.device,
            batch_size=batch_size,
            workers=workers,
        )

    def split(self, inputs: Inputs) -> Split:
        """Some examples as an unlabelled split."""
        if isinstance(inputs, np.ndarray):
            kind = np.int64 if self.signature.is_tokens else np.float32
            samples: Any = inputs.astype(kind) if inputs.ndim == 2 else inputs
        elif hasattr(inputs, "keys"):  # a mapping, or a data frame
            return self.signature.split(self._encoded(inputs), "the inputs")
        elif self.signature.is_image:
            samples = self._shown([_opened(each) for each in inputs])
        else:
            reads = "ids in an array of numpy [N, L]"
            if not self.signature.is_tokens:
                reads = "columns by name, or an array of numpy float32 [N, D]"
            raise ValueError(f"the inputs are a {type(inputs).__name__}; the student reads {reads}")
        self.reads.check(samples, "the inputs")
        return self.signature.split(samples, "the inputs")

    def _encoded(self, columns: Any) -> npt.NDArray[np.float32]:
        if not self.signature.features:
            raise ValueError("the inputs are columns by name; the student reads arrays, as it was trained on them")
        single = next((name for name in columns.keys() if np.ndim(columns[name]) == 0), None)  # noqa: SIM118
        if single is not None:
            raise ValueError(
                f"the inputs: {single!r} is one value; give a list of values for each name, [x] of one row"
            )
        texts = {str(name): Column.of(map(_text, columns[name])) for name in columns.keys()}  # noqa: SIM118
        encoded, values = encode_rows(texts, self.signature.features, "the inputs"), NewValues(self.signature.features)
        values.count(texts)
        values.tell("the inputs")
        return encoded

    def _shown(self, pictures: list[Image.Image]) -> Any:
        if self.signature.preprocessing.fit is not None:
            return Originals(_Held(pictures))
        arrays = [np.asarray(picture) for picture in pictures]
        odd = next((array.shape for array in arrays if array.shape != self.signature.input_shape), None)
        if odd is not None:
            raise ValueError(f"a picture is {list(odd)}; the student reads uint8 {list(self.signature.input_shape)}")
        return np.stack(arrays)


def load_student(folder: Path | str, *, student: str = "", device: str = "auto") -> Student:
    """The student of a finished run, or of its export as safetensors.

    Args:
        folder: The run's, or the export's.
        student: Its architecture, as it was trained; needed where that is code of one's own, ``file.py:factory``,
            which no folder makes run.
        device: cpu, cuda, cuda:1, mps, or auto: a GPU when there is one.

    Raises:
        ValueError: No finished run, or a damaged one, or weights that do not fit its network.
    """
    folder = Path(folder)
    weights = next((folder / name for name in (WEIGHTS, EXPORTED) if (folder / name).is_file()), None)
    if weights is None:
        if (folder / "export.json").is_file():
            raise ValueError(
                f"{folder} is an export for other programs; predict from the run's folder, or from --format safetensors"
            )
        raise ValueError(f"{folder} holds no finished run; give the --out of train-student, or a folder of a sweep")
    signature = read_signature(folder / SIGNATURE)
    name = spell_model(student or signature.architecture)
    if (is_factory(name) or name.startswith(CAUSAL_LM)) and not student:
        raise ValueError(
            f"{folder}: its student is {name[:100]!r}, which no folder makes run; when it is to be trusted, name it:"
            " --student, as it was trained"
        )
    if not is_factory(name) and not name.startswith(CAUSAL_LM) and name != signature.architecture:
        raise ValueError(f"{folder}: its student is {signature.architecture[:100]!r}, not {name!r}; leave it out")
    _check_size(name, signature, weights)
    model = build_model(name, signature.example())
    load_weights(model, weights, architecture=name)
    where = find_device(device, 0)
    return Student(folder=folder, signature=signature, model=model.to(where).eval(), device=where, given=student)


def _check_size(name: str, signature: Signature, weights: Path) -> None:
    """Raises ValueError when the network needs more memory than its weights fill: nothing was allocated yet."""
    there = weights.stat().st_size
    try:
        with torch.device("meta"):
            state = build_model(name, signature.example()).state_dict()
    except (RuntimeError, NotImplementedError):  # a library's network that looks at its numbers while it is built
        return
    needed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if needed > there:
        raise ValueError(f"{weights}: {there} bytes are no weights of {name}, which has {needed}; get the whole folder")


class _Held:
    """Pictures that are in memory; a ``PictureSource``."""

    key_space = "pixels"

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def original(self, row: int) -> Image.Image:
        return self.pictures[row]

    def content_keys(self) -> npt.NDArray[np.uint64]:
        """Of the pixels: no encoded bytes are there."""
        digests = (hashlib.blake2b(each.tobytes(), digest_size=KEY_BYTES).digest() for each in self.pictures)
        return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)

    def subset(self, rows: npt.NDArray[np.integer]) -> "_Held":
        return _Held([self.pictures[row] for row in rows])


def _opened(picture: Path | str | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return whole_image(picture, upright=False)
    path = Path(picture)
    try:
        return whole_image(open_image(path), upright=False)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); mend or remove it") from error


def _text(value: Any) -> str:
    return "" if value is None else str(value)
