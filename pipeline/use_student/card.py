"""README.md of an exported student: what it is, where it comes from, and how it is loaded, in five lines."""

from collections.abc import Mapping
from typing import Any

from logitbank.pipeline.models.signature import Signature
from logitbank.pipeline.use_student.load import Student

_MEASURES = ("accuracy", "top5_accuracy", "balanced_accuracy", "f1", "auc", "nll", "brier", "ece")
_MOST_NAMES = 50


def student_card(student: Student, result: Any, to: str, folder: str) -> str:
    """The page, in Markdown.

    Args:
        student: The student.
        result: Of its run, as anybody may have written it.
        to: The format of the export.
        folder: The export's, as the page names it.
    """
    signature = student.signature
    found = _mapping(result)
    store = _mapping(found.get("store"))
    identity = _mapping(store.get("identity"))
    facts = {
        "architecture": signature.architecture,
        "data": found.get("data"),
        "teacher": identity.get("architecture", store.get("teacher")),
        "digest of the teacher's answers": store.get("digest"),
        "loss": found.get("loss"),
        "epochs": _within(found, "training", "epochs"),
        "parameters": found.get("num_parameters"),
        "SHA-256 of the weights": found.get("weights_sha256"),
        "licence": "unknown: nothing here says under which terms data, teacher and weights may be used",
    }
    measured = {name: _within(found, "test", name) for name in _MEASURES}
    lines = ["---", "tags: [knowledge-distillation]", f"library_name: {_library(signature, to)}", "---", ""]
    lines += ["# A distilled student", "", "| | |", "|---|---|", *_rows(facts), ""]
    lines += [
        f"Measured on `{_plain(_within(found, 'test', 'data'))}`:",
        "",
        "| | |",
        "|---|---|",
        *_rows(measured),
        "",
    ]
    lines += ["## Load it", "", "```python", *_program(signature, to, folder), "```", ""]
    lines += ["## What it reads and answers", "", *_reads(signature), ""]
    return "\n".join(lines)


def _program(signature: Signature, to: str, folder: str) -> list[str]:
    """Five lines, from a file to logits."""
    shape = _shape(signature)
    if to == "onnx":
        return [
            "import numpy as np",
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{folder}/model.onnx")',
            f'logits = session.run(["logits"], {{"input": np.zeros({shape}, np.float32)}})[0]',
        ]
    if to == "torch-export":
        return [
            "import torch",
            "",
            f'model = torch.export.load("{folder}/model.pt2").module()  # from people you trust: it may unpickle',
            f"logits = model(torch.zeros({shape}))",
        ]
    if signature.architecture.startswith("timm:"):
        return [
            "import timm",
            "",
            f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
            'logits = model(transform(Image.open("photo.jpg").convert("RGB"))[None])  # from PIL import Image',
        ]
    return [
        "import logitbank",
        "",
        f'student = logitbank.load_student("{folder}")',
        "probabilities = student.predict(inputs)  # float32 [examples, classes], in the order of student.class_names",
    ]


def _reads(signature: Signature) -> list[str]:
    transform = signature.preprocessing
    lines = [f"- input: float32 {_shape(signature)}, batch first; logits of {signature.num_classes} classes come back"]
    if signature.is_image:
        lines.append("- pixels are brought to 0..1, then (x - mean) / std; channels stand before height and width")
    if transform.fit is not None:
        fit = transform.fit
        lines.append(
            f"- pictures are resized to {list(fit.resize)} ({fit.interpolation}, {fit.mode}), crop {list(fit.crop)}"
        )
    lines.append(f"- mean {list(transform.mean)[:_MOST_NAMES]}, std {list(transform.std)[:_MOST_NAMES]}")
    if signature.features:
        columns = ", ".join(_plain(feature.name) for feature in signature.features[:_MOST_NAMES])
        lines.append(f"- columns: {columns}; how each becomes numbers is in `export.json`")
    names = ", ".join(_plain(name) for name in signature.classes[:_MOST_NAMES])
    lines.append(f"- classes: {names}{' ...; all are in `export.json`' if signature.num_classes > _MOST_NAMES else ''}")
    return lines


def _shape(signature: Signature) -> str:
    """Of a batch of one, as Python writes it."""
    if not signature.is_image:
        return f"(1, {signature.input_shape[0]})"
    height, width, channels = signature.input_shape
    size = signature.preprocessing.size
    return f"(1, {channels}, {size or height}, {size or width})"


def _library(signature: Signature, to: str) -> str:
    return (
        "timm"
        if to == "safetensors" and signature.architecture.startswith("timm:")
        else {"onnx": "onnx"}.get(to, "pytorch")
    )


def _rows(facts: Mapping[str, Any]) -> list[str]:
    return [f"| {name} | {_plain(value)} |" for name, value in facts.items() if value is not None]


def _within(found: Mapping[str, Any], part: str, name: str) -> Any:
    return _mapping(found.get(part)).get(name)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _plain(value: Any) -> str:
    """One line that Markdown and HTML leave as it is."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    kept = "".join(letter if letter.isprintable() else " " for letter in text[:300])
    return kept.translate({ord(letter): f"&#{ord(letter)};" for letter in "<>|`[]"})
