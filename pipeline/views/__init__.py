"""Replayable views: view v of an example is a function of (store seed, content key of the example, v) alone.

No worker count, batch size, order, rank or device takes part, so stage two sees the very pixels that the teacher
answered. A view of a photograph is a function of the original: a crop is drawn in its coordinates, and resampled once
to the size that a model reads; colours change after it. Where a view cuts nothing, each model resizes the original as
its own library does.

    transforms                  the table, and how one is spelled
    geometry, mixing, randaugment, seeds    where a view looks; two examples; operations; numbers without state

Shapes: B batch, H x W x C pixels, V views, P probes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.resize_crop import STANDARD, ResizeCrop
from logitbank.pipeline.views.geometry import Boxes
from logitbank.pipeline.views.mixing import partners
from logitbank.pipeline.views.seeds import Seeds, draw, mix64, view_seeds
from logitbank.pipeline.views.transforms import (
    TRANSFORMS,
    Step,
    Transform,
    allow_transform,
    allow_views,
    parse_transform,
    user_code_sha256,
)

__all__ = [
    "TRANSFORMS",
    "Seeds",
    "Transform",
    "Views",
    "allow_transform",
    "allow_views",
    "check_probes",
    "draw",
    "mix64",
    "probe",
    "view_seeds",
]

Samples = npt.NDArray[Any]

NUM_PROBES = 16


@dataclass(frozen=True, kw_only=True)
class Views:
    """The V views of a dataset.

    Attributes:
        transform: As ``--transform``: names of steps joined by +, each with ?option=value or without.
        num_views: V, at least 1.
        seed: Store seed.
        label_map: G where the teacher answers a G x G grid of the sample itself, which serves every crop of it; 0: it
            answers each view.
    """

    transform: str = "none"
    num_views: int = 1
    seed: int = 0
    label_map: int = 0

    def __post_init__(self) -> None:
        parse_transform(self.transform)
        if self.num_views < 1:
            raise ValueError(f"--views is {self.num_views}; expected at least 1")
        if self.label_map < 0:
            raise ValueError(f"--label-map is {self.label_map}; expected 0 or more")

    @property
    def mixes(self) -> bool:
        """Whether a view shows two examples."""
        return parse_transform(self.transform)[-1][0].mixes

    def of_epoch(self, epoch: int) -> int:
        """The view that an epoch shows, both counted from 0: of label maps another one each time."""
        return epoch if self.label_map else epoch % self.num_views

    def of_crops(self, transform: str) -> "Views":
        """What a student sees of label maps.

        Raises:
            ValueError: The transform does more than to cut and to mirror.
        """
        steps = parse_transform(transform)
        if len(steps) > 1 or steps[0][0].boxes is None:
            crops = ", ".join(name for name, known in TRANSFORMS.items() if known.boxes is not None)
            raise ValueError(f"--transform is {transform}; a label map answers to a crop alone: {crops}")
        return replace(self, transform=transform)

    def boxes(self, split: Split, rows: npt.NDArray[np.integer], view: int) -> Boxes:
        """Where a view of crops looks in each of the rows' samples."""
        step, options = parse_transform(self.transform)[0]
        assert step.boxes is not None
        height, width = split.input_shape[:2]
        return step.boxes(height, width, view_seeds(self.seed, split.keys[rows], view), **options)

    def answered(self, split: Split) -> Split:
        """The split as a store of these views has it: of label maps with a label at each place."""
        return split.repeated(self.label_map**2) if self.label_map else split

    def check(self, split: Split) -> None:
        """Raises ValueError when the views cannot be made of the split's samples."""
        steps = [step for step, _ in parse_transform(self.transform)]
        if not split.is_image and any(step.images_only for step in steps):
            raise ValueError(
                f"transform {self.transform!r} needs images, but {split.spec} holds {split.holds}; use none"
            )
        if self.label_map and (split.positions is not None or not split.is_image):
            raise ValueError(f"--label-map needs pictures with one label each, but {split.spec} has others")
        if self.label_map and split.originals is not None:
            raise ValueError(f"--label-map needs pictures of one size; add size= to {split.spec}")
        if split.originals is not None and any(step.cut is not None for step in steps[1:]):
            raise ValueError(f"transform {self.transform!r}: rrc cuts its crops from the originals; write it first")

    def samples(
        self, split: Split, rows: npt.NDArray[np.integer] | slice, view: int, fit: ResizeCrop | None = None
    ) -> Samples:
        """The given rows as view ``view`` shows them, uint8 [B, H, W, C], float32 [B, D] or int64 [B, L].

        Args:
            split: The examples.
            rows: Which of them.
            view: Which view.
            fit: Of originals: how the model resizes them, and to which size; ``STANDARD`` when left out.
        """
        steps = parse_transform(self.transform)
        seeds = view_seeds(self.seed, split.keys[rows], view)
        mixing = steps.pop()[0] if steps[-1][0].mixes else None
        shown = _shown(steps, split, rows, seeds, fit)
        if mixing is None:
            return shown
        others = partners(seeds, split.rows_by_key)
        shown_others = _shown(steps, split, others, view_seeds(self.seed, split.keys[others], view), fit)
        return np.asarray(mixing.apply(shown, shown_others, seeds))

    def attributes(self) -> dict[str, Any]:
        """JSON-able description; ``from_attributes`` is its inverse."""
        sha256 = user_code_sha256(self.transform)
        code = {} if sha256 is None else {"code_sha256": sha256}
        grid = {"label_map": self.label_map} if self.label_map else {}
        return {"num_views": self.num_views, "transform": self.transform, "seed": self.seed, **code, **grid}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "Views":
        """The views that a store describes.

        Raises:
            ValueError: They need user code that was not named in this process; a store never makes code run.
        """
        transform, num_views, seed = (attributes.get(name) for name in ("transform", "num_views", "seed"))
        label_map = attributes.get("label_map", 0)
        if not (isinstance(transform, str) and type(num_views) is int and type(seed) is int and type(label_map) is int):
            raise ValueError(
                f"the store's views are {str(dict(attributes))[:100]}; expected transform, num_views and seed to replay"
            )
        return cls(transform=transform, num_views=num_views, seed=seed, label_map=label_map)


def _shown(
    steps: list[Step],
    split: Split,
    rows: npt.NDArray[np.integer] | slice,
    seeds: Seeds,
    fit: ResizeCrop | None,
) -> Samples:
    originals, fit = split.originals, fit or STANDARD
    if originals is None:
        return _apply(steps, split.samples[rows], seeds)
    chosen = np.arange(len(split))[rows]
    if steps and (cut := steps[0][0].cut) is not None:
        return _apply(steps[1:], cut(originals, chosen, seeds, fit, **steps[0][1]), seeds, cuts=True)
    return _apply(steps, originals.fitted(chosen, fit), seeds, cuts=True)


def _apply(steps: list[Step], samples: Samples, seeds: Seeds, *, cuts: bool = False) -> Samples:
    for transform, options in steps:
        num_samples = len(samples)
        apply = transform.of_cuts if cuts and transform.of_cuts is not None else transform.apply
        samples = np.asarray(apply(samples, seeds, **options))
        if len(samples) != num_samples:
            raise ValueError(
                f"a transform made {len(samples)} of {num_samples} samples; expected as many as it was given"
            )
    return samples


def probe(split: Split, views: Views, rows: npt.NDArray[np.integer] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Hashes of a few examples' transformed pixels: they prove that another machine replays the same views.

    Args:
        split: The examples.
        views: Which views.
        rows: Which examples; evenly spread over the dataset when left out.

    Returns:
        ``row`` uint32 [P] and ``digest`` uint64 [V, P].
    """
    spread = np.linspace(0, len(split) - 1, NUM_PROBES)
    chosen = np.unique((spread if rows is None else rows).astype(np.int64))
    if user_code_sha256(views.transform) is not None:
        _check_user_code(split, views, chosen)
    digests = np.array(
        [[_digest(sample) for sample in views.samples(split, chosen, view)] for view in range(views.num_views)],
        dtype=np.uint64,
    )
    return {"row": chosen.astype(np.uint32), "digest": digests}


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


def _check_user_code(split: Split, views: Views, rows: npt.NDArray[np.int64]) -> None:
    together = views.samples(split, rows, 0)
    alone = np.concatenate([views.samples(split, rows[i : i + 1], 0) for i in range(len(rows))])
    if together.shape != alone.shape or together.dtype != alone.dtype or not np.array_equal(together, alone):
        raise ValueError(
            f"transform {views.transform!r} makes other pixels of an example alone than in a batch; expected a function"
            " of the example and its seed alone"
        )


def _digest(sample: Samples) -> int:
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(sample).tobytes(), digest_size=8).digest(), "little")
