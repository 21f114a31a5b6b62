"""A student for other programs: torch.export, ONNX, or safetensors as timm loads it; loaded again and compared.

A folder holds the network, from scaled inputs to logits, and ``export.json``: class names, how inputs are scaled and
resized, where it comes from. README.md says the same to people.

Shapes: B batch, C classes.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from logitbank.pipeline.datasets.new_rows import new_rows
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.models.signature import SIGNATURE
from logitbank.pipeline.models.weights import save_weights, weights_digest
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.train_student.folder import RESULT, read_json, write_json
from logitbank.pipeline.use_student.card import student_card
from logitbank.pipeline.use_student.load import EXPORTED, Student, load_student
from logitbank.pipeline.use_student.timm_folder import timm_config
from logitbank.stores.write.building import build

EXPORT, CARD = "export.json", "README.md"
INPUT, OUTPUT = "input", "logits"
TOLERANCE = 1e-4  # of the largest logit: rounding of another order of sums
_BATCHES = (1, 2, 5)
_REAL_ROWS = 16

Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export.

    Attributes:
        written: False when this very export was there already.
        checked: Inputs on which it was compared with the student.
        difference: The largest distance of a logit.
    """

    written: bool
    checked: int
    difference: float


def export_student(student: Student, out: Path, *, to: str, data: str = "") -> Exported:
    """Writes a student for other programs, loads it again, and compares its answers.

    Args:
        student: On the CPU.
        out: The folder; it appears when it is whole.
        to: One of ``FORMATS``.
        data: A data spec whose first rows are compared too; by default random inputs alone are.

    Raises:
        ValueError: An unknown format or one whose library is not installed, a student that is no network, a network
            that cannot be traced, or answers that differ.
    """
    if to not in FORMATS:
        raise ValueError(unknown("format", to, FORMATS))
    if student.signature.architecture.startswith("sklearn:"):
        raise ValueError(
            f"{student.folder}: a student of scikit-learn is no network that {to} could hold; use the run's folder with"
            " cli predict, or load_student in Python, which need neither scikit-learn's version nor pickle"
        )
    student.signature.refuse_positions("export-student")
    if not student.folder.joinpath(RESULT).is_file():
        raise ValueError(f"{student.folder} is no run, but an export; give the folder of the run")
    model, inputs = student.model.eval(), list(_inputs(student, data))
    said = {
        "format": to,
        **student.signature.attributes(),
        "class_names": list(student.class_names),
        "weights_sha256": weights_digest(model.state_dict()),
    }
    found: list[float] = []

    def make(folder: Path) -> None:
        folder.mkdir()
        ask = FORMATS[to](student, folder, inputs[1])
        with torch.inference_mode():
            found.append(_compared(ask, model, inputs, to))
        about = {**said, "input": INPUT, "output": OUTPUT, "difference": found[0], "versions": library_versions()}
        write_json(folder / EXPORT, about)
        result = read_json(student.folder / RESULT)
        (folder / CARD).write_text(student_card(student, result, to, out.name))

    written = build(out, make, same=lambda there: _is_same(there / EXPORT, said))
    difference = found[0] if found else float(read_json(out / EXPORT)["difference"])
    return Exported(written=written, checked=sum(map(len, inputs)), difference=difference)


def _is_same(file: Path, said: dict[str, Any]) -> bool:
    """Whether an export of the same student in the same format is there."""
    try:
        found = read_json(file)
    except (ValueError, OSError):
        return False
    return isinstance(found, dict) and {**found, **json.loads(to_json(said))} == found


def _inputs(student: Student, data: str) -> Iterator[Tensor]:
    """Scaled inputs float32 in batches of several sizes: random ones, and the first rows of the data."""
    preprocessing, shape = student.signature.preprocessing, student.signature.input_shape
    generator = torch.Generator().manual_seed(0)
    for size in _BATCHES:
        if student.signature.is_image:
            yield preprocessing(torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=generator))
        else:
            yield torch.randn(size, *shape, generator=generator)
    if data:
        part = next(iter(new_rows(data, student.reads)))
        fit, rows = preprocessing.fit, np.arange(min(_REAL_ROWS, len(part.samples)))
        samples = part.samples[rows] if fit is None else part.samples.fitted(rows, fit)
        yield preprocessing(torch.from_numpy(np.ascontiguousarray(samples)))


def _compared(ask: Ask, model: nn.Module, inputs: list[Tensor], to: str) -> float:
    """The largest distance of a logit to the student's.

    Raises:
        ValueError: It is more than rounding.
    """
    distances = []
    for batch in inputs:
        expected, found = model(batch), ask(batch)
        if found.shape != expected.shape:
            raise ValueError(
                f"{to}: answers {list(found.shape)} to {len(batch)} inputs; expected {list(expected.shape)}"
            )
        distances.append(float((found - expected).abs().max()))
        if not distances[-1] <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ValueError(f"{to}: a logit is {distances[-1]:.2g} from the student's, more than rounding; report it")
    return max(distances)


def _torch_export(student: Student, folder: Path, example: Tensor) -> Ask:
    program = _traced(
        lambda: torch.export.export(student.model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)),
        "torch.export",
    )
    path = folder / "model.pt2"
    torch.export.save(program, path)
    ask: Ask = torch.export.load(path).module()
    return ask


def _onnx(student: Student, folder: Path, example: Tensor) -> Ask:
    try:
        import onnx
        import onnxruntime
        import onnxscript as onnxscript
    except ImportError as error:
        raise ValueError("onnx needs more packages: pip install 'logitbank[onnx]'") from error
    path = folder / "model.onnx"
    program = _traced(
        lambda: torch.onnx.export(
            student.model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        ),
        "ONNX",
    )
    program.model.metadata_props["logitbank"] = to_json(student.signature.attributes())
    program.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])


def _traced(export: Callable[[], Any], what: str) -> Any:
    """What the library makes of the network; it warns of itself, not of the network."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            return export()
        except Exception as error:  # tracing raises many kinds
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{what} cannot trace the student ({type(error).__name__}: {reason}); export it as safetensors"
            ) from error


def _safetensors(student: Student, folder: Path, example: Tensor) -> Ask:
    signature = student.signature
    save_weights(folder / EXPORTED, student.model, {"architecture": signature.architecture})
    write_json(folder / SIGNATURE, signature.attributes())
    library, _, name = signature.architecture.partition(":")
    if library != "timm":
        return load_student(folder, student=student.given, device="cpu").model
    import timm

    write_json(folder / "config.json", timm_config(name, student.model, signature))
    loaded: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return loaded.eval()


FORMATS: dict[str, Callable[[Student, Path, Tensor], Ask]] = {
    "torch-export": _torch_export,
    "onnx": _onnx,
    "safetensors": _safetensors,
}
