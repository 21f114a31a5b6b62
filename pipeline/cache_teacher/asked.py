"""What decides how a teacher's answers are kept, and whether a store was begun with the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.pipeline.encoding import Encoding
from logitbank.stores import StoreError, Teacher
from logitbank.stores.write.create import first_difference


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Let a sample decide the encoding: the smallest whose KL T^2 stays within ``kl`` nats at every temperature."""

    kl: float
    temperatures: tuple[float, ...] = (1.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a pass was asked to keep.

    Attributes:
        encoding: What is kept of a row, or a budget that decides it.
        predictor_rows: Rows on which the tail predictor is fitted.
        temperatures: Where fidelity is measured; a finished teacher has more, at most.
        embedding: Where features are taken that are kept, by name; empty for none.
        embedding_dim: How many principal components of them; 0 for all.
    """

    encoding: Encoding | Budget
    predictor_rows: int
    temperatures: tuple[float, ...]
    embedding: str = ""
    embedding_dim: int = 0

    def recorded(self) -> dict[str, Any]:
        """What decides the encoding, the features kept, or their constants, and cannot be read from them: a store says
        it."""
        return {**self._of_encoding(), **self._of_embedding()}

    def _of_embedding(self) -> dict[str, Any]:
        if not self.embedding:
            return {}
        fitted = {"embedding_dim": self.embedding_dim, "predictor_rows": self.predictor_rows}
        return {"embedding": self.embedding, **(fitted if self.embedding_dim else {})}

    def _of_encoding(self) -> dict[str, Any]:
        if isinstance(self.encoding, Budget):
            budget = {"kl_budget": self.encoding.kl, "temperatures": list(self.encoding.temperatures)}
            return {"predictor_rows": self.predictor_rows, **budget}
        return {"predictor_rows": self.predictor_rows} if self.encoding.has_tail else {}

    def identity(self, stored: Teacher) -> dict[str, Any]:
        """All that decides what is kept, as far as it can be compared with what a store says of itself."""
        chosen = stored.encoding if isinstance(self.encoding, Budget) else self.encoding.attributes()
        wanted: dict[str, Any] = {"encoding": chosen, **self.recorded()}
        if stored.complete:
            measured = {f"{temperature:g}" for temperature in self.temperatures}
            wanted["measured at"] = sorted(measured | _measured(stored))
        return wanted

    def check(self, out: Path, stored: Teacher) -> None:
        """Raises StoreError where a teacher that is there was asked for otherwise."""
        asked, wanted = stored.summary.get("asked"), self.identity(stored)
        if not isinstance(asked, Mapping):  # an older version does not say
            asked = self.recorded()
        found: dict[str, Any] = {"encoding": stored.encoding, **asked}
        if stored.complete:
            found["measured at"] = sorted(_measured(stored))
        for name in dict.fromkeys((*wanted, *found)):
            difference = first_difference(name, found.get(name), wanted.get(name))
            if difference:
                raise StoreError(
                    f"{out}: teacher {stored.name!r} is another one: {difference}; use another"
                    " --teacher-name or the same settings"
                )


def _measured(stored: Teacher) -> set[str]:
    """The temperatures of a finished teacher's fidelity."""
    return {name for name in stored.fidelity if name.replace(".", "", 1).isdigit()}
