"""The table of losses as text: what `cli losses` prints, and what docs/reference/losses.md is generated from.

Formula, argument texts and references come from the docstrings, so that there is one place for each.
"""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Mapping

from .domains import Interval, Option, Value, Words
from .groups import GROUPS
from .kinds import Loss
from .row_rules import ROW_WEIGHTS, SHARED, TEMPERATURE_RULES
from .schedule import SCHEDULE
from .table import EVERY_LOSS
from .transforms import TRANSFORMS

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "References")


def sections(docstring: str) -> dict[str, str]:
    """A docstring's parts: "Summary", "Body" and the named sections, each dedented."""
    lines = inspect.cleandoc(docstring).splitlines()
    found: dict[str, list[str]] = {"Summary": [lines[0]], "Body": []}
    current = "Body"
    for line in lines[1:]:
        if line.removesuffix(":") in SECTIONS and line.endswith(":"):
            current = line.removesuffix(":")
            found[current] = []
        else:
            found[current].append(line)
    return {name: textwrap.dedent("\n".join(part)).strip() for name, part in found.items()}


def number(value: Value) -> str:
    """A setting's value as a user would type it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return value if isinstance(value, str) else f"{value:.4g}"


def pairs(values: Mapping[str, Value]) -> str:
    """name=value, separated by spaces."""
    return " ".join(f"{key}={number(value)}" for key, value in values.items())


def ranges(options: Mapping[str, Option]) -> str:
    """name=default and its domain, separated by semicolons."""
    return "; ".join(f"{key}={number(option.default)}, {allowed(option)}" for key, option in options.items())


def allowed(option: Option) -> str:
    """The domain in words."""
    if isinstance(option.domain, Interval):
        return f"in {option.domain}"
    return f"one of {option.domain}" if isinstance(option.domain, Words) else str(option.domain)


def restriction(option: Option) -> str:
    """With what an option may not be set, and what "auto" tries."""
    text = f" Not with {option.unless[0]}={number(option.unless[1])}." if option.unless else ""
    return text + (f" Or auto, which tries {', '.join(map(number, option.search))}." if option.search else "")


def recipe(loss: Loss) -> str:
    """A loss's defaults: weights, warm-up and options."""
    values: dict[str, Value] = {"weight": loss.weight}
    if loss.fits == "teacher":
        values["ce_weight"] = loss.ce_weight
    if loss.warmup:
        values["warmup"] = loss.warmup
    return pairs(values | dict(loss.options))


def needs(loss: Loss) -> str:
    """A loss's needs in words; what it merely prefers in brackets."""
    words = sorted(loss.needs) + [f"({need})" for need in sorted(loss.prefers)]
    return ", ".join(words) if words else "-"


def describe_losses() -> str:
    """The table of all losses by group: name, paper, needs, defaults; then row weights and temperature rules."""
    rows = {name: (name, loss.paper, needs(loss), recipe(loss)) for name, loss in EVERY_LOSS.items()}
    head = ("name", "paper", "needs", "defaults")
    widths = [max(len(row[column]) for row in (head, *rows.values())) for column in range(3)]
    lines = [_line(head, widths)]
    for group in GROUPS:
        lines += ["", f"# {group.title}. {group.about}", *(_line(rows[name], widths) for name in group.names)]
    lines += ["", "needs: dense = every class stored; logits = no class of probability 0; label_in_head = other rows"]
    lines += ["abstain; label_prob = the teacher said what each label's probability is; (in brackets) = better with"]
    lines += ["--set target_transform=NAME, or several in order: NAME?option=value + NAME"]
    lines += [f"  {name:<16} {rule.use}{_asked(rule.takes)}" for name, rule in TRANSFORMS.items()]
    lines += [f"--set row_weight=NAME ({ranges(SHARED)})"]
    lines += [f"  {name:<12} {rule.use} ({ranges(rule.takes)})" for name, rule in ROW_WEIGHTS.items()]
    lines += ["--set temperature_rule=NAME"]
    lines += [f"  {name:<12} {rule.use} ({ranges(rule.takes)})" for name, rule in TEMPERATURE_RULES.items()]
    lines += [f"every term of a sum: starts_at, ends_at, shares of the steps; ramp_from, ramp_to ({ranges(SCHEDULE)})"]
    lines += ["  kd?ends_at=0.5:1 + reverse_kl?starts_at=0.5:1 is the one, and then the other"]
    lines += ["--set learned_weights=1 learns how much each term of a sum weighs (Kendall et al. 2018)"]
    lines += ["--set standardise=1 goes with every loss that fits a teacher; preset=NAME takes a paper's setting."]
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])


def _asked(options: Mapping[str, Option]) -> str:
    return f" ({ranges(options)})" if options else ""


def describe_loss(name: str, own: Loss | None = None) -> str:
    """One loss: formula, options, recipe, needs and reference; ``own`` where it is not the table's.

    Raises:
        ValueError: On a name that is not in the table.
    """
    if own is None and name not in EVERY_LOSS:
        near = difflib.get_close_matches(name, EVERY_LOSS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"unknown loss {name!r}{hint} known: {', '.join(sorted(EVERY_LOSS))}")
    loss = own or EVERY_LOSS[name]
    doc = sections(loss.fn.__doc__ or "(no docstring)")
    text = [f"{name}: {doc['Summary']}", "", doc["Body"], "", f"Use: {loss.use}.", f"Needs: {needs(loss)}"]
    for need, (key, value) in loss.waives.items():
        text.append(f"  ({need} is not needed with {key}={number(value)})")
    text.append(f"Defaults ({loss.setting}): {recipe(loss)}")
    text += [f"  preset={preset}: {pairs(values)}" for preset, values in loss.presets.items()]
    if loss.takes:
        explained = arguments(doc.get("Args", ""))
        text += ["", "Options:"]
        for key, option in loss.takes.items():
            what = f"{explained.get(key, '')} It is {allowed(option)}.{restriction(option)}"
            text.append(f"  {key}={number(option.default)}  {what}")
    if loss.unsure:
        text += ["", f"Not verified: {loss.unsure}."]
    return "\n".join([*text, "", f"References: {doc.get('References', '-')}"])


def arguments(args: str) -> dict[str, str]:
    """The text of each argument in an Args section."""
    found: dict[str, str] = {}
    key = ""
    for line in args.splitlines():
        if line and not line.startswith(" "):
            key, _, found[key] = (piece.strip() for piece in line.partition(":"))
        elif key:
            found[key] += " " + line.strip()
    return found
