"""Weights as trainers write them: loaded without hand-work, by a spelled rule, and said."""

import argparse
import importlib
import json
import logging
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.models.torch_files import load_torch_file
from logitbank.pipeline.models.weights import Taken, load_state, load_weights, weights_digest
from logitbank.stores import open_store

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
"""


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def digest(model: nn.Module) -> str:
    return weights_digest(model.state_dict())


def taken(path: Path, part: str = "", model: nn.Module | None = None) -> Taken:
    return load_weights(net(9) if model is None else model, path, architecture="net", part=part)


def took(path: Path, part: str = "") -> str:
    """The digest of what another network holds after loading."""
    other = net(9)
    said = load_weights(other, path, architecture="net", part=part)
    assert weights_digest(said.state) == digest(other)
    return digest(other)


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser with a state."""
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 64)).sum().backward()
    optimizer.step()
    return optimizer


def options() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, out=Path("run"), best=np.float64(0.5), seeds=np.arange(3), when={1, 2})


@pytest.fixture
def timm_checkpoint(tmp_path: Path) -> tuple[Path, nn.Module, nn.Module]:
    prepare_torchvision()
    timm: Any = importlib.import_module("timm.utils")

    model = net()
    average = timm.ModelEmaV3(model, decay=0.5)
    optimizer = stepped(model)
    average.update(model)
    saver = timm.CheckpointSaver(
        DataParallel(model),
        optimizer,
        args=argparse.Namespace(model="net", **vars(options())),
        model_ema=average,
        amp_scaler=timm.NativeScaler(device="cpu"),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=0.7)
    return tmp_path / "last.pth.tar", model, average.module


def test_timm_saves_and_the_plain_weights_are_taken(timm_checkpoint: tuple[Path, nn.Module, nn.Module]) -> None:
    path, model, average = timm_checkpoint
    assert digest(model) != digest(average)
    assert took(path) == digest(model)
    found = taken(path)
    assert found.part == "state_dict"
    assert "took the part state_dict;" in found.said
    assert f"state_dict_ema would fit too: {path}::state_dict_ema" in found.said
    assert all(name in found.said for name in ("did not read", "optimizer", "args", "epoch"))
    assert "\n" not in found.said
    assert took(path, "state_dict_ema") == digest(average)
    assert taken(path, "state_dict_ema").part == "state_dict_ema"


class Phase(Enum):
    EARLY = 1


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_with_a_prefix_beside_the_loss(tmp_path: Path) -> None:
    prepare_torchvision()
    import pytorch_lightning as lightning

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self, options: argparse.Namespace, phase: Phase) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = net()
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(10))

        def training_step(self, batch: list[Tensor], index: int) -> Any:
            return self.loss(self.model(batch[0]), torch.zeros(len(batch[0]), dtype=torch.int64))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    module = Module(options(), Phase.EARLY)
    trainer = lightning.Trainer(
        max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(8, 64)), batch_size=4)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert took(tmp_path / "last.ckpt") == digest(module.model)
    found = taken(tmp_path / "last.ckpt")
    assert found.part == "state_dict/model."
    assert "whose names begin with model." in found.said


def torchvision_reference(model: nn.Module) -> dict[str, Any]:
    """As references/classification/train.py writes it."""
    optimizer = stepped(model)
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(net(5))
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "epoch": 3,
        "args": options(),
        "model_ema": average.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }


def test_torchvisions_references_save_an_average_with_a_prefix_and_a_count(tmp_path: Path) -> None:
    content = torchvision_reference(model := net())
    torch.save(content, tmp_path / "checkpoint.pth")
    assert took(tmp_path / "checkpoint.pth") == digest(model)
    average = {name.removeprefix("module."): value for name, value in content["model_ema"].items()}
    del average["n_averaged"]
    assert took(tmp_path / "checkpoint.pth", "model_ema") == weights_digest(average) != digest(model)
    del content["model"]
    torch.save(content, tmp_path / "alone.pth")
    assert took(tmp_path / "alone.pth") == weights_digest(average)
    assert taken(tmp_path / "alone.pth").part == "model_ema/module."


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(model)
    return wrapped  # type: ignore[no-any-return]


def compiled_inside(model: nn.Module) -> nn.Module:
    """``1._orig_mod.weight``: the segment is in the middle of the name."""
    whole = nn.Sequential(*model.children())
    whole[1] = compiled(whole[1])
    return whole


WRAPPED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "ddp": (DistributedDataParallel, "module."),
    "parallel": (DataParallel, "module."),
    "compiled": (compiled, ""),
    "compiled-inside": (compiled_inside, ""),
    "ddp-of-compiled": (lambda model: DistributedDataParallel(compiled(model)), "module."),
    "compiled-ddp": (lambda model: compiled(DistributedDataParallel(model)), "module."),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
def test_prefixes_of_wrapped_models_are_taken_off(name: str, tmp_path: Path) -> None:
    wrap, prefix = WRAPPED[name]
    model = net()
    state = wrap(model).state_dict()
    assert set(state) != set(model.state_dict())
    for file, content in (("plain.pt", state), ("whole.pt", {"epoch": 1, "net": state})):
        torch.save(content, tmp_path / file)
        assert took(tmp_path / file) == digest(model)
    assert taken(tmp_path / "plain.pt").part == prefix


@pytest.mark.parametrize("keys", [("model_state_dict",), ("net",), ("state", "weights"), ("state_dict", "model")])
def test_plain_loops_save_under_any_key(tmp_path: Path, keys: tuple[str, ...]) -> None:
    model = net()
    content: Any = model.state_dict()
    for key in reversed(keys):
        content = {key: content, "optimizer": stepped(net()).state_dict(), "rng": torch.get_rng_state()}
    torch.save(content, tmp_path / "w.pt")
    assert took(tmp_path / "w.pt") == digest(model)
    assert taken(tmp_path / "w.pt").part == "/".join(keys)


def test_of_two_that_fit_the_user_says_which(tmp_path: Path) -> None:
    torch.save({"student": net(1).state_dict(), "teacher": net(2).state_dict()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"2 parts fit this network \(student, teacher\); say which, FILE::student"):
        taken(tmp_path / "w.pt")
    assert took(tmp_path / "w.pt", "teacher") == digest(net(2))
    with pytest.raises(ValueError, match="holds no part 'tutor'; it has student, teacher"):
        taken(tmp_path / "w.pt", "tutor")


@pytest.mark.parametrize("other", ["teacher", "swa_state_dict"])
def test_another_part_is_not_taken_in_place_of_weights_that_have_more(other: str, tmp_path: Path) -> None:
    path, more = tmp_path / "x.pt", {**net(0).state_dict(), "aux.weight": torch.zeros(2)}
    torch.save({"state_dict": more, other: net(1).state_dict()}, path)
    with pytest.raises(ValueError, match=f"state_dict holds this network and 1 names more .aux.weight.*FILE::{other}"):
        taken(path)
    assert took(path, other) == digest(net(1))


def test_a_prefix_is_selected_as_well(tmp_path: Path) -> None:
    both = {f"{name}.{key}": value for name in ("online", "target") for key, value in net().state_dict().items()}
    both["target.3.bias"] = torch.ones(10)
    torch.save({"state_dict": both}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"2 parts fit this network \(state_dict/online\., state_dict/target\.\)"):
        taken(tmp_path / "w.ckpt")
    assert taken(tmp_path / "w.ckpt", "state_dict/target.").state["3.bias"].tolist() == [1] * 10
    assert taken(tmp_path / "w.ckpt", "online.").part == "state_dict/online."


def test_names_of_the_network_itself_are_no_prefix(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.module = net(), net(1)

    torch.save(Own().state_dict(), tmp_path / "w.pt")
    other = Own()
    nn.init.zeros_(other.model[3].bias)  # type: ignore[arg-type]
    found = taken(tmp_path / "w.pt", model=other)
    assert (found.part, found.said) == ("", "")
    assert digest(other) == digest(Own())


def test_what_does_not_fit_is_told_without_its_prefix(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.Linear(9, 10))
    torch.save({"state_dict": DataParallel(wide).state_dict(), "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"weights do not fit net \(7 of another shape: 1.weight \[9, 64\]"):
        taken(tmp_path / "w.pt")
    torch.save({"state_dict": DataParallel(net()[:3]).state_dict(), "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"weights do not fit net \(2 missing: 3.weight, 3.bias\)"):
        taken(tmp_path / "w.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_those_that_torch_reads(tmp_path: Path, legacy: bool) -> None:
    shared = torch.arange(24, dtype=torch.float32)
    state = {
        **{str(kind): torch.rand(3, 5).mul(100).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64)},
        **{str(kind): torch.arange(6).to(kind) for kind in (torch.int8, torch.int16, torch.int64, torch.uint8)},
        "turned": torch.rand(4, 3).t(),
        "rows": shared[4:16].view(3, 4),
        "steps": shared[::5],
        "again": shared[2:7],
        "expanded": torch.rand(1, 3).expand(4, 3),
        "none": torch.empty(0, 3),
        "number": torch.tensor(3.5),
        "parameter": nn.Parameter(torch.rand(2)),
        "flags": torch.tensor([True, False]),
    }
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    found, expected = load_state(tmp_path / "w.pt"), torch.load(tmp_path / "w.pt", weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride())
        assert torch.equal(found[name], tensor)


def test_only_the_numbers_that_are_taken_are_read(tmp_path: Path) -> None:
    content = torchvision_reference(net())
    torch.save(content, tmp_path / "w.pt")
    saved = load_torch_file(tmp_path / "w.pt")
    assert len(saved.places) > 30
    assert not saved._storages
    with pytest.raises(ValueError, match="holds 2 state dicts \\(model, model_ema\\)"):
        load_state(tmp_path / "w.pt")


def test_a_store_and_a_run_say_which_part_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    torch.save(content := torchvision_reference(net()), "w.pth")

    def run(*arguments: str) -> None:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    data = ["--data", "digits?limit=40"]
    teacher = ["--teacher", "net.py:net", "--weights", "w.pth::model_ema", "--mean", "0", "--std", "1"]
    run("cache-teacher", *data, *teacher, "--out", "a.zarr")
    identity = open_store(Path("a.zarr")).teacher("teacher").identity
    assert identity["weights_part"] == ["model_ema/module."]
    average = {name.removeprefix("module."): value for name, value in content["model_ema"].items()}
    assert identity["weights_sha256"] == [weights_digest({k: v for k, v in average.items() if k != "n_averaged"})]
    assert "note: w.pth: took the part model_ema, whose names begin with module." in caplog.text
    run("verify", "a.zarr", *data, "--recompute", "2", "--teacher", "net.py:net", *teacher[2:])
    student = ["--student", "net.py:net", "--epochs", "1", "--init", "w.pth", "--out", "run"]
    run("train-student", *data, "--store", "a.zarr", *student)
    settings = json.loads(Path("run/run.json").read_text())
    assert settings["init_part"] == "model"
    assert settings["init_sha256"] == weights_digest(content["model"])
