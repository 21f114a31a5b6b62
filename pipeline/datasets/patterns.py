"""Data of several files: one path, or a pattern such as ``train-*.tar``."""

from pathlib import Path


def matching(pattern: str) -> list[Path]:
    """The file of that very name, or those that a pattern with ``*``, ``?`` or ``[...]`` names, sorted."""
    path = Path(pattern)
    if path.is_file() or not any(letter in pattern for letter in "*?["):
        return [path] if path.is_file() else []
    start = Path(path.anchor) if path.anchor else Path()
    return sorted(found for found in start.glob(str(path.relative_to(path.anchor))) if found.is_file())


def find_files(pattern: str, spec: str, what: str) -> list[Path]:
    """As ``matching``.

    Raises:
        ValueError: There is none; ``what`` says what was expected.
    """
    files = matching(pattern)
    if not files:
        raise ValueError(f"{spec}: no file {pattern!r}; expected {what}")
    return files
