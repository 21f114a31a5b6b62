"""The JSON document of an export: whose answers these are, about what, and which arrays hold them.

Shapes: V views, N examples, K kept classes, C classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.views import Views
from logitbank.stores import RowArray, Store, Teacher
from logitbank.stores.format.schema import MAX_CLASSES, MAX_EXAMPLES, MAX_POSITIONS, MAX_VIEWS
from logitbank.stores.read.lineage import with_lineage

FORMAT = "teacher-logit-export"
VERSION = 1
MAX_BYTES = 2**24  # of a document

# What a row may hold: dtypes, whose size the array has per row, and what it means.
ARRAYS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "index": (("uint8", "uint16", "uint32"), "kept", "kept classes, best first"),
    "log_prob": (("float32",), "answer", "natural log-probability at temperature 1, of the kept classes or of all"),
    "logit": (("float32",), "class", "the teacher's raw logits, from a lossless store only"),
    "logsumexp": (("float32",), "", "logsumexp of the raw logits: raw logit = log_prob + logsumexp"),
    "log_tail_mass": (("float32",), "", "natural log of the probability of all classes that are not kept"),
    "label_log_prob": (("float32",), "", "natural log-probability of the label, kept or not; NaN without a label"),
    "label_rank": (("int32",), "", "classes with logit >= the label's, its own included; 0 without a label"),
    "mask": (("bool",), "", "False where the teacher has no answer: the numbers are NaN there, or 0"),
}
TOP_K = ("index", "log_prob", "logsumexp", "log_tail_mass", "label_log_prob", "label_rank")
DENSE = ("log_prob", "logsumexp")


@dataclass(frozen=True, kw_only=True)
class Description:
    """A checked document.

    Attributes:
        text: The document as JSON.
        content: The same, parsed.
        positions: L where examples are answered at L positions, or None.
        arrays: Name -> dtype and shape of a row; the array as a whole is [V, N, *row_shape], or [V, N, L, *row_shape].
    """

    text: str
    content: dict[str, Any]
    num_views: int
    num_examples: int
    num_classes: int
    positions: int | None
    arrays: dict[str, RowArray]

    @property
    def dense(self) -> bool:
        """Whether ``log_prob`` has all classes."""
        return "index" not in self.arrays

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one view, all its positions."""
        return (self.positions or 1) * sum(array.row_bytes for array in self.arrays.values())


def describe(store: Store, teacher: Teacher, arrays: Mapping[str, RowArray], *, num_views: int, tail: str) -> str:
    """The document of one teacher's first ``num_views`` views, as JSON.

    Args:
        store: Where the teacher is from.
        teacher: Whose answers are exported.
        arrays: What is exported of a row.
        num_views: V.
        tail: Rule that gave ``log_prob`` of classes that the store does not hold one by one; "" when it holds all or
            they are left out.
    """
    step = {
        "step": "export",
        "digest": str(store.attributes["digest"]),
        "teachers": {teacher.name: teacher.digest},
        "num_views": [store.num_views, num_views],
        "dense": "index" not in arrays,
    }
    attributes = with_lineage(store.attributes, step)
    own: dict[str, Any] = {
        name: attributes[name] for name in ("license", "description", "created", "lineage") if name in attributes
    }
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": store.dataset,
        "views": {**store.views, "num_views": num_views},
        "probes": _probes(store, num_views),
        "teacher": teacher.name,
        "identity": teacher.identity,
        "encoding": teacher.encoding,
        "tail": tail,
        "folds": teacher.folds,
        "fidelity": teacher.fidelity,
        "summary": teacher.summary,
        **own,
        "arrays": {
            name: {"dtype": array.dtype, "row_shape": list(array.row_shape), "meaning": ARRAYS[name][2]}
            for name, array in arrays.items()
        },
    }
    return json.dumps(document, sort_keys=True, allow_nan=False)


def _probes(store: Store, num_views: int) -> dict[str, Any] | None:
    """Pixel hashes by content key, in hex, since JSON's numbers end at 2^53; view after view."""
    probes = store.probes
    if not {"row", "digest"} <= set(probes):
        return None
    return {
        "key": hex_ids(store.keys[probes["row"].astype(np.int64)]),
        "digest": [hex_ids(digests) for digests in probes["digest"][:num_views]],
    }


def hex_ids(ids: npt.NDArray[np.uint64]) -> list[str]:
    """16 hex digits each."""
    return [f"{int(number):016x}" for number in ids]


def read_document(text: str, where: str) -> Description:
    """Checks the document of an export from a stranger.

    Args:
        text: JSON.
        where: What the message of an error begins with.

    Raises:
        ValueError: Not the document of an export that this program reads.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{where}: its document has {len(text)} characters; expected at most {MAX_BYTES}")
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: its document is no JSON ({str(error)[:80]}); export the store again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{where}: not an export that `cli export` wrote; for plain logits use array:FILE.npy")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{where}: export of version {str(content.get('version'))[:20]}, this program reads {VERSION}; update it"
        )
    counts = {
        "num_examples": _count(content, "dataset", "num_examples", MAX_EXAMPLES, where),
        "num_classes": _count(content, "dataset", "num_classes", MAX_CLASSES, where),
        "num_views": _count(content, "views", "num_views", MAX_VIEWS, where),
    }
    positions = _count(content, "dataset", "num_positions", MAX_POSITIONS, where, missing_is=0) or None
    identity = content.get("identity")
    if not isinstance(identity, dict) or not isinstance(identity.get("architecture"), str):
        raise ValueError(f"{where}: its document does not say who the teacher is; export the store again")
    digests = identity.get("weights_sha256")
    if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
        identity["weights_sha256"] = [] if digests is None else [str(digests)]
    arrays = _arrays(content, counts["num_classes"], where)
    return Description(text=text, content=content, positions=positions, arrays=arrays, **counts)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _count(
    content: Mapping[str, Any], group: str, name: str, most: int, where: str, *, missing_is: int | None = None
) -> int:
    section = content.get(group)
    if missing_is is not None and isinstance(section, dict) and name not in section:
        return missing_is
    value = section.get(name) if isinstance(section, dict) else None
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{where}: {group}.{name} is {str(value)[:30]}; expected 1 to {most}")
    return value


def _arrays(content: Mapping[str, Any], num_classes: int, where: str) -> dict[str, RowArray]:
    """The arrays that the document declares: one of the two sets there are, each as the table has it."""
    declared = content.get("arrays")
    names = set(declared) if isinstance(declared, dict) else set()
    wanted = set(TOP_K) if "index" in names else set(DENSE) | ({"logit"} & names)
    if not isinstance(declared, dict) or names - {"mask"} != wanted:
        found = ", ".join(sorted(str(name)[:20] for name in names)[:12]) or "none"
        raise ValueError(f"{where}: arrays are {found}; expected {', '.join(sorted(wanted))}")
    sizes = {"class": num_classes}
    if "index" not in names:
        sizes["answer"] = num_classes
    arrays = {}
    for name in sorted(declared, key=list(ARRAYS).index):
        dtypes, dim, _ = ARRAYS[name]
        said = declared[name] if isinstance(declared[name], dict) else {}
        shape = said.get("row_shape")
        sizes_here = shape if isinstance(shape, list) else [0]
        good = said.get("dtype") in dtypes and len(sizes_here) == bool(dim)
        for size in sizes_here:
            good = good and type(size) is int and 1 <= size <= num_classes
            good = good and sizes.setdefault("answer" if dim == "kept" else dim, size) == size
        if not good:
            raise ValueError(f"{where}: array {name} is declared as {str(said)[:80]}; export the store again")
        arrays[name] = RowArray(dtype=said["dtype"], row_shape=tuple(sizes_here))
    return arrays


def check_views(views: Views, description: Description, where: str) -> None:
    """Raises ValueError unless these are the export's own views, or the first of them."""
    said, own = description.content["views"], views.attributes()
    if said.get("label_map"):
        raise ValueError(
            f"{where} holds label maps, and an export of those is for other tools; hand over the store itself"
        )
    same = all(own.get(name) == said.get(name) for name in {*own, *said} - {"num_views", "versions"})
    if same and views.num_views <= description.num_views:
        return
    found = f"{own['num_views']} of {own['transform']!r}, seed {own['seed']}"
    wanted = f"{description.num_views} views of {str(said.get('transform'))[:80]!r}, seed {str(said.get('seed'))[:20]}"
    code = "" if own.get("code_sha256") == said.get("code_sha256") else ", made by other code"
    raise ValueError(
        f"{where} answers {wanted}; the views here are {found}{code}; pass --views {description.num_views}"
        f" --transform '{str(said.get('transform'))[:80]}' --view-seed {str(said.get('seed'))[:20]}"
    )
