"""The ``config.json`` from which timm makes a network and its input transform, in a folder or on a hub."""

from typing import Any

from torch import nn

from logitbank.pipeline.models.signature import Signature


def timm_config(name: str, model: nn.Module, signature: Signature) -> dict[str, Any]:
    """What ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads.

    Args:
        name: Of the architecture, perhaps with the tag of the weights that say its input transform.
        model: Made by timm.
        signature: What it reads and answers.
    """
    known: Any = model.pretrained_cfg
    input_transform = signature.preprocessing
    fit, size = input_transform.fit, input_transform.size
    height, width, channels = signature.input_shape
    sides = [height, width] if size is None else [size, size]
    shown = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    if fit is not None:
        share = fit.crop[0] / fit.resize[0]
        shown = {"interpolation": fit.interpolation, "crop_pct": share, "crop_mode": fit.mode}
    names = {"label_names": list(signature.class_names)} if signature.class_names else {}
    return {
        "architecture": name.partition(".")[0],
        "num_classes": signature.num_classes,
        "num_features": int(getattr(model, "num_features", 0)),
        **({"model_args": {"in_chans": channels}} if channels != 3 else {}),
        "pretrained_cfg": {
            "input_size": [channels, *sides],
            **shown,
            "mean": list(input_transform.mean),
            "std": list(input_transform.std),
            "num_classes": signature.num_classes,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
            "custom_load": False,
            **names,
        },
    }
