"""How much of what a teacher said survives its encoding, and which encoding is small and faithful enough.

Fidelity is KL(teacher || decoded) times T^2 in nats, at each temperature, on rows that took no part in any
fit.

Shape suffixes: B batch, C classes, N rows of a sample.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.teachers.answering import held_rows
from logitbank.pipeline.encoding import Encoding, decode, ladder
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.fitting.predictor import TailFit, no_prediction, row_kl
from logitbank.pipeline.encoding.tail_predictor import TailPredictor

TEMPERATURES = (1.0, 2.0, 4.0)
_CHUNK = 1024


class PredictorFit:
    """Streaming fit of the tail predictor of one teacher, or of a stack of fold teachers.

    Args:
        encoding: What the store will hold; one without a tail needs no predictor.
        num_folds: Fold teachers; 1 without cross-fitting.
    """

    def __init__(self, encoding: Encoding, *, num_folds: int = 1) -> None:
        self.encoding, self.num_folds = encoding, num_folds
        self._fits: dict[int, TailFit] = {}
        self._begun: set[int] = set()

    def update(
        self,
        logits_BC: Tensor,
        folds_B: Tensor | None = None,
        held_out_B: Tensor | None = None,
        *,
        more: bool = False,
    ) -> None:
        """Adds rows of the teacher's raw logits.

        Args:
            logits_BC: On any device.
            folds_B: Fold of each row, when there are several.
            held_out_B: Rows that only validate; every eighth when left out. Keep views of one example
                together.
            more: These rows go on with the last update: together they count as one.
        """
        if not self.encoding.has_tail:
            return
        if self.num_folds > 1 and folds_B is None:
            raise ValueError(f"expected each row's fold among {self.num_folds}, found none; pass folds_B")
        if not more:
            self._begun.clear()
        for fold in range(self.num_folds):
            rows = torch.arange(len(logits_BC))
            if folds_B is not None and self.num_folds > 1:
                rows = (folds_B.cpu() == fold).nonzero().squeeze(1)
            if not len(rows):
                continue
            if fold not in self._fits:
                gauges = next(iter(self._fits.values())).gauges if self._fits else ()
                self._fits[fold] = TailFit(self.encoding.num_classes, self.encoding.top_k, gauges=gauges)
            rows = rows.to(logits_BC.device)
            held_out_R = None if held_out_B is None else held_out_B.to(rows.device)[rows]
            own_RC = logits_BC[rows] if self.num_folds > 1 else logits_BC
            self._fits[fold].update(own_RC, held_out_R, more=fold in self._begun)
            self._begun.add(fold)

    def fit(self) -> TailPredictor | None:
        """The predictor for `encode`, `decode` and the store's constants; None when it would not help."""
        if not self._fits:
            if self.encoding.tail_bytes:
                raise ValueError("expected rows of logits to fit a tail code, found none; raise --predictor-rows")
            return None
        gauge = None
        fitted: dict[int, TailPredictor | None] = {}
        for fold, fit in self._fits.items():
            if gauge is not None:
                fit.use_gauge(gauge)
            fitted[fold] = predictor = fit.fit(self.encoding.tail_bytes)
            gauge = predictor.gauge if gauge is None and predictor is not None else gauge
        found = [predictor for predictor in fitted.values() if predictor is not None]
        if not found:
            return None
        if self.num_folds == 1:
            return found[0]
        spare = no_prediction(self.encoding.num_classes, found[0].gauge)
        if found[0].basis is not None:
            spare = spare.with_basis(found[0].basis)
        return TailPredictor.stack([fitted.get(fold) or spare for fold in range(self.num_folds)])


def fit_predictor(
    logits_NC: Tensor,
    encoding: Encoding,
    *,
    folds_N: Tensor | None = None,
    num_folds: int = 1,
    held_out_N: Tensor | None = None,
) -> TailPredictor | None:
    """`PredictorFit` of a sample that fits in memory; arguments as there, [N, C] and [N]."""
    fit = PredictorFit(encoding, num_folds=num_folds)
    for start in range(0, len(logits_NC), 4 * _CHUNK):
        rows = slice(start, start + 4 * _CHUNK)
        fit.update(
            logits_NC[rows],
            None if folds_N is None else folds_N[rows],
            None if held_out_N is None else held_out_N[rows],
        )
    return fit.fit()


def measure_fidelity(
    logits_NC: Tensor,
    labels_N: Tensor,
    encoding: Encoding,
    predictor: TailPredictor | None = None,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    folds_N: Tensor | None = None,
    tail: str = "predicted",
) -> dict[str, Any]:
    """Encodes and decodes rows and compares them with what the teacher said.

    Args:
        logits_NC: Raw logits of rows that the predictor was not fitted on.
        labels_N: Class ids, -1 where a row has none.
        encoding: What the store holds.
        predictor: What it holds besides.
        temperatures: Each gives a key, "1", "2.5", with KL T^2 in nats, and a "tail_mass_<T>".
        folds_N: Fold of each row, for a stacked predictor.
        tail: Tail rule.

    Returns:
        Those keys, `top1_agreement` (share of rows whose best class is the teacher's) and `num_rows`. A
        tail mass is the teacher's mean probability, at that temperature, outside the stored classes (0 for
        dense).
    """
    if not len(logits_NC):
        raise ValueError("expected rows to measure fidelity on, found none; sample at least one")
    totals: dict[str, float] = {}
    for start in range(0, len(logits_NC), _CHUNK):
        stop = min(start + _CHUNK, len(logits_NC))
        parts = [
            _measured(
                logits_NC[own].float(),
                labels_N[own].to(logits_NC.device),
                encoding,
                predictor,
                None if folds_N is None else folds_N[own],
                tail=tail,
                temperatures=temperatures,
            )
            for own in _slices(start, stop, held_rows(logits_NC.shape[1]))
        ]
        for name in parts[0]:
            value = float(torch.cat([part[name] for part in parts]).mean())
            totals[name] = totals.get(name, 0.0) + value * (stop - start)
    return {**{name: value / len(logits_NC) for name, value in totals.items()}, "num_rows": len(logits_NC)}


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def _measured(
    logits_BC: Tensor,
    labels_B: Tensor,
    encoding: Encoding,
    predictor: TailPredictor | None,
    folds_B: Tensor | None,
    *,
    tail: str,
    temperatures: Sequence[float],
) -> dict[str, Tensor]:
    """What `measure_fidelity` takes the means of, each [B]."""
    stored = encode(logits_BC, labels_B, encoding, predictor=predictor, folds_B=folds_B)
    arrays = {name: torch.from_numpy(array).to(logits_BC.device) for name, array in stored.items()}
    here = None if predictor is None else predictor.to(logits_BC.device)
    decoded_BC = decode(arrays, labels_B, encoding, predictor=here, folds_B=folds_B, tail=tail)
    outside_BC = ~encoding.kept(arrays)
    best_B = logits_BC.gather(1, decoded_BC.argmax(1, keepdim=True)).squeeze(1)
    found = {"top1_agreement": (best_B == logits_BC.amax(1)).float()}
    for temperature in temperatures:
        found[f"{temperature:g}"] = row_kl(logits_BC, decoded_BC, temperature)
        mass_B = (torch.softmax(logits_BC / temperature, 1) * outside_BC).sum(1)
        found[f"tail_mass_{temperature:g}"] = mass_B
    return found


def choose_encoding(
    logits_NC: Tensor,
    labels_N: Tensor,
    kl_budget: float,
    temperatures: Sequence[float] = (1.0, 4.0),
    *,
    held_out_N: Tensor | None = None,
) -> Encoding:
    """The smallest encoding of the ladder whose KL T^2 stays within the budget at every temperature.

    Args:
        logits_NC: A sample of the teacher's raw logits; a quarter measures, the rest fits predictors.
        labels_N: Class ids, -1 where a row has none.
        kl_budget: Nats, compared with KL T^2.
        temperatures: Where it must hold.
        held_out_N: Rows that measure, in place of every fourth; keep views of one example together.

    Returns:
        The encoding; the lossless `dense` with 32 bits when nothing smaller will do.
    """
    if not kl_budget > 0:
        raise ValueError(f"expected a KL budget above 0 nats, found {kl_budget}; for exact answers use dense --bits 32")
    if len(logits_NC) < 64:
        raise ValueError(f"expected a sample of 64 rows or more, found {len(logits_NC)}; sample more rows")
    if held_out_N is None:
        held_out_N = torch.arange(len(logits_NC)) % 4 == 3
    fits: dict[int, TailFit] = {}
    for encoding in ladder(logits_NC.shape[1]):
        predictor = None
        if encoding.has_tail:
            if encoding.top_k not in fits:
                fits[encoding.top_k] = TailFit(encoding.num_classes, encoding.top_k)
                fits[encoding.top_k].update(logits_NC[~held_out_N])
            predictor = fits[encoding.top_k].fit(encoding.tail_bytes)
        measured = measure_fidelity(
            logits_NC[held_out_N], labels_N[held_out_N], encoding, predictor, temperatures=temperatures
        )
        if all(measured[f"{temperature:g}"] <= kl_budget for temperature in temperatures):
            return encoding
    return Encoding(kind="dense", num_classes=logits_NC.shape[1], bits=32)
