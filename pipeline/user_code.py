"""Code of the user's own, run because its file is named on the command line and for no other reason.

Nothing that is read from a store, from weights or from data ever gets here.
"""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_IN_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
_IN_MODULE = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+):(?P<name>[A-Za-z_]\w*)")


def is_file_factory(text: str) -> bool:
    """Is it of the form ``path/to/file.py:factory``."""
    return _IN_FILE.fullmatch(text) is not None


def is_factory(text: str) -> bool:
    """Is it ``path/to/file.py:factory`` or ``package.module:factory``."""
    return is_file_factory(text) or _IN_MODULE.fullmatch(text) is not None


def load_factory(text: str) -> Callable[..., Any]:
    """The function that ``path/to/file.py:factory`` or ``package.module:factory`` names.

    Raises:
        ValueError: No such file, module or function, or a file that cannot be run.
    """
    match = _IN_FILE.fullmatch(text)
    try:
        if match is not None:
            path = Path(match["file"])
            if not path.is_file():
                raise ValueError(f"{text}: no such file {path}; expected path/to/file.py:factory")
            module = _run_file(path)
        else:
            match = _IN_MODULE.fullmatch(text)
            if match is None:
                raise ValueError(f"{text!r} names no factory; expected path/to/file.py:factory")
            module = importlib.import_module(match["module"])
    except ValueError:
        raise
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"{text}: cannot be run ({type(error).__name__}: {error}); fix the file") from error
    factory = getattr(module, match["name"], None)
    if not callable(factory):
        raise ValueError(f"{text}: it defines no function {match['name']!r}; name one that it has")
    return factory  # type: ignore[no-any-return]


def _run_file(path: Path) -> ModuleType:
    """The file as a module, never from Python's bytecode cache: that misses a change of equal size within a second."""
    source = path.read_bytes()
    module = ModuleType(f"_user_code_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # classes look their module up by name
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def call_factory(text: str, offered: Mapping[str, Any]) -> Any:
    """Calls a factory with those of the offered arguments that it takes by name.

    Raises:
        ValueError: It takes another argument without a default.
    """
    factory = load_factory(text)
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return factory(**offered)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    odd = next((name for name in needed if name not in offered), None)
    if odd is not None:
        raise ValueError(f"{text}: takes an argument {odd!r}; it is offered {', '.join(offered) or 'none'}")
    taken = {parameter.name for parameter in parameters}
    return factory(**{name: value for name, value in offered.items() if name in taken})


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def factory_sha256(text: str) -> str:
    """SHA-256 of the file that holds a ``file.py:factory``."""
    match = _IN_FILE.fullmatch(text)
    assert match is not None
    return file_sha256(Path(match["file"]))


def factory_name(text: str) -> str:
    """``file.py:factory`` without its folder: the same on every machine."""
    match = _IN_FILE.fullmatch(text)
    return text if match is None else f"{Path(match['file']).name}:{match['name']}"
