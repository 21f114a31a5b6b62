"""What a loss asks of a store, before the first step."""

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.tail_warnings import tail_warnings
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.train_student.losses import Objective, refuse_missing
from logitbank.pipeline.views import Views
from logitbank.stores import Store, Teacher


def check_needs(objective: Objective, store: Store, answers: Answers) -> list[str]:
    """Warnings about what the loss would rather have; read before the first step.

    Raises:
        ValueError: The loss cannot do without something that the store does not have.
    """
    for part in answers.parts:
        if "dense" in objective.needs and not part.encoding.every_class:
            raise ValueError(
                f"loss {objective.name!r} needs every class's logit, but {store.path} keeps the top"
                f" {part.encoding.top_k} of {part.encoding.num_classes}; cache with --encoding dense or topk+tail, or"
                " choose another loss"
            )
        if "logits" in objective.needs and has_masked_classes(part.teacher):
            raise ValueError(
                f"loss {objective.name!r} compares logits, but some of those of teacher {part.teacher.name!r} of"
                f" {store.path} are -inf (classes of probability zero); cache it again, which gives them a floor, or"
                " choose a loss of probabilities"
            )
    for transform in objective.transforms:
        partial = any(part.encoding.has_tail for part in answers.parts)
        if partial and not transform.rule.keeps_order and "label_in_head" in objective.needs:
            raise ValueError(
                f"loss {objective.name!r} goes by the classes above the label, which {transform.name} reorders, but"
                f" {store.path} does not keep every class; cache with --encoding dense, or choose another loss"
            )
    cross_fitted = "out_of_fold" in answers.offers
    names = ", ".join(part.teacher.name for part in answers.parts)
    if "out_of_fold" in objective.needs and not cross_fitted:
        raise ValueError(
            f"loss {objective.name!r} needs out-of-fold answers, but not those of teacher {names} of {store.path}: it"
            " is not cross-fitted; train fold teachers (train-teacher --folds 5) and cache them"
        )
    refuse_missing(objective, answers.offers)
    if "labels" in objective.needs and (store.labels < 0).all():
        raise ValueError(f"loss {objective.name!r} needs labels, but {store.path} has none; choose a loss without")
    views = Views.from_attributes(store.views)
    if "labels" in objective.needs and views.mixes:
        raise ValueError(
            f"loss {objective.name!r} uses labels, but a view of {store.path} ({views.transform}) shows two examples;"
            " take the teacher's answers alone, such as --loss kd --set ce_weight=0"
        )
    warnings = []
    if "out_of_fold" in objective.prefers and not cross_fitted:
        warnings.append(
            f"loss {objective.name!r} was made for out-of-fold answers; teacher {names} of {store.path} is not"
            " cross-fitted"
        )
    if "logits" in objective.needs:
        warnings += [_guessed_logits(objective, part) for part in answers.parts if not part.encoding.every_class]
    return warnings + (tail_warnings(answers, objective.temperature) if objective.uses_teacher else [])


def _guessed_logits(objective: Objective, part: StoredAnswers) -> str:
    top, classes = part.encoding.top_k, part.encoding.num_classes
    return (
        f"loss {objective.name!r} compares raw logits, and those of {classes - top} of {classes} classes are not stored"
        f" (top {top}) but those of the tail rule {part.tail!r}; cache with --encoding dense or topk+tail"
    )


def has_masked_classes(teacher: Teacher) -> bool:
    """Whether a logit of the first view is -inf; what stage one writes has none."""
    code = Encoding.from_attributes(teacher.encoding).code
    mask = {"mask"} & set(teacher.arrays)
    for block in range(teacher.num_blocks):
        arrays = teacher.answers(0, block, [code.array, *mask])
        values = arrays[code.array][arrays["mask"]] if mask else arrays[code.array]
        if (values == code.zero).any():
            return True
    return False
