"""What there is to choose from, and the demo."""

from pathlib import Path
from typing import Annotated

import typer

from logitbank.pipeline.commands.options import (
    option,
)
from logitbank.pipeline.domains import (
    whole,
)


def losses(
    name: Annotated[str, typer.Argument(help="A loss, or your own file.py:function; without it, the table")] = "",
) -> None:
    """List the losses, or show one's formula, options and reference."""
    from logitbank.pipeline.train_student.losses import describe_loss, describe_losses, own_names
    from logitbank.pipeline.train_student.own_loss import read_objective

    if own_names(name):
        typer.echo(describe_loss(name, read_objective(name, {}, 10).terms[0].loss))
    else:
        typer.echo(describe_loss(name) if name else describe_losses())


def models() -> None:
    """List the models that can be teachers and students."""
    from logitbank.pipeline.fit.estimators import ESTIMATORS, PREFIX
    from logitbank.pipeline.models import MODELS

    for name, model in MODELS.items():
        typer.echo(f"{name:14} {model.about}")
    typer.echo(f"{'timm:NAME':14} any classifier of timm, with its own input scaling")
    typer.echo(f"{'torchvision:NAME':14} any classifier of torchvision")
    typer.echo(f"{'subclasses:S:NAME':14} any network above with S outputs a class, which it adds up; for --loss lelp")
    for name, estimator in ESTIMATORS.items():
        typer.echo(f"{PREFIX}{name}: {estimator.about}, a student fitted by {estimator.fits}")
    typer.echo(f"{'file.py:factory':14} your own: a function that gives a torch.nn.Module; package.module:factory too")


def recipes() -> None:
    """List the recipes of students, with the options that each stands for."""
    from logitbank.pipeline.train_student.recipes import RECIPES, typed

    for name, recipe in RECIPES.items():
        typer.echo(f"{name:14} {recipe.about}\n{'':14} {typed(recipe)}")


def datasets() -> None:
    """List the data sources and how to write them."""
    from logitbank.pipeline.datasets import SOURCES

    for source in SOURCES.values():
        typer.echo(f"{source.example:44} {source.about}")
    typer.echo(
        f"{'...&limit=n&shuffle=SEED&labelled=m':44} of any: n examples evenly spread, in a random order that stays the"
        " same, with the labels of m"
    )


def demo(
    out: Annotated[Path, typer.Option(help="Output folder, for everything the demo makes")] = Path("demo-out"),
    seeds: Annotated[int, option(whole(3), help="Number of seeds: students a method, at least 3")] = 5,
) -> None:
    """Do the whole job on scikit-learn's handwritten digits: teachers, store, students, table and plot."""
    from logitbank.pipeline.commands.demo import run_demo

    run_demo(out, seeds=seeds, say=typer.echo)
