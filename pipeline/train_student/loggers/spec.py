"""The text that names a logger, ``KIND?option=value&...``. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from logitbank.pipeline.spelling import unknown

# kind -> its options
LOGGERS = {
    "tensorboard": (),
    "wandb": ("project", "entity", "group", "name", "tags", "mode"),
    "mlflow": ("experiment", "uri", "name", "group", "parent"),
}
_MODES = ("online", "offline")


@dataclass(frozen=True)
class LoggerSpec:
    """A logger and its options; ``str`` is the text again."""

    kind: str
    options: tuple[tuple[str, str], ...]

    def get(self, option: str, default: str = "") -> str:
        return dict(self.options).get(option, default)

    def given(self, **options: str) -> "LoggerSpec":
        """The same with some options, where they are not given already."""
        more = tuple((name, value) for name, value in options.items() if not self.get(name))
        return LoggerSpec(self.kind, (*self.options, *more))

    def __str__(self) -> str:
        query = "&".join(f"{name}={quote(value, safe=':/,.@ ')}" for name, value in self.options)
        return f"{self.kind}?{query}" if query else self.kind


def read_loggers(texts: Sequence[str]) -> list[LoggerSpec]:
    """Loggers by their texts.

    Raises:
        ValueError: An unknown kind or option, or a kind twice.
    """
    found = [_read(text) for text in texts]
    kinds = [spec.kind for spec in found]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice:
        raise ValueError(f"--logger {twice} is given twice; give it once")
    return found


def _read(text: str) -> LoggerSpec:
    kind, _, query = text.partition("?")
    if kind not in LOGGERS:
        always = "; OUT/history.csv has every epoch without one"
        raise ValueError(f"--logger {text!r}: {unknown('logger', kind, LOGGERS)}{always}")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if name not in LOGGERS[kind]:
            raise ValueError(f"--logger {text!r}: {unknown('option', name, LOGGERS[kind] or ['none'])}")
        if not equals or not value or name in options:
            raise ValueError(f"--logger {text!r}: expected {name}=VALUE, once")
        options[name] = unquote(value)
    if options.get("mode", "online") not in _MODES:
        raise ValueError(f"--logger {text!r}: mode is {options['mode']!r}; expected {' or '.join(_MODES)}")
    return LoggerSpec(kind, tuple(options.items()))
