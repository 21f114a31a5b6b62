"""The table's recipes: cross-entropy, and distillation losses as published for image classification."""

from __future__ import annotations

from collections.abc import Mapping

from .correlation import correlation_distance
from .decoupled import decoupled_kl, normalized_kd, refined_logit_distillation, weighted_soft_labels
from .divergences import kl_divergence, power_divergence
from .domains import Value, number, switch, words
from .kinds import Loss, part, temperature
from .labels import hard_cross_entropy
from .levels import multi_level_alignment
from .matching import transformed_teacher_matching, weighted_transformed_teacher_matching
from .sparse import sparse_kl_divergence
from .standardise import normalised_logit_distillation

LABELS = frozenset({"labels"})
KD_IMAGENET: Mapping[str, Value] = {"temperature": 1.0, "weight": 0.5, "ce_weight": 0.5}

RECIPES: dict[str, Loss] = {
    "ce": Loss(
        fn=hard_cross_entropy,
        paper="Szegedy et al. 2016",
        use="the labels alone: the baseline, and the hard half of most recipes; not robust to wrong labels",
        setting="any data",
        takes={"smoothing": number(0.0, "[0, 1)")},
        needs=LABELS,
        fits="labels",
        trusts_labels=True,
        zero_at_teacher=False,
    ),
    "kd": Loss(
        fn=kl_divergence,
        sparse=sparse_kl_divergence,
        paper="Hinton et al. 2015",
        use="the first thing to try; trusts the teacher everywhere",
        setting="CIFAR-100",
        takes={"temperature": temperature(4.0)},
        weight=0.9,
        ce_weight=0.1,
        presets={
            "imagenet": KD_IMAGENET,
            "imagenet_rld": {**KD_IMAGENET, "ce_weight": 1.0},
            "standardised": {"standardise": True, "temperature": 2.0, "weight": 9.0},
        },
    ),
    "redistill": Loss(
        fn=power_divergence,
        paper="REDistill 2026; Cressie, Read 1984",
        use="teachers with unreliable answers, at lambda = -1/2, where a row's loss is bounded",
        setting="CIFAR-100, as KD",
        takes={
            "temperature": temperature(4.0),
            "lambda_": number(-0.5, "[-10, 10]"),
            "orientation": words("teacher_first", "student_first", unless=("lambda_", -0.5)),
            "ratio_clip": number(0.0, "[1, 1e6]", off=0.0, unless=("lambda_", -0.5)),
        },
        weight=0.9,
        ce_weight=0.1,
        presets={"imagenet": KD_IMAGENET},
        unsure="published is lambda = 2/3, orientation unknown; -1/2 is our choice, measured; T and weights are KD's",
    ),
    "rld": Loss(
        fn=refined_logit_distillation,
        paper="Sun et al. ICCV 2025",
        use="robust to a teacher that is wrong on some rows: its mistake is left out, its confidence kept",
        setting="CIFAR-100",
        takes={
            "temperature": temperature(4.0),
            "alpha": part(1.0),
            "beta": part(8.0),
            "same_t": switch(True),
            "alpha_temperature": number(1.0, "[0.01, 1000]", unless=("same_t", True)),
        },
        parts=("alpha", "beta"),
        ce_weight=1.0,
        warmup=20,
        needs=LABELS | {"label_in_head"},
        extras=frozenset({"label_in_head_B"}),
        presets={
            "imagenet": {"temperature": 1.0, "beta": 0.5, "warmup": 1},
            "standardised": {"standardise": True, "temperature": 2.0, "alpha": 9.0, "beta": 72.0},
        },
        trusts_labels=True,
        zero_at_teacher=False,
        unsure="beta is 8 in the code's default, 4 in a summary of the paper; it varies by pair",
    ),
    "dkd": Loss(
        fn=decoupled_kl,
        paper="Zhao et al. CVPR 2022",
        use="confident teachers, whose relations among the other classes KD suppresses",
        setting="CIFAR-100",
        takes={"temperature": temperature(4.0), "alpha": part(1.0), "beta": part(8.0)},
        parts=("alpha", "beta"),
        ce_weight=1.0,
        warmup=20,
        needs=LABELS | {"label_prob"},
        presets={
            "imagenet": {"temperature": 1.0, "beta": 0.5, "warmup": 1},
            "standardised": {"standardise": True, "temperature": 2.0, "alpha": 9.0, "beta": 72.0},
        },
    ),
    "nkd": Loss(
        fn=normalized_kd,
        paper="Yang et al. ICCV 2023",
        use="like DKD without a warm-up; the label's part follows the teacher's confidence",
        setting="CIFAR-100",
        takes={"temperature": temperature(3.0), "gamma": part(3.5)},
        ce_weight=1.0,
        needs=LABELS | {"label_prob"},
        presets={"imagenet": {"temperature": 1.0, "gamma": 1.5}},
        zero_at_teacher=False,
    ),
    "wsld": Loss(
        fn=weighted_soft_labels,
        paper="Zhou et al. ICLR 2021",
        use="rows that the student already masters should not be pulled back to a worse teacher",
        setting="CIFAR-100",
        takes={"temperature": temperature(4.0)},
        weight=2.25,
        ce_weight=1.0,
        needs=LABELS | {"label_prob"},
        presets={"imagenet": {"temperature": 2.0, "weight": 2.5}},
    ),
    "dist": Loss(
        fn=correlation_distance,
        paper="Huang et al. NeurIPS 2022",
        use="a teacher much stronger than the student: match order and proportion, not values",
        setting="CIFAR-100",
        takes={
            "temperature": temperature(4.0),
            "beta": part(1.0),
            "gamma": part(1.0),
            "eps": number(1e-8, "[1e-15, 1]"),
        },
        parts=("beta", "gamma"),
        weight=2.0,
        ce_weight=1.0,
        presets={"imagenet": {"temperature": 1.0}},
        couples_rows=True,
        uncoupled_by=("gamma", 0.0),  # within classes
    ),
    "mlkd": Loss(
        fn=multi_level_alignment,
        paper="Jin et al. CVPR 2023",
        use="beside a row's classes, how rows and classes relate in the batch; once for each temperature",
        setting="CIFAR-100",
        takes={
            "temperature": temperature(4.0),
            "instance": part(1.0),
            "batch": part(1.0),
            "classes": part(1.0),
        },
        parts=("instance", "batch", "classes"),
        weight=0.9,
        ce_weight=0.1,
        couples_rows=True,
        unsure="weights are KD's; the authors sum over T = 2 to 6 and two augmentations, and halve what they mask",
    ),
    "normkd": Loss(
        fn=normalised_logit_distillation,
        paper="NormKD, Chi et al. 2023",
        use="rows of very different sharpness: each gets a temperature in units of its own deviation",
        setting="CIFAR-100",
        takes={"temperature": temperature(2.0)},
        weight=0.9,
        ce_weight=0.1,
        needs=frozenset({"logits"}),
        presets={"imagenet": KD_IMAGENET},
    ),
    "ttm": Loss(
        fn=transformed_teacher_matching,
        paper="Zheng, Yang ICLR 2024",
        use="a calibrated student: the temperature softens the teacher alone",
        setting="CIFAR-100",
        takes={"temperature": temperature(4.0)},
        weight=30.0,
        ce_weight=1.0,
        zero_at_teacher=False,
        unsure="the paper tunes 1/T in .1-.4 and the weight in 7-101 for each pair; ours are in the middle",
    ),
    "wttm": Loss(
        fn=weighted_transformed_teacher_matching,
        paper="Zheng, Yang ICLR 2024",
        use="TTM with more weight on rows where the teacher is smooth",
        setting="CIFAR-100",
        takes={"temperature": temperature(4.0)},
        weight=4.0,
        ce_weight=1.0,
        presets={"imagenet": {"temperature": 1.25, "weight": 1.6}},
        zero_at_teacher=False,
        unsure="the paper tunes 1/T in .1-.4 and the weight in 1.4-16 for each pair; ours are in the middle",
    ),
}
