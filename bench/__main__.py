"""Runs every benchmark, one after the other, each in a process of its own.

``python -m bench [NAME ...]`` prints one JSON object a line: name, value, goal, ok. Benchmarks report ratios within one
run; those that need real data read the folder in LOGITBANK_DATA and say so where it is absent.
"""

import pkgutil
import subprocess
import sys

import bench


def main(names: list[str]) -> int:
    """Exit code 1 when a benchmark fails to run; a goal that is not reached is reported, not an error."""
    known = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_"))
    for name in names:
        if name not in known:
            print(f"error: unknown benchmark {name!r}; known: {', '.join(known)}", file=sys.stderr)
            return 2
    failed = [name for name in names or known if subprocess.run([sys.executable, "-m", f"bench.{name}"]).returncode]
    if failed:
        print(f"error: {', '.join(failed)} did not run to the end", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
