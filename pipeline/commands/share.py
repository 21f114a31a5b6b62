"""Stores out of stores, here or elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from logitbank.pipeline.commands.options import (
    FirstViews,
    Slice,
    SomeTeachers,
    Store,
    here,
    option,
    read_names,
    read_rows,
    refuse_idle,
    wrote,
)
from logitbank.pipeline.domains import (
    whole,
)


def copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder, .zarr.zip, s3://, gs://, hf:// or http(s)://")],
    target: Annotated[str, typer.Argument(help="A folder, .zarr.zip, s3://, gs:// or hf://")],
    views: FirstViews = None,
    teacher: SomeTeachers = "",
    folds_only: Annotated[
        bool,
        typer.Option("--folds-only", help="Only examples and their folds, for fold teachers of one's own; no answers"),
    ] = False,
    transfers: Annotated[int, option(whole(1, 1024), help="Files under way at a time")] = 16,
) -> None:
    """Copy a store, or some views and teachers of it; every checksum is compared, a stopped copy goes on."""
    from tqdm import tqdm

    from logitbank.stores import copy_store
    from logitbank.stores.format.address import shown
    from logitbank.stores.share.fetch import CopyProgress

    if folds_only:
        refuse_idle(context, ("teacher",), "--folds-only copies no teacher")

    with tqdm(unit="file", disable=None) as bar:

        def report(progress: CopyProgress) -> None:
            bar.total = progress.num_files
            bar.set_postfix_str(f"{progress.num_bytes / 1e6:.1f} MB")
            bar.update(progress.files - bar.n)

        copied = copy_store(
            source,
            target,
            num_views=views,
            teachers=read_names("--teacher-name", teacher) if teacher else None,
            folds_only=folds_only,
            num_threads=transfers,
            report=report,
        )
    for name in copied.unfinished:
        typer.echo(f"warning: teacher {name!r} is unfinished and stayed behind", err=True)
    teachers = ", ".join(copied.teachers)
    said = f"{copied.num_views} views, teachers: {teachers or 'none'}"
    typer.echo(f"{wrote(not copied.already_there)} {shown(target)}: {said}")


def merge(
    stores: Annotated[list[Path], typer.Argument(help="Two stores or more, of the same views")],
    out: Annotated[Path, typer.Option(help="Output store")],
    names: Annotated[
        str,
        typer.Option(
            "--teacher-name",
            help="Name of a teacher of the store: new ones for all, store by store, with commas between",
        ),
    ] = "",
) -> None:
    """Put the teachers of several stores into one; rows are matched by content key, never by position."""
    from logitbank.pipeline.alignment import describe_examples
    from logitbank.stores.write.merge import merge_stores

    paths = [here(store) for store in stores]
    merged = merge_stores(
        paths, out, describe=describe_examples, names=read_names("--teacher-name", names) if names else ()
    )
    served = ", ".join(f"{name} ({rows} rows)" for name, rows in merged.served.items())
    typer.echo(f"{wrote(not merged.already_there)} {out}: {merged.num_examples} examples, teachers: {served}")


def subset(
    store: Store,
    out: Annotated[Path, typer.Option(help="Output store")],
    rows: Slice = "",
    data: Annotated[str, typer.Option(help="Data spec; instead of --slice: its examples, in its order")] = "",
    teacher: SomeTeachers = "",
) -> None:
    """Write some rows of a store as a store; for whole views and teachers, copy is faster."""
    import numpy as np

    from logitbank.pipeline.alignment import describe_examples
    from logitbank.stores import open_store
    from logitbank.stores.write.merge import rows_of, subset_store

    if bool(rows) == bool(data):
        raise ValueError("expected one of --slice and --data; pass --slice a:b, or --data for the examples of a set")
    path = here(store)
    if data:
        from logitbank.pipeline.datasets import load_split

        split = load_split(data)
        chosen = rows_of(open_store(path), split.keys, split.labels)
    else:
        chosen = np.arange(open_store(path).num_examples)[read_rows(rows)]
    names = read_names("--teacher-name", teacher) if teacher else None
    made = subset_store(path, out, chosen, describe=describe_examples, teachers=names)
    typer.echo(f"{wrote(not made.already_there)} {out}: {len(chosen)} rows")
