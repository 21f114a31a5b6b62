"""The zarr.json documents of a store: what we write, the only ones we accept, and the digest over them.

An array's document is rebuilt from the few numbers it may choose and compared with what is there, so that a
codec, shape or fill value that this program would not have written is refused before zarr sees it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.stores.files import regular_file
from logitbank.stores.format.layout import Layout, static_layout
from logitbank.stores.format.plain_json import parse_json
from logitbank.stores.format.schema import STATIC_DTYPES, ArraySpec, StoreError, check_name

Document = dict[str, Any]

MAX_DOCUMENT_BYTES = 64 * 2**20
CHECKSUM_CODEC: Document = {"name": "crc32c"}


def array_document(
    layout: Layout, spec: ArraySpec, dims: tuple[str | None, ...], attributes: Mapping[str, Any] | None = None
) -> Document:
    """The zarr.json of an array."""
    itemsize = int(np.dtype(layout.dtype).itemsize)
    to_bytes: Document = {"name": "bytes"}
    if itemsize > 1:
        to_bytes["configuration"] = {"endian": "little"}
    chain = [to_bytes, CHECKSUM_CODEC]
    if layout.compressed:
        shuffle = "noshuffle" if itemsize == 1 and layout.dtype != "bool" else spec.shuffle
        settings = {
            "typesize": itemsize,
            "cname": "zstd",
            "clevel": spec.level,
            "shuffle": shuffle,
            "blocksize": 0,
        }
        chain = [to_bytes, {"name": "blosc", "configuration": settings}, CHECKSUM_CODEC]
    if layout.sharded:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, CHECKSUM_CODEC]
        sharding = {
            "chunk_shape": list(layout.chunk),
            "codecs": chain,
            "index_codecs": index,
            "index_location": "end",
        }
        chain = [{"name": "sharding_indexed", "configuration": sharding}]
    return {
        "shape": list(layout.shape),
        "data_type": layout.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(layout.block)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if layout.dtype == "bool" else 0.0 if layout.dtype.startswith("float") else 0,
        "codecs": chain,
        "attributes": {"unit": spec.unit, "doc": spec.doc, **(attributes or {})},
        "dimension_names": list(dims),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def group_document(attributes: Mapping[str, Any]) -> Document:
    """The zarr.json of a group."""
    return {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}


def static_document(values: np.ndarray, spec: ArraySpec, dims: tuple[str | None, ...]) -> Document:
    """The zarr.json of an array that is written once; its attributes hold the sha256 of the raw bytes."""
    layout = static_layout(values.shape, values.dtype.name)
    return array_document(layout, spec, dims, {"sha256": raw_sha256(values)})


def raw_sha256(values: np.ndarray) -> str:
    """sha256 of an array's little-endian bytes in C order."""
    return hashlib.sha256(little_endian(values).data).hexdigest()


def little_endian(values: np.ndarray) -> np.ndarray:
    """The array as one contiguous run of little-endian values, without a copy where it is one."""
    contiguous = np.ascontiguousarray(values)
    return contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False).reshape(-1).view()


def canonical(value: object) -> str:
    """JSON text that is the same for equal documents."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def as_json(value: object, what: str) -> Any:
    """`value` as it will read back from JSON; StoreError when it is not plain, finite JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{what} must be plain JSON with finite numbers, found {error}; convert it first") from error


def fingerprint(document: Mapping[str, Any]) -> str:
    """sha256 of a document, without the digest that it may hold in its own attributes."""
    attributes = {key: value for key, value in document["attributes"].items() if key != "digest"}
    return hashlib.sha256(canonical({**document, "attributes": attributes}).encode()).hexdigest()


def examples_sha256(root: Mapping[str, Document]) -> str:
    """What ties a teacher to its examples: a sum over what the root's documents say of data, views, keys and labels.

    Args:
        root: All documents of a store outside its teachers, by folder.
    """
    attributes = root[""]["attributes"]
    sums = {folder: document["attributes"].get("sha256") for folder, document in root.items() if "/" in folder}
    said = {"dataset": attributes["dataset"], "views": attributes["views"], "arrays": sums}
    return hashlib.sha256(canonical(said).encode()).hexdigest()


def sealed(documents: Mapping[str, Document]) -> dict[str, Document]:
    """Documents by folder, "" for the group on top, which gets the sha256 of each other one and its own."""
    top = documents[""]
    below = {folder: fingerprint(document) for folder, document in sorted(documents.items()) if folder}
    top = {**top, "attributes": {**top["attributes"], "documents": below}}
    top["attributes"]["digest"] = fingerprint(top)
    return {**documents, "": top}


def read_sealed(root: Path, top: str, document: Document) -> dict[str, Document]:
    """The document of group `top` and all it vouches for, by folder below it, each compared to its sha256."""
    where = root / top
    check_group(document, where)
    names = document["attributes"].get("documents")
    if document["attributes"].get("digest") != fingerprint(document) or not isinstance(names, dict):
        raise StoreError(f"{where / 'zarr.json'} does not match its digest, it was damaged or edited; fetch it again")
    documents = {"": document}
    for folder, expected in names.items():
        for part in folder.split("/"):
            check_name(part, "array")
        whole = f"{top}/{folder}" if top else folder
        documents[folder] = read_document(root, whole)
        if fingerprint(documents[folder]) != expected:
            raise StoreError(
                f"{root / whole / 'zarr.json'} is not what the store vouches for, it was damaged or edited; "
                "fetch it again",
                array=whole,
            )
    return documents


def read_document(root: Path, folder: str) -> Document:
    """The parsed zarr.json of `folder` below `root`."""
    path = root / folder / "zarr.json"
    status = regular_file(root, path)
    if status is None:
        raise StoreError(f"{path} is missing; fetch the store again", array=folder)
    if status.st_size > MAX_DOCUMENT_BYTES:
        raise StoreError(f"{path} must be at most {MAX_DOCUMENT_BYTES} bytes, found {status.st_size}; fetch it again")
    try:
        document = parse_json(path.read_bytes(), path)
    except StoreError as error:
        raise StoreError(str(error), array=folder) from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions", array=folder) from error
    if not isinstance(document, dict) or not isinstance(document.get("attributes"), dict):
        raise StoreError(f"{path} must be a Zarr document with attributes, found other JSON", array=folder)
    return document


def check_group(document: Document, path: Path) -> None:
    """Raise StoreError unless `document` is a plain Zarr v3 group."""
    if document.get("zarr_format") != 3 or document.get("node_type") != "group":
        raise StoreError(f"{path} must be a Zarr v3 group, found another node; fetch the store again")


def check_array(document: Document, expected: Document, path: Path) -> None:
    """Raise StoreError unless `document` is what this program writes, codecs and attributes apart."""
    for field, want in expected.items():
        found = document.get(field)
        if field in ("attributes", "codecs"):
            continue
        if found != want or isinstance(found, bool) != isinstance(want, bool):
            raise StoreError(f"{path}: {field} must be {_short(want)}, found {_short(found)}; do not use this store")
    extra = sorted(set(document) - set(expected))
    if extra:
        raise StoreError(f"{path}: found unknown fields {_short(extra)}; do not use this store")


def codec_layout(document: Document, layout: Layout, path: Path) -> Layout:
    """`layout` with the pieces that the document's codecs declare; StoreError for a codec not on the list."""

    def refuse() -> StoreError:
        return StoreError(
            f"{path}: codecs must be bytes, blosc (zstd) and crc32c, at most inside sharding_indexed, "
            f"found {_short(document.get('codecs'))}; do not use this store"
        )

    codecs: Any = document.get("codecs")
    chunk = layout.block
    try:
        if isinstance(codecs, list) and len(codecs) == 1 and codecs[0].get("name") == "sharding_indexed":
            inner = codecs[0]["configuration"]
            chunk = tuple(inner["chunk_shape"])
            codecs = inner["codecs"]
        shuffle = codecs[1]["configuration"]["shuffle"] if codecs[1]["name"] == "blosc" else "shuffle"
        level = codecs[1]["configuration"]["clevel"] if codecs[1]["name"] == "blosc" else 1
        if shuffle not in ("shuffle", "bitshuffle", "noshuffle") or type(level) is not int or not 0 <= level <= 9:
            raise refuse()
        if len(chunk) != len(layout.block) or not all(
            type(size) is int and 0 < size <= whole and whole % size == 0
            for size, whole in zip(chunk, layout.block, strict=True)
        ):
            raise refuse()
        cut = Layout(
            shape=layout.shape,
            block=layout.block,
            chunk=chunk,
            dtype=layout.dtype,
            compressed=layout.compressed,
        )
        spec = ArraySpec(row_dims=(), dtypes=STATIC_DTYPES, unit="", doc="", shuffle=shuffle, level=level)
        if array_document(cut, spec, ())["codecs"] != document["codecs"]:
            raise refuse()
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise refuse() from error
    return cut


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
