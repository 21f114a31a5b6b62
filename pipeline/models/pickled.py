"""What a pickle describes, read without running it: plain values, plain containers, and records of all else.

Nothing that a program names is imported, called or made, so a checkpoint may hold the command line's options, paths or
an optimiser beside its tensors. Every value that is made takes memory in proportion to the program.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any


@dataclass(frozen=True, eq=False)
class Named:
    """A class or function, by its module and name."""

    name: str


@dataclass(frozen=True, eq=False)
class Made:
    """What a call would have made: ``what`` is its ``Named``, or anything else where the program is odd."""

    what: object
    arguments: object

    @property
    def name(self) -> str:
        return self.what.name if isinstance(self.what, Named) else type(self.what).__name__


@dataclass(frozen=True, eq=False)
class Outside:
    """A thing outside the program that it refers to, such as a storage of a tensor."""

    id: object


class PickleError(Exception):
    """Why a program cannot be read, as a phrase."""


def read_pickle(file: IO[bytes], outside: list[Outside] | None = None) -> object:
    """Reads one program, up to and with its STOP.

    Args:
        file: Where it begins.
        outside: Filled with everything outside that the program refers to.

    Raises:
        PickleError: Damaged, of a protocol before 2, or it calls what only an attack calls.
    """
    machine = _Machine([] if outside is None else outside)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        return machine.pop()
    except (ValueError, UnicodeError, IndexError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise PickleError("it is no file of torch.save, or a damaged one") from error


_IGNORED = ("PROTO", "FRAME", "STOP")
_PUSHED = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
    | {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PLAIN_KEYS = (str, int, float, bytes, type(None))
_MAPPINGS = ("collections OrderedDict",)
# Modules and functions that no checkpoint needs and every attack begins with. They would not be called here either.
_ATTACKS = frozenset(
    {"os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "importlib", "runpy", "pty", "ctypes", "pickle"}
    | {"marshal", "code", "codeop", "urllib", "http", "webbrowser", "tempfile", "multiprocessing", "threading"}
)
_BUILTINS = ("builtins", "__builtin__")
_ATTACKING_BUILTINS = frozenset({"eval", "exec", "compile", "open", "__import__", "input", "breakpoint", "setattr"})


class _Machine:
    """The stack machine of pickle, over records instead of objects."""

    def __init__(self, outside: list[Outside]) -> None:
        self.referred = outside
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self.take(len(self.stack) - _TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _IGNORED:
            raise PickleError(f"its program uses the opcode {name}")

    def pop(self) -> Any:
        return self.stack.pop()

    def take(self, start: int) -> list[Any]:
        """Everything from a place of the stack on."""
        if start < 0:
            raise IndexError(start)
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def marked(self) -> list[Any]:
        return self.take(self.marks.pop())

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def tuple_(self, _: Any) -> None:
        self.stack.append(tuple(self.marked()))

    def list_(self, _: Any) -> None:
        self.stack.append(self.marked())

    def dict_(self, _: Any) -> None:
        pairs, made = self.marked(), dict[Any, Any]()
        _put(made, pairs)
        self.stack.append(made)

    def append(self, _: Any) -> None:
        self.extend([self.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.marked())

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _put(self.stack[-1], [key, value])

    def set_items(self, _: Any) -> None:
        pairs = self.marked()
        _put(self.stack[-1], pairs)

    def add_items(self, _: Any) -> None:
        """Of a set, whose members nobody asks for."""
        self.marked()

    def frozen(self, _: Any) -> None:
        self.marked()
        self.stack.append(frozenset[Any]())

    def named(self, argument: Any) -> None:
        self.stack.append(_named(str(argument)))

    def stack_named(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(_named(f"{module} {name}"))

    def call(self, _: Any) -> None:
        arguments, what = self.pop(), self.pop()
        made: object = Made(what, arguments)
        if isinstance(what, Named) and what.name in _MAPPINGS and arguments == ():
            made = {}
        self.stack.append(made)

    def call_with_names(self, argument: Any) -> None:
        self.pop()
        self.call(argument)

    def set_state(self, _: Any) -> None:
        """Attributes of what was made, which nobody asks for."""
        self.pop()

    def outside(self, _: Any) -> None:
        self.referred.append(Outside(self.pop()))
        self.stack.append(self.referred[-1])

    def drop(self, _: Any) -> None:
        self.pop()

    def drop_marked(self, _: Any) -> None:
        self.marked()

    def double(self, _: Any) -> None:
        self.stack.append(self.stack[-1])


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_,
    "LIST": _Machine.list_,
    "DICT": _Machine.dict_,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_named,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.outside,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_marked,
    "DUP": _Machine.double,
}


def _put(target: Any, pairs: list[Any]) -> None:
    """Items with plain keys into a dict; whatever else is filled is a record, and stays as it is."""
    if type(target) is dict:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) in _PLAIN_KEYS:
                target[key] = value


def _named(name: str) -> Named:
    module, _, what = name.partition(" ")
    attack = what.partition(".")[0] in _ATTACKING_BUILTINS if module in _BUILTINS else module.partition(".")[0]
    if attack is True or attack in _ATTACKS:
        shown = ascii(name.replace(" ", "."))[1:-1][:60]
        raise PickleError(f"its program calls {shown}, which no weights need and every attack does")
    return Named(name)
