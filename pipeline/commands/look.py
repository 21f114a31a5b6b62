"""What a store holds, whether it is sound, and how two differ."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from logitbank.pipeline.commands.options import (
    Data,
    Device,
    InputTransform,
    Mean,
    OneTeacher,
    OwnTransform,
    Std,
    Store,
    TeacherAgain,
    Threads,
    here,
    input_scaling,
    option,
    read_names,
    refuse_idle,
    wrote,
)
from logitbank.pipeline.domains import (
    AT_LEAST_ONE,
    COUNT,
    SEED,
    TEMPERATURE,
)
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.processes.device import find_device


def inspect(
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text")] = False,
) -> None:
    """Show what a store holds: data, teachers, views, folds, encoding, fidelity, accuracy, versions."""
    from logitbank.pipeline.look.describe import describe_store, format_description

    description = describe_store(here(store))
    typer.echo(to_json(description, indent=2) if as_json else format_description(description))


def verify(
    context: typer.Context,
    store: Store,
    data: Annotated[str, typer.Option(help="Data spec; proves that the store belongs to these data")] = "",
    transform: OwnTransform = "",
    recompute: Annotated[
        int, option(COUNT, help="Also run the teacher on so many random rows and compare; needs --data and --weights")
    ] = 0,
    weights: Annotated[str, typer.Option(help="Weights of the teacher, as in cache-teacher; with --recompute")] = "",
    teacher_name: OneTeacher = "",
    teacher: TeacherAgain = "",
    seed: Annotated[int, option(SEED, help="Seed of the rows that --recompute draws")] = 0,
    mean: Mean = "",
    std: Std = "",
    input_transform: InputTransform = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Check every byte and row of a store; with --data that they are the examples', with --recompute to the teacher."""
    from logitbank.pipeline.look.describe import describe_teachers
    from logitbank.stores import open_store, verify_store
    from logitbank.stores.share.cache import fresh_store

    if recompute and not data:
        raise ValueError("--recompute needs the examples; pass --data")
    if weights and not recompute:
        raise ValueError("--weights is for --recompute; pass --recompute 64 as well")
    if not recompute:
        of_teacher = ("teacher_name", "teacher", "seed", "mean", "std", "input_transform", "device", "threads")
        refuse_idle(context, of_teacher, "no teacher runs without --recompute")
    if not data:
        refuse_idle(context, ("transform",), "nothing is shown without --data")

    store = context.with_resource(fresh_store(store))
    problems = verify_store(store)
    if len(problems) == 1 and problems[0].array is None:  # no store at all
        raise ValueError(problems[0].message)
    for problem in problems:
        typer.echo(f"{problem.array or store}: {problem.message}", err=True)
    if problems:
        said = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError(f"{store}: {said} found; write the damaged blocks again or copy it anew")
    opened = open_store(store)
    if data:
        from logitbank.pipeline.alignment import check_data
        from logitbank.pipeline.answers.against_labels import label_warnings
        from logitbank.pipeline.datasets import load_split
        from logitbank.pipeline.views import allow_views

        allow_views(transform, opened.views)
        split = load_split(data)
        check_data(opened, split)
        for name in opened.teachers:
            for warning in label_warnings(opened, opened.teacher(name)):
                typer.echo(f"warning: {warning}", err=True)
        if recompute:
            from logitbank.pipeline.cache_teacher.recompute import recompute as run
            from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher

            _refuse_name(teacher, opened.teachers)
            chosen = opened.teacher(teacher_name or None)
            answers = recorded_teacher(
                opened,
                chosen,
                split,
                weights,
                architecture=teacher,
                preprocessing=input_scaling(mean, std, input_transform),
                device=find_device(device, threads),
            )
            found = run(opened, chosen, answers, recompute, seed)
            typer.echo(str(found))
            if found.problems:
                raise ValueError(
                    f"{store}: teacher {chosen.name!r} is not the one that runs here: {'; '.join(found.problems)};"
                    " get the weights and the input scaling that the store names, or do not use it"
                )
    teachers = ", ".join(describe_teachers(opened)) or "none"
    typer.echo(f"sound: {opened.num_examples} rows x {opened.num_views} views, teachers: {teachers}")


def _refuse_name(architecture: str, names: Collection[str]) -> None:
    """Raises ValueError when what should be an architecture is the name of a teacher, as it once was written."""
    from logitbank.pipeline.models import find_model

    if architecture not in names:
        return
    try:
        find_model(architecture)
    except ValueError:
        raise ValueError(
            f"--teacher is {architecture!r}, a teacher of the store and no architecture; write --teacher-name"
            f" {architecture}"
        ) from None


def diff(
    first: Annotated[Path, typer.Argument(help="A store")],
    second: Annotated[Path, typer.Argument(help="Another, or the same")],
    teachers: Annotated[
        str,
        typer.Option("--teacher-name", help="Name of a teacher of the store: a,b, one of each; empty: the only ones"),
    ] = "",
    view: Annotated[int, option(COUNT, help="Which view, from 0")] = 0,
    temperature: Annotated[float, option(TEMPERATURE, help="T of the softmax")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text")] = False,
) -> None:
    """Compare two teachers over the examples that both answer: identity, agreement, KL, by class."""
    from logitbank.pipeline.look.diff import diff_teachers, format_diff
    from logitbank.stores import open_store

    chosen: list[str | None] = [*read_names("--teacher-name", teachers)] if teachers else [None, None]
    if len(chosen) != 2:
        raise ValueError(f"--teacher-name is {teachers!r}; expected two names, such as a,b")
    opened = [open_store(here(path)) for path in (first, second)]
    found = diff_teachers((opened[0], chosen[0]), (opened[1], chosen[1]), view=view, temperature=temperature)
    typer.echo(to_json(found, indent=2) if as_json else format_diff(found))


def card(
    store: Store,
    out: Annotated[
        Path | None, typer.Option(help="Output file, such as README.md, with pictures beside it; default: printed")
    ] = None,
) -> None:
    """Write a store's card: Markdown that says what it is, who answered, how well, and how to use it."""
    from logitbank.pipeline.look.card import store_card, write_card

    if out is None:
        typer.echo(store_card(here(store)))
        return
    paths, written = write_card(here(store), out)
    for path in paths:
        typer.echo(f"{wrote(written)} {path}")


def rank_students(
    store: Store,
    students: Annotated[
        str,
        typer.Option(
            "--student", help="Architecture of the student, or several with commas between, such as mlp:8,cnn"
        ),
    ],
    data: Data = "digits",
    teacher: OneTeacher = "",
    seeds: Annotated[int, option(AT_LEAST_ONE, help="Number of seeds: how often weights and rows are drawn")] = 3,
    rows: Annotated[int, option(AT_LEAST_ONE, help="Number of rows, with labels, that are compared")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text")] = False,
) -> None:
    """Rank students before any is trained (DisWOT), by a store that holds the teacher's features."""
    from dataclasses import asdict

    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.look.rank import format_ranking
    from logitbank.pipeline.look.rank import rank_students as rank
    from logitbank.stores import open_store

    names = read_names("--student", students)
    opened, split = open_store(here(store)), load_split(data)
    ranked = rank(opened, split, names, teacher=teacher or None, seeds=range(seeds), num_rows=rows)
    typer.echo(to_json(list(map(asdict, ranked)), indent=2) if as_json else format_ranking(ranked, seeds))
