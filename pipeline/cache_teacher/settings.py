"""Every setting of a pass, described once. Imports nothing heavy: the command line's options are made of it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitbank.pipeline.cache_teacher.teachers import NO_WEIGHTS, TOPK_PREFIX
from logitbank.pipeline.described import Idle, check_settings, option, part, refuse_idle
from logitbank.pipeline.domains import (
    AT_LEAST_ONE,
    BITS,
    COUNT,
    ENCODINGS,
    FOLD_STRATEGIES,
    FOLDS,
    MEANS,
    NOT_NEGATIVE,
    PRECISIONS,
    SEED,
    SHARE,
    STDS,
    TAIL_BITS,
    TEMPERATURES,
    VIEWS,
    check_input,
)

if TYPE_CHECKING:
    from logitbank.pipeline.cache_teacher.asked import Budget
    from logitbank.pipeline.encoding import Encoding
    from logitbank.pipeline.folds import FoldPlan
    from logitbank.pipeline.views import Views


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network is run; its logits are float32 afterwards."""

    batch_size: int = option(256, help="Examples of a forward pass", domain=AT_LEAST_ONE, decides=False)
    precision: str = option(
        "float32",
        help="Arithmetic of the network: float32, bfloat16 or float16; part of the teacher's identity",
        domain=PRECISIONS,
    )
    channels_last: bool = option(False, help="Channels-last memory format, faster on many GPUs", decides=False)
    compile: bool = option(False, help="Run the network through torch.compile", decides=False)
    workers: int = option(1, help="Threads that read and transform the next batches", domain=COUNT, decides=False)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class Folding:
    """How rows are assigned to fold teachers."""

    folds: int = option(0, help="Number of cross-fitting folds; 0: none, or as many as the weights say", domain=FOLDS)
    fold_strategy: str = option(
        "stratified", help="How rows are assigned to folds: stratified, kfold, group or hash", domain=FOLD_STRATEGIES
    )
    fold_seed: int = option(0, help="Seed of the fold assignment", domain=SEED)

    def __post_init__(self) -> None:
        check_settings(self)

    def idle(self) -> Iterator[Idle]:
        """Settings that do nothing beside the others."""
        if not self.folds:
            yield ("fold_strategy", "fold_seed"), "--folds is 0"

    def plan(self) -> "FoldPlan | None":
        from logitbank.pipeline.folds import FoldPlan

        if not self.folds:
            return None
        return FoldPlan(num_folds=self.folds, strategy=self.fold_strategy, seed=self.fold_seed)


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Which examples a teacher answers: those near its own data, as a client of federated distillation (EdgeFD)."""

    near: str = option("", help="Mask examples that lie far from these data: those that the teacher was trained on")
    near_share: float = option(
        0.9, help="How near: within the distance that this share of those data has from its centre", domain=SHARE
    )
    near_clusters: int = option(1, help="Centres of k-means in each class of those data", domain=AT_LEAST_ONE)

    def __post_init__(self) -> None:
        check_settings(self)

    def idle(self) -> Iterator[Idle]:
        """Settings that do nothing beside the others."""
        if not self.near:
            yield ("near_share", "near_clusters"), "--near is not given"


@dataclass(frozen=True, kw_only=True)
class Caching:
    """A pass: who answers, about which views of which data, and what is kept of it; each setting says what it is.

    All of it is text and numbers, fit for another process.
    """

    data: str = option("digits", help="Data spec, see `cli datasets`; for example torchvision:CIFAR10?root=data")
    teacher: str = option(
        "mlp",
        help="Architecture of the teacher, see `cli models`, or sklearn:NAME?option=value; or a file of its answers:"
        " array:FILE.npy, topk:FILE, export:FILE.npz, tinyvit:DIR",
    )
    weights: str = option(
        "",
        help="Weights of the teacher: a file, FILE::PART, a folder that train-teacher wrote, 'run/fold{fold}.pt', or"
        " random-init",
    )
    name: str = option(
        "teacher", help="Name of a teacher of the store: this one", decides=False, spelled="--teacher-name"
    )
    folding: Folding = part(Folding)
    nearness: Nearness = part(Nearness)
    encoding: str = option("auto", help="topk, topk+tail, dense, or auto: dense up to 256 classes", domain=ENCODINGS)
    top_k: int = option(10, help="Classes kept exactly, by topk and topk+tail", domain=AT_LEAST_ONE)
    tail_bits: float = option(1.0, help="Bits a class for the tail of topk+tail, 0.1 to 4", domain=TAIL_BITS)
    tail_bytes: int = option(
        0, help="Bytes a row for the tail of topk+tail, instead of --tail-bits: for vocabularies", domain=COUNT
    )
    bits: int = option(8, help="Bits a stored log-probability: 8, 16, or 32 (dense only, lossless)", domain=BITS)
    kl_budget: float = option(
        0.0, help="Instead of --encoding: the smallest that keeps KL T^2 within this many nats", domain=NOT_NEGATIVE
    )
    temperatures: str = option(
        "1,2,4",
        help="T of the softmax: where fidelity is measured and --kl-budget holds",
        domain=TEMPERATURES,
        spelled="--temperature",
    )
    predictor_rows: int = option(
        20_000, help="Rows that fit the tail predictor and --embedding-dim; 0 fits none", domain=COUNT
    )
    embedding: str = option(
        "", help="Keep features as well: penultimate, which the network's last layer reads, or a layer's name"
    )
    embedding_dim: int = option(
        0, help="Keep this many principal components of the features; 0 keeps all features", domain=COUNT
    )
    label_map: int = option(
        0,
        help="G: keep a G x G grid of class scores of each picture, which answers any crop that a student takes of it",
        domain=COUNT,
    )
    views: int = option(1, help="Number of views of each example", domain=VIEWS)
    transform: str = option(
        "none",
        help="How examples are shown, another way in each view: none, flip-crop, rrc, rrc+randaugment?size=160, with"
        " +mixup or +cutmix behind, or your own file.py:factory",
    )
    view_seed: int = option(0, help="Seed of the views", domain=SEED)
    compute: Compute = part(Compute)
    limit: int = option(0, help="Examples of a trial; 0: all. Stage two reads them with DATA?limit=n", domain=COUNT)
    mean: str = option("", help="Input mean, one number a channel, on the 0..1 scale: 0.485,0.456,0.406", domain=MEANS)
    std: str = option("", help="Input standard deviation, likewise", domain=STDS)
    input_transform: str = option(
        "",
        help="Changes to the network's own: resize=256,crop=224,interpolation=bicubic,mode=center,mean=...,std=...;"
        " parts that are left out stay",
    )
    device: str = option("auto", help="Device: cpu, cuda, cuda:1, mps, or auto: a GPU if there is one", decides=False)
    threads: int = option(
        0, help="CPU threads; 0 leaves it to torch. Tiny models are fastest with 1", domain=COUNT, decides=False
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check_input(self.mean, self.std, self.input_transform)

    def idle(self) -> Iterator[Idle]:
        """Settings that do nothing beside the others; `choose` knows those beside the encoding."""
        if self.transform == "none":
            yield ("view_seed",), "--transform is none"
        if self.heads_only:
            yield ("predictor_rows", "kl_budget"), f"{self.teacher} says nothing of other classes but their mass"
        if self.label_map:
            yield ("views", "transform", "view_seed"), "--label-map serves any crop; train-student --transform names it"
            yield ("embedding",), "--label-map keeps scores of places"
        if not self.is_network:
            yield ("label_map",), f"{self.teacher} is no network that runs here"
        if not self.embedding:
            yield ("embedding_dim",), "--embedding keeps no features"
        if self.kl_budget:
            yield ("encoding", "top_k", "tail_bits", "tail_bytes", "bits"), "--kl-budget chooses the encoding"
        if self.tail_bytes:
            yield ("tail_bits",), "--tail-bytes is given"

    @property
    def measured_at(self) -> tuple[float, ...]:
        """The temperatures at which fidelity is measured."""
        return TEMPERATURES.read("--temperature", self.temperatures)

    @property
    def is_network(self) -> bool:
        """Whether the teacher is a network that runs here."""
        return not self.teacher.startswith(NO_WEIGHTS)

    @property
    def heads_only(self) -> bool:
        """Whether the teacher answers with the best classes of each row alone."""
        return self.teacher.startswith(TOPK_PREFIX)

    def make_views(self) -> "Views":
        """The views that are answered."""
        from logitbank.pipeline.views import Views, allow_transform

        return Views(
            transform=allow_transform(self.transform),
            num_views=self.views,
            seed=self.view_seed,
            label_map=self.label_map,
        )

    def choose(self, num_classes: int, given: Collection[str] = ()) -> "Encoding | Budget":
        """What is kept of a row, or the budget that decides it.

        Args:
            num_classes: Of the data.
            given: Names of the settings that the user gave, be it as by default.

        Raises:
            ValueError: The encoding does not fit so many classes, or a setting does nothing beside it.
        """
        from logitbank.pipeline.cache_teacher.asked import Budget
        from logitbank.pipeline.encoding import KINDS, Encoding
        from logitbank.pipeline.encoding.settings import tail_bits_of

        if self.kl_budget:
            return Budget(kl=self.kl_budget, temperatures=self.measured_at)
        few = num_classes <= 256 and not self.heads_only
        kind = self.encoding if self.encoding != "auto" else "dense" if few else "topk"
        if self.heads_only and "teacher" in given and kind == "topk" and "top_k" not in given:
            raise ValueError(f"{self.teacher}: say with --top-k how many of its classes are the best ones of each row")
        offered = {"top_k": self.top_k, "tail_bits": self.tail_bits, "bits": self.bits}
        chosen: Any = {name: offered[name] for name in KINDS[kind].options}
        if "tail_bits" in chosen and self.tail_bytes:
            chosen["tail_bits"] = tail_bits_of(self.tail_bytes, num_classes)
        encoding = Encoding(kind=kind, num_classes=num_classes, **chosen)
        idle = [name for name in offered if name not in chosen] + ([] if "tail_bits" in chosen else ["tail_bytes"])
        idle += [] if encoding.has_tail or self.embedding_dim else ["predictor_rows"]
        refuse_idle(self, idle, f"the encoding is {kind}", given)
        return encoding
