"""A store's numbers for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from logitbank.pipeline.commands.options import (
    FirstViews,
    OneTeacher,
    Slice,
    Store,
    here,
    option,
    wrote,
)
from logitbank.pipeline.domains import (
    COUNT,
    DECODE_RULES,
    FORMATS,
    TEMPERATURE,
)


def export(
    store: Store,
    out: Annotated[Path, typer.Option(help="Output: a file .npz, .parquet or .tar, or a folder of tars")],
    to: Annotated[
        str, option(FORMATS, "--format", help="File format: npz, parquet or webdataset; empty: as the ending says")
    ] = "",
    teacher: OneTeacher = "",
    views: FirstViews = None,
    dense: Annotated[bool, typer.Option("--dense", help="All classes, also where the store holds the top K")] = False,
) -> None:
    """Write a store's log-probabilities for people without Zarr, as plain arrays, a table, or tar shards."""
    from tqdm import tqdm

    from logitbank.pipeline.exchange import choose_format, export_store

    choose_format(out, to)
    with tqdm(unit="row", unit_scale=True, disable=None) as bar:
        values, written = export_store(
            here(store), out, to=to, teacher=teacher or None, num_views=views, dense=dense, on_rows=bar.update
        )
    answers = "all classes" if values.dense else f"top {values.encoding.top_k} of {values.encoding.num_classes} classes"
    typer.echo(f"{wrote(written)} {out}: {values.store.num_examples} rows x {values.num_views} views, {answers}")


def decode(
    store: Store,
    out: Annotated[Path, typer.Option(help="Output file, .npy")],
    teacher: OneTeacher = "",
    view: Annotated[int, option(COUNT, help="Which view, from 0")] = 0,
    temperature: Annotated[float, option(TEMPERATURE, help="T of the softmax")] = 1.0,
    tail: Annotated[str, option(DECODE_RULES, help="Tail rule: predicted (the usual one), uniform, renormalise")] = "",
    rows: Slice = "",
) -> None:
    """Write the dense log-probabilities that stage two would use, float32 [rows, classes], for other tools."""
    from logitbank.pipeline.exchange.decode import decode_to_file
    from logitbank.stores import open_store

    shape, written = decode_to_file(
        open_store(here(store)), out, teacher=teacher or None, view=view, temperature=temperature, tail=tail, rows=rows
    )
    typer.echo(f"{wrote(written)} {out}: float32 {list(shape)}")
