"""Label maps: a picture's grid of scores, stored once, answers any crop of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.answers.label_map import CroppedAnswers, roi_weights
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.cache_teacher.recompute import recompute
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.exported import ExportTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, take
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.exchange import export_store
from logitbank.pipeline.models import MODELS, build_model
from logitbank.pipeline.models.label_map import LabelMap
from logitbank.pipeline.models.preprocessing import Preprocessing, fit_preprocessing
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

LOSSLESS = Encoding(kind="dense", num_classes=10, bits=32)


@pytest.fixture(scope="module")
def few(digits: Split) -> Split:
    return take(digits, 60)


@pytest.fixture(scope="module")
def weights(digits: Split, scaling: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose batch norms have seen the data: its last map, 2 x 2 at 8 pixels, differs from place to place."""
    torch.manual_seed(0)
    model = build_model("resnet8", digits).train()
    with torch.no_grad():
        for rows in np.array_split(np.arange(512), 8):
            model(scaling(torch.from_numpy(digits.samples[rows])))
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scaling(digits: Split) -> Preprocessing:
    return fit_preprocessing(digits)


def cached(split: Split, weights: Path, out: Path, grid: int, encoding: Encoding = LOSSLESS) -> Store:
    teachers = load_teachers(split, "resnet8", str(weights), preprocessing=fit_preprocessing(split))
    cache_teacher(NetworkTeacher(split, teachers, Views(label_map=grid)), out, encoding=encoding)
    return open_store(out)


def logits_of(split: Split, weights: Path) -> Tensor:
    return NetworkTeacher(
        split, load_teachers(split, "resnet8", str(weights), preprocessing=fit_preprocessing(split)), Views()
    )(np.arange(len(split)), 0)


def cropped(store: Store, split: Split, transform: str = "none") -> CroppedAnswers:
    return CroppedAnswers(open_answers(store), Views.from_attributes(store.views).of_crops(transform), split)


def as_distribution(logits_BC: Tensor) -> Tensor:
    return logits_BC.log_softmax(1)


@pytest.mark.parametrize("grid", [1, 2])
def test_the_whole_picture_has_the_classifiers_answer(few: Split, weights: Path, tmp_path: Path, grid: int) -> None:
    store = cached(few, weights, tmp_path / "s.zarr", grid)
    assert store.positions == grid**2
    check_data(store, few)
    found = cropped(store, few).logits(torch.arange(60), 0)
    assert torch.allclose(as_distribution(found), as_distribution(logits_of(few, weights)), atol=1e-4)


def test_cells_differ_and_a_crop_hears_its_own(few: Split, weights: Path, tmp_path: Path) -> None:
    store = cached(few, weights, tmp_path / "s.zarr", 2)
    answers, rows = cropped(store, few, "rrc?scale=0.1"), torch.arange(60)
    first, second = answers.logits(rows, 3), answers.logits(rows, 4)
    assert not torch.allclose(first, second, atol=1e-2)
    assert torch.equal(first, answers.logits(rows, 3))
    mixed = answers.of(rows, torch.where(rows < 30, 3, 4)).logits(torch.zeros(60, 10), 1.0)
    assert torch.equal(mixed, torch.cat([first[:30], second[30:]]))


@pytest.mark.parametrize("grid", [1, 2, 4, 8])
def test_weights_are_those_of_roi_align(grid: int) -> None:
    rng = np.random.default_rng(grid)
    corners = np.sort(rng.integers(0, 33, (200, 2, 2)), axis=2)
    corners[:, :, 1] += corners[:, :, 0] == corners[:, :, 1]
    sides = np.minimum(corners, 32) / 32
    boxes = np.stack([sides[:, 0, 0], sides[:, 1, 0], sides[:, 0, 1], sides[:, 1, 1]], axis=1)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    weights = roi_weights(boxes, grid)
    assert np.allclose(weights.sum((1, 2)), 1)
    maps = torch.from_numpy(rng.normal(size=(len(boxes), 3, grid, grid)))
    found = torch.einsum("bgh,bcgh->bc", torch.from_numpy(weights), maps)
    assert torch.allclose(found, _roi_align(maps, torch.from_numpy(boxes) * grid), atol=1e-6)
    whole = roi_weights(np.array([[0.0, 0.0, 1.0, 1.0], [-0.5, -0.1, 1.2, 3.0]]), grid)
    assert np.allclose(whole, 1 / grid**2)


def _roi_align(maps: Tensor, boxes: Tensor) -> Tensor:
    """torchvision's own, written in torch; its compiled operator may be missing."""
    prepare_torchvision()
    import inspect

    from torchvision.ops import roi_align

    align = inspect.unwrap(inspect.getmodule(roi_align)._roi_align)  # type: ignore[union-attr]
    top, left, bottom, right = boxes.unbind(1)
    rois = torch.stack([torch.arange(len(boxes)).to(boxes), left, top, right, bottom], dim=1)
    out: Tensor = align(maps, rois, 1.0, 1, 1, -1, True)
    return out[:, :, 0, 0]


@pytest.mark.parametrize("transform", ["flip-crop", "rrc?scale=0.3"])
def test_boxes_are_where_views_look(transform: str) -> None:
    """Pictures whose pixels say where they lie: the middle of what a view shows is the middle of its box."""
    side = 32
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    samples = np.concatenate([places, np.zeros((side, side, 1), np.int64)], axis=-1).astype(np.uint8) + 50
    marked = np.repeat(samples[None], 40, axis=0)
    marked[:, :, :, 2] = np.arange(40)[:, None, None]
    split = Split(
        name="places", split="train", spec="places", samples=marked, labels=np.zeros(40, np.int64), num_classes=2
    )
    views = Views(label_map=1).of_crops(transform)
    rows = np.arange(40)
    for view in (0, 7):
        shown = views.samples(split, rows, view).astype(np.float64)
        inside = np.clip(views.boxes(split, rows, view), 0, 1) * side
        seen = (shown[..., :2].sum(-1) > 0)[..., None]  # padding is black
        middle = (shown[..., :2] * seen).sum((1, 2)) / seen.sum((1, 2)) - 50
        expected = np.stack([inside[:, 0] + inside[:, 2], inside[:, 1] + inside[:, 3]], axis=1) / 2 - 0.5
        assert np.abs(middle - expected).max() < 0.6


def test_a_student_is_trained_on_crops_of_maps(few: Split, weights: Path, tmp_path: Path) -> None:
    encoding = Encoding(kind="topk", num_classes=10, top_k=3)
    store = cached(few, weights, tmp_path / "s.zarr", 2, encoding)
    asked = {"transform": "flip-crop", "epochs": 3}
    first = train(store, few, None, tmp_path / "a", asked=asked)
    again = train(store, few, None, tmp_path / "b", asked=asked)
    other = train(store, few, None, tmp_path / "c", asked={**asked, "transform": "none"})
    assert first["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]
    with pytest.raises(ValueError, match="transform none, here flip-crop"):
        train(store, few, None, tmp_path / "c", asked=asked)
    for wrong, message in (("flip-crop+mixup", "a crop alone"), ("randaugment", "a crop alone")):
        with pytest.raises(ValueError, match=message):
            train(store, few, None, tmp_path / "d", asked={**asked, "transform": wrong})
    with pytest.raises(ValueError, match="--tail bucket does not go with a label map"):
        train(store, few, None, tmp_path / "d", asked={**asked, "tail": "bucket"})


def test_a_store_of_maps_is_repeated_and_compared(few: Split, weights: Path, tmp_path: Path) -> None:
    store = cached(few, weights, tmp_path / "s.zarr", 2)
    teacher = store.teacher(None)
    again = recorded_teacher(store, teacher, few, str(weights))
    assert recompute(store, teacher, again, num_pairs=16).problems == []
    other = take(few, 30)
    with pytest.raises(ValueError, match="pass the data that the store was written for"):
        check_data(store, other)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("resnet8", "wrn-16-1", "resnet8x4"))])
def test_networks_of_the_table_have_maps(digits: Split, name: str) -> None:
    model, inputs = build_model(name, digits).eval(), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = model(inputs)
        found = LabelMap(name, model, 2, lambda model: model(inputs))(inputs)
    assert found.shape == (3, 4, 10)
    assert torch.allclose(found.mean(1), expected, atol=1e-4)


def test_what_has_no_map_is_refused_in_one_line(digits: Split) -> None:
    inputs = torch.randn(2, 1, 8, 8)
    ask = lambda model: model(inputs)  # noqa: E731 - as short as it is
    for model in (
        build_model("cnn", digits),
        build_model("mlp", digits),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 9)),
    ):
        with pytest.raises(ValueError, match="does not read the average of a feature map"):
            LabelMap("own", model.eval(), 1, ask)
    with pytest.raises(ValueError, match="--label-map is 3, but the last feature map of 'r' has 2 x 2 places"):
        LabelMap("r", build_model("resnet8", digits).eval(), 3, ask)


def test_what_a_stranger_says_of_maps_is_checked(few: Split, weights: Path, tmp_path: Path) -> None:
    said = {"transform": "none", "num_views": 1, "seed": 0}
    for grid in ("2", 2.0, True, -1, [2]):
        with pytest.raises(ValueError, match="expected"):
            Views.from_attributes({**said, "label_map": grid})
    store = cached(few, weights, tmp_path / "s.zarr", 2)
    store.views["label_map"] = 3
    with pytest.raises(ValueError, match="label maps of 3 x 3, but has 4 positions"):
        check_data(store, few)
    table = Split(
        name="t", split="train", spec="t", samples=np.zeros((4, 3), np.float32), labels=np.zeros(4, np.int64),
        num_classes=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs pictures with one label each"):
        Views(label_map=2).check(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--views", "2", "--transform", "flip-crop"), "does nothing here, because --label-map"),
        (("--teacher", "array:x.npy"), "--label-map does nothing here"),
    ],
)
def test_options_that_do_nothing_beside_a_map(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    asked = ("cache-teacher", "--out", str(tmp_path / "s"), "--label-map", "2", *options)
    assert message in str(CliRunner().invoke(app, asked).exception)


def test_a_transform_that_makes_nothing_is_refused_on_other_stores(few: Split, weights: Path, tmp_path: Path) -> None:
    teachers = load_teachers(few, "resnet8", str(weights), preprocessing=fit_preprocessing(few))
    cache_teacher(NetworkTeacher(few, teachers, Views()), tmp_path / "s.zarr", encoding=LOSSLESS)
    asked = ["train-student", "--store", str(tmp_path / "s.zarr"), "--data", "digits?limit=60", "--out", str(tmp_path)]
    told = str(CliRunner().invoke(app, [*asked, "--transform", "flip-crop"]).exception)
    assert "the store's views were made by none" in told


def test_a_map_goes_to_plain_arrays_and_not_back(few: Split, weights: Path, tmp_path: Path) -> None:
    store = cached(few, weights, tmp_path / "s.zarr", 2)
    export_store(store.path, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        np.testing.assert_array_equal(file["logit"], store.teacher().slab(0)["logit"][None])
    with pytest.raises(ValueError, match="holds label maps, .* hand over the store itself"):
        ExportTeacher(tmp_path / "x.npz", few, Views())
