"""`python -m docs.pictures [NAME ...]` draws the pictures of the pages anew: all, or those named."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from docs.pictures import folds, rate_distortion, screens, tails, tree

PICTURES: dict[str, Callable[[], list[Path]]] = {
    "folds": folds.draw,
    "rate-distortion": rate_distortion.draw,
    "screens": screens.draw,
    "store-tree": tree.draw,
    "tails": tails.draw,
}


def main(names: Sequence[str]) -> int:
    """Draws and says what was written."""
    unknown = set(names) - set(PICTURES)
    if unknown:
        print(f"error: no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}", file=sys.stderr)
        return 2
    for name in names or PICTURES:
        for file in PICTURES[name]():
            print(f"wrote {file}, {file.stat().st_size // 1024} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
