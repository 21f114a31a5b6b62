"""The search of options that are "auto": cross-validation on the training rows, judged by NLL."""

import math
from dataclasses import replace

import numpy as np
import pytest

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.predict import Diverged
from logitbank.pipeline.train_student.losses import Objective, parse_objective
from logitbank.pipeline.train_student.search import Rows, cut_folds, search_options


def test_candidates_reach_the_peak_learning_rate() -> None:
    training = Training(epochs=8, warmup_epochs=4)
    tried: list[Training] = []

    def attempt(_: Objective, short: Training, kept: Rows, left: Rows) -> float:
        tried.append(short)
        return 1.0

    objective = parse_objective("sel_corrected", {"c": "auto"})
    search_options(objective, training, attempt, [(np.arange(4), np.arange(4, 5))], [], lambda _: None)
    rates = [tried[0].learning_rate(step, 100) for step in range(100 * tried[0].epochs)]
    assert max(rates) == pytest.approx(training.lr)
    assert rates.index(max(rates)) == pytest.approx(len(rates) * 4 / 8, abs=1)


def test_the_candidate_of_the_lowest_mean_nll_is_bound_and_one_that_diverges_is_not() -> None:
    objective = parse_objective("sel_corrected", {"c": "auto"})
    folds = [(np.arange(0), np.array([fold])) for fold in range(2)]

    def attempt(candidate: Objective, short: Training, kept: Rows, left: Rows) -> float:
        c = float(candidate.terms[0].options["c"])
        if c >= 100:
            raise Diverged("too far")
        return abs(math.log10(c)) + int(left[0])

    bound, outcomes = search_options(objective, Training(epochs=8), attempt, folds, [], lambda _: None)
    assert bound.terms[0].options["c"] == 1.0
    assert [outcome["nll"] for outcome in outcomes[-4:]] == [0.5, 1.5, None, None]
    of_another_search = [{"c": 1e-3, "val_accuracy": 1.0, "val_nll": 0.0}]
    _, again = search_options(objective, Training(epochs=8), attempt, folds, of_another_search, lambda _: None)
    assert again == outcomes


def test_folds_of_a_search_leave_each_training_row_out_once_and_keep_equal_examples_together(digits: Split) -> None:
    rows = np.arange(0, len(digits), 2)
    samples = digits.samples.copy()
    samples[rows[100:200]] = samples[rows[:100]]
    doubled = replace(digits, samples=samples)
    keys, folds = doubled.keys, cut_folds(doubled, rows)
    assert sorted(np.concatenate([left for _, left in folds])) == rows.tolist()
    for kept, left in folds:
        assert sorted([*kept, *left]) == rows.tolist()
        assert not set(keys[kept]) & set(keys[left])
    with pytest.raises(ValueError, match="searched with 5 folds, but .* has 4 different training rows"):
        cut_folds(digits, rows[:4])
