"""Data sources. ``load_split("torchvision:CIFAR10?root=data&split=test")`` gives a ``Split``.

    split, samples, spec            what every source gives; arrays of examples; the text that names data
    classes, labels, held_out       class ids and names; a test split where there is none
    digits, npz, tables, tokens, torchvision_sets, hf, image_folder, webdataset, own    the sources, one a file
    csv_file, parquet_file, columns                 tables, as they lie in files
    pictures, picture_files, originals, image_files, image_tree, encoded, parquet_pictures, tar_shards
                                                    pictures, wherever they lie
    resize_crop, ahead              from a picture to pixels; read before they are needed
    patterns, limits                names of several files; what a file may unpack to
    remote_files, file_cache, file_notes            files that lie elsewhere; what was found out about files
    new_rows, new_values            examples that a trained student is asked about; what it has not learnt to read
    torchvision_ops                 torchvision beside a torch without its operators

``SOURCES`` below is the table.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.digits import load_digits
from logitbank.pipeline.datasets.hf import load_hf
from logitbank.pipeline.datasets.image_folder import load_image_folder
from logitbank.pipeline.datasets.npz import load_npz
from logitbank.pipeline.datasets.own import load_own
from logitbank.pipeline.datasets.spec import check_options, parse, read_whole, spell
from logitbank.pipeline.datasets.split import Split
from logitbank.pipeline.datasets.tables import load_csv, load_parquet
from logitbank.pipeline.datasets.tokens import load_tokens
from logitbank.pipeline.datasets.torchvision_sets import TORCHVISION_SETS, load_torchvision
from logitbank.pipeline.datasets.webdataset import load_webdataset
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.user_code import is_file_factory

__all__ = ["SOURCES", "Source", "Split", "few_rows", "load_split", "take", "with_split"]


MAX_LIMIT = 10**18 - 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """How to load one kind of data, and what a user reads about it."""

    load: Callable[..., Split]
    takes_name: bool
    example: str
    about: str


SOURCES: dict[str, Source] = {
    "digits": Source(
        load=load_digits,
        takes_name=False,
        example="digits",
        about="1,797 handwritten digits, 8 x 8 grey, 10 classes; inside scikit-learn, nothing is downloaded",
    ),
    "torchvision": Source(
        load=load_torchvision,
        takes_name=True,
        example="torchvision:CIFAR10?root=DIR&split=train",
        about=f"{', '.join(TORCHVISION_SETS)} from a folder; download=1 downloads; pictures stay in their files",
    ),
    "npz": Source(
        load=load_npz,
        takes_name=True,
        example="npz:FILE?split=train",
        about="arrays x and y (and x_test, y_test, group): uint8 images or a numeric table",
    ),
    "csv": Source(
        load=load_csv,
        takes_name=True,
        example="csv:FILE?label=COLUMN&test=FILE",
        about="a table; also test_share=0.2, drop=A,B, group=COLUMN, header=0, skip=1",
    ),
    "parquet": Source(
        load=load_parquet,
        takes_name=True,
        example="parquet:FILE?label=COLUMN&test=FILE",
        about="likewise; or pictures as the Hugging Face hub keeps them, parquet:train-*.parquet?test=PATTERN; needs"
        " logitbank[tables]",
    ),
    "webdataset": Source(
        load=load_webdataset,
        takes_name=True,
        example="webdataset:train-*.tar?test=PATTERN",
        about="tar shards of pictures, 000001.jpg and 000001.cls, here, in a bucket or on a web server; label=cls",
    ),
    "imagefolder": Source(
        load=load_image_folder,
        takes_name=True,
        example="imagefolder:DIR?split=train",
        about="DIR/train/CLASS/*.jpg or DIR/CLASS/*.jpg, each in its own size; on_error=skip masks broken files,"
        " size=64 shrinks all to squares first",
    ),
    "tokens": Source(
        load=load_tokens,
        takes_name=True,
        example="tokens:FILE.bin?length=1024&test=FILE",
        about="packed token ids, .bin of uint16 (dtype=) or .npy, memory-mapped; sequences of length=, each position's"
        " label is the next token",
    ),
    "hf": Source(
        load=load_hf,
        takes_name=True,
        example="hf:NAME?split=train&image=image&label=label",
        about="a dataset of the Hugging Face hub; needs logitbank[hf]",
    ),
}


def load_split(spec: str) -> Split:
    """Loads the split that a data spec ``SOURCE[:NAME][?option=value&...]`` describes.

    Every source takes three options more: limit=n keeps n examples, shuffle=SEED gives them in a random order that is
    the same on every machine (for data that is sorted by class and read block by block), labelled=n hides all labels
    but n of the whole split, of each class as many as of another.

    Raises:
        ValueError: Unknown source, option or split, or data that is not there.
    """
    kind, name, options = parse(spec)
    limit = options.pop("limit", None)
    if limit is not None:
        most = read_whole(f"data {spec!r}", "limit", limit, 1, MAX_LIMIT, "a number of examples")
        return take(load_split(spell(kind, name, options)), most)
    seed = options.pop("shuffle", None)
    if seed is not None:
        number = read_whole(f"data {spec!r}", "shuffle", seed, 0, MAX_LIMIT, "a seed, a whole number from 0")
        split = load_split(spell(kind, name, options))
        return _rows(split, shuffled_rows(len(split), number), f"shuffle={number}")
    labelled = options.pop("labelled", None)
    if labelled is not None:
        number = read_whole(f"data {spec!r}", "labelled", labelled, 1, MAX_LIMIT, "a number of examples")
        return _few_labels(load_split(spell(kind, name, options)), number)
    own = f"{kind}:{name}"
    if is_file_factory(own):
        return load_own(own, options)
    if kind not in SOURCES:
        raise ValueError(unknown("data source", kind, [*SOURCES, "file.py:factory"]))
    source = SOURCES[kind]
    if source.takes_name != bool(name):
        raise ValueError(f"data {spec!r} is not of the form {source.example!r}")
    allowed = [option for option in signature(source.load).parameters if option not in ("name", "path")]
    check_options(spec, options, allowed)
    return source.load(name, **options) if source.takes_name else source.load(**options)


def with_split(spec: str, split: str) -> str:
    """Another split of the same data: ``digits`` with "test" becomes ``digits?split=test``; it has all its labels."""
    kind, name, options = parse(spec)
    return spell(kind, name, {**{key: value for key, value in options.items() if key != "labelled"}, "split": split})


def few_rows(num_examples: int, limit: int) -> npt.NDArray[np.int64]:
    """``limit`` row numbers, evenly spread: data that is sorted by class keeps its classes.

    Raises:
        ValueError: A limit of less than one row.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; expected at least 1 example")
    if limit >= num_examples:
        return np.arange(num_examples)
    return np.arange(limit) * num_examples // limit


def shuffled_rows(num_examples: int, seed: int) -> npt.NDArray[np.int64]:
    """A random order, int64 [num_examples], that no version of a library changes: sorted by digits of SHAKE-128."""
    digits = hashlib.shake_128(f"shuffle {seed}".encode()).digest(8 * num_examples)
    return np.argsort(np.frombuffer(digits, "<u8"), kind="stable")


def take(split: Split, limit: int) -> Split:
    """A few examples of a split, for trials; ``limit=n`` in a data spec gives the same ones."""
    return _rows(split, few_rows(len(split), limit), f"limit={limit}")


def _few_labels(split: Split, labelled: int) -> Split:
    """The split with the labels of so many examples, a random choice that is the same on every machine."""
    if split.positions:
        raise ValueError(
            f"{split.spec}: labelled={labelled} needs one label an example, found {split.positions}; drop it"
        )
    order = shuffled_rows(len(split), 0)
    order = order[split.labels[order] >= 0]
    if labelled > len(order):
        raise ValueError(
            f"{split.spec}: labelled={labelled}, but only {len(order)} examples have a label; ask for fewer"
        )
    of_class, turn = split.labels[order], np.empty(len(order), np.int64)
    for label in np.unique(of_class):
        turn[of_class == label] = np.arange((of_class == label).sum())
    kept = order[np.argsort(turn, kind="stable")[:labelled]]
    labels = np.full_like(split.labels, -1)
    labels[kept] = split.labels[kept]
    return replace(split, spec=_with_option(split.spec, f"labelled={labelled}"), labels=labels)


def _with_option(spec: str, option: str) -> str:
    return f"{spec}{'&' if '?' in spec else '?'}{option}"


def _rows(split: Split, rows: npt.NDArray[np.int64], option: str) -> Split:
    """Some rows of a split, in their order; ``option`` is what the data spec says of them."""
    return replace(
        split,
        spec=_with_option(split.spec, option),
        samples=getattr(split.samples, "subset", split.samples.__getitem__)(rows),
        labels=split.labels[rows],
        groups=None if split.groups is None else split.groups[rows],
        readable=None if split.readable is None else split.readable[rows],
    )
