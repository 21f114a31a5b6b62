"""A test split for data that has none of its own: a fixed random share of the rows.

Shapes: N rows.
"""

import numpy as np
import numpy.typing as npt

TEST_SHARE = "0.2"

Rows = npt.NDArray[np.int64]


def divide_rows(num_rows: int, test_share: str, spec: str) -> tuple[Rows, Rows]:
    """Training rows and test rows, each in their order; the same for the same number of rows.

    Args:
        num_rows: N.
        test_share: Share of the rows that are test rows; empty means ``TEST_SHARE``.
        spec: For errors.

    Raises:
        ValueError: No number from 0 to below 1.
    """
    share = test_share or TEST_SHARE
    try:
        num_test = round(float(share) * num_rows)
    except (ValueError, OverflowError):
        num_test = -1
    if not 0 <= num_test < num_rows or float(share) < 0:
        raise ValueError(f"{spec}: test_share is {share!r}; expected a number from 0 to below 1")
    order = np.random.default_rng(0).permutation(num_rows)
    return np.sort(order[num_test:]), np.sort(order[:num_test])
