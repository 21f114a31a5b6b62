"""Options that commands share, and how the text of an option is read.

Heavy imports stay inside the functions, so that ``--help`` answers at once.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from logitbank.pipeline.commands.renamed import refuse_renamed
from logitbank.pipeline.described import Setting, over, read_value, refuse_given, settings_of
from logitbank.pipeline.domains import COUNT, FOLD_STRATEGIES, MEANS, SEED, STDS, VIEWS, Domain, Words

if TYPE_CHECKING:
    from logitbank.pipeline.models import Given


@dataclass(frozen=True)
class Checked:
    """A domain as an option of the command line has it."""

    domain: Domain

    def check(self, param: typer.CallbackParam, value: Any) -> Any:
        """The value; ValueError, in one line, when it lies outside. None, that it was not given, lies in every one."""
        if value is not None:
            self.domain.check(param.opts[0], value)
        return value


class Once(TyperCommand):
    """A command whose options are given once, but for those that may be repeated: the parser would take the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The command's own arguments; ValueError when an option is given twice, or by an old name."""
        written = list(args)
        refuse_renamed(written, {name for param in self.params for name in param.opts})
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            _refuse_several(error, written, "; cli sweep takes several" if ctx.info_name == "train-student" else "")
            raise
        _, _, order = self.make_parser(ctx).parse_args(args=written)
        for param in () if ctx.resilient_parsing else order:
            if order.count(param) > 1 and not (param.multiple or getattr(param, "is_flag", False)):
                raise ValueError(f"{param.opts[0]} is given {order.count(param)} times; give it once")
        return rest


def _refuse_several(error: Any, args: Sequence[str], instead: str) -> None:
    """Raises ValueError when what cannot be read is several values for one run."""
    name = error.param.opts[0] if error.param is not None else ""
    values = [value for option, value in pairwise(args) if option == name and "," in value]
    if values:
        raise ValueError(f"{name} is {values[0]!r}; expected one value{instead}")


def option(domain: Domain, *names: str, help: str) -> Any:
    """An option of the command line with its domain."""
    return typer.Option(*names, help=help, callback=Checked(domain).check)


_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def takes(
    described: type,
    name: str = "run",
    *,
    leave_out: Sequence[str] = (),
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
    lists: str = "",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command is given an object of a description, whose fields are options in the place of the parameter.

    Args:
        described: A description of a run, see `pipeline.described`.
        name: The command's parameter that is given the object.
        leave_out: Fields that the command does not offer, or offers in a way of its own; they keep their defaults.
        recipes: Values of fields by the name of a recipe, which ``--recipe`` takes; those that are typed go before.
        lists: The command's parameter that is given the texts, by name, of options that may be several values or a
            range: those that decide the result, and are numbers or one of some words. Empty: none may be.
    """
    offered = [setting for setting in settings_of(described) if setting.name not in leave_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters

        @wraps(command)
        def called(**given: Any) -> None:
            context = given["context"] if "context" in own else given.pop("context")
            recipe = given.pop("recipe") if recipes else ""
            several = _several(given, offered) if lists else {}
            values = {setting.name: _value(setting, given.pop(setting.name)) for setting in offered}
            typed = [setting.name for setting in offered if is_given(context, setting.name)]
            chosen = {name: values[name] for name in typed} if recipe else values
            run: Any = over(described, chosen, recipes[recipe] if recipes and recipe else {})
            refuse_given(run, typed)
            command(**{name: run}, **({lists: several} if lists else {}), **given)

        parameters: list[inspect.Parameter] = [] if "context" in own else [_CONTEXT]
        for each in own.values():
            ours = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY)] if each.name != lists else []
            made = [_parameter(setting, lists=bool(lists)) for setting in offered]
            parameters += made if each.name == name else ours
        parameters += [_recipe_parameter(recipes)] if recipes else []
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return decorate


def _recipe_parameter(recipes: Mapping[str, Any]) -> inspect.Parameter:
    help = f"Settings that go together, see `cli recipes`: {', '.join(recipes)}; options that you type override it"
    annotation = Annotated[str, option(Words(("", *recipes)), help=help)]
    return inspect.Parameter("recipe", inspect.Parameter.KEYWORD_ONLY, default="", annotation=annotation)


def _value(setting: Setting, given: Any) -> Any:
    return given if setting.option.texts is None else setting.option.texts(given or [])


def may_be_several(setting: Setting) -> bool:
    """Whether a sweep takes several values of a setting: their texts hold no comma of their own."""
    return setting.option.decides and (setting.kind in (int, float) or isinstance(setting.option.domain, Words))


def _several(given: dict[str, Any], offered: Sequence[Setting]) -> dict[str, str]:
    """The texts of options that are several values, or a range, which give way to the first of them."""
    several = {}
    for setting in offered:
        if may_be_several(setting):
            text = str(given[setting.name])
            if "," in text or ".." in text:
                several[setting.name] = text
            given[setting.name] = read_value(setting, text.partition(",")[0].partition("..")[0].strip())
    return several


def _parameter(setting: Setting, *, lists: bool) -> inspect.Parameter:
    several = lists and may_be_several(setting)
    check = None if setting.option.domain is None or several else Checked(setting.option.domain).check
    repeated = setting.option.texts is not None
    kind: Any = list[str] | None if repeated else str if several else setting.kind
    names = [setting.flag] if kind is bool or setting.option.spelled else []  # no --no-flag
    annotation = Annotated[kind, typer.Option(*names, help=setting.option.help, callback=check)]
    default = None if repeated else inspect.Parameter.empty if setting.default is MISSING else setting.default
    default = str(default) if several else default
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


Data = Annotated[str, typer.Option(help="Data spec, see `cli datasets`; for example torchvision:CIFAR10?root=data")]
Device = Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps, or auto: a GPU if there is one")]
Threads = Annotated[int, option(COUNT, help="CPU threads; 0 leaves it to torch. Tiny models are fastest with 1")]
Mean = Annotated[str, option(MEANS, help="Input mean, one number a channel, on the 0..1 scale: 0.485,0.456,0.406")]
Std = Annotated[str, option(STDS, help="Input standard deviation, likewise")]
InputTransform = Annotated[
    str,
    typer.Option(
        help="Changes to the network's own: resize=256,crop=224,interpolation=bicubic,mode=center,mean=...,std=...;"
        " parts that are left out stay"
    ),
]
FoldStrategy = Annotated[
    str, option(FOLD_STRATEGIES, help="How rows are assigned to folds: stratified, kfold, group or hash")
]
FoldSeed = Annotated[int, option(SEED, help="Seed of the fold assignment")]
OwnTransform = Annotated[
    str, typer.Option(help="How examples are shown: your file.py:factory, when the store's views were made by it")
]
TeacherAgain = Annotated[
    str, typer.Option("--teacher", help="Architecture of the teacher; needed unless the store says one of `cli models`")
]
OneTeacher = Annotated[
    str, typer.Option("--teacher-name", help="Name of a teacher of the store; needed when it holds several")
]
SomeTeachers = Annotated[
    str,
    typer.Option("--teacher-name", help="Name of a teacher of the store, or several with commas between; empty: all"),
]
FirstViews = Annotated[int | None, option(VIEWS, help="Number of views, from the first on; default: all")]
Slice = Annotated[str, typer.Option("--slice", help="Rows a:b, from a up to but without b")]
Part = Annotated[
    str, typer.Option(help="Share of the rows: i/n, i from 0, of n processes that start apart; torchrun sets it itself")
]
Student = Annotated[str, typer.Option(help="Architecture of the student; needed when it is your file.py:factory")]
Ray = Annotated[
    str, typer.Option(help="Run on Ray: local, or a cluster's HOST:PORT or auto (pip install logitbank[ray])")
]
Store = Annotated[Path, typer.Argument(help="A store that cache-teacher wrote")]


def input_scaling(mean: str, std: str, transform: str) -> "Given | None":
    """What the user says of a network's input, over what the network says itself."""
    from logitbank.pipeline.models import read_given

    return read_given(mean, std, transform)


def read_names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{option} is {text!r}; expected names with commas between")
    return names


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user wrote the option of a parameter, whatever its value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_idle(context: typer.Context, names: Sequence[str], because: str) -> None:
    """Raises ValueError when the user gave one of the parameters, which do nothing here."""
    for name in names:
        if is_given(context, name):
            option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
            raise ValueError(f"{option} does nothing here, because {because}; leave it out")


def here(store: Path) -> Path:
    """The store's folder on this machine; a store that is elsewhere is copied into the cache first."""
    from logitbank.stores import local_store

    return local_store(store)


def read_rows(text: str) -> slice:
    first, colon, last = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (first, last)):
        raise ValueError(f"--slice is {text!r}; expected a:b, such as 0:100")
    return slice(int(first) if first else None, int(last) if last else None)


def wrote(written: bool) -> str:
    """How every command that writes begins its last line."""
    return "wrote" if written else "already there:"
