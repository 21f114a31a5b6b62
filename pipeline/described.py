"""One description of a run: the fields of a frozen dataclass, each with its default, help, domain, and whether it
decides the result.

Command line, run.json, resuming, sweeps and the Python API all come from it. Imports nothing heavy, so that ``--help``
answers at once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple, get_type_hints

from logitbank.pipeline.domains import Domain


@dataclass(frozen=True)
class Option:
    """What is known of a setting beside its name, type and default.

    Attributes:
        help: One line for people.
        domain: What it may be; None: checked by whoever uses it.
        decides: Whether the result depends on it; a run asked for again with another value is another run.
        spelled: The command line's name where it is not the field's.
    """

    help: str
    domain: Domain | None = None
    decides: bool = True
    spelled: str = ""


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
    default: Any = MISSING, *, help: str, domain: Domain | None = None, decides: bool = True, spelled: str = ""
) -> Any:
    """A field of a description; without a default it must be given."""
    metadata = {"option": Option(help=help, domain=domain, decides=decides, spelled=spelled)}
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


def settings_of(described: type) -> Iterator[Setting]:
    """The settings of a description."""
    kinds = get_type_hints(described)
    for each in fields(described):
        if "option" in each.metadata:
            yield Setting(each.name, kinds[each.name], each.default, each.metadata["option"])


def check_settings(described: Any) -> None:
    """Raises ValueError, naming the option, when a value lies outside its domain; for ``__post_init__``."""
    for setting in settings_of(type(described)):
        if setting.option.domain is not None:
            setting.option.domain.check(setting.flag, getattr(described, setting.name))


def refuse_idle(described: Any, names: Iterable[str], because: str) -> None:
    """Raises ValueError when one of the settings, which do nothing here, has been set."""
    for setting in settings_of(type(described)):
        if setting.name in names and getattr(described, setting.name) != setting.default:
            raise ValueError(f"{setting.flag} does nothing here, because {because}; leave it out")


def from_values(described: type, values: Mapping[str, Any]) -> Any:
    """An object of a description from values by name; other names are passed over, absent ones keep their default."""
    return described(
        **{setting.name: values[setting.name] for setting in settings_of(described) if setting.name in values}
    )


def identity(described: Any) -> dict[str, Any]:
    """The settings that decide the result, by name."""
    return {
        setting.name: getattr(described, setting.name)
        for setting in settings_of(type(described))
        if setting.option.decides
    }
