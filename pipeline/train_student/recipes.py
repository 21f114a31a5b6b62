"""Recipes: settings that are known to go together, by name. What is typed beside a recipe's name goes before it.

A recipe says how a student is trained and not what it learns: data, student and loss stay the user's. A run that names
a recipe is the run that names its settings. Imports nothing heavy, so that ``--help`` answers at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logitbank.pipeline.described import over, settings_of
from logitbank.pipeline.domains import Words
from logitbank.pipeline.train_student.spec import Run


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One line of the table: where it is from, what else belongs to it, and its settings by name."""

    about: str
    settings: Mapping[str, Any]


RECIPES: dict[str, Recipe] = {
    "cifar-240": Recipe(
        about="240 epochs on CIFAR, as Tian et al. 2020 (CRD) and most papers since; flip-crop views in the store",
        settings={
            **{"epochs": 240, "batch_size": 64, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "schedule": "step"},
            **{"weight_decay": 5e-4, "weight_decay_on": "all", "grad_clip": 0.0},
        },
    ),
    "imagenet-a3": Recipe(
        about="procedure A3 of Wightman et al. 2021 (ResNet strikes back); CutMix and RandAugment are views of a store",
        settings={
            **{"epochs": 100, "batch_size": 2048, "optimizer": "lamb", "lr": 8e-3, "schedule": "cosine"},
            **{"warmup_epochs": 5.0, "weight_decay": 0.02, "weight_decay_on": "weights", "grad_clip": 0.0},
            "mixup": 0.1,
        },
    ),
    "tabular": Recipe(
        about="perceptrons on tables as Gorishniy et al. 2021 train them: AdamW until 16 epochs bring nothing better",
        settings={
            **{"epochs": 200, "batch_size": 256, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant"},
            **{"weight_decay": 1e-5, "weight_decay_on": "all", "grad_clip": 0.0},
            **{"val_share": 0.1, "select": "best:nll", "patience": 16},
        },
    ),
    "patient": Recipe(
        about="the long schedule of Beyer et al. 2022 (A good teacher is patient and consistent), for kd alone, T = 1",
        settings={
            **{"epochs": 1200, "batch_size": 512, "optimizer": "adamw", "lr": 3e-3, "schedule": "cosine"},
            # their decay of 3e-4 a step does not go with the rate; AdamW's is multiplied by it
            **{"warmup_epochs": 5.0, "weight_decay": 0.1, "weight_decay_on": "weights", "grad_clip": 1.0, "mixup": 1.0},
        },
    ),
}
NAMES = Words(("", *RECIPES))
SETTINGS_OF = {name: recipe.settings for name, recipe in RECIPES.items()}


def from_recipe(name: str, values: Mapping[str, Any]) -> Run:
    """A run by a recipe, with values of settings, by name, that go before its own.

    A setting of the recipe that does nothing beside the values is left out: the momentum of an optimiser that has none.

    Raises:
        ValueError: No such recipe, or values that make no sense.
    """
    NAMES.check("--recipe", name)
    return over(Run, values, SETTINGS_OF[name] if name else {})


def typed(recipe: Recipe) -> str:
    """The settings as options of the command line."""
    flags = {setting.name: setting.flag for setting in settings_of(Run)}
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in recipe.settings.items()}
    return " ".join(f"{flags[name]} {value}" for name, value in shown.items())
