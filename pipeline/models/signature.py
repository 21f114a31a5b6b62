"""What a trained model reads and answers, in a file beside its weights: enough to ask it about new data.

Shapes: H x W x C pixels, D features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.classes import MAX_CLASSES
from logitbank.pipeline.datasets.columns import Feature
from logitbank.pipeline.datasets.picture_files import MAX_SIZE
from logitbank.pipeline.models.preprocessing import Preprocessing
from logitbank.stores.format.plain_json import parse_json
from logitbank.stores.format.schema import MAX_POSITIONS

SIGNATURE = "signature.json"
MAX_BYTES = 2**25
MAX_FEATURES = 2**20


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a model reads and answers.

    Attributes:
        architecture: Its name, as ``build_model`` takes it.
        input_shape: (H, W, C) of an image, (D,) of a table row, or (L,) of tokens, as the network is built for.
        num_classes: Logits that it answers with.
        class_names: In their order, or empty.
        preprocessing: Its input transform.
        features: How columns of a table became the D features; empty when rows were arrays, or images.
        is_tokens: It reads ids of tokens.
        positions: L, at how many it answers; None: one answer an example.
    """

    architecture: str
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    features: tuple[Feature, ...] = ()
    is_tokens: bool = False
    positions: int | None = None

    def __post_init__(self) -> None:
        shape, names = self.input_shape, self.class_names
        sides = len(shape) == 3 and min(shape) >= 1 and max(shape) <= MAX_SIZE
        if not sides and not (len(shape) == 1 and 1 <= shape[0] <= MAX_FEATURES):
            raise ValueError(f"its input shape is {list(shape)}; expected (H, W, channels) or (features,)")
        if not 2 <= self.num_classes <= MAX_CLASSES or len(names) not in (0, self.num_classes):
            raise ValueError(
                f"it has {self.num_classes} classes and {len(names)} names of them; expected as many names"
            )
        if self.is_tokens and (sides or self.features):
            raise ValueError("it reads tokens, and an image or columns; expected one of them")
        if self.positions is not None and not (type(self.positions) is int and 1 <= self.positions <= MAX_POSITIONS):
            raise ValueError(f"it answers at {str(self.positions)[:80]} positions; expected 1 to {MAX_POSITIONS}")
        if self.features and shape != (sum(feature.width for feature in self.features),):
            raise ValueError(f"its columns do not make an input of {list(shape)}")

    @classmethod
    def of(cls, architecture: str, split: Split, preprocessing: Preprocessing) -> "Signature":
        """Of a model that was trained on a split."""
        return cls(
            architecture=architecture,
            input_shape=preprocessing.sized(split).input_shape,
            num_classes=split.num_classes,
            class_names=split.class_names,
            preprocessing=preprocessing,
            features=split.features,
            is_tokens=split.is_tokens,
            positions=split.positions,
        )

    @property
    def is_image(self) -> bool:
        return len(self.input_shape) == 3

    def refuse_positions(self, what: str) -> None:
        """Raises ValueError where the model answers at many positions, of which ``what`` knows nothing."""
        if self.positions is not None:
            raise ValueError(
                f"{what} knows students of one answer an example, and this one answers at {self.positions} positions;"
                " ask logitbank.load_student(FOLDER).logits(tokens)"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers where they have none."""
        return self.class_names or tuple(str(label) for label in range(self.num_classes))

    def split(self, samples: Any, source: str) -> Split:
        """Unlabelled examples with the classes of the model: uint8 [N, H, W, C], float32 [N, D], int64 [N, L], or
        ``Originals``."""
        return Split(
            name=source,
            split="test",
            spec=source,
            samples=samples,
            labels=np.full((len(samples), self.positions) if self.positions else len(samples), -1, np.int64),
            num_classes=self.num_classes,
            class_names=self.class_names,
        )

    def example(self) -> Split:
        """One blank example, which takes no memory: what the network is built for."""
        kind = np.uint8(0) if self.is_image else np.int64(0) if self.is_tokens else np.float32(0)
        return self.split(np.broadcast_to(kind, (1, *self.input_shape)), "blank")

    def attributes(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.attributes(),
            "features": [feature.attributes() for feature in self.features],
            **({"tokens": True} if self.is_tokens else {}),
            **({"positions": self.positions} if self.positions else {}),
        }


def read_signature(path: Path) -> Signature:
    """The signature in a file that anybody may have written.

    Raises:
        ValueError: No such file, or anything but what ``Signature.attributes`` gave.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}; expected the folder of a finished run, of this version or a later one")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES}; expected what a run writes")
    try:
        match parse_json(path.read_bytes(), path):
            case {
                "architecture": str(architecture),
                "input_shape": list(shape),
                "num_classes": int(num_classes),
                "class_names": list(names),
                "preprocessing": preprocessing,
                "features": list(features),
                **more,
            } if all(type(side) is int for side in shape) and all(isinstance(name, str) for name in names):
                return Signature(
                    architecture=architecture,
                    input_shape=tuple(shape),
                    num_classes=num_classes,
                    class_names=tuple(names),
                    preprocessing=Preprocessing.from_attributes(preprocessing),
                    features=tuple(map(Feature.from_attributes, features)),
                    is_tokens=more.get("tokens") is True,
                    positions=more.get("positions"),  # type: ignore[arg-type]  # looked at above
                )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(f"{path}: expected architecture, input_shape, num_classes, class_names, preprocessing, features")
