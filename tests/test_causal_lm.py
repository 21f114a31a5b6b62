"""Causal language models of transformers from a local folder: as teachers, as students, and hostile folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.datasets import Split, load_split, with_split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models import build_model
from logitbank.pipeline.use_student.load import load_student
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.pages import ROOT, blocks
from tests.students import train

prepare_torchvision()
transformers = pytest.importorskip("transformers")

LENGTH, VOCABULARY = 8, 13
CONFIGS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=0,
    ),
}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("tokens")
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 20 * LENGTH + 1).astype(np.uint16)
    ids.tofile(folder / "t.bin")
    return load_split(f"tokens:{folder}/t.bin?length={LENGTH}&classes={VOCABULARY}&test={folder}/t.bin")


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network in several shards."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]())
    network.save_pretrained(path, max_shard_size="4KB")
    return path


def test_a_folder_teaches_what_transformers_says(folder: Path, split: Split, tmp_path: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 1
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        want = network(input_ids=torch.from_numpy(split.samples[:])).logits
    teacher = build_teacher(split, f"causal-lm:{folder}", "", Views())
    cache_teacher(teacher, tmp_path / "s.zarr", encoding=Encoding(kind="dense", num_classes=VOCABULARY, bits=32))
    store = open_store(tmp_path / "s.zarr")
    from logitbank.pipeline.answers.stored import StoredAnswers

    got = StoredAnswers(store).logits(torch.arange(len(split)), 0)
    torch.testing.assert_close(got.log_softmax(-1), want.log_softmax(-1), rtol=1e-4, atol=1e-5)
    test = load_split(with_split(split.spec, "test"))
    name = f"causal-lm:{folder}"
    result = train(store, split, test, tmp_path / "run", student=name, epochs=2, optimizer="adamw", lr=0.01)
    assert result["num_parameters"] == sum(each.numel() for each in network.parameters())
    with pytest.raises(ValueError, match="is to be trusted, name it: --student"):
        load_student(tmp_path / "run")
    student = load_student(tmp_path / "run", student=name)
    assert student.logits(split.samples[:3]).shape == (3, LENGTH, VOCABULARY)


def test_a_folder_that_does_not_fit_is_refused_in_one_line(folder: Path, split: Split, tmp_path: Path) -> None:
    spec = split.spec.replace(f"classes={VOCABULARY}", "classes=50")
    cases = {
        "answers with a vocabulary of 13, and .* has 50 classes; .* add classes=13": (folder, load_split(spec)),
        "reads at most 16 tokens, and .* has 20": (
            folder,
            load_split(split.spec.replace(f"length={LENGTH}", "length=20")),
        ),
        "expected a folder that save_pretrained wrote, which is here": (tmp_path / "nowhere", split),
        "has no .safetensors; nothing is unpickled": (_copied(folder, tmp_path / "bare", weights=False), split),
        "cannot use the folder": (_copied(folder, tmp_path / "odd", config={"model_type": "nothing"}), split),
        "its weights lack": (_copied(folder, tmp_path / "deep", config=_deeper(folder)), split),
    }
    for message, (place, data) in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            build_teacher(data, f"causal-lm:{place}", "", Views())
        assert "\n" not in str(caught.value)


def test_no_code_of_a_folder_is_run(folder: Path, split: Split, tmp_path: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    place = _copied(
        folder,
        tmp_path / "code",
        config={
            "model_type": "mine",
            "vocab_size": VOCABULARY,
            "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"},
            "architectures": said["architectures"],
        },
    )
    (place / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    for make in (
        lambda: build_teacher(split, f"causal-lm:{place}", "", Views()),
        lambda: build_model(f"causal-lm:{place}", split),
    ):
        with pytest.raises(ValueError, match="no code of it is run"):
            make()
    assert not (tmp_path / "ran").exists()


def _copied(folder: Path, place: Path, *, weights: bool = True, config: dict[str, Any] | None = None) -> Path:
    shutil.copytree(folder, place)
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    for file in place.glob("*.safetensors") if not weights else ():
        file.unlink()
    return place


def _deeper(folder: Path) -> dict[str, Any]:
    said = json.loads((folder / "config.json").read_text())
    return {**said, **{name: 2 for name in ("n_layer", "num_hidden_layers") if name in said}, "layer_types": None}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # trl 1.16 with transformers 5.24
def test_trls_trainer_takes_the_pages_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's blocks on transformers' and TRL's trainers, one behind the other."""
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("train.bin", "test.bin"):
        np.random.default_rng(0).integers(0, 50, 64 * 32 + 1).astype(np.uint16).tofile(name)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    for name in ("tiny", "teacher"):
        transformers.GPT2LMHeadModel(config).save_pretrained(name)
    split = load_split("tokens:train.bin?length=32&test=test.bin&classes=50")
    teacher = build_teacher(split, "causal-lm:teacher", "", Views())
    cache_teacher(teacher, Path("text.zarr"), encoding=Encoding(kind="topk", num_classes=50, top_k=4))
    page = blocks((ROOT / "docs" / "how-to" / "distil-a-language-model.md").read_text())
    program: dict[str, Any] = {"__name__": "page", "tokenizer": word_level(50)}
    for part in (
        next(block.text for block in page if block.text.startswith("# trainer.py")),
        next(block.text for block in page if block.kind == "py").replace("max_steps=8", "max_steps=2, use_cpu=True"),
    ):
        exec(compile(part, "page", "exec"), program)
    capsys.readouterr()  # the trainers' tables
    state = program["trainer"].state
    assert state.global_step == 2
    student = transformers.GPT2LMHeadModel.from_pretrained("tiny")
    ids_BL, labels_BL, row_B, view_B = program["default_collate"]([program["dataset"][row] for row in range(64)])
    with torch.no_grad():
        answers = program["answers"].of(row_B, view_B)
        loss_B = program["objective"](
            student(ids_BL).logits, answers, labels_BL, program["Step"](step=0, steps_per_epoch=1, num_epochs=1)
        )
    assert state.log_history[-1]["train_loss"] == pytest.approx(float(loss_B.mean()), rel=0.2)


def word_level(num_words: int) -> Any:
    """A tokenizer without a file."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"<{number}>": number for number in range(num_words)}
    own = Tokenizer(WordLevel(words, unk_token="<0>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<0>", pad_token="<0>")
