"""One description of a run: the settings of a frozen dataclass, each with its default, help, domain, and whether it
decides the result.

Command line, run.json, resuming, sweeps and the Python API all come from it. A description may hold others, whose
settings are its own: names are unique over all of them. Imports nothing heavy, so that ``--help`` answers at once.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar, get_type_hints

from logitbank.pipeline.domains import Domain

Described = TypeVar("Described")
Idle = tuple[tuple[str, ...], str]  # names of settings that do nothing beside the others, and why


@dataclass(frozen=True)
class Option:
    """What is known of a setting beside its name, type and default.

    Attributes:
        help: One line for people.
        domain: What it may be; None: checked by whoever uses it.
        decides: Whether the result depends on it; a run asked for again with another value is another run. A text
            that names something decides by what it names, however it is spelled.
        spelled: The command line's name where it is not the field's.
        texts: What makes the value of the texts that the command line repeats.
    """

    help: str
    domain: Domain | None = None
    decides: bool = True
    spelled: str = ""
    texts: Callable[[list[str]], Any] | None = None


class Setting(NamedTuple):
    """A field of a description, with its type and its option; default is MISSING where it must be given."""

    name: str
    kind: type
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """As the command line has it: ``--batch-size``."""
        return self.option.spelled or f"--{self.name.replace('_', '-')}"


def option(
    default: Any = MISSING,
    *,
    help: str,
    domain: Domain | None = None,
    decides: bool = True,
    spelled: str = "",
    texts: Callable[[list[str]], Any] | None = None,
) -> Any:
    """A field of a description; without a default it must be given.

    A setting that is added later gets the default that does what was done without it: documents that were written
    before are read as if they said it.
    """
    metadata = {"option": Option(help=help, domain=domain, decides=decides, spelled=spelled, texts=texts)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


def part(described: type) -> Any:
    """A field that holds another description; by default all its defaults."""
    return field(default_factory=described, metadata={"part": described})


def read_value(setting: Setting, text: str) -> Any:
    """The value of a number's or a word's text, of its type and in its domain.

    Raises:
        ValueError: It is none.
    """
    try:
        value = setting.kind(text)
    except ValueError:
        what = "a whole number" if setting.kind is int else "a number"
        raise ValueError(f"{setting.flag} is {text!r}; expected {what}") from None
    if setting.option.domain is not None:
        setting.option.domain.check(setting.flag, value)
    return value


def settings_of(described: type) -> Iterator[Setting]:
    """The settings of a description, those of its parts in their place."""
    kinds = get_type_hints(described)
    for each in fields(described):
        if "part" in each.metadata:
            yield from settings_of(each.metadata["part"])
        elif "option" in each.metadata:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            yield Setting(each.name, kinds[each.name], default, each.metadata["option"])


def values_of(described: Any) -> dict[str, Any]:
    """The value of every setting, by name."""
    values: dict[str, Any] = {}
    for each in fields(described):
        if "part" in each.metadata:
            values |= values_of(getattr(described, each.name))
        elif "option" in each.metadata:
            values[each.name] = getattr(described, each.name)
    return values


def check_settings(described: Any) -> None:
    """Raises ValueError, naming the option, when a value lies outside its domain, or is set and does nothing beside the
    others; for ``__post_init__``.

    A description that has settings that may do nothing tells them in a method ``idle``.
    """
    values = values_of(described)
    for setting in settings_of(type(described)):
        if setting.option.domain is not None:
            setting.option.domain.check(setting.flag, values[setting.name])
    for idle in _idle(described):
        refuse_idle(described, *idle)


class DoesNothing(ValueError):
    """A setting does nothing beside the others.

    Attributes:
        setting: Its name.
    """

    def __init__(self, setting: Setting, because: str) -> None:
        super().__init__(f"{setting.flag} does nothing here, because {because}; leave it out")
        self.setting = setting.name


def refuse_idle(described: Any, names: Iterable[str], because: str, given: Collection[str] = ()) -> None:
    """Raises DoesNothing when one of the settings, which do nothing here, is given or is not as by default."""
    values = values_of(described)
    for setting in settings_of(type(described)):
        if setting.name in names and (setting.name in given or values[setting.name] != setting.default):
            raise DoesNothing(setting, because)


def refuse_given(described: Any, given: Collection[str]) -> None:
    """Raises ValueError when a setting that the user gave, be it as by default, does nothing beside the others."""
    for idle in _idle(described):
        refuse_idle(described, *idle, given)
    for each in fields(described):
        if "part" in each.metadata:
            refuse_given(getattr(described, each.name), given)


def _idle(described: Any) -> Iterable[Idle]:
    told: Iterable[Idle] = described.idle() if hasattr(described, "idle") else ()
    return told


def from_values(described: type[Described], values: Mapping[str, Any]) -> Described:
    """An object of a description from values by name; absent ones keep their default.

    Raises:
        TypeError: A name that the description does not have.
    """
    _refuse_unknown(described, values)
    own: dict[str, Any] = {}
    for each in fields(described):  # type: ignore[arg-type]
        if "part" in each.metadata:
            own[each.name] = from_values(each.metadata["part"], _of(each.metadata["part"], values))
        elif each.name in values:
            own[each.name] = values[each.name]
    return described(**own)


def over(described: type[Described], values: Mapping[str, Any], others: Mapping[str, Any]) -> Described:
    """An object of values, and of others for what they leave open, where these do something beside them."""
    open_ones = {name: value for name, value in others.items() if name not in values}
    while True:
        try:
            return from_values(described, {**open_ones, **values})
        except DoesNothing as error:
            if error.setting not in open_ones:
                raise
            del open_ones[error.setting]


def changed(described: Described, values: Mapping[str, Any]) -> Described:
    """The same with other values, by name, of its own settings and of its parts'; TypeError for other names."""
    _refuse_unknown(type(described), values)
    own: dict[str, Any] = {}
    for each in fields(described):  # type: ignore[arg-type]
        if "part" in each.metadata:
            own[each.name] = changed(getattr(described, each.name), _of(each.metadata["part"], values))
        elif each.name in values:
            own[each.name] = values[each.name]
    return replace(described, **own)  # type: ignore[type-var]


def _of(described: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {setting.name: values[setting.name] for setting in settings_of(described) if setting.name in values}


def _refuse_unknown(described: type, values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - {setting.name for setting in settings_of(described)})
    if unknown:
        raise TypeError(f"{described.__name__} has no setting {', '.join(unknown)}")


def completed(described: type, found: Any) -> Any:
    """The settings of a document that may have been written before some of them existed: those are as by default."""
    if not isinstance(found, Mapping):
        return found
    known = {each.name: each.default for each in settings_of(described) if each.option.decides}
    return {**known, **found}


def deciding(described: Any) -> dict[str, Any]:
    """The settings that decide the result, by name."""
    values = values_of(described)
    return {setting.name: values[setting.name] for setting in settings_of(type(described)) if setting.option.decides}
