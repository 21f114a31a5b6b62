"""Old spellings of options: each is refused, in one line, with the new one."""

from collections.abc import Collection, Sequence
from itertools import takewhile

# what was written -> what is written now, in commands that have the new option and not the old one
RENAMED: dict[str, str] = {
    "--tensorboard": "--logger tensorboard",
    "--model": "--teacher",
    "--teacher-arch": "--teacher",
    "--teacher": "--teacher-name",  # where a store's teachers are named, not an architecture
    "--teachers": "--teacher-name",
    "--name": "--teacher-name",
    "--names": "--teacher-name",
    "--students": "--student",
    "--folds": "--folds-only",  # of copy: a flag, not a number
    "--threads": "--transfers",  # of copy: files under way, not CPU threads
    "--rows": "--slice",  # a:b, not a number
    "--temperatures": "--temperature",
    "--to": "--format",
}


def refuse_renamed(args: Sequence[str], options: Collection[str]) -> None:
    """Raises ValueError for an option that the command had under another name, and for a part of the views that is
    written as before: ``--views 0-3``.

    Args:
        args: What the user wrote.
        options: The command's options.
    """
    written = list(takewhile(lambda each: each != "--", args))
    for place, each in enumerate(written):
        name, has_value, value = each.partition("=")
        now = RENAMED.get(name, "")
        if now and name not in options and now.split()[0] in options:
            raise ValueError(f"{name} is now {now}; write that")
        if name == "--views" and name in options:
            _refuse_numbered(value if has_value else "".join(written[place + 1 : place + 2]))


def _refuse_numbered(views: str) -> None:
    first, dash, last = views.partition("-")
    if first == "0" and (not dash or last.isdecimal()):
        raise ValueError(f"--views is {views!r}; it is now a number of views: write --views {int(last or 0) + 1}")
