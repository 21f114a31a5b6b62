"""Replayable views: view v of an example is a function of (store seed, content key of the example, v) alone.

No worker count, batch size, order, rank or device takes part, so stage two sees the very pixels that the teacher
answered. A transform maps uint8 images and one 64-bit seed per image to uint8 images of the same batch.

Shapes: B batch, H x W x C pixels, V views, P probes.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Split
from pipeline.spelling import unknown

Seeds = npt.NDArray[np.uint64]
Samples = npt.NDArray[Any]

NUM_PROBES = 16
_CROP_PADDING = 8  # pixels of image for each pixel of padding


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


def _unchanged(samples: Samples, seeds: Seeds) -> Samples:
    return samples


def _flip_crop(images: Samples, seeds: Seeds) -> Samples:
    """Zero-pad by an eighth (4 px at 32 px), crop back at a random place, mirror every second image."""
    num_images, height, width, _ = images.shape
    pad = max(height, width) // _CROP_PADDING
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = draw(seeds, 0, 2 * pad + 1), draw(seeds, 1, 2 * pad + 1)
    mirrored = draw(seeds, 2, 2).astype(bool)
    columns = np.arange(width)[None, :]
    columns = left[:, None] + np.where(mirrored[:, None], columns[:, ::-1], columns)
    rows = top[:, None] + np.arange(height)[None, :]
    return np.asarray(padded[np.arange(num_images)[:, None, None], rows[:, :, None], columns[:, None, :]])


@dataclass(frozen=True, kw_only=True)
class Transform:
    apply: Callable[[Samples, Seeds], Samples]
    images_only: bool
    about: str


TRANSFORMS: dict[str, Transform] = {
    "none": Transform(apply=_unchanged, images_only=False, about="the sample itself"),
    "flip-crop": Transform(
        apply=_flip_crop, images_only=True, about="random crop after padding by an eighth, random mirror"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Views:
    """The V views of a dataset.

    Attributes:
        transform: A name of ``TRANSFORMS``.
        num_views: V, at least 1.
        seed: Store seed.
    """

    transform: str = "none"
    num_views: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(unknown("transform", self.transform, TRANSFORMS))
        if self.num_views < 1:
            raise ValueError(f"--views is {self.num_views}; expected at least 1")

    def check(self, split: Split) -> None:
        if TRANSFORMS[self.transform].images_only and not split.is_image:
            raise ValueError(f"transform {self.transform!r} needs images, but {split.spec} is a table; use none")

    def samples(self, split: Split, rows: npt.NDArray[np.integer] | slice, view: int) -> Samples:
        """The given rows as view ``view`` shows them, uint8 [B, H, W, C] or float32 [B, D]."""
        seeds = view_seeds(self.seed, split.keys[rows], view)
        return TRANSFORMS[self.transform].apply(split.samples[rows], seeds)

    def attributes(self) -> dict[str, Any]:
        return {"num_views": self.num_views, "transform": self.transform, "seed": self.seed}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "Views":
        return cls(
            transform=str(attributes["transform"]),
            num_views=int(attributes["num_views"]),
            seed=int(attributes["seed"]),
        )


def probe(split: Split, views: Views) -> dict[str, npt.NDArray[Any]]:
    """Hashes of a few examples' transformed pixels: they prove that another machine replays the same views.

    Returns:
        ``row`` uint32 [P], evenly spread over the dataset, and ``digest`` uint64 [V, P].
    """
    rows = np.unique(np.linspace(0, len(split) - 1, NUM_PROBES).astype(np.int64))
    digests = np.array(
        [[_digest(sample) for sample in views.samples(split, rows, view)] for view in range(views.num_views)],
        dtype=np.uint64,
    )
    return {"row": rows.astype(np.uint32), "digest": digests}


def check_probes(split: Split, views: Views, probes: Mapping[str, npt.NDArray[Any]], *, num_views: int) -> None:
    """Replays the probes of the first ``num_views`` views.

    Raises:
        ValueError: This machine's replay differs from the pixels the teacher saw; names the first example.
    """
    rows = probes["row"].astype(np.int64)
    for view in range(num_views):
        for position, sample in enumerate(views.samples(split, rows, view)):
            if _digest(sample) != int(probes["digest"][view, position]):
                raise ValueError(
                    f"view {view} of example {rows[position]} replays to other pixels than the teacher saw"
                    f" (transform {views.transform!r}); use the library versions that the store names"
                )


def _digest(sample: Samples) -> int:
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(sample).tobytes(), digest_size=8).digest(), "little")
