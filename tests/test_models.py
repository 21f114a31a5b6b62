"""The model table, weights on disk, and input scaling."""

from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.models import MODELS, Preprocessing, build_model, own_preprocessing
from logitbank.pipeline.models.check import check_network
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import load_into, load_state, read_metadata, save_weights, weights_digest
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train


def images(size: int = 32, channels: int = 3, num_classes: int = 7) -> Split:
    x = np.random.default_rng(0).integers(0, 256, (4, size, size, channels), dtype=np.uint8)
    return Split(name="x", split="train", spec="x", samples=x, labels=np.zeros(4, np.int64), num_classes=num_classes)


TABLE = Split(
    name="t",
    split="train",
    spec="t",
    samples=np.random.default_rng(0).normal(3, 2, (50, 5)).astype(np.float32),
    labels=np.zeros(50, np.int64),
    num_classes=2,
)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in MODELS if name not in ("wrn-28-10", "gpt")),  # gpt reads tokens: test_tokens.py
        "mlp:16",
        "mlp:8x3",
        "timm:resnet10t",
        "torchvision:squeezenet1_1",
    ],
)
def test_every_model_answers_every_class(name: str) -> None:
    split = images(64 if ":" in name else 16)
    model = build_model(name, split).eval()
    inputs = Preprocessing(mean=(0.5,), std=(0.25,))(torch.from_numpy(split.samples))
    with torch.inference_mode():
        assert model(inputs).shape == (4, 7)


@pytest.mark.parametrize("name", ["linear", "mlp", "mlp:4"])
def test_models_for_tables(name: str) -> None:
    assert build_model(name, TABLE)(torch.from_numpy(TABLE.samples)).shape == (50, 2)


def test_an_image_model_refuses_a_table() -> None:
    with pytest.raises(ValueError, match="needs images"):
        build_model("resnet20", TABLE)


@pytest.mark.parametrize("name", ["mlp:0", "mlp:08", "mlp:8x0"])
def test_a_width_is_a_number_with_one_spelling(name: str) -> None:
    with pytest.raises(ValueError, match="unknown model"):
        build_model(name, TABLE)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet2", "resnet20"), ("timm:resnet1888", "resnet18"), ("torchvision:resnet19", "resnet18")],
)
def test_an_unknown_model_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        build_model(name, images())


@pytest.mark.parametrize(
    ("name", "parameters"), [("wrn-16-2", 703_284), ("wrn-40-1", 569_780), ("wrn-40-2", 2_255_156)]
)
def test_wide_resnets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    """Tian et al. 2020, CIFAR-100."""
    model = build_model(name, images(num_classes=100))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, input_shape):\n"
        "    return nn.Linear(input_shape[-1], num_classes)\n"
        "def any(**given):\n"
        "    return nn.Linear(given['input_shape'][0], given['num_classes'])\n"
        "def odd(depth):\n"
        "    return nn.Identity()\n"
        "def number():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{tmp_path}/own/nets.py:small", "own.nets:small", "own.nets:any"):
        assert build_model(name, TABLE)(torch.from_numpy(TABLE.samples)).shape == (50, 2)
        assert own_preprocessing(name, TABLE) is None
    with pytest.raises(ValueError, match="takes an argument 'depth'; it is offered num_classes, input_shape"):
        build_model("own.nets:odd", TABLE)
    with pytest.raises(ValueError, match="returned int; expected a torch.nn.Module"):
        build_model("own.nets:number", TABLE)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_resnets_have_the_published_number_of_parameters(depth: int, parameters: int) -> None:
    model = build_model(f"resnet{depth}", images(num_classes=10))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_scaling_is_fitted_on_the_given_rows_only() -> None:
    rows = np.arange(20)
    scaled = fit_preprocessing(TABLE, rows)(torch.from_numpy(TABLE.samples[rows]))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0, correction=0), torch.ones(5), atol=1e-4, rtol=0)


def test_scaling_of_images_is_on_the_unit_scale() -> None:
    x = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    out = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))(x)
    assert out.shape == (1, 3, 4, 4)
    assert out[0, :, 0, 0].tolist() == [1.0, 3.0, 1.0]


def test_scaling_resizes_to_the_models_size() -> None:
    assert Preprocessing(mean=(0.0,), std=(1.0,), size=9)(torch.zeros(1, 4, 6, 3, dtype=torch.uint8)).shape == (
        1,
        3,
        9,
        9,
    )


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.0,)), ((0.5,), (float("nan"),)), ((0.5, 0.5), (1.0,)), ((), ())])
def test_impossible_scaling_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"std|standard deviation"):
        Preprocessing(mean=mean, std=std)


def test_scaling_must_fit_the_data() -> None:
    with pytest.raises(ValueError, match="3 means.* 5 columns"):
        Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3).check(TABLE)


def test_a_constant_column_is_not_divided_by_zero() -> None:
    flat = Split(
        name="t",
        split="train",
        spec="t",
        samples=np.ones((5, 2), np.float32),
        labels=np.zeros(5, np.int64),
        num_classes=1,
    )
    assert fit_preprocessing(flat).std == (1.0, 1.0)


def test_library_models_bring_their_own_scaling() -> None:
    assert own_preprocessing("timm:resnet18", images()) == Preprocessing(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224
    )
    assert own_preprocessing("resnet20", images()) is None


def test_weights_round_trip_with_metadata(tmp_path: Path) -> None:
    model = build_model("resnet8", images())
    save_weights(tmp_path / "w.safetensors", model, {"architecture": "resnet8", "folds": {"left_out": 2}})
    assert read_metadata(tmp_path / "w.safetensors")["folds"] == {"left_out": 2}
    state = load_state(tmp_path / "w.safetensors")
    assert weights_digest(state) == weights_digest(model.state_dict())
    other = build_model("resnet8", images())
    assert weights_digest(other.state_dict()) != weights_digest(state)
    load_into(other, state, architecture="resnet8", source="w")
    assert weights_digest(other.state_dict()) == weights_digest(state)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("owned"),))


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Hostile()}, "w.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_state(Path("w.pt"))
    assert not Path("owned").exists()


def test_weights_that_do_not_fit_are_reported_and_not_loaded() -> None:
    model = build_model("mlp:4", TABLE)
    before = weights_digest(model.state_dict())
    state = build_model("mlp:5x2", TABLE).state_dict()
    with pytest.raises(
        ValueError, match=r"2 unexpected: 5.weight, 5.bias; 4 of another shape: 1.weight \[5, 5\]"
    ) as caught:
        load_into(model, state, architecture="mlp:4", source="w.pt")
    assert "\n" not in str(caught.value)
    assert weights_digest(model.state_dict()) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"nonsense", "not a readable safetensors"),
        ("w.pt", b"nonsense", "not plain weights"),
        ("w.onnx", b"", "unknown kind of weights"),
        ("missing.pt", None, "no weights at"),
    ],
)
def test_unreadable_weights(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_state(tmp_path / name)
    assert "\n" not in str(caught.value)


NETWORKS = """
import torch

def seven():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))

def narrow():
    return torch.nn.Linear(63, 10)

def pair():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x
    return Pair()
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("seven", r"answers \[2, 7\]; expected \[2, 10\]"),
        ("narrow", r"cannot read the examples of digits\?split=train, 8 x 8 x 1: mat1 and mat2"),
        ("pair", "answers tuple; expected"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_made(
    digits: Split, tmp_path: Path, factory: str, message: str
) -> None:
    (tmp_path / "net.py").write_text(NETWORKS)
    name = f"{tmp_path / 'net.py'}:{factory}"
    with pytest.raises(ValueError, match=message):
        train_teachers(digits, name, Training(epochs=1), tmp_path / "teacher")
    with pytest.raises(ValueError, match=message):
        NetworkTeacher(digits, load_teachers(digits, name, "random-init"), Views())
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


ONLY_IN_TRAINING = """
from torch import nn

class Two(nn.Module):
    def __init__(self, answer, inputs, classes):
        super().__init__()
        self.answer, self.a, self.b = answer, nn.Linear(inputs, classes), nn.Linear(inputs, classes)
    def forward(self, x):
        a, b = self.a(x.flatten(1)), self.b(x.flatten(1))
        return self.answer(a, b) if self.training else (a + b) / 2

def network(answer):
    return lambda num_classes, input_shape: Two(answer, input_shape[0] * input_shape[1] * input_shape[2], num_classes)

pair = network(lambda a, b: (a, b))
named = network(lambda a, b: {"logits": a})
narrow = network(lambda a, b: a[:, 1:])
frozen = network(lambda a, b: a.detach())
whole = network(lambda a, b: a.argmax(dim=1, keepdim=True).expand_as(a))
broken = network(lambda a, b: a + b[:1, :3])
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("pair", "answers tuple in training; expected \\[2, 10\\]"),
        ("named", "answers dict in training"),
        ("narrow", "answers \\[2, 9\\] in training"),
        ("frozen", "has nothing to train"),
        ("whole", "answers torch.int64 in training; expected logits"),
        ("broken", "cannot read the examples of digits.* in training"),
    ],
)
def test_a_network_that_answers_otherwise_in_training_is_refused_before_the_first_step(
    digits: Split, plain_teacher: Path, tmp_path: Path, factory: str, message: str
) -> None:
    """As DeiT, GoogLeNet and Inception do, whose further outputs exist in training only."""
    (tmp_path / "net.py").write_text(ONLY_IN_TRAINING)
    name = f"{tmp_path / 'net.py'}:{factory}"
    with pytest.raises(ValueError, match=message):
        train_teachers(digits, name, Training(epochs=1), tmp_path / "teacher")
    encoding = Encoding(kind="dense", num_classes=10, bits=8)
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    cache_teacher(NetworkTeacher(digits, teachers, Views()), tmp_path / "s.zarr", encoding=encoding)
    with pytest.raises(ValueError, match=message):
        train(open_store(tmp_path / "s.zarr"), digits, None, tmp_path / "r", student=name, epochs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py", "s.zarr"]


def test_a_check_leaves_the_network_as_it_was(digits: Split) -> None:
    model = build_model("cnn", digits).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_network("cnn", model, digits, views=Views(), preprocessing=fit_preprocessing(digits))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_training_that_fails_leaves_no_folder(digits: Split, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss is"):
        train_teachers(digits, "mlp:8", Training(epochs=1, lr=1e30, grad_clip=0), tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
