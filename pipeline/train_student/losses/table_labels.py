"""The table's losses that bring the labels in, and those on raw logits."""

from __future__ import annotations

from .domains import number, words
from .kinds import SEARCH, Loss, part, temperature
from .labels import generalized_cross_entropy, symmetric_cross_entropy
from .refinement import label_revision, revised_student_kl, swapped_kl_divergence
from .semiparametric import (
    corrected_squared_error,
    logit_squared_error,
    orthogonal_cross_entropy,
    orthogonal_squared_error,
)

LABELS = frozenset({"labels"})
DENSE_LOGITS = frozenset({"dense", "logits"})
OUT_OF_FOLD = frozenset({"out_of_fold"})

LABELLED: dict[str, Loss] = {
    "swap": Loss(
        fn=swapped_kl_divergence,
        paper="LA, Wen et al. 2021",
        use="the plainest repair of a wrong teacher: the label takes the top logit",
        setting="CIFAR-100",
        takes={"temperature": temperature(4.0)},
        needs=LABELS | {"fixed_tail"},
        presets={
            "imagenet": {"temperature": 1.0},
            "standardised": {"standardise": True, "temperature": 2.0},
        },
        trusts_labels=True,
        zero_at_teacher=False,
    ),
    "rc": Loss(
        fn=revised_student_kl,
        paper="RC, in Sun et al. ICCV 2025",
        use="KD with a pull to the label that keeps the student's own relations",
        setting="CIFAR-100",
        takes={"temperature": temperature(4.0), "rc_weight": part(0.1)},
        ce_weight=1.0,
        needs=LABELS,
        presets={
            "imagenet": {"temperature": 1.0},
            "standardised": {"standardise": True, "temperature": 2.0, "weight": 9.0},
        },
        trusts_labels=True,
        zero_at_teacher=False,
    ),
    "lr": Loss(
        fn=label_revision,
        paper="LR, in Sun et al. ICCV 2025",
        use="wrong teachers: their distribution is mixed with the label until the label leads",
        setting="CIFAR-100 and ImageNet",
        takes={"eta": number(0.8, "(0, 1)"), "logit_weight": part(4.0)},
        needs=LABELS | DENSE_LOGITS | {"fixed_tail"},
        trusts_labels=True,
        couples_rows=True,
        zero_at_teacher=False,
    ),
    "gce": Loss(
        fn=generalized_cross_entropy,
        paper="Zhang, Sabuncu NeurIPS 2018",
        use="robust to wrong labels; target=teacher makes it robust to wrong teachers (our form)",
        setting="CIFAR with wrong labels; there truncate is 0.5",
        takes={
            "temperature": temperature(1.0),
            "q": number(0.7, "[1e-6, 1]"),
            "truncate": number(0.0, "[0, 1)", unless=("target", "teacher")),
            "truncate_start": number(1.0 / 3.0, "(0, 1)", unless=("truncate", 0.0)),
            "target": words("label", "teacher"),
        },
        needs=LABELS,
        waives={"labels": ("target", "teacher")},
        extras=frozenset({"progress"}),
        fits="labels",
        trusts_labels=True,
        zero_at_teacher=False,
    ),
    "sce": Loss(
        fn=symmetric_cross_entropy,
        paper="Wang et al. ICCV 2019",
        use="robust to wrong labels; target=teacher makes it robust to wrong teachers (our form)",
        setting="CIFAR-10 with wrong labels",
        takes={
            "temperature": temperature(1.0),
            "a": part(0.1),
            "b": part(1.0),
            "target": words("label", "teacher"),
        },
        parts=("a", "b"),
        needs=LABELS,
        waives={"labels": ("target", "teacher")},
        presets={"cifar100": {"a": 6.0, "b": 0.1}},
        fits="labels",
        trusts_labels=True,
        zero_at_teacher=False,
    ),
}

SEMIPARAMETRIC: dict[str, Loss] = {
    "mse": Loss(
        fn=logit_squared_error,
        paper="Ba, Caruana NeurIPS 2014",
        use="copy a teacher of the same kind closely, scale included",
        setting="any data",
        needs=DENSE_LOGITS,
    ),
    "sel": Loss(
        fn=logit_squared_error,
        paper="Dao et al. ICLR 2021",
        use="the uncorrected loss that the semiparametric ones are compared with",
        setting="CIFAR-10",
        weight=0.5,
        ce_weight=0.5,
        needs=DENSE_LOGITS,
    ),
    "sel_corrected": Loss(
        fn=corrected_squared_error,
        paper="Dao et al. ICLR 2021",
        use="underfit or biased teachers, with cross-fitting; c near 0.01, or c=auto",
        setting="CIFAR-10",
        takes={
            "c": number(0.01, "[1e-9, 1e9]", search=SEARCH["c"]),
            "scale": words("logit", "probability"),
            "floor": number(1e-3, "[1e-9, 1]", unless=("scale", "probability")),
            "smoothing": number(0.0, "[0, 1)"),
        },
        weight=0.5,
        ce_weight=0.5,
        needs=LABELS | DENSE_LOGITS,
        waives={"dense": ("scale", "probability"), "logits": ("scale", "probability")},
        prefers=OUT_OF_FOLD,
        trusts_labels=True,
        zero_at_teacher=False,
    ),
    "sel_ortho": Loss(
        fn=orthogonal_squared_error,
        paper="Dao et al. ICLR 2021",
        use="very poor teachers; high variance, harmful with good ones",
        setting="CIFAR-10",
        takes={"floor": number(1e-2, "[1e-9, 1]")},
        weight=0.5,
        ce_weight=0.5,
        needs=LABELS | DENSE_LOGITS,
        prefers=OUT_OF_FOLD,
        trusts_labels=True,
        zero_at_teacher=False,
    ),
    "ce_ortho": Loss(
        fn=orthogonal_cross_entropy,
        paper="Dao et al. ICLR 2021",
        use="KD whose first-order dependence on the teacher's error is removed; cross-fitted teachers",
        setting="CIFAR-10",
        takes={
            "temperature": temperature(4.0),
            "floor": number(1e-2, "[1e-9, 1]"),
            "max_ratio": number(0.0, "[0, 100]"),
        },
        weight=0.5,
        ce_weight=0.5,
        needs=LABELS,
        prefers=OUT_OF_FOLD,
        trusts_labels=True,
        zero_at_teacher=False,
    ),
}
