"""Stage one: a teacher's answers, and more views of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitbank.pipeline.cache_teacher.settings import Caching, Compute
from logitbank.pipeline.commands.options import (
    Data,
    Device,
    InputTransform,
    Mean,
    OwnTransform,
    Part,
    Ray,
    Std,
    Store,
    TeacherAgain,
    Threads,
    here,
    input_scaling,
    is_given,
    option,
    refuse_idle,
    takes,
    wrote,
)
from logitbank.pipeline.domains import AT_LEAST_ONE, COUNT, VIEWS
from logitbank.pipeline.files.strict_json import to_json

if TYPE_CHECKING:
    from logitbank.pipeline.cache_teacher.progress import ProgressDisplay
    from logitbank.pipeline.processes.rank import Rank


@takes(Caching, "caching")
def cache_teacher(
    *,
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Output store: a folder, s3:// or gs://; the same command goes on after a kill")
    ],
    caching: Caching,
    part: Part = "",
    ray: Ray = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few batches, print time, size and fidelity, write nothing")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line instead of a bar")] = False,
) -> None:
    """Stage one: run the teacher over every view once and write its answers to a Zarr store."""
    from logitbank.pipeline.cache_teacher.begin import is_finished
    from logitbank.pipeline.processes.rank import Rank
    from logitbank.stores.format.address import is_url

    rank = Rank.find(part)
    given = [name for name in context.params if is_given(context, name)]
    if ray:
        refuse_idle(context, ("part", "dry_run"), "--ray is given")
        if rank.together:
            raise ValueError("--ray and torchrun both start processes; use one of them")
        if is_url(out):
            raise ValueError(f"--ray writes to a folder that all machines share, found {out}; for a bucket use --part")
    if dry_run:
        _try_out(caching, given, as_json=log_json)
        return
    there = is_finished(out, caching.name)
    with _stoppable(out), _display(rank, as_json=log_json) as display:
        if ray:
            from logitbank.pipeline.cache_teacher.on_ray import cache_on_ray

            summary, num_rows = cache_on_ray(caching, out, ray, given=given, on_progress=display)
        else:
            summary, num_rows = _cache_here(caching, given, out, rank, display)
    _say_warnings(summary)
    facts = {"out": str(out), "summary": summary, "rows": display.answered, "already_there": there}
    display.event("finished" if summary else "part-finished", **facts)
    if not log_json:
        rows = f"{num_rows // caching.views} rows x {caching.views} views"
        typer.echo(_said_at_the_end(summary, out, rows, there=there, answered=display.answered))


def _cache_here(
    caching: Caching, given: list[str], out: Path, rank: "Rank", display: "ProgressDisplay"
) -> tuple[dict[str, Any], int]:
    """The summary, and rows over all views."""
    from logitbank.pipeline.cache_teacher.opening import open_teacher
    from logitbank.pipeline.cache_teacher.run import cache_teacher

    teacher, chosen = open_teacher(caching, given, local=rank.local)
    summary = cache_teacher(
        teacher,
        out,
        encoding=chosen,
        name=caching.name,
        predictor_rows=caching.predictor_rows,
        embedding_dim=caching.embedding_dim,
        temperatures=caching.measured_at,
        rank=rank,
        on_progress=display,
    )
    return summary, len(teacher.split) * caching.views


def _try_out(caching: Caching, given: list[str], *, as_json: bool) -> None:
    """Says what a pass would cost."""
    from logitbank.pipeline.cache_teacher.opening import open_teacher
    from logitbank.pipeline.cache_teacher.trial import try_out

    teacher, chosen = open_teacher(caching, given)
    measured_at = caching.measured_at
    trial = try_out(
        teacher,
        chosen,
        predictor_rows=caching.predictor_rows,
        embedding_dim=caching.embedding_dim,
        temperatures=measured_at,
    )
    typer.echo(to_json({"event": "dry-run", **trial}) if as_json else _format_trial(trial, measured_at))


@takes(Compute, "compute", leave_out=("precision", "channels_last", "compile"))
def extend(
    *,
    store: Store,
    views: Annotated[int, option(VIEWS, help="Number of views of the new store; those of the old one are its first")],
    out: Annotated[Path, typer.Option(help="Output store, a new one; the same command goes on after a kill")],
    data: Data = "digits",
    weights: Annotated[str, typer.Option(help="Weights of the teacher, as in cache-teacher")] = "",
    teacher: TeacherAgain = "",
    transform: OwnTransform = "",
    top_k: Annotated[
        int, option(COUNT, help="Classes kept exactly: those of the store, since more need a new pass")
    ] = 0,
    compute: Compute,
    part: Part = "",
    mean: Mean = "",
    std: Std = "",
    input_transform: InputTransform = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Write a store with more views of the same teacher; its seed, transform, folds and encoding are kept.

    One more teacher over the same examples: cli cache-teacher --out STORE --teacher-name NAME, with the store's own
    data and views. More classes (--top-k) or another encoding: a new pass of cli cache-teacher.
    """
    from logitbank.pipeline.alignment import check_data
    from logitbank.pipeline.cache_teacher.begin import is_finished
    from logitbank.pipeline.cache_teacher.extend import extend_views
    from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.processes.device import find_device
    from logitbank.pipeline.processes.rank import Rank
    from logitbank.pipeline.views import allow_views
    from logitbank.stores import open_store
    from logitbank.stores.write.extend import extendable

    rank = Rank.find(part)
    opened = open_store(here(store), allow_incomplete=True)
    chosen = extendable(opened, views)
    kept = chosen.encoding.get("top_k")
    if top_k and top_k != kept:
        raise ValueError(
            f"--top-k is {top_k}, the store keeps {kept or 'all'} classes a row; another number needs a new pass: cli"
            " cache-teacher"
        )
    allow_views(transform, opened.views)
    split = load_split(data)
    check_data(opened, split)
    answers = recorded_teacher(
        opened,
        chosen,
        split,
        weights,
        architecture=teacher,
        num_views=views,
        preprocessing=input_scaling(mean, std, input_transform),
        compute=compute,
        device=find_device(device, threads, local=rank.local),
    )
    there = is_finished(out, chosen.name)
    with _stoppable(out), _display(rank) as display:
        summary = extend_views(opened, answers, out, rank=rank, on_progress=display)
    _say_warnings(summary)
    rows = f"{len(split)} rows x {views} views, {opened.num_views} of them taken over"
    typer.echo(_said_at_the_end(summary, out, rows, there=there, answered=display.answered))


def nest(
    store: Store,
    small: Annotated[str, typer.Option(help="The teacher whose features come first")],
    large: Annotated[str, typer.Option(help="The teacher with more features, whose answers the new one gives")],
    name: Annotated[str, typer.Option("--teacher-name", help="Name of a teacher of the store: the new one")] = "nested",
    rows: Annotated[
        int, option(AT_LEAST_ONE, help="Number of rows, drawn at random, that the map is fitted on")
    ] = 5000,
) -> None:
    """Add a teacher with the features of a small one, then what a large one knows beyond (Reverse Distillation)."""
    from logitbank.pipeline.cache_teacher.nested import nest_features

    size = nest_features(here(store), small, large, name, num_rows=rows)
    typer.echo(f"{store} has teacher {name!r}: the answers of {large!r}, {size} features nested in those of {small!r}")


@contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on in {out} with the rows that are not there yet", err=True)
        raise typer.Exit(130) from None


def _display(rank: "Rank", *, as_json: bool = False) -> "ProgressDisplay":
    from logitbank.pipeline.cache_teacher.progress import ProgressDisplay

    return ProgressDisplay(as_json=as_json, quiet=rank.together and not rank.first, say=typer.echo)


def _say_warnings(summary: dict[str, Any]) -> None:
    from logitbank.pipeline.cache_teacher.summary import leak_warning

    for warning in (*filter(None, [leak_warning(summary)]), *summary.get("warnings", ())):
        typer.echo(f"warning: {warning}", err=True)


def _said_at_the_end(summary: dict[str, Any], out: Path, rows: str, *, there: bool, answered: int) -> str:
    """The last line of a pass; ``answered`` rows are this process's own."""
    from logitbank.pipeline.look.describe import describe_kind

    if not summary:
        mine = f"wrote {answered} rows of {out}" if answered else f"nothing was left to write of {out}"
        return f"{mine}; other processes still write the rest"
    accuracy = f", accuracy {summary['accuracy']:.4f} ({describe_kind(summary)})" if "accuracy" in summary else ""
    return f"{wrote(not there)} {out}: {rows}{accuracy}"


def _format_trial(trial: dict[str, Any], temperatures: tuple[float, ...]) -> str:
    fidelity = ", ".join(f"{trial['fidelity'][f'{t:g}']:.2g} at T = {t:g}" for t in temperatures)
    kept = trial["embedding_bytes_per_row"]
    features = f", {kept} bytes of features a row" if kept else ""
    return (
        f"{trial['num_rows']} rows at {trial['rows_per_second']:.0f} rows/s: about {trial['seconds']:.0f} s a process,"
        f" {trial['bytes'] / 1e6:.1f} MB{features}; KL T^2 {fidelity}"
    )
