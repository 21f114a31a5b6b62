"""Which versions made something: written into weights, stores and results."""

import platform
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = ("logitbank", "torch", "torchvision", "zarr", "numcodecs", "numpy")


def library_versions() -> dict[str, str]:
    """Python's and the main libraries' versions, by name."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return versions
