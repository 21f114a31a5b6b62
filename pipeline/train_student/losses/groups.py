"""The losses in groups, by what they are for: how `cli losses` and docs/reference/losses.md show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Losses that serve the same purpose.

    Attributes:
        title: A few words, a heading.
        about: When to look here, in a sentence or two.
        names: The losses, the one to try first in front. A loss is in one group.
    """

    title: str
    about: str
    names: tuple[str, ...]


GROUPS = (
    Group(
        "Labels alone",
        "No teacher: the baseline of every comparison, and losses for labels that may be wrong.",
        ("ce", "gce", "sce", "apl", "elr"),
    ),
    Group(
        "Soft targets",
        "The student learns the teacher's probabilities. A wrong answer of the teacher is learned as well.",
        ("kd", "soft_ce", "ttm", "wttm", "normkd"),
    ),
    Group(
        "The label's class apart from the others",
        "Two parts: how sure the teacher is of the label, and how it ranks the other classes.",
        ("dkd", "nkd", "wsld"),
    ),
    Group(
        "Answers mended by the label",
        "The teacher is wrong on some rows and the labels are right. The label leaves the mistake out or repairs it.",
        ("rld", "swap", "lr", "rc"),
    ),
    Group(
        "Bounded divergences",
        "No row costs more than a fixed amount, however wrong the teacher is. They need no labels.",
        ("redistill", "hellinger", "gjs", "skew_kl", "skew_reverse_kl", "total_variation"),
    ),
    Group(
        "Other divergences",
        "Between the same two distributions as KD: they choose which classes count more.",
        ("reverse_kl", "symmetric_kl", "akl", "abkd", "alpha", "taid", "pearson", "neyman"),
    ),
    Group(
        "Order and relations",
        "The order of the classes, or how rows and classes relate in a batch, beside or instead of the probabilities.",
        ("dist", "mlkd", "listmle"),
    ),
    Group(
        "Regression on logits",
        "The student learns the teacher's logits themselves, scale included.",
        ("mse", "sel"),
    ),
    Group(
        "Corrected by labels, with folds",
        "The teacher is too simple, and so is wrong in the same way everywhere. Labels estimate its error, and the "
        "loss subtracts it. Made for out-of-fold answers.",
        ("sel_corrected", "sel_slow", "sel_minimax", "sel_gamma", "sel_ortho", "ce_ortho"),
    ),
    Group(
        "Features",
        "What the teacher knows before its last layer, from a store made with `--embedding penultimate`.",
        ("feature", "mi_alpha", "wkd", "lelp"),
    ),
)
