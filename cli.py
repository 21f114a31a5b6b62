"""The command line: the application made of the commands, and its entry point. Nothing else."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from logitbank.pipeline.commands import cache, exchange, generations, look, parts, share, student, teacher, use
from logitbank.pipeline.commands.options import Once
from logitbank.pipeline.processes.rank import Rank

UsageError: Any = typer.BadParameter.__base__  # Typer carries its own copy of click, or does not
TOGETHER = ("cache-teacher", "extend", "train-student")  # what processes that torchrun starts do together

GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Stage one": (cache.cache_teacher, teacher.train_teacher, teacher.assign_folds, cache.extend, cache.nest),
    "Stage two": (student.train_student, student.sweep, student.compare, generations.generations),
    "Use a student": (use.predict, use.export_student),
    "Look": (look.inspect, look.verify, look.diff, look.card, look.rank_students),
    "Hand on": (share.copy, share.merge, share.subset),
    "Use elsewhere": (exchange.decode, exchange.export),
    "Find": (parts.demo, parts.datasets, parts.models, parts.losses, parts.recipes),
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Offline teacher-logit cache for knowledge distillation: run the teacher once, train many students.",
)
for panel, commands in GROUPS.items():
    for command in commands:
        app.command(cls=Once, rich_help_panel=panel)(command)


def _show_versions(wanted: bool) -> None:
    if wanted:
        from logitbank.pipeline.files.versions import library_versions

        typer.echo(", ".join(f"{name} {version}" for name, version in library_versions().items()))
        raise typer.Exit


@app.callback()
def main_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show versions and exit", callback=_show_versions, is_eager=True)
    ] = False,
) -> None:
    """Holds the options that stand before the command; ``main`` reads them."""
    rank = Rank.find()
    if rank.count > 1 and context.invoked_subcommand not in TOGETHER:
        raise ValueError(
            f"{context.invoked_subcommand} runs in one process, torchrun started {rank.count}; call it without torchrun"
        )


def _show_brackets(group: Any) -> None:
    """Help texts as they are written: rich would take ``[rows, classes]`` for a tag and swallow it."""
    from rich.markup import escape

    for command in (group, *group.commands.values()):
        for holder in (command, *command.params):
            holder.help = escape(holder.help or "")


def _named_here(error: Any) -> str:
    """What a command calls an option that other programs have, behind the error that says there is none."""
    wanted = {"--pretrained": "--init"}.get(getattr(error, "option_name", ""))
    known = {name for parameter in error.ctx.command.params for name in parameter.opts} if wanted else ()
    return f"; weights to start from are {wanted} FILE" if wanted in known else ""


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit code 2; ``--debug`` shows the traceback."""
    arguments = sys.argv[1:] or ["--help"]
    group: Any = typer.main.get_command(app)
    if "--help" in arguments:
        _show_brackets(group)
    try:
        code = group(args=arguments, standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except (ValueError, OSError, UsageError) as error:
        if "--debug" in sys.argv:
            raise
        message = error.format_message() + _named_here(error) if isinstance(error, UsageError) else str(error)
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        sys.exit(2)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
