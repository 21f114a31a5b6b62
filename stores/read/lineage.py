"""Where a store comes from: one step in its attributes for each command that made it of another."""

from collections.abc import Mapping
from typing import Any

from logitbank.stores.format.documents import as_json
from logitbank.stores.format.schema import RESERVED
from logitbank.stores.read.reader import Store


def with_lineage(attributes: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """A store's attributes with one more step of where it comes from."""
    before = attributes.get("lineage")
    earlier = before if isinstance(before, list) else [] if before is None else [before]
    return {**attributes, "lineage": [*earlier, as_json(step, "lineage")]}


def last_step(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The newest step of a store's lineage; empty when it has none."""
    steps = attributes.get("lineage")
    return steps[-1] if isinstance(steps, list) and steps and isinstance(steps[-1], dict) else {}


def own_attributes(store: Store) -> dict[str, Any]:
    """What a store says of itself beyond the format."""
    return {key: value for key, value in store.attributes.items() if key not in RESERVED}
