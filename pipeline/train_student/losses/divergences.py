"""The family of one kernel, the alpha-beta divergence of kernel.py.

KL, reverse KL, the power divergence (Cressie-Read) with its members Pearson, Neyman and Hellinger, and ABKD are
all `alpha_beta_rows` at fixed (alpha, beta); on alpha + beta = 1 it is the power divergence with
lambda = alpha - 1. Shapes: B batch, C classes.
"""

from __future__ import annotations

from torch import Tensor

from .kernel import alpha_beta_rows
from .numerics import Temperature, log_probs


def power_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    lambda_: float = -0.5,
    orientation: str = "teacher_first",
    ratio_clip: float = 0.0,
) -> Tensor:
    """Cressie-Read power divergence between teacher and student, REDistill-style.

    T^2 / (lambda (lambda + 1)) sum_c p_c [(p_c / q_c)^lambda - 1], with p, q = softmax(logits / T);
    `student_first` exchanges p and q. lambda -> 0 is KL, lambda -> -1 is reverse KL.

    What is known of REDistill: Cressie-Read power divergence with lambda = 2/3; orientation unverified, and so
    are its temperature and weights. lambda = -1/2 is our choice: the same in both orientations, at most 4 T^2
    however wrong the teacher is (four squared Hellinger distances), and in docs/explanation/unreliable-teachers.md
    more accurate than either orientation of 2/3 where answers are wrong, and as accurate where they are right. Teacher
    first with lambda > 0 raises the weight of classes where p >> q.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row; the factor T^2 keeps the gradient's size.
        lambda_: Order of the divergence.
        orientation: "teacher_first" or "student_first"; the same at lambda = -1/2.
        ratio_clip: 0 for none; else the class weight (p/q)^lambda is held at clip^|lambda| (KL has none).

    Returns:
        Loss of each example, shape [B].

    Raises:
        ValueError: On an unknown orientation.

    References:
        Cressie, Read. Multinomial goodness-of-fit tests. JRSS B 46, 1984, section 2.
        REDistill. arXiv 2602.04677, 2026, abstract (the body was not available).
    """
    if orientation not in ("teacher_first", "student_first"):
        raise ValueError(f"orientation is teacher_first or student_first, not {orientation!r}")
    if orientation == "student_first":
        lambda_ = -1.0 - lambda_  # D_lambda(q || p) = D_(-1-lambda)(p || q)
    rows_B = alpha_beta_rows(
        log_probs(teacher_BC, temperature),
        log_probs(student_BC, temperature),
        1.0 + lambda_,
        -lambda_,
        ratio_clip,
    )
    return rows_B * temperature**2


def kl_divergence(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Forward Kullback-Leibler divergence, Hinton's knowledge distillation.

    T^2 sum_c p_c (log p_c - log q_c), with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused; every loss takes the same three tensors.
        temperature: T > 0, one number or one per row; the factor T^2 keeps the gradient's size.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015, section 2.
    """
    rows_B = alpha_beta_rows(log_probs(teacher_BC, temperature), log_probs(student_BC, temperature), 1.0, 0.0)
    return rows_B * temperature**2


def reverse_kl_divergence(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Reverse Kullback-Leibler divergence, which seeks the teacher's modes.

    T^2 sum_c q_c (log q_c - log p_c), with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Gu, Dong, Wei, Huang. MiniLLM: Knowledge Distillation of Large Language Models. ICLR 2024, section 2.1.
    """
    rows_B = alpha_beta_rows(log_probs(teacher_BC, temperature), log_probs(student_BC, temperature), 0.0, 1.0)
    return rows_B * temperature**2


def pearson_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    ratio_clip: float = 0.0,
) -> Tensor:
    """Pearson chi-squared divergence: twice the power divergence at lambda = 1.

    T^2 sum_c (p_c - q_c)^2 / q_c, with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        ratio_clip: 0 for none; else the class weight p/q is held at it.

    Returns:
        Loss of each example, shape [B].

    References:
        Cressie, Read. Multinomial goodness-of-fit tests. JRSS B 46, 1984, section 2.
    """
    return 2.0 * power_divergence(
        student_BC, teacher_BC, labels_B, temperature=temperature, lambda_=1.0, ratio_clip=ratio_clip
    )


def neyman_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    ratio_clip: float = 0.0,
) -> Tensor:
    """Neyman chi-squared divergence: twice the power divergence at lambda = -2.

    T^2 sum_c (p_c - q_c)^2 / p_c, with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        ratio_clip: 0 for none; else the class weight (q/p)^2 is held at clip^2.

    Returns:
        Loss of each example, shape [B].

    References:
        Cressie, Read. Multinomial goodness-of-fit tests. JRSS B 46, 1984, section 2.
    """
    return 2.0 * power_divergence(
        student_BC, teacher_BC, labels_B, temperature=temperature, lambda_=-2.0, ratio_clip=ratio_clip
    )


def squared_hellinger(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Squared Hellinger distance: a quarter of the power divergence at lambda = -1/2; bounded by T^2.

    T^2 / 2 sum_c (sqrt p_c - sqrt q_c)^2, with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.

    Returns:
        Loss of each example, shape [B].

    References:
        Cressie, Read. Multinomial goodness-of-fit tests. JRSS B 46, 1984, section 2 (Freeman-Tukey member).
    """
    return 0.25 * power_divergence(student_BC, teacher_BC, labels_B, temperature=temperature, lambda_=-0.5)


def alpha_beta_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    alpha: float = 0.8,
    beta: float = 0.3,
) -> Tensor:
    """Alpha-beta divergence, ABKD; the published loss has no factor T^2.

    -1/(ab) sum_c [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)], with p, q = softmax(logits / T), and its limits;
    (1, 0) is KL, (0, 1) reverse KL, (.5, .5) four times the squared Hellinger distance, (0, 0) half the sum of
    the squared log-ratios.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        alpha: Exponent a of the teacher.
        beta: Exponent b of the student.

    Returns:
        Loss of each example, shape [B].

    References:
        Wang et al. ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
        alpha-beta-Divergence. ICML 2025, section 3.
    """
    return alpha_beta_rows(log_probs(teacher_BC, temperature), log_probs(student_BC, temperature), alpha, beta)
