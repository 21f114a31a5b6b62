"""The card of a store: Markdown that says what it is, who answered, how, how well, and how to use it.

With its front matter it serves as the README of a dataset on a hub. Everything in it is read from the store; text
that a stranger wrote is quoted, never interpreted.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from logitbank.pipeline.answers.guessed_labels import heads_alone
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.look.describe import MEASURED_AGAINST_HEADS, describe_kind, describe_store, recorded_warnings
from logitbank.stores import StoreError, open_store
from logitbank.stores.format.address import is_url
from logitbank.stores.share.cache import place_of
from logitbank.stores.write.building import build_files


def write_card(path: Path, out: Path) -> tuple[list[Path], bool]:
    """Writes a store's card, and beside it a picture of each teacher's answers that the card shows.

    Nothing is written over: this very card may be there already, another one must be removed first.

    Args:
        path: A finished store.
        out: The Markdown file; the pictures are ``STEM-TEACHER.png`` in its folder.

    Returns:
        The files, the card last, and whether they were written: False when all were there already.

    Raises:
        ValueError: No finished teacher, no place for the file, or something else is there.
    """
    from logitbank.pipeline.look.figures import answer_figures
    from logitbank.pipeline.look.plot_answers import plot_answers

    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"{out}: expected a file, such as README.md, in a folder that is there; pass another --out")
    if out.suffix.lower() in (".zip", ".zarr"):
        raise ValueError(f"{out}: a card is Markdown; pass an --out such as README.md")
    store = open_store(path)
    pictures = {name: f"{out.stem}-{name}.png" for name in store.teachers}
    text = store_card(path, pictures)

    def make(folder: Path) -> None:
        for name, picture in pictures.items():
            plot_answers(answer_figures(store, store.teacher(name)), folder / picture)
        (folder / out.name).write_text(text, encoding="utf-8")

    names = [*pictures.values(), out.name]
    written = build_files(out.parent, names, make)
    return [out.with_name(name) for name in names], written


def store_card(path: Path, pictures: Mapping[str, str] | None = None) -> str:
    """Markdown about a finished store; ``pictures`` are addresses relative to it, by teacher."""
    store = open_store(path)
    if not store.teachers:
        raise StoreError(f"{path} has no teacher to write about; run cli cache-teacher first")
    said, attributes = describe_store(path), store.attributes
    said["teachers"] = {name: said["teachers"][name] for name in store.teachers}  # the finished ones
    place = place_of(path)
    name = PurePosixPath(place.partition("?")[0]).name if is_url(place) else Path(place).resolve().name
    licence = str(attributes.get("license", ""))
    sections = [
        _front_matter(said, licence),
        f"# {_text(name)}",
        *([_text(attributes["description"])] if attributes.get("description") else []),
        "Answers of teachers for knowledge distillation, so that students can be trained without running the teachers:"
        f" {_teachers(said)} to {_views(said['num_views'])} of each of {said['num_examples']:,} examples of"
        f" {_text(said['dataset'].get('name'))} {_text(said['dataset'].get('split'))}, {said['num_classes']} classes"
        f"{_at_positions(said)}."
        " No images and no weights are in it.",
        "## Data\n\n" + _table([*([("address", place)] if is_url(place) else []), *_data_rows(said, licence)]),
        _in_full("Fingerprint of keys, labels and order", [str(said["dataset"].get("fingerprint"))]),
        *(
            _teacher_section(name, teacher, said["num_positions"]) + _picture(name, (pictures or {}).get(name))
            for name, teacher in said["teachers"].items()
        ),
        *([_lineage(attributes["lineage"])] if attributes.get("lineage") else []),
        _usage(name, said),
    ]
    text = "\n\n".join(sections) + "\n"
    return text.encode(errors="replace").decode()  # a store's name on the disk may be any bytes


def _front_matter(said: dict[str, Any], licence: str) -> str:
    plain = licence.lower() if re.fullmatch(r"[A-Za-z0-9.+-]+", licence) else "other"
    lines = ["---", "tags:", "- knowledge-distillation", "- teacher-logits"]
    lines += [f"license: {plain}"] if licence else []
    size = said["num_examples"]
    for limit, text in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if size < limit:
            return "\n".join([*lines, "size_categories:", f"- {text}", "---"])
    return "\n".join([*lines, "size_categories:", "- n>1M", "---"])


def _at_positions(said: dict[str, Any]) -> str:
    positions = said["num_positions"]
    return "" if positions is None else f", answered at {positions} positions each"


def _data_rows(said: dict[str, Any], licence: str) -> list[tuple[str, str]]:
    dataset, views = said["dataset"], said["views"]
    versions = ", ".join(f"{name} {version}" for name, version in (views.get("versions") or {}).items())
    return [
        ("dataset", f"{dataset.get('name')}, {dataset.get('split')}"),
        ("examples", f"{said['num_examples']:,}{_at_positions(said)}"),
        ("views", f"{said['num_views']}, {views.get('transform')}, seed {views.get('seed')}"),
        ("made with", versions or "not said"),
        ("licence", licence or "not said: ask the author before you pass it on"),
        ("format", f"teacher-logit-store, version {said['format_version']} (Zarr v3)"),
    ]


def _teacher_section(name: str, teacher: dict[str, Any], positions: int | None) -> str:
    identity, encoding, answers = teacher["identity"], teacher["encoding"], teacher["answers"]
    digests = identity.get("weights_sha256", [])
    digests = digests if isinstance(digests, list) else [digests]
    folds = teacher["folds"]
    rows = [
        ("architecture", str(identity.get("architecture"))),
        ("weights", "sha256 below" if digests else "not said"),
        ("preprocessing", _preprocessing(identity.get("preprocessing"))),
        ("encoding", _encoding(encoding)),
        (f"bytes a {'row' if positions is None else 'position'} and view", str(teacher["bytes_per_row"])),
        ("cross-fitted", _folds(folds) if folds else "no"),
    ]
    if "kind" in answers:
        rows.append(("trained on these rows", describe_kind(answers)))
    if "accuracy" in answers:
        rows.append(("accuracy", f"{answers['accuracy']:.4f}"))
        rows += [(key.upper(), f"{answers[key]:.4f}") for key in ("nll", "ece") if key in answers]
    if answers.get("per_fold"):
        rows.append(
            ("accuracy by fold", ", ".join(f"{f['accuracy']:.4f}" for f in answers["per_fold"] if "accuracy" in f))
        )
    rows += [("warning", warning) for warning in recorded_warnings(answers)]
    section = f"## Teacher `{name}`\n\n{_table(rows)}"
    if digests:
        section += "\n\n" + _in_full("Weights, sha256", [str(digest) for digest in digests])
    fidelity = {k: v for k, v in teacher["fidelity"].items() if isinstance(v, int | float)}
    temperatures = [key for key in fidelity if re.fullmatch(r"\d+(\.\d+)?", key)]
    if temperatures:
        head = "| temperature | KL T², nats |\n|---|---|\n"
        lines = "\n".join(f"| {t} | {fidelity[t]:.3g} |" for t in temperatures)
        agreement = f", top-1 agreement {fidelity['top1_agreement']:.4f}" if "top1_agreement" in fidelity else ""
        against = f" ({MEASURED_AGAINST_HEADS})" if heads_alone(teacher["identity"]) else ""
        section += f"\n\nDistance of what is decoded from what the teacher said{agreement}{against}:\n\n{head}{lines}"
    return section


def _views(count: int) -> str:
    return "one view" if count == 1 else f"{count} views"


def _preprocessing(said: Any) -> str:
    """That of one teacher; of fold teachers, which have one each, that of the first."""
    if isinstance(said, list) and len(said) > 1:
        return f"{to_json(said[0])} of the first of {len(said)}"
    return to_json(said)


def _in_full(what: str, digests: list[str]) -> str:
    """Digests, which are too long for a table that is read on a telephone."""
    return f"{what}:\n\n```text\n" + "\n".join(_text(digest) for digest in digests) + "\n```"


def _picture(name: str, address: str | None) -> str:
    if address is None:
        return ""
    what = f"Teacher {name}: what the encoding loses, how sure the teacher is, where it is right"
    return f"\n\n![{what}]({quote(address)})"


def _encoding(attributes: dict[str, Any]) -> str:
    try:
        return Encoding.from_attributes(attributes).describe()
    except (ValueError, KeyError, TypeError):
        return to_json(attributes)


def _folds(folds: dict[str, Any]) -> str:
    said = "was, as its author declares," if folds.get("proof") == "declared" else "was"
    return (
        f"{folds.get('num_folds')} folds ({folds.get('strategy')}, seed {folds.get('seed')}): every row {said} answered"
        f" by a teacher that has not seen it; proof: {folds.get('proof', 'not said')}"
    )


def _lineage(lineage: Any) -> str:
    steps = lineage if isinstance(lineage, list) else [lineage]
    return "## Lineage\n\n" + "\n".join(f"{number}. {_code(to_json(step))}" for number, step in enumerate(steps, 1))


def _usage(name: str, said: dict[str, Any]) -> str:
    teacher = next(iter(said["teachers"]))
    shown = name if re.fullmatch(r"[A-Za-z0-9._+-]+", name) else "store.zarr"
    again = ""
    if said["teachers"][teacher]["identity"].get("preprocessing"):  # a network that can be run again
        again = f"\n$ cli verify {shown} --data DATA --recompute 64 --teacher-name {teacher} \\\n    --weights WEIGHTS"
    return f"""## How to use it

```console
$ pip install logitbank
$ cli verify {shown} --data DATA{again}
$ cli train-student --store {shown} --data DATA --teacher-name {teacher} \\
    --student resnet20 --loss kd --out runs/kd
```

`verify` compares every checksum, and that every row belongs to your copy of the data.

```python
import logitbank

store = logitbank.open_store("{shown}")
teacher = store.teacher("{teacher}")
arrays = teacher.slab(view=0)
```

`arrays` has arrays by name, a row an example, each compared with its checksum.

Rows belong to examples by content key (`store.keys`), never by position."""


def _teachers(said: dict[str, Any]) -> str:
    names = [f"`{name}`" for name in said["teachers"]]
    return f"the answers of {', '.join(names)}"


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_text(key)} | {_text(value)} |" for key, value in rows]
    return "\n".join([lines[0], "|---|---|", *lines[1:]])


def _text(value: Any) -> str:
    """One line of plain text: no HTML, no links, no table borders."""
    text = " ".join(str(value).split())[:2000]
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", text)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"
