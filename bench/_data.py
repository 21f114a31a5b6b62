"""The public files that some tests and benchmarks use: which are here, and where the others are published.

``python -m bench._data [FOLDER]`` looks at FOLDER, or at LOGITBANK_DATA, and compares sizes and sums; it fetches
nothing. The exit code is 1 when a published file is missing or differs. docs/reference/benchmark-data.md says who uses
which.
"""

import argparse
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
RESNETS = (
    "https://github.com/akamaster/pytorch_resnet_cifar10/raw/d5489e8995e81e91ce6b1d69dcc98ad579b0b153/pretrained_models"
)
UCI = "https://archive.ics.uci.edu/static/public"
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file: its place in the folder, its sum (sha256; md5 where that is what its authors say), where it is from."""

    path: str
    digest: str
    source: str
    num_bytes: int | None = None
    algorithm: str = "sha256"

    def state(self, folder: Path) -> str:
        """What is to be said of it: "here", "missing" or "differs"."""
        file = folder / self.path
        if not file.is_file():
            return "missing"
        if self.num_bytes is not None and file.stat().st_size != self.num_bytes:
            return "differs"
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, self.algorithm).hexdigest()
        return "here" if found == self.digest else "differs"


def _cifar(name: str, md5: str) -> Published:
    return Published(path=f"{CIFAR_FOLDER}/{name}", digest=md5, source=CIFAR, algorithm="md5")


def _resnet(depth: int, sha256: str) -> Published:
    name = f"resnet{depth}-{sha256[:8]}.th"
    return Published(path=f"weights/{name}", digest=sha256, source=f"{RESNETS}/{name}")


FILES = (
    _cifar("data_batch_1", "c99cafc152244af753f735de768cd75f"),
    _cifar("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
    _cifar("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
    _cifar("data_batch_4", "634d18415352ddfa80567beed471001a"),
    _cifar("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    _cifar("test_batch", "40351d587109b95175f43aff81a1287e"),
    _cifar("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    _resnet(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    _resnet(32, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
    _resnet(44, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
    _resnet(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    Published(
        path="tabular/adult.data",
        digest="5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        source=f"{UCI}/2/adult.zip",
        num_bytes=3_974_305,
    ),
    Published(
        path="tabular/adult.test",
        digest="a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
        source=f"{UCI}/2/adult.zip",
        num_bytes=2_003_153,
    ),
    Published(
        path="tabular/magic04.data",
        digest="e9314b7ebd4b4b59a3b3d65f7316663963777b16a46786877651dbbaa640b36a",
        source=f"{UCI}/159/magic+gamma+telescope.zip",
        num_bytes=1_477_391,
    ),
    Published(
        path="text/shakespeare.txt",
        digest="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        source=SHAKESPEARE,
        num_bytes=1_115_394,
    ),
)
# made from published files, or from files that nobody publishes: any of the same form do, with other figures
MADE = (
    "logits/cifar10_test_logits_resnet56.npy",
    "logits/cifar100_test_logits_resnetsmall32.npy",
    "logits/cifar100_test_labels.tsv",
    "logits/nips17_logits.npy",
    "nips17/labels.tsv",
    "weights/imagenet_mobilenetv2_qat.safetensors",
    "imagenet_archs.py",
    "text/text.py",
    "text/gpt.safetensors",
    "text/train_tokens.npy",
    "text/test_tokens.npy",
)


def resnet_file(data: Path, depth: int) -> Path:
    """The weights of a ResNet for CIFAR-10: as they are published, or the same as .safetensors.

    Raises:
        ValueError: They are not there.
    """
    names = (f"cifar10_resnet{depth}.safetensors", f"resnet{depth}-*.th")
    found = [file for name in names for file in sorted((data / "weights").glob(name))]
    if not found:
        raise ValueError(f"{data}/weights has no {' and no '.join(names)}; python -m bench._data says where it is from")
    return found[0]


def cifar_root(data: Path, folder: Path) -> Path:
    """Where CIFAR-10's published files are; a ``realdata.py`` in the data rebuilds them in ``folder``.

    Raises:
        ValueError: There is neither.
    """
    if (data / CIFAR_FOLDER).is_dir():
        return data
    spec = importlib.util.spec_from_file_location("realdata_reader", data / "realdata.py")
    if spec is None or spec.loader is None or not (data / "realdata.py").is_file():
        raise ValueError(f"{data} has no {CIFAR_FOLDER}; python -m bench._data says where it is from")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_cifar10_pickles(folder)
    return folder


def lines(folder: Path) -> Iterator[tuple[str, str]]:
    """State of each file, and a line for it."""
    for file in FILES:
        state = file.state(folder)
        yield state, f"{state:8} {file.path}" + ("" if state == "here" else f"  {file.source}")
    for path in MADE:
        state = "here" if (folder / path).is_file() else "not made"
        yield state, f"{state:8} {path}"


def main() -> int:
    """Prints a line a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=os.environ.get("LOGITBANK_DATA", ""))
    named = parser.parse_args().folder
    folder = Path(named)
    if not named or not folder.is_dir():
        print("error: expected a folder of data; name it, or set LOGITBANK_DATA", file=sys.stderr)
        return 2
    found = list(lines(folder))
    print("\n".join(line for _, line in found))
    return int(any(state in ("missing", "differs") for state, _ in found))


if __name__ == "__main__":
    sys.exit(main())
