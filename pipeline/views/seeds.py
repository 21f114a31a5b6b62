"""Random numbers that are functions of a seed, without state: the same on every machine, in every order.

Shapes: B batch.
"""

import numpy as np
import numpy.typing as npt

Seeds = npt.NDArray[np.uint64]


def mix64(values: Seeds) -> Seeds:
    """SplitMix64's output function, a bijection of 64-bit integers whose every output bit depends on every input bit.

    References:
        Steele, Lea, Flood. Fast Splittable Pseudorandom Number Generators. OOPSLA 2014, figure 16.
    """
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def view_seeds(seed: int, keys: Seeds, view: int) -> Seeds:
    """The seed of each example's view, uint64 [B]."""
    start = mix64(np.array([seed], dtype=np.int64).view(np.uint64))
    return mix64(mix64(keys ^ start) + np.uint64(view))


def draw(seeds: Seeds, stream: int, upper: int) -> npt.NDArray[np.int64]:
    """One integer in [0, upper) per seed; different streams are independent. Bias below upper / 2^32."""
    high = mix64(seeds + mix64(np.array([stream], dtype=np.uint64))) >> np.uint64(32)
    return ((high * np.uint64(upper)) >> np.uint64(32)).astype(np.int64)


def draw_unit(seeds: Seeds, stream: int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per seed, a multiple of 2^-24."""
    return draw(seeds, stream, 1 << 24) / (1 << 24)
