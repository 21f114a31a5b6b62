"""The tensor that reaches a network is the one that its library's own pipeline makes of the same file, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from logitbank.pipeline.cache_teacher.recompute import recompute
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.image_files import paths_of
from logitbank.pipeline.datasets.resize_crop import STANDARD, ResizeCrop
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.models import (
    InputTransform,
    Preprocessing,
    build_model,
    own_preprocessing,
    read_given,
    settle,
    settle_fresh,
)
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import load_weights, read_metadata, save_weights
from logitbank.pipeline.train_student.folder import WEIGHTS
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train
from tests.test_originals import as_libraries_read, files_of, photograph, photos  # noqa: F401 - a fixture

TIMM = {
    "resnet10t.c3_in1k": "crop .95, test size 224 of 176",
    "mobilenetv3_small_050.lamb_in1k": ".875 bicubic",
    "bat_resnext26ts.ch_in1k": ".9 bicubic",
    "convnext_atto.d2_in1k": "tested at 288",
    "deit3_small_patch16_224.fb_in1k": "crop share 1",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": ".9, half and half",
    "cspresnet50.ra_in1k": "bilinear",
    "volo_d4_448.sail_in1k": "a crop that is larger than what it is cut of",
    "coat_lite_medium_384.in1k": "squashed",
    "deepseek_vit_412m.deepseek_v4_1_flash": "with borders",
    "vit_base_patch16_sapiens2.fb": "no square",
}
TORCHVISION = ("resnet50.IMAGENET1K_V1", "resnet50.IMAGENET1K_V2", "vit_b_16.IMAGENET1K_V1", "swin_t", "regnet_y_16gf")


def reaching(split: Split, preprocessing: Preprocessing) -> Tensor:
    """What a network is given in view none, caught at its door."""
    found: list[Tensor] = []

    class Door(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            found.append(inputs)
            return torch.zeros(len(inputs), split.num_classes)

    predict(Door(), split, preprocessing=preprocessing, batch_size=4)
    return torch.cat(found)


def check_law(split: Split, preprocessing: Preprocessing | None, library: Any) -> None:
    assert preprocessing is not None
    made = reaching(split, preprocessing)
    for row, path in enumerate(files_of(split)):
        expected = library(as_libraries_read(path))
        assert made[row].shape == expected.shape, path
        assert torch.equal(made[row], expected), (path, float((made[row] - expected).abs().max()))


@pytest.mark.parametrize("name", TIMM)
def test_timm(photos: Path, name: str) -> None:  # noqa: F811
    prepare_torchvision()
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    config: Any = timm.get_pretrained_cfg(name)
    data = resolve_data_config({}, pretrained_cfg=config.to_dict(), use_test_size=True)  # type: ignore[no-untyped-call]
    split = load_split(f"imagefolder:{photos}")
    check_law(split, own_preprocessing(f"timm:{name}", split), create_transform(**data, is_training=False))


def test_the_numbers_are_those_of_the_model(photos: Path) -> None:  # noqa: F811
    """timm resolves them from a model that is built, too."""
    prepare_torchvision()
    import timm
    from timm.data.config import resolve_model_data_config

    split = load_split(f"imagefolder:{photos}")
    for name, share, crop in (("resnet10t.c3_in1k", 0.95, 224), ("convnext_atto.d2_in1k", 0.95, 288)):
        data = resolve_model_data_config(timm.create_model(name), use_test_size=True)  # type: ignore[no-untyped-call]
        preprocessing = own_preprocessing(f"timm:{name}", split)
        assert preprocessing is not None
        assert preprocessing.fit is not None
        assert preprocessing.fit.crop == tuple(data["input_size"][1:]) == (crop, crop)
        assert preprocessing.fit.resize[0] == int(crop / share)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(photos: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    prepare_torchvision()
    from torchvision import models

    plain, _, tag = name.partition(".")
    weights: Any = models.get_model_weights(plain)
    library = (weights[tag] if tag else weights.DEFAULT).transforms()
    split = load_split(f"imagefolder:{photos}")
    check_law(split, own_preprocessing(f"torchvision:{name}", split), library)
    assert ("for others write torchvision:regnet_y_16gf." in caplog.text) == (name == "regnet_y_16gf")


def test_a_network_of_ones_own(photos: Path) -> None:  # noqa: F811
    prepare_torchvision()
    from torchvision import transforms as T

    split = load_split(f"imagefolder:{photos}")
    text = "resize=60,crop=48,40,interpolation=bicubic,mean=0.5,0.4,0.3,std=0.2,0.2,0.1"
    library = T.Compose(
        [
            T.Resize(60, T.InterpolationMode.BICUBIC),
            T.CenterCrop((48, 40)),
            T.ToTensor(),
            T.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
        ]
    )
    check_law(split, settle(split, InputTransform.parse(text)), library)


def test_parts_are_written_over_the_models_own(photos: Path) -> None:  # noqa: F811
    split = load_split(f"imagefolder:{photos}")
    own = own_preprocessing("timm:convnext_atto.d2_in1k", split)
    assert own is not None
    assert own.fit is not None
    for text, fit in (
        ("crop=96", ResizeCrop(resize=(96, 96), crop=(96, 96), interpolation="bicubic")),
        ("resize=320", ResizeCrop(resize=(320, 320), crop=(288, 288), interpolation="bicubic")),
        ("resize=64,crop=64,interpolation=lanczos,mode=squash", None),
    ):
        found = settle(split, InputTransform.parse(text), own)
        assert found is not None
        assert (found.mean, found.std) == (own.mean, own.std)
        assert fit is None or found.fit == fit
    found = settle(split, InputTransform.parse("mean=0.1,0.2,0.3"), own)
    assert found == Preprocessing(mean=(0.1, 0.2, 0.3), std=own.std, fit=own.fit)
    whole = Preprocessing(mean=(0.5,), std=(0.5,))
    assert settle(split, whole, own) == Preprocessing(mean=(0.5,), std=(0.5,), fit=own.fit)
    assert settle(split, whole) == Preprocessing(mean=(0.5,), std=(0.5,), fit=STANDARD)
    assert settle(split, InputTransform.parse("crop=96")) is None
    assert fit_preprocessing(split).fit == STANDARD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown part ''"),
        ("size=224", "unknown part 'size'"),
        ("crop=224,crop=96", "crop is given twice"),
        ("crop=big", "expected pixels, such as 224"),
        ("crop=1,2,3", "expected pixels"),
        ("crop=0", "each of 1 to 2048 pixels"),
        ("crop=99999", "each of 1 to 2048 pixels"),
        ("interpolation=cubic", "did you mean 'bicubic'"),
        ("mode=fit", "unknown value 'fit'"),
        ("mean=a", "expected numbers"),
        ("std=0,1,1", "expected each above 0"),
    ],
)
def test_a_transform_that_cannot_be_spelled(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        InputTransform.parse(text)
    assert "\n" not in str(caught.value)


def test_what_does_nothing_is_refused(digits: Split, photos: Path) -> None:  # noqa: F811
    base = Preprocessing(mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="crop does nothing here, because .* is pictures of one size"):
        settle(digits, InputTransform.parse("crop=4"), base)
    split = load_split(f"imagefolder:{photos}")
    with pytest.raises(ValueError, match=r"resizes to \(64, 64\) and cuts \(96, 96\)"):
        settle(split, InputTransform.parse("resize=64,crop=96"), base)


def test_pictures_of_one_size_are_resized_to_the_square_that_is_asked_for(digits: Split) -> None:
    library = Preprocessing(mean=(0.5,), std=(0.5,), size=160)
    asked = settle(digits, read_given("", "", "resize=8"), library)
    assert asked == Preprocessing(mean=(0.5,), std=(0.5,), size=8)
    assert asked(torch.from_numpy(digits.samples[:2])).shape == (2, 1, 8, 8)
    scaled = settle(digits, read_given("0.4", "0.3", ""), library)
    assert scaled == Preprocessing(mean=(0.4,), std=(0.3,), size=160), "the library still says the size"
    with pytest.raises(ValueError, match="resize is 8 x 9; pictures of one size become squares"):
        settle(digits, read_given("", "", "resize=8,9"), library)
    with pytest.raises(ValueError, match="--mean is 123.7; expected the 0..1 scale"):
        settle(digits, read_given("123.7", "58", ""), library)


def test_a_slender_picture_is_not_resized_whole() -> None:
    """1 x 400,000 pixels would become 256 x 102,400,000: only its middle is computed."""
    column = np.repeat(np.arange(400, dtype=np.uint8) % 251, 1000)
    picture = Image.fromarray(np.repeat(column[:, None, None], 3, axis=2))
    assert picture.size == (1, 400_000)
    shown = np.asarray(STANDARD(picture))
    assert shown.shape == (224, 224, 3)
    assert (shown == column[200_000]).mean() > 0.4
    small = ResizeCrop(resize=(16, 16), crop=(12, 12), interpolation="bicubic")
    noisy = photograph(40, 900, 3)
    assert np.abs(np.asarray(small(noisy)).astype(int) - np.asarray(small._middle(noisy, [16]))).max() <= 1


def test_a_recorded_transform_is_checked() -> None:
    said = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, fit=ResizeCrop(mode="border", fill=(1, 2, 3)))
    assert Preprocessing.from_attributes(said.attributes()) == said
    good = said.attributes()
    for damage, message in (
        ({"fit": {"crop": [1, 2]}}, "height and width|its resizing"),
        ({"fit": None}, "its resizing is"),
        ({"fit": {**good["fit"], "crop": [2000, 2000]}}, "at most 1024"),
        ({"fit": {**good["fit"], "resize": [10**9, 10**9]}}, "each of 1 to 2048"),
        ({"fit": {**good["fit"], "fill": [256, 0, 0]}}, "three numbers of 0 to 255"),
        ({"fit": {**good["fit"], "mode": "x"}}, "unknown mode"),
        ({"size": 64}, "give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing.from_attributes({**good, **damage})


def test_a_teacher_records_its_transform_and_repeats_it(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    """Two networks of other sizes answer the same views; what is recorded is replayed, not what the library says."""
    split = load_split(f"imagefolder:{photos}")
    views = Views(transform="rrc", num_views=2)
    for name, given, crop in (
        ("timm:test_resnet.r160_in1k", None, [160, 160]),
        ("resnet8", InputTransform.parse("crop=24,interpolation=bicubic"), [24, 24]),
    ):
        teachers = load_teachers(split, name, "random-init", preprocessing=given)
        path = tmp_path / f"{crop[0]}.zarr"
        cache_teacher(
            NetworkTeacher(split, teachers, views), path, encoding=Encoding(kind="dense", num_classes=2, bits=32)
        )
        store = open_store(path)
        teacher = store.teacher()
        assert teacher.identity["preprocessing"][0]["fit"]["crop"] == crop
        again = recorded_teacher(store, teacher, split, "random-init", architecture=name)
        assert recompute(store, teacher, again, 16).problems == []
        wrong = InputTransform.parse("crop=32")
        other = recorded_teacher(store, teacher, split, "random-init", architecture=name, preprocessing=wrong)
        assert "preprocessing is" in recompute(store, teacher, other, 16).problems[0]
    first, second = (open_store(tmp_path / f"{crop}.zarr").probes for crop in (160, 24))
    assert (first["digest"] == second["digest"]).all()


def test_weights_of_a_photograph_teacher_say_how_it_reads(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    """A network for pictures of any sizes is built for the size that it reads, and keeps it in its file."""
    split = load_split(f"imagefolder:{photos}")
    scaling = settle_fresh("mlp:8", split, InputTransform.parse("crop=16,resize=20"))
    model = build_model("mlp:8", scaling.sized(split))
    assert sum(parameter.numel() for parameter in model.parameters()) == (16 * 16 * 3 + 1) * 8 + 9 * 2
    said = {"architecture": "mlp:8", "preprocessing": scaling.attributes(), "num_classes": 2}
    save_weights(tmp_path / "w.safetensors", model, said, split.keys, complete=True)
    teachers = load_teachers(split, "mlp:8", str(tmp_path / "w.safetensors"))
    assert teachers.teachers[0].preprocessing == scaling
    logits = predict(model, split, preprocessing=scaling)
    answers = NetworkTeacher(split, teachers, Views())(np.arange(len(split)), 0)
    torch.testing.assert_close(answers, logits)


def test_paths_are_known_of_files_alone(digits: Split, photos: Path) -> None:  # noqa: F811
    assert paths_of(digits) is None
    assert len(files_of(load_split(f"imagefolder:{photos}"))) == 16


def test_a_student_is_evaluated_as_its_library_evaluates_it(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    """The accuracy in its result is that of the library's own loop over the files, with the weights that were kept."""
    prepare_torchvision()
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    (tmp_path / "train").rename(tmp_path / "both")
    for split_name in ("train", "test"):
        (tmp_path / split_name).symlink_to(tmp_path / "both")
    data = f"imagefolder:{photos}"
    split, test = load_split(data), load_split(f"{data}?split=test")
    teachers = load_teachers(split, "resnet8", "random-init", preprocessing=InputTransform.parse("crop=24"))
    lossless = Encoding(kind="dense", num_classes=2, bits=32)
    views = Views(transform="rrc?size=160", num_views=1)
    cache_teacher(NetworkTeacher(split, teachers, views), tmp_path / "s.zarr", encoding=lossless)
    name = "timm:test_resnet.r160_in1k"
    asked = {"student": name, "loss": "ce", "epochs": 1, "batch_size": 8, "lr": 0.01}
    result = train(open_store(tmp_path / "s.zarr"), split, test, tmp_path / "run", asked=asked)
    found = own_preprocessing(name, split)
    assert found is not None
    assert read_metadata(tmp_path / "run" / WEIGHTS)["preprocessing"] == found.attributes()
    model = build_model(name, split).eval()
    load_weights(model, tmp_path / "run" / WEIGHTS, architecture=name)
    config: Any = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    data_config = resolve_data_config({}, pretrained_cfg=config.to_dict(), use_test_size=True)  # type: ignore[no-untyped-call]
    library: Any = create_transform(**data_config, is_training=False)
    with torch.inference_mode():
        logits = model(torch.stack([library(as_libraries_read(path)) for path in files_of(test)]))
    labels = torch.from_numpy(test.labels)
    assert result["test"]["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert result["test"]["nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-4)
