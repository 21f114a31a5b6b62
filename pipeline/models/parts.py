"""Which part of a file is a network's weights: trainers write them beside an optimiser, an average, their options.

A part is a dict of tensors by name, and is named by the keys that lead to it: ``state_dict``, ``model_ema``. Within it
the network's own names may stand behind a prefix: ``module.`` (DataParallel and DDP), ``model.`` (Lightning). Segments
that a wrapper leaves anywhere in a name, such as ``_orig_mod.`` of ``torch.compile``, do not count.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from logitbank.pipeline.datasets.spec import shown
from logitbank.pipeline.models.pickled import Made

SEPARATOR = "::"  # FILE::PART
_DEPTH = 3
_WRAPPERS = ("_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AVERAGES = frozenset({"ema", "swa", "avg", "average", "averaged", "shadow"})  # words of a key or of a prefix
_USUAL = ("state_dict", "model_state_dict", "model", "module")  # of several that fit, the first of these
_USUAL_PREFIXES = ("", "module.", "model.")
_OPTIONAL = "num_batches_tracked"
_MOST_PREFIXES = 100  # a stranger's file may have thousands

Part = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One part of a file, behind one prefix.

    Attributes:
        path: Keys that lead to the part, joined by ``/``; empty for the whole file.
        prefix: What stands before the network's names.
        names: Name in the network -> name in the part.
        fits: The names are those of the network.
    """

    path: str
    prefix: str
    names: Mapping[str, str]
    fits: bool

    @property
    def spelled(self) -> str:
        """How it is selected; empty where there is nothing to select."""
        return "/".join(filter(None, (self.path, self.prefix)))

    @property
    def is_average(self) -> bool:
        return not _AVERAGES.isdisjoint(re.split("[^a-z]+", self.spelled.lower()))


def split_selection(weights: str) -> tuple[str, str]:
    """``FILE::PART`` as the file and the part; the part is empty when none is selected."""
    file, _, part = weights.partition(SEPARATOR)
    return file, part


def find_parts(content: object, is_tensor: Callable[[object], bool]) -> dict[str, Part]:
    """Every dict of tensors by name, by the keys that lead to it; each dict is looked at once."""
    found, seen = dict[str, Part](), set[int]()

    def walk(value: object, path: tuple[str, ...]) -> None:
        if not isinstance(value, dict) or id(value) in seen or not value:
            return
        seen.add(id(value))
        named = all(isinstance(name, str) and isinstance(inner, Made) for name, inner in value.items())
        if named and any(map(is_tensor, value.values())):
            found["/".join(path)] = value
        elif len(path) < _DEPTH:
            for name, inner in value.items():
                if isinstance(name, str):
                    walk(inner, (*path, name))

    walk(content, ())
    return found


def choose(parts: Mapping[str, Collection[str]], own: Collection[str], selected: str, source: str) -> Choice:
    """The part that is a network's weights.

    The plain weights are taken before an average of them; of several plain ones the usual (``_USUAL``,
    ``_USUAL_PREFIXES``).

    Args:
        parts: The names of each part.
        own: The network's names.
        selected: What the user wants, spelled as in ``Choice.spelled``; empty leaves it to the rule.
        source: For errors.

    Raises:
        ValueError: No such part; several that fit and none is usual; or the usual one has more than the network, so
            that another's weights would be taken in its place.
    """
    choices = [choice for path, names in parts.items() for choice in _choices(path, names, own)]
    if selected:
        asked = [choice for choice in choices if selected in (choice.spelled, choice.path, choice.prefix)]
        if not asked:
            raise ValueError(f"{source}: holds no part {selected!r}; it has {shown(_listed(choices), 8)}")
        choices = asked
    fitting = [choice for choice in choices if choice.fits]
    plain = [choice for choice in fitting if not choice.is_average] or fitting
    if not plain:
        return max(choices, key=lambda choice: (sum(name in own for name in choice.names), -_rank(choice)))
    best = min(map(_rank, plain))
    first = [choice for choice in plain if _rank(choice) == best]
    if len(first) > 1:
        options = shown((choice.spelled for choice in first), 8)
        raise ValueError(
            f"{source}: {len(first)} parts fit this network ({options}); say which, FILE{SEPARATOR}{first[0].spelled}"
        )
    if not selected:
        _check_not_passed_over(choices, own, first[0], source)
    return first[0]


def _check_not_passed_over(choices: Collection[Choice], own: Collection[str], taken: Choice, source: str) -> None:
    fitting = {choice.path for choice in choices if choice.fits}
    for choice in choices:
        if choice.path not in fitting and _rank(choice) < _rank(taken) and not set(own) - set(choice.names):
            more = sorted(set(choice.names) - set(own))
            raise ValueError(
                f"{source}: the part {choice.spelled or 'at the top'} holds this network and {len(more)} names more"
                f" ({shown(more)}), and only {taken.spelled} fits; name the right model, or say"
                f" FILE{SEPARATOR}{taken.spelled}"
            )


def others_that_fit(parts: Mapping[str, Collection[str]], own: Collection[str], taken: Choice) -> list[str]:
    """How other parts that would fit are selected."""
    choices = (choice for path, names in parts.items() for choice in _choices(path, names, own))
    return [choice.spelled for choice in choices if choice.fits and choice.spelled != taken.spelled]


def _choices(path: str, names: Collection[str], own: Collection[str]) -> Iterator[Choice]:
    """A part behind every prefix that one of the network's names has in it, or behind none."""
    bare = {_without_wrappers(name, own): name for name in names}
    if len(bare) < len(names):
        bare = {name: name for name in names}
    first = next((name for name in own if not name.endswith(_OPTIONAL)), "")
    ends = [name.removesuffix(first) for name in bare if name == first or name.endswith(f".{first}")]
    for prefix in sorted({"", *ends}, key=lambda prefix: (len(prefix), prefix))[:_MOST_PREFIXES]:
        inner = {name.removeprefix(prefix): full for name, full in bare.items() if name.startswith(prefix)}
        missing = [name for name in own if name not in inner and not name.endswith(_OPTIONAL)]
        fits = not missing and all(name in own for name in inner)
        yield Choice(path=path, prefix=prefix, names=inner, fits=fits)


def _without_wrappers(name: str, own: Collection[str]) -> str:
    for wrapper in _WRAPPERS:
        if wrapper in name and name not in own:
            name = name.replace(wrapper, "")
    return name


def _rank(choice: Choice) -> int:
    last = choice.path.rpartition("/")[2]
    place = _USUAL.index(last) if last in _USUAL else len(_USUAL) * bool(choice.path)
    inner = _USUAL_PREFIXES.index(choice.prefix) if choice.prefix in _USUAL_PREFIXES else len(_USUAL_PREFIXES)
    return place * (len(_USUAL_PREFIXES) + 1) + inner


def _listed(choices: Collection[Choice]) -> list[str]:
    return sorted({choice.spelled or "the whole file" for choice in choices})
