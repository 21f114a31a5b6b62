"""What ``inspect`` shows of a store, for people and for machines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from logitbank.pipeline.answers.guessed_labels import heads_alone
from logitbank.pipeline.encoding import Encoding
from logitbank.stores import Store, Teacher, open_store
from logitbank.stores.share.cache import place_of


def describe_store(path: Path) -> dict[str, Any]:
    """A JSON-able description of a store, complete or not.

    ``bytes_per_row`` are the files of all row arrays with their metadata, over rows x views, and x positions where an
    example is answered at several; what a teacher stores once is ``constant_bytes``. The first teacher's encoding,
    fidelity and bytes also stand at the top level.
    """
    store = open_store(path, allow_incomplete=True)
    teachers = {name: _describe_teacher(store, store.teacher(name)) for name in store.teachers}
    first = next(iter(teachers.values()), {})
    folds = store.attributes.get("folds")  # of a copy of the folds alone; the teachers have their own
    plan = folds if isinstance(folds, dict) else None
    return {
        "path": place_of(path),
        "format_version": store.attributes["version"],
        "complete": bool(teachers) and all(teacher["complete"] for teacher in teachers.values()),
        "num_examples": store.num_examples,
        "num_views": store.num_views,
        "num_classes": store.num_classes,
        "num_positions": store.positions,
        "num_folds": first.get("num_folds", (plan or {}).get("num_folds", 0)),
        "folds": plan,
        "encoding": first.get("encoding"),
        "bytes_per_row": first.get("bytes_per_row"),
        "fidelity": first.get("fidelity"),
        "dataset": dict(store.dataset),
        "views": dict(store.views),
        "teachers": teachers,
    }


MEASURED_AGAINST_HEADS = "against what was saved of the best classes and an even tail, not against the teacher"


def _describe_teacher(store: Store, teacher: Teacher) -> dict[str, Any]:
    return {
        "complete": teacher.complete,
        "identity": dict(teacher.identity),
        "encoding": dict(teacher.encoding),
        "bytes_per_row": round(teacher.bytes_per_row(), 2),
        "constant_bytes": teacher.constant_bytes_on_disk(),
        "features": _describe_features(teacher),
        "dense_float16_bytes_per_row": 2 * store.num_classes,
        "fidelity": dict(teacher.fidelity or {}),
        "num_folds": teacher.folds["num_folds"] if teacher.folds else 0,
        "folds": dict(teacher.folds) if teacher.folds else None,
        "answers": dict(teacher.summary or {}),
    }


def _describe_features(teacher: Teacher) -> dict[str, Any] | None:
    """Where the features that it keeps are taken, how many, and whether its last layer is there; None without any."""
    if "embedding" not in teacher.row_arrays:
        return None
    array = teacher.row_arrays["embedding"]
    return {
        "layer": teacher.identity.get("embedding"),
        "size": array.row_shape[0],
        "dtype": array.dtype,
        "projected": "embedding_basis" in teacher.constant_names,
        "head": "head_weight" in teacher.constant_names,
    }


def describe_kind(answers: Mapping[str, Any]) -> str:
    """What the numbers of a teacher's summary are worth, in words: whether it was trained on the rows they are over."""
    kind, seen = str(answers["kind"]), answers.get("seen")
    if seen is None:  # of an older store, which compared whole datasets: equal ones were seen, others were not compared
        return "training rows unknown" if kind == "held out" else kind
    if kind == "partly seen":
        kind += f": {seen['num_seen']:,} of {seen['num_rows']:,} rows"
    elif kind == "training rows unknown" and seen["num_seen"]:
        kind += f", at least {seen['num_seen']:,} of {seen['num_rows']:,} seen"
    elif kind == "out-of-fold" and seen["num_unknown"]:
        kind += " as declared"
    return kind + (", measured on the store it was taken from" if "measured_on" in answers else "")


def describe_teachers(store: Store) -> list[str]:
    """Every teacher with what its numbers are worth."""
    said = {name: store.teacher(name).summary or {} for name in store.teachers}
    return [f"{name} ({describe_kind(summary)})" if "kind" in summary else name for name, summary in said.items()]


def _map_of(views: Mapping[str, Any]) -> str:
    grid = views.get("label_map")
    return f", label maps of {grid} x {grid}: any crop" if grid else ""


def format_description(description: dict[str, Any]) -> str:
    """The description on one screen."""
    dataset, views = description["dataset"], description["views"]
    state = "complete" if description["complete"] else "NOT COMPLETE: run the same cache-teacher command again"
    if not description["teachers"]:
        state = "examples only, no teacher has answered yet"
    positions = description["num_positions"]
    answered = "" if positions is None else f" answered at {positions} positions each,"
    lines = [
        f"{description['path']}  format {description['format_version']}, {state}",
        f"data      {dataset.get('name')} {dataset.get('split')}: {dataset['num_examples']} examples,{answered}"
        f" {dataset['num_classes']} classes, fingerprint {str(dataset.get('fingerprint'))[:12]}",
        f"views     {views['num_views']} ({views.get('transform')}, seed {views.get('seed')}){_map_of(views)}",
        f"made with {', '.join(f'{name} {version}' for name, version in (views.get('versions') or {}).items())}",
    ]
    if description["folds"] and not description["teachers"]:
        folds = description["folds"]
        lines.append(f"folds     {folds.get('num_folds')} ({folds.get('strategy')}, seed {folds.get('seed')})")
    for name, teacher in description["teachers"].items():
        lines += ["", *_format_teacher(name, teacher, "row and view" if positions is None else "position and view")]
    return "\n".join(lines)


def _format_teacher(name: str, teacher: dict[str, Any], answer: str) -> list[str]:
    identity, encoding = teacher["identity"], Encoding.from_attributes(teacher["encoding"])
    said = identity.get("weights_sha256", [])
    digests = [str(digest) for digest in said] if isinstance(said, list) else [str(said)]
    folds = teacher["folds"]
    dense = teacher["dense_float16_bytes_per_row"]
    lines = [
        f"teacher {name!r}: {identity.get('architecture')}, weights"
        f" {', '.join(digest[:8] for digest in digests) or 'not said'}",
        "  folds     none"
        if folds is None
        else f"  folds     {folds['num_folds']} ({folds.get('strategy')}, seed {folds.get('seed')};"
        f" proof: {folds.get('proof', 'not said')})",
        f"  encoding  {encoding.describe()}",
        f"  bytes     {teacher['bytes_per_row']} a {answer} on disk, dense float16 is {dense}"
        f" ({dense / teacher['bytes_per_row']:.1f} times as many)",
    ]
    if teacher["constant_bytes"]:
        what = " and the last layer" if teacher["features"] and teacher["features"]["head"] else ""
        lines.append(f"            and {teacher['constant_bytes']:,} bytes once, for the tail predictor{what}")
    if teacher["features"]:
        features = teacher["features"]
        how = "principal components" if features["projected"] else "features"
        lines.append(
            f"  features  {features['size']} {how} of layer {str(features['layer'])[:100]!r}, {features['dtype']}"
        )
    if teacher["fidelity"]:
        lines.append(f"  fidelity  {_format_fidelity(teacher['fidelity'])}")
        if heads_alone(teacher["identity"]):
            lines.append(f"            {MEASURED_AGAINST_HEADS}")
    answers = teacher["answers"]
    if "kind" in answers:
        names = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
        measured = [f"{names[name]} {answers[name]:.4f}" for name in names if name in answers]
        lines.append(f"  answers   {', '.join(measured) or 'no labels'} ({describe_kind(answers)})")
        if "per_fold" in answers:
            per_fold = ", ".join(f"{fold.get('accuracy', float('nan')):.4f}" for fold in answers["per_fold"])
            lines.append(f"            by fold: {per_fold}")
    lines += [f"  warning   {warning}" for warning in recorded_warnings(answers)]
    return lines


def recorded_warnings(answers: Mapping[str, Any]) -> list[str]:
    """What stage one warned of, from a teacher's summary; each in one line, since a stranger may have written it."""
    said = answers.get("warnings")
    return [" ".join(str(warning).split())[:1000] for warning in said] if isinstance(said, list) else []


def _format_fidelity(fidelity: dict[str, Any]) -> str:
    temperatures = [name for name in fidelity if name.replace(".", "", 1).isdigit()]
    distances, tails = (
        " / ".join(_short(fidelity.get(f"{of}{name}")) for name in temperatures) for of in ("", "tail_mass_")
    )
    agreement = fidelity.get("top1_agreement")
    agreed = "" if agreement is None else f", top-1 agreement {agreement:.4f}"
    rows = fidelity.get("num_rows")
    measured = "" if rows is None else f" ({rows} rows left out of every fit)"
    return f"KL T^2 {distances} nats and tail mass {tails} at T = {' / '.join(temperatures)}{agreed}{measured}"


def _short(number: float | None) -> str:
    return "not said" if number is None else f"{number:.2g}"
