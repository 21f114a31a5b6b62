"""The model table: teachers and students are built from the same names.

``build_model("resnet20", split)`` gives an untrained ``nn.Module`` that maps preprocessed inputs to logits [B, C], or
[B, L, C] for examples that are answered at L positions. ``timm:NAME`` and ``torchvision:NAME`` reach those libraries'
own tables, ``sklearn:NAME`` is a student that scikit-learn fits.

    small, cifar_resnet, wide_resnet, gpt, causal_lm, trees, subclasses     networks
    check, preprocessing, input_transform, signature    what a network reads and answers
    features, label_map                             what it knows beside its logits
    weights, weight_files, torch_files, pickled, parts, head    weights, whoever wrote them

``MODELS`` below is the table.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.models.causal_lm import CAUSAL_LM, fresh_causal_lm
from logitbank.pipeline.models.cifar_resnet import CifarResNet
from logitbank.pipeline.models.gpt import GPT
from logitbank.pipeline.models.input_transform import (
    Given,
    InputTransform,
    own_preprocessing,
    read_given,
    settle,
    settle_fresh,
)
from logitbank.pipeline.models.preprocessing import Preprocessing
from logitbank.pipeline.models.small import MLP, SmallCNN
from logitbank.pipeline.models.subclasses import SubclassNetwork
from logitbank.pipeline.models.trees import TreeEnsemble
from logitbank.pipeline.models.wide_resnet import WideResNet
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.user_code import call_factory, is_factory

__all__ = [
    "MODELS",
    "Given",
    "InputTransform",
    "Model",
    "Preprocessing",
    "build_model",
    "find_model",
    "own_preprocessing",
    "read_given",
    "settle",
    "settle_fresh",
    "spell_model",
]

_CRD_WIDTHS = (32, 64, 128, 256)
_PLAIN_MLP, _PLAIN_GPT = (256, 2), (128, 2)  # width and depth
_TIMM = "timm:"
_SUBCLASSES = re.compile(r"subclasses:([2-9]|[1-9]\d{1,2}):(?!sklearn:|subclasses:)(.+)")
_MLP = re.compile(r"mlp:([1-9]\d{0,4})(?:x([1-9]\d?))?")
_GPT = re.compile(r"gpt:([1-9]\d{0,4})x([1-9]\d?)")
IMAGES, TABLE, TOKENS = "images", "a table", "tokens"


@dataclass(frozen=True, kw_only=True)
class Model:
    """One line of the table: how to build it for a split, what it reads, and what a user reads of it.

    Attributes:
        build: Untrained.
        reads: What it reads, as ``Split.holds`` says it.
        about: In a line.
    """

    build: Callable[[Split], nn.Module]
    reads: tuple[str, ...]
    about: str


def _mlp(width: int, depth: int) -> Callable[[Split], nn.Module]:
    return lambda split: MLP(input_shape=split.input_shape, num_classes=split.num_classes, width=width, depth=depth)


def _gpt(width: int, depth: int) -> Callable[[Split], nn.Module]:
    return lambda split: GPT(vocabulary=split.num_classes, length=split.input_shape[0], width=width, depth=depth)


def _resnet(depth: int) -> Model:
    return Model(
        build=lambda split: CifarResNet(depth, num_classes=split.num_classes, in_channels=split.input_shape[-1]),
        reads=(IMAGES,),
        about=f"CIFAR ResNet-{depth}, He et al. 2015, section 4.2, option-A shortcuts",
    )


def _resnet_x4(depth: int) -> Model:
    return Model(
        build=lambda split: CifarResNet(
            depth,
            num_classes=split.num_classes,
            in_channels=split.input_shape[-1],
            widths=_CRD_WIDTHS,
            projection=True,
        ),
        reads=(IMAGES,),
        about=f"CIFAR ResNet-{depth}, four times as wide, projection shortcuts (Tian et al. 2020)",
    )


def _wrn(depth: int, width: int) -> Model:
    return Model(
        build=lambda split: WideResNet(depth, width, num_classes=split.num_classes, in_channels=split.input_shape[-1]),
        reads=(IMAGES,),
        about=f"wide ResNet-{depth}, {width} times as wide, Zagoruyko and Komodakis 2016",
    )


MODELS: dict[str, Model] = {
    "linear": Model(build=_mlp(0, 0), reads=(IMAGES, TABLE), about="multinomial logistic regression"),
    "mlp": Model(
        build=_mlp(*_PLAIN_MLP), reads=(IMAGES, TABLE), about="two hidden layers of 256; mlp:WIDTHxDEPTH for others"
    ),
    "gpt": Model(
        build=_gpt(*_PLAIN_GPT),
        reads=(TOKENS,),
        about="causal transformer of width 128 and two layers, norms first, tied head; gpt:WIDTHxDEPTH for others",
    ),
    "cnn": Model(
        build=lambda split: SmallCNN(in_channels=split.input_shape[-1], num_classes=split.num_classes),
        reads=(IMAGES,),
        about="two convolutions and one hidden layer, for small images",
    ),
    **{f"resnet{depth}": _resnet(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _resnet_x4(depth) for depth in (8, 32)},
    **{f"wrn-{depth}-{width}": _wrn(depth, width) for depth, width in ((16, 1), (16, 2), (28, 10), (40, 1), (40, 2))},
}


def build_model(name: str, split: Split, *, drop_path: float = 0.0) -> nn.Module:
    """An untrained model for the split's inputs and classes.

    Args:
        name: One of ``cli models``, ``mlp:WIDTHxDEPTH``, ``gpt:WIDTHxDEPTH``, ``timm:NAME``, ``torchvision:NAME``,
            ``sklearn:NAME`` (trees that are still to be fitted or loaded), ``causal-lm:FOLDER`` (the configuration of a
            language model of transformers), or your own ``path/to/file.py:factory`` or
            ``package.module:factory``, called with those of ``num_classes`` and ``input_shape`` ((H, W, channels),
            (D,) or (L,)) that it takes; ``subclasses:S:NAME`` is any of these networks with S outputs for each class,
            whose probabilities it adds up.
        split: Gives the input shape and the number of classes; see ``Preprocessing.sized``.
        drop_path: Share of residual branches that a timm model skips while it is trained.

    Raises:
        ValueError: Unknown name, a model for other samples, or drop path of a model that has none.
    """
    model = find_model(name)
    if split.holds not in model.reads:
        others = {IMAGES: "cnn", TABLE: "mlp or linear", TOKENS: "gpt:WIDTHxDEPTH"}[split.holds]
        raise ValueError(f"model {name!r} needs {model.reads[0]}, but {split.spec} holds {split.holds}; use {others}")
    if not drop_path:
        return model.build(split)
    if not name.startswith(_TIMM):
        raise ValueError(f"--drop-path is timm's, and {name!r} has none; take a timm: model, or leave it out")
    return _with_drop_path(name.removeprefix(_TIMM), split, drop_path)


def spell_model(name: str) -> str:
    """The one spelling of a name that has several: ``mlp:8x1`` is ``mlp:8``, and ``mlp:256x2`` is ``mlp``."""
    if match := _SUBCLASSES.fullmatch(name):
        return f"subclasses:{match[1]}:{spell_model(match[2])}"
    if name == f"gpt:{_PLAIN_GPT[0]}x{_PLAIN_GPT[1]}":
        return "gpt"
    match = _MLP.fullmatch(name)
    if match is None:
        prefix, question, options = name.partition("?")
        return prefix + question + "&".join(sorted(options.split("&"))) if name.startswith("sklearn:") else name
    width, depth = int(match[1]), int(match[2] or 1)
    if (width, depth) == _PLAIN_MLP:
        return "mlp"
    return f"mlp:{width}" if depth == 1 else f"mlp:{width}x{depth}"


def find_model(name: str) -> Model:
    """The model of a name, as ``build_model`` takes it; ValueError, with the nearest name, for none."""
    if name in MODELS:
        return MODELS[name]
    if match := _MLP.fullmatch(name):
        width, depth = int(match[1]), int(match[2] or 1)
        return Model(build=_mlp(width, depth), reads=(IMAGES, TABLE), about="")
    if match := _GPT.fullmatch(name):
        return Model(build=_gpt(int(match[1]), int(match[2])), reads=(TOKENS,), about="")
    if match := _SUBCLASSES.fullmatch(name):
        return _with_subclasses(find_model(match[2]), int(match[1]))
    library, _, inner = name.partition(":")
    if library == "timm" and inner:
        return Model(build=lambda split: _timm(inner, split), reads=(IMAGES,), about="")
    if library == "torchvision" and inner:
        return Model(build=lambda split: _torchvision(inner, split), reads=(IMAGES,), about="")
    if library == "sklearn" and inner:
        return Model(build=_trees, reads=(IMAGES, TABLE), about="")
    if f"{library}:" == CAUSAL_LM and inner:
        return Model(build=lambda split: fresh_causal_lm(name, split), reads=(TOKENS,), about="")
    if is_factory(name):
        return Model(build=lambda split: _own(name, split), reads=(IMAGES, TABLE, TOKENS), about="")
    forms = ("mlp:WIDTHxDEPTH", "gpt:WIDTHxDEPTH", "timm:NAME", "torchvision:NAME", "sklearn:NAME")
    known = [*MODELS, *forms, "causal-lm:FOLDER", "file.py:factory", "subclasses:2:NAME"]
    raise ValueError(unknown("model", name, known))


def _with_subclasses(inner: Model, subclasses: int) -> Model:
    def build(split: Split) -> nn.Module:
        wide = replace(split, num_classes=subclasses * split.num_classes, class_names=())
        return SubclassNetwork(inner.build(wide), subclasses)

    return replace(inner, build=build, about="")


def _trees(split: Split) -> nn.Module:
    """One that has still to be fitted, or to take its trees from a file."""
    return TreeEnsemble(math.prod(split.input_shape), split.num_classes)


def _own(name: str, split: Split) -> nn.Module:
    model = call_factory(name, {"num_classes": split.num_classes, "input_shape": split.input_shape})
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: the factory returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def _timm(name: str, split: Split, **options: Any) -> nn.Module:
    prepare_torchvision()
    import timm

    if not timm.is_model(name):
        raise ValueError(unknown("timm model", name, _near(name, timm.list_models())))
    model: nn.Module = timm.create_model(name, num_classes=split.num_classes, in_chans=split.input_shape[-1], **options)
    return model


def _with_drop_path(name: str, split: Split, rate: float) -> nn.Module:
    nothing = f"--drop-path does nothing here, because timm:{name} has no branches to skip; leave it out"
    try:
        model = _timm(name, split, drop_path_rate=rate)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ValueError(nothing) from None
    from timm.layers import DropPath  # type: ignore[attr-defined]

    if not any(isinstance(module, DropPath) and module.drop_prob for module in model.modules()):
        raise ValueError(nothing)
    return model


def _torchvision(name: str, split: Split) -> nn.Module:
    prepare_torchvision()
    from torchvision import models

    plain = name.partition(".")[0]  # behind the dot it says whose weights, which decides the input transform
    if plain not in models.list_models(module=models):
        raise ValueError(unknown("torchvision model", plain, _near(plain, models.list_models(module=models))))
    model: nn.Module = models.get_model(plain, num_classes=split.num_classes)
    return model


def _near(name: str, names: list[str]) -> list[str]:
    """Libraries know hundreds of models: name only those that look alike."""
    import difflib

    return difflib.get_close_matches(name, names, n=8, cutoff=0.3) or names[:8]
