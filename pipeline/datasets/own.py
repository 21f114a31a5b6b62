"""Data of one's own: ``path/to/file.py:factory?option=value``."""

import inspect
from collections.abc import Mapping

import numpy as np

from logitbank.pipeline.datasets.labels import one_hot_width, place_labels, read_labels
from logitbank.pipeline.datasets.samples import as_samples
from logitbank.pipeline.datasets.spec import check_options, spell
from logitbank.pipeline.datasets.split import Split
from logitbank.pipeline.user_code import call_factory, load_factory


def load_own(factory: str, options: Mapping[str, str]) -> Split:
    """Calls the factory with the spec's options, as text, and ``split`` ("train" when left out).

    It returns a ``Split``, or a pair (samples, labels) of arrays as a .npz file holds them. The same call must give the
    same examples in the same order. ``classes`` is given to a factory that takes it, and else says how many classes
    there are, as for other sources.

    Raises:
        ValueError: The factory cannot be called so, fails, or returns something else.
    """
    options = {"split": "train", **options}
    kind, _, name = factory.rpartition(":")
    spec = spell(kind, name, options)
    given, classes = _divide_options(factory, options, spec)
    try:
        made = call_factory(factory, given)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"{spec}: the factory failed ({type(error).__name__}: {error}); --debug shows where"
        ) from error
    if isinstance(made, Split):
        if classes:
            raise ValueError(f"{spec}: the factory returns a Split, which says its classes itself; leave classes out")
        return made
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(f"{spec}: the factory returned {type(made).__name__}; expected (samples, labels) or a Split")
    samples, raw = (np.asarray(part) for part in made)
    labels, num_classes, names = place_labels(
        [read_labels(raw, f"{spec}: labels")], 0, classes or str(one_hot_width(raw) or ""), spec
    )
    return Split(
        name=name,
        split=options["split"],
        spec=spec,
        samples=as_samples(samples, f"{spec}: samples"),
        labels=labels,
        num_classes=num_classes,
        class_names=names,
    )


def _divide_options(factory: str, options: Mapping[str, str], spec: str) -> tuple[dict[str, str], str]:
    """The options that the factory is given, and ``classes`` when it does not take it."""
    parameters = inspect.signature(load_factory(factory)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options), ""
    given = dict(options)
    classes = "" if "classes" in parameters else given.pop("classes", "")
    if "split" not in parameters and given.pop("split") != "train":
        raise ValueError(f"{spec}: the factory takes no argument split, so it has no test split; add one")
    check_options(spec, given, parameters)
    return given, classes
