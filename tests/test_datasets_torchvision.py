"""torchvision's classification sets, in folders as torchvision keeps them: the rows are those of its own classes."""

import bz2
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from logitbank.pipeline.datasets import load_split, with_split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.datasets.torchvision_sets import TORCHVISION_SETS

prepare_torchvision()
from torchvision import datasets as library  # noqa: E402

Patch = pytest.MonkeyPatch
RNG = np.random.default_rng(0)
N = 4  # pictures a split, or a class


def picture(path: Path, shape: tuple[int, ...] = (9, 12, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, shape, np.uint8)).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(path: Path, array: np.ndarray, kind: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = np.array([kind << 8 | array.ndim, *array.shape], ">i4").tobytes()
    path.write_bytes(head + array.astype(">i4" if kind == 12 else np.uint8).tobytes())


def images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, shape, np.uint8)


def cifar(kind: str) -> Callable[[Path, Patch], None]:
    def make(root: Path, patch: Patch) -> None:
        cls: Any = getattr(library, kind)
        folder, names = root / cls.base_folder, [f"name{number}" for number in range(10)]
        folder.mkdir()
        key = "labels" if kind == "CIFAR10" else "fine_labels"
        for attribute in ("train_list", "test_list"):
            listed = []
            for file, _ in getattr(cls, attribute):
                (folder / file).write_bytes(pickle.dumps({"data": images(N, 3072), key: [*range(N)]}))
                listed.append([file, md5(folder / file)])
            patch.setattr(cls, attribute, listed)
        (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: names}))
        patch.setattr(cls, "meta", {**cls.meta, "md5": md5(folder / cls.meta["filename"])})

    return make


def mnist(kind: str) -> Callable[[Path, Patch], None]:
    def make(root: Path, patch: Patch) -> None:
        for part in ("train", "t10k"):
            idx(root / kind / "raw" / f"{part}-images-idx3-ubyte", images(N, 28, 28))
            idx(root / kind / "raw" / f"{part}-labels-idx1-ubyte", np.arange(N))

    return make


def emnist(part: str) -> Callable[[Path, Patch], None]:
    def make(root: Path, patch: Patch) -> None:
        for split in ("train", "test"):
            idx(root / "EMNIST" / "raw" / f"emnist-{part}-{split}-images-idx3-ubyte", images(N, 28, 28))
            idx(root / "EMNIST" / "raw" / f"emnist-{part}-{split}-labels-idx1-ubyte", np.arange(N) + 1)

    return make


def qmnist(root: Path, patch: Patch) -> None:
    for split in ("train", "test"):
        idx(root / "QMNIST" / "raw" / f"qmnist-{split}-images-idx3-ubyte", images(N, 28, 28))
        idx(root / "QMNIST" / "raw" / f"qmnist-{split}-labels-idx2-int", images(N, 8) % 10, kind=12)


def usps(root: Path, patch: Patch) -> None:
    for file in ("usps.bz2", "usps.t.bz2"):
        rows = [f"{y + 1} " + " ".join(f"{i}:{RNG.uniform(-1, 1):.3f}" for i in range(1, 257)) for y in range(N)]
        (root / file).write_bytes(bz2.compress("\n".join(rows).encode()))


def semeion(root: Path, patch: Patch) -> None:
    rows = np.concatenate([RNG.integers(0, 2, (10, 256)), np.eye(10)], axis=1)
    np.savetxt(root / "semeion.data", rows)
    patch.setattr(library.SEMEION, "md5_checksum", md5(root / "semeion.data"))


def svhn(root: Path, patch: Patch) -> None:
    listed: dict[str, list[str]] = {}
    for split, (url, file, _) in library.SVHN.split_list.items():
        scipy.io.savemat(root / file, {"X": images(32, 32, 3, N), "y": np.arange(1, N + 1)[:, None] + 6})
        listed[split] = [url, file, md5(root / file)]
    patch.setattr(library.SVHN, "split_list", listed)


def stl10(root: Path, patch: Patch) -> None:
    folder = root / "stl10_binary"
    write(folder / "class_names.txt", "\n".join(f"name{number}" for number in range(10)))
    for attribute in ("train_list", "test_list"):
        listed = []
        for file, _ in getattr(library.STL10, attribute):
            (folder / file).write_bytes(
                bytes(np.arange(1, N + 1, dtype=np.uint8)) if "_y" in file else images(N, 3, 96, 96).tobytes()
            )
            listed.append([file, md5(folder / file)])
        patch.setattr(library.STL10, attribute, listed)


def fer(root: Path, patch: Patch) -> None:
    rows = [f"{y},{' '.join(map(str, images(48 * 48)))},{use}" for use in ("Training", "PublicTest") for y in range(N)]
    file = write(root / "fer2013" / "fer2013.csv", "\n".join(["emotion,pixels,Usage", *rows]))
    patch.setattr(library.FER2013, "_RESOURCES", {**library.FER2013._RESOURCES, "fer": ("fer2013.csv", md5(file))})


def caltech101(root: Path, patch: Patch) -> None:
    for name in ("BACKGROUND_Google", "Faces", "ant"):
        for number in range(1, N + 1):
            picture(root / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04d}.jpg")


def caltech256(root: Path, patch: Patch) -> None:
    for place, name in enumerate(("001.ak47", "002.flag"), 1):
        for number in range(1, N + 1):
            picture(root / "caltech256" / "256_ObjectCategories" / name / f"{place:03d}_{number:04d}.jpg")


def clevr(root: Path, patch: Patch) -> None:
    folder = root / "clevr" / "CLEVR_v1.0"
    for split in ("train", "val", "test"):
        files = [picture(folder / "images" / split / f"CLEVR_{split}_{number}.png") for number in range(N)]
        scenes = [{"image_filename": file.name, "objects": [{}] * (3 + y)} for y, file in enumerate(files)]
        write(folder / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))


def folders(*path: str, splits: tuple[str, ...], names: tuple[str, ...] = ("a", "b"), suffix: str = "jpg") -> Any:
    def make(root: Path, patch: Patch) -> None:
        for split in splits:
            for name in names:
                for number in range(N):
                    picture(root.joinpath(*path, split, name) / f"{number}.{suffix}")

    return make


def dtd(root: Path, patch: Patch) -> None:
    folder = root / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        files = [f"{name}/{split}{number}.jpg" for number in range(N) for name in ("banded", "woven")]
        write(folder / "labels" / f"{split}1.txt", "\n".join(files))
        for file in files:
            picture(folder / "images" / file)


def aircraft(root: Path, patch: Patch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    for file in ("variants", "families", "manufacturers"):
        write(folder / f"{file}.txt", "707-320\n747-400")
    for split in ("trainval", "test"):
        rows = [f"{split}{number} {('707-320', '747-400')[number % 2]}" for number in range(N)]
        write(folder / f"images_variant_{split}.txt", "\n".join(rows))
        for number in range(N):
            picture(folder / "images" / f"{split}{number}.jpg")


def flowers(root: Path, patch: Patch) -> None:
    folder = root / "flowers-102"
    for number in range(1, 3 * N + 1):
        picture(folder / "jpg" / f"image_{number:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.arange(1, 3 * N + 1)})
    ids = np.arange(1, 3 * N + 1)[::-1].reshape(3, N)
    scipy.io.savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), ids, strict=True)))
    listed = {"image": ("102flowers.tgz", "")}
    listed |= {key: (file, md5(folder / file)) for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    patch.setattr(library.Flowers102, "_file_dict", listed)


def food(root: Path, patch: Patch) -> None:
    folder = root / "food-101"
    for split in ("train", "test"):
        listed = {name: [f"{name}/{split}{number}" for number in range(N)] for name in ("waffles", "apple_pie")}
        write(folder / "meta" / f"{split}.json", json.dumps(listed))
        for files in listed.values():
            for file in files:
                picture(folder / "images" / f"{file}.jpg")


def gtsrb(root: Path, patch: Patch) -> None:
    folder = root / "gtsrb"
    folders("gtsrb", "GTSRB", splits=("Training",), names=("00000", "00001"), suffix="ppm")(root, patch)
    for number in range(N):
        picture(folder / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm")
    rows = [f"{number:05d}.ppm;{number + 30}" for number in range(N)]
    write(folder / "GT-final_test.csv", "\n".join(["Filename;ClassId", *rows]))


def imagenet(root: Path, patch: Patch) -> None:
    names = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}
    folders(splits=("train", "val"), names=tuple(names), suffix="JPEG")(root, patch)
    torch.save((names, []), root / "meta.bin")


def inaturalist(root: Path, patch: Patch) -> None:
    names = tuple(f"0000{number}_A_B_C_D_E_F_{number}" for number in range(2))
    folders(splits=("2021_train", "2021_valid"), names=names)(root, patch)


def lfw(root: Path, patch: Patch) -> None:
    folder = root / "lfw-py"
    people = {"Ann_Lee": 1, "Bob_Ray": N}
    for name, count in people.items():
        for number in range(1, count + 1):
            picture(folder / "lfw_funneled" / name / f"{name}_{number:04d}.jpg")
    listed = "\n".join(f"{name}\t{count}" for name, count in people.items())
    write(folder / "lfw-names.txt", listed)
    for split in ("Train", "Test"):
        write(folder / f"peopleDev{split}.txt", f"{len(people)}\n{listed}\n")
    patch.setattr(library.LFWPeople, "_check_integrity", lambda self: True)  # of an archive that is there no more


def pets(root: Path, patch: Patch) -> None:
    folder = root / "oxford-iiit-pet"
    for split in ("trainval", "test"):
        rows = [f"{name}_{split}{number} {y} 1 1" for number in range(N) for y, name in ((1, "Abyssinian"), (2, "pug"))]
        write(folder / "annotations" / f"{split}.txt", "\n".join(rows))
        for row in rows:
            picture(folder / "images" / f"{row.split()[0]}.jpg")


def places(small: bool) -> Callable[[Path, Patch], None]:
    def make(root: Path, patch: Patch) -> None:
        cls: Any = library.Places365
        file = write(root / "categories_places365.txt", "/a/airfield 0\n/z/zoo 1")
        patch.setattr(cls, "_CATEGORIES_META", (file.name, md5(file)))
        listed = dict(cls._FILE_LIST_META)
        for split, folder in (("train-standard", "data"), ("val", "val")):
            rows = [f"/{'az'[number % 2]}/{split}{number}.jpg {number % 2}" for number in range(N)]
            file = write(root / listed[split][0], "\n".join(rows))
            listed[split] = (file.name, md5(file))
            ending = "256" if small else "large"
            for row in rows:
                picture(root / f"{folder}_{ending}{'_standard' if folder == 'data' else ''}" / row.split()[0][1:])
        patch.setattr(cls, "_FILE_LIST_META", listed)

    return make


def cars(root: Path, patch: Patch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kind = [("fname", "O"), ("class", "O")]
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([(picture(folder / f"cars_{split}" / f"{n}.jpg").name, n % 2 + 1) for n in range(N)], kind)
        scipy.io.savemat(folder / file, {"annotations": rows})
    names = np.array(["AM General Hummer", "Acura RL"], "O")
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})


def sun(root: Path, patch: Patch) -> None:
    write(root / "SUN397" / "ClassName.txt", "/a/abbey\n/b/bar/indoor")
    for name in ("a/abbey", "b/bar/indoor"):
        for number in range(N):
            picture(root / "SUN397" / name / f"sun_{number}.jpg")


MAKE: dict[str, Callable[[Path, Patch], None]] = {
    **{name: cifar(name) for name in ("CIFAR10", "CIFAR100")},
    **{name: mnist(name) for name in ("MNIST", "FashionMNIST", "KMNIST")},
    **{name: emnist(name.partition("-")[2]) for name in TORCHVISION_SETS if name.startswith("EMNIST")},
    "QMNIST": qmnist,
    "USPS": usps,
    "SEMEION": semeion,
    "SVHN": svhn,
    "STL10": stl10,
    "FER2013": fer,
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "CLEVRClassification": clevr,
    "Country211": folders("country211", splits=("train", "valid", "test")),
    "DTD": dtd,
    "EuroSAT": folders("eurosat", splits=("2750",)),
    "FGVCAircraft": aircraft,
    "Flowers102": flowers,
    "Food101": food,
    "GTSRB": gtsrb,
    "ImageNet": imagenet,
    "Imagenette": folders("imagenette2", splits=("train", "val"), names=("n01440764", "n02102040"), suffix="JPEG"),
    "INaturalist": inaturalist,
    "LFWPeople": lfw,
    "OxfordIIITPet": pets,
    "Places365": places(False),
    "Places365-small": places(True),
    "RenderedSST2": folders(
        "rendered-sst2", splits=("train", "valid", "test"), names=("negative", "positive"), suffix="png"
    ),
    "StanfordCars": cars,
    "SUN397": sun,
}


def of_library(name: str, root: Path, split: str) -> Iterator[tuple[np.ndarray, int]]:
    """Every picture, RGB, and label of torchvision's class."""
    entry = TORCHVISION_SETS[name]
    source = getattr(library, entry.of or name)(
        root=str(root), **entry.options, **entry.splits[split], **({"download": False} if name == "SEMEION" else {})
    )
    for row in range(len(source)):
        image, label = source[row]
        yield np.asarray(image.convert("RGB")), -1 if label is None else int(label)


def test_every_set_stands_here() -> None:
    assert sorted(MAKE) == sorted(TORCHVISION_SETS)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_every_row_is_what_torchvisions_class_gives(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    MAKE[name](tmp_path, monkeypatch)
    entry = TORCHVISION_SETS[name]
    for part in entry.splits:
        share = "&test_share=0" if "test" not in entry.splits else ""
        split = load_split(f"torchvision:{name}?root={tmp_path}&split={part}{share}")
        rows = list(of_library(name, tmp_path, part))
        if name in ("SUN397", "INaturalist"):  # whose order is the file system's
            rows.sort(key=lambda row: (row[1], row[0].tobytes()))
        found = []
        for row in range(len(split)):
            pixels = split.samples[row] if split.originals is None else np.asarray(split.originals.source.original(row))
            found.append((np.broadcast_to(pixels, (*pixels.shape[:2], 3)), int(split.labels[row])))
        if name in ("SUN397", "INaturalist"):
            found.sort(key=lambda row: (row[1], row[0].tobytes()))
        assert [label for _, label in found] == [label for _, label in rows]
        assert all(np.array_equal(ours, theirs) for (ours, _), (theirs, _) in zip(found, rows, strict=True))
        assert len(np.unique(split.keys)) == len(split)
        assert load_split(split.spec).fingerprint == split.fingerprint
    assert not split.class_names or len(split.class_names) == split.num_classes


def test_a_set_without_a_test_split_is_divided(tmp_path: Path, monkeypatch: Patch) -> None:
    MAKE["EuroSAT"](tmp_path, monkeypatch)
    spec = f"torchvision:EuroSAT?root={tmp_path}"
    train, test = load_split(spec), load_split(with_split(spec, "test"))
    assert (len(train), len(test)) == (6, 2)
    assert len(np.unique(np.concatenate([train.keys, test.keys]))) == 8
    assert load_split(f"{spec}&size=5").samples.shape == (6, 5, 5, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("EuroSAT?split=val", "no split 'val'; use split=train or split=test"),
        ("Food101?split=val", "no split 'val'"),
        ("Food101?test_share=0.5", "test_share does nothing here, because Food101 has a test split"),
        ("MNIST?size=9", "size does nothing here"),
        ("ImageNet", "not found in .* \\(no folder train\\)"),
        ("Caltech101", "not found in .* \\(no folder caltech101\\)"),
        ("SEMEION", "not found in"),
        ("EMNIST", "did you mean"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_is_made(
    spec: str, message: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    mnist("MNIST")(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        load_split(f"torchvision:{spec}{'&' if '?' in spec else '?'}root={tmp_path}")
    assert sorted(tmp_path.rglob("*")) == before
