"""Each loss a second time, in float64 numpy, row by row and straight from its formula.

Nothing here is shared with the library: no log-space tricks, no masks by large numbers, no kernel for a family.
Every function takes one row, student s [C], teacher z [C] and label y, and answers a number; the three that look at
the whole batch take [B, C]. `REFERENCES` names them as the table of losses does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.stats import pearsonr

Row = NDArray[np.float64]


def softmax(logits: Row, axis: int = -1) -> Row:
    shares: Row = special.softmax(logits, axis=axis)
    return shares


def one_hot(y: int, num_classes: int) -> Row:
    entries = np.zeros(num_classes)
    entries[y] = 1.0
    return entries


def kl(p: Row, q: Row) -> float:
    return float(special.rel_entr(p, q).sum())


def bisect(slope: Callable[[Row], Row], low: Row, high: Row) -> Row:
    """Where each slope, rising from low to high, changes its sign."""
    for _ in range(60):
        middle = (low + high) / 2
        falls = slope(middle) < 0
        low, high = np.where(falls, middle, low), np.where(falls, high, middle)
    return (low + high) / 2


def ce(s: Row, z: Row, y: int, smoothing: float = 0.0) -> float:
    target = (1 - smoothing) * one_hot(y, len(s)) + smoothing / len(s)
    return -float(target @ np.log(softmax(s)))


def kd(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    return temperature**2 * kl(softmax(z / temperature), softmax(s / temperature))


def reverse_kl(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    return kd(z, s, y, temperature)


def redistill(
    s: Row,
    z: Row,
    y: int,
    temperature: float = 1.0,
    lambda_: float = -0.5,
    orientation: str = "teacher_first",
    ratio_clip: float = 0.0,
) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    if orientation == "student_first":
        p, q = q, p
    return temperature**2 / (lambda_ * (lambda_ + 1)) * float((p * ((p / q) ** lambda_ - 1)).sum())


def pearson(s: Row, z: Row, y: int, temperature: float = 1.0, ratio_clip: float = 0.0) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    return temperature**2 * float(((p - q) ** 2 / q).sum())


def neyman(s: Row, z: Row, y: int, temperature: float = 1.0, ratio_clip: float = 0.0) -> float:
    return pearson(z, s, y, temperature)


def hellinger(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    return temperature**2 / 2 * float(((np.sqrt(p) - np.sqrt(q)) ** 2).sum())


def alpha(
    s: Row,
    z: Row,
    y: int,
    temperature: float = 1.0,
    alpha_min: float = -1.0,
    alpha_max: float = 1.0,
    ratio_clip: float = 0.0,
) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)

    def divergence(a: float) -> float:
        if a == 1:
            return kl(p, q)
        weights = (p / q) ** a
        if ratio_clip:
            weights = np.minimum(weights, ratio_clip)
        return float((q * weights).sum() - 1) / (a * (a - 1))

    return temperature**2 * max(divergence(alpha_min), divergence(alpha_max))


def abkd(s: Row, z: Row, y: int, temperature: float = 1.0, alpha: float = 0.8, beta: float = 0.3) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    total = alpha + beta
    if alpha == beta == 0:
        return 0.5 * float((np.log(p / q) ** 2).sum())
    terms = p**alpha * q**beta - alpha / total * p**total - beta / total * q**total
    return -float(terms.sum()) / (alpha * beta)


def coins(p: float, q: float) -> float:
    return kl(np.array([p, 1 - p]), np.array([q, 1 - q]))


def restricted(logits: Row, keep: NDArray[np.bool_]) -> Row:
    return softmax(logits[keep])


def dkd(s: Row, z: Row, y: int, temperature: float = 1.0, alpha: float = 1.0, beta: float = 8.0) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    others = np.arange(len(s)) != y
    target = coins(p[y], q[y])
    rest = kl(restricted(z / temperature, others), restricted(s / temperature, others))
    return temperature**2 * (alpha * target + beta * rest)


def rld(
    s: Row,
    z: Row,
    y: int,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    same_t: bool = True,
    alpha_temperature: float = 1.0,
) -> float:
    first = temperature if same_t else alpha_temperature
    confidence = coins(softmax(z / first).max(), softmax(s / first)[y])
    below = z < z[y]
    order = kl(restricted(z / temperature, below), restricted(s / temperature, below)) if below.any() else 0.0
    return alpha * first**2 * confidence + beta * temperature**2 * order


def nkd(s: Row, z: Row, y: int, temperature: float = 1.0, gamma: float = 1.5) -> float:
    others = np.arange(len(s)) != y
    p, q = restricted(z / temperature, others), restricted(s / temperature, others)
    label = -float(softmax(z)[y] * np.log(softmax(s)[y]))
    return label - gamma * temperature**2 * float(p @ np.log(q))


def wsld(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    return (1 - float(np.exp(-ce(s, z, y) / ce(z, z, y)))) * kd(s, z, y, temperature)


def dist(
    student: Row,
    teacher: Row,
    labels: NDArray[np.int64],
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    eps: float = 0.0,
) -> Row:
    p, q = softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1)
    rows = np.array([1 - pearsonr(p[b], q[b]).statistic for b in range(len(p))])
    columns = [1 - pearsonr(p[:, c], q[:, c]).statistic for c in range(p.shape[1])] if gamma else [0.0]
    return np.asarray(temperature**2 * (beta * rows + gamma * np.mean(columns)), dtype=np.float64)


def ttm(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    return kl(softmax(z / temperature), softmax(s))


def wttm(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    powered = softmax(z) ** (1 / temperature)
    return float(powered.sum()) * kl(powered / powered.sum(), softmax(s))


def gjs(s: Row, z: Row, y: int, temperature: float = 1.0, beta: float = 0.5) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    m = beta * p + (1 - beta) * q
    return temperature**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m))


def skew_kl(s: Row, z: Row, y: int, temperature: float = 1.0, skew: float = 0.1) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    return temperature**2 * kl(p, skew * p + (1 - skew) * q)


def skew_reverse_kl(s: Row, z: Row, y: int, temperature: float = 1.0, skew: float = 0.1) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    return temperature**2 * kl(q, (1 - skew) * p + skew * q)


def symmetric_kl(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    return 0.5 * (kd(s, z, y, temperature) + kd(z, s, y, temperature))


def akl(s: Row, z: Row, y: int, temperature: float = 1.0, head: float = 0.5) -> float:
    p, q = softmax(z / temperature), softmax(s / temperature)
    best_first = np.argsort(-p)
    mass, in_head = 0.0, []
    for place, c in enumerate(best_first):
        mass += p[c]
        if place == 0 or mass <= head:
            in_head.append(c)
    missed = np.abs(p - q)
    share = missed[in_head].sum() / missed.sum() if missed.any() else 0.5
    return temperature**2 * float(share * kl(p, q) + (1 - share) * kl(q, p))


def normkd(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    of_teacher, of_student = temperature * (z.std(ddof=1) + 1e-7), temperature * (s.std(ddof=1) + 1e-7)
    return temperature**2 * float(z.var(ddof=1)) * kl(softmax(z / of_teacher), softmax(s / of_student))


def mlkd(
    student: Row,
    teacher: Row,
    labels: NDArray[np.int64],
    temperature: float = 1.0,
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
) -> Row:
    p, q = softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1)
    rows = temperature**2 * np.array([kl(p[b], q[b]) for b in range(len(p))])
    between_rows = ((p @ p.T - q @ q.T) ** 2).sum(axis=1)
    between_classes = ((p.T @ p - q.T @ q) ** 2).sum() / p.shape[1]
    return np.asarray(instance * rows + batch * between_rows + classes * between_classes, dtype=np.float64)


def total_variation(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    return temperature**2 * 0.5 * float(np.abs(softmax(z / temperature) - softmax(s / temperature)).sum())


def taid(
    s: Row,
    z: Row,
    y: int,
    temperature: float = 1.0,
    start: float = 0.4,
    end: float = 1.0,
    progress: float = 1.0,
) -> float:
    t = start + (end - start) * progress
    return kd(s, (1 - t) * s + t * z, y, temperature)


def swap(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    repaired, top = z.copy(), int(z.argmax())
    repaired[top], repaired[y] = z[y], z[top]
    return kd(s, repaired, y, temperature)


def rc(s: Row, z: Row, y: int, temperature: float = 1.0, rc_weight: float = 0.1) -> float:
    revised = s.copy()
    revised[y] += s.max()
    return kd(s, z, y, temperature) + rc_weight * kd(s, revised, y, temperature)


def lr(student: Row, teacher: Row, labels: NDArray[np.int64], eta: float = 0.8, logit_weight: float = 4.0) -> Row:
    right = teacher.argmax(axis=1) == labels
    rows = []
    for s, z, y, is_right in zip(student, teacher, labels, right, strict=True):
        p, q = softmax(z), softmax(s)
        if is_right:
            row = -float(np.log(q[y])) + logit_weight * float(((s - z) ** 2).mean())
        else:
            keep = eta / (p.max() - p[y] + 1)
            target = keep * p + (1 - keep) * one_hot(int(y), len(s))
            row = float(((q - target) ** 2).mean())
        rows.append(row * len(labels) / (right == is_right).sum())
    return np.array(rows)


def gce(
    s: Row,
    z: Row,
    y: int,
    temperature: float = 1.0,
    q: float = 0.7,
    truncate: float = 0.0,
    truncate_start: float = 1 / 3,
    target: str = "label",
    progress: float = 1.0,
) -> float:
    student = softmax(s / temperature)
    truncate = truncate if progress >= truncate_start else 0.0
    if target == "teacher":
        return float(softmax(z / temperature) @ (1 - student**q)) / q
    return float(1 - max(student[y], truncate) ** q) / q


def sce(
    s: Row,
    z: Row,
    y: int,
    temperature: float = 1.0,
    a: float = 0.1,
    b: float = 1.0,
    target: str = "label",
) -> float:
    student = softmax(s / temperature)
    fitted = softmax(z / temperature) if target == "teacher" else one_hot(y, len(s))
    return -a * float(fitted @ np.log(student)) - b * float(student @ np.log(np.maximum(fitted, 1e-4)))


def apl(s: Row, z: Row, y: int, a: float = 1.0, b: float = 1.0, passive: str = "rce") -> float:
    q = softmax(s)
    active = ce(s, z, y) / sum(ce(s, z, c) for c in range(len(s)))
    worst = -np.log(1e-4) if passive == "rce" else 1.0
    return float(a * active + b * worst * (1 - q[y]))


def listmle(s: Row, z: Row, y: int) -> float:
    best = np.argsort(-s)[:10]
    drawn, left = 0.0, list(best[np.argsort(-z[best])])
    while left:
        drawn -= np.log(np.exp(s[left[0]]) / np.exp(s[left]).sum())
        left.pop(0)
    return float(drawn)


def soft_ce(s: Row, z: Row, y: int, temperature: float = 1.0) -> float:
    return -(temperature**2) * float(softmax(z / temperature) @ np.log(softmax(s / temperature)))


def mse(s: Row, z: Row, y: int) -> float:
    return float(((s - z) ** 2).mean())


def sel_corrected(
    s: Row,
    z: Row,
    y: int,
    c: float = 0.01,
    scale: str = "logit",
    floor: float = 1e-3,
    smoothing: float = 0.0,
) -> float:
    p = (1 - smoothing) * softmax(z) + smoothing / len(z)
    surprise = one_hot(y, len(z)) - p
    if scale == "probability":
        return float(((softmax(s) - (p + c / (c + surprise**2) * surprise)) ** 2).mean())
    gamma = c / np.maximum(p, floor) / (c + surprise**2)
    return float(((s - (z + gamma * surprise)) ** 2).mean())


def sel_slow(s: Row, z: Row, y: int, c: float = 0.01, floor: float = 1e-3, smoothing: float = 0.0) -> float:
    p = (1 - smoothing) * softmax(z) + smoothing / len(z)
    surprise = one_hot(y, len(z)) - p
    inverse = 1 / np.maximum(p, floor)
    # where the derivative 2 v g + 4 c (g - 1/p)^3 of the bound changes its sign, between 0 and 1/p
    gamma = bisect(lambda g: 2 * surprise**2 * g + 4 * c * (g - inverse) ** 3, np.zeros_like(p), inverse)
    return float(((s - (z + gamma * surprise)) ** 2).mean())


def sel_minimax(
    s: Row,
    z: Row,
    y: int,
    uncertainty: str = "relative",
    width: float = 2.0,
    mix: float = 0.5,
    smoothing: float = 0.0,
) -> float:
    p = (1 - smoothing) * softmax(z) + smoothing / len(z)
    least, most = {
        "relative": (np.maximum(p / (1 + width), 1e-6), p * (1 + width)),
        "power": (np.maximum(p, 1e-6), p ** (1 / width)),
        "absolute": (np.maximum(p - width, 1e-3), p + width),
    }[uncertainty]
    truth = np.linspace(least, np.minimum(most, 1.0), 10)

    def slope(g: Row) -> Row:
        """Of the largest of the risks, at g."""
        error, scale = g * (truth - p) - np.log(truth / p), 1 / mix - 1 + g
        worst = (error**2 + scale**2 * truth * (1 - truth)).argmax(axis=0)
        slopes: Row = (error * (truth - p) + scale * truth * (1 - truth))[worst, np.arange(len(p))]
        return slopes

    gamma = bisect(slope, np.full_like(p, -10.0), np.full_like(p, 10.0))
    return float(((s - (z + gamma * (one_hot(y, len(z)) - p))) ** 2).mean())


def sel_gamma(s: Row, z: Row, y: int, gamma: str = "one", smoothing: float = 0.0) -> float:
    p = (1 - smoothing) * softmax(z) + smoothing / len(z)
    size = 1.0 if gamma == "one" else 1 - p
    return float(((s - (z + size * (one_hot(y, len(z)) - p))) ** 2).mean())


def sel_ortho(s: Row, z: Row, y: int, floor: float = 1e-2, smoothing: float = 0.0) -> float:
    p = (1 - smoothing) * softmax(z) + smoothing / len(z)
    return float(((s - (z + one_hot(y, len(z)) / np.maximum(p, floor) - 1)) ** 2).mean())


def ce_ortho(
    s: Row,
    z: Row,
    y: int,
    temperature: float = 1.0,
    floor: float = 1e-2,
    max_ratio: float = 0.0,
    smoothing: float = 0.0,
) -> float:
    w, q = softmax(z / temperature), softmax(s / temperature)
    p = (1 - smoothing) * softmax(z) + smoothing / len(z)
    ratio = float(w[y] / max(p[y], floor) / temperature)
    ratio = min(ratio, max_ratio) if max_ratio else ratio
    return temperature**2 * (kl(w, q) + ratio * (float(w @ np.log(q)) - float(np.log(q[y]))))


REFERENCES: dict[str, Callable[..., float]] = {
    "ce": ce,
    "kd": kd,
    "redistill": redistill,
    "rld": rld,
    "dkd": dkd,
    "nkd": nkd,
    "wsld": wsld,
    "ttm": ttm,
    "wttm": wttm,
    "gjs": gjs,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "total_variation": total_variation,
    "pearson": pearson,
    "neyman": neyman,
    "hellinger": hellinger,
    "alpha": alpha,
    "abkd": abkd,
    "akl": akl,
    "normkd": normkd,
    "taid": taid,
    "swap": swap,
    "rc": rc,
    "gce": gce,
    "sce": sce,
    "apl": apl,
    "listmle": listmle,
    "soft_ce": soft_ce,
    "mse": mse,
    "sel": mse,
    "sel_corrected": sel_corrected,
    "sel_slow": sel_slow,
    "sel_gamma": sel_gamma,
    "sel_minimax": sel_minimax,
    "sel_ortho": sel_ortho,
    "ce_ortho": ce_ortho,
}
BATCH_REFERENCES: dict[str, Callable[..., Row]] = {"dist": dist, "lr": lr, "mlkd": mlkd}
