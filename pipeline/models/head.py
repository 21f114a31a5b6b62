"""A network that starts from weights of one with another head: which of its tensors are new."""

from collections.abc import Mapping, Sequence

from torch import Tensor

_OPTIONAL = "num_batches_tracked"


def new_in_head(own: Mapping[str, Tensor], found: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """The tensors of the head, by the network's names, where a file has it for another number of classes, or not at
    all; empty where the head fits, and where more than the head differs.

    Those of the head have one place a class in their first dimension, and agree in the others.
    """
    counted = [name for name in own if not name.endswith(_OPTIONAL)]
    other = [name for name in counted if name not in found or found[name].shape != own[name].shape]
    heads = [found[name] for name in other if name in found]
    alike = all(_of_classes(own[name], num_classes) for name in other) and all(
        found[name].ndim > 0 and found[name].shape[1:] == own[name].shape[1:] for name in other if name in found
    )
    one_number = len({head.shape[0] for head in heads if head.ndim}) <= 1
    return other if alike and one_number and len(other) < len(counted) else []


def say_new(new: Sequence[str], own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What of the network is loaded and what is new, in words."""
    classes = next((found[name].shape[0] for name in new if name in found), None)
    why = "the file has none" if classes is None else f"the file's is for {classes} classes"
    listed = ", ".join(f"{name} {list(own[name].shape)}" for name in new)
    return f"loaded {len(set(found) & set(own) - set(new))} tensors; the head is new, since {why}: {listed}"


def advice(pairs: Sequence[tuple[Tensor, Tensor]]) -> str:
    """What to do where weights (the file's, the network's) have the same names and kinds, but not all the same shapes:
    where nothing but one number of rows differs, it is that of the classes."""
    differ = [(theirs.shape, own.shape) for theirs, own in pairs if theirs.shape != own.shape]
    rows = {(theirs[:1], own[:1]) for theirs, own in differ}
    if len(rows) > 1 or any(theirs[1:] != own[1:] or not (theirs and own) for theirs, own in differ):
        return "name the right model"
    ((theirs, own),) = rows
    return (
        f"they answer {theirs[0]} classes and the data has {own[0]}: take weights that were fine-tuned on these, or, if"
        " these are some of the teacher's classes, classes=FILE in --data"
    )


def _of_classes(tensor: Tensor, num_classes: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == num_classes
