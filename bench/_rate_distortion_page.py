"""Writes docs/measurements/rate-distortion.{md,json,png} from what `bench.rate_distortion` measured."""

import json
from pathlib import Path
from typing import Any

import matplotlib

Lines = list[dict[str, Any]]
_PEERS = ("peers", "axolotl", "Megatron", "DistillKit", "random-sampling")
COLOURS = {"1": "tab:blue", "2": "tab:orange", "4": "tab:green"}


def write_page(folder: Path, figures: dict[str, Any]) -> None:
    """The page, its figures and its plot; `figures` as they stand in the .json."""
    folder.mkdir(parents=True, exist_ok=True)
    wide, narrow, text, num_views = (figures[name] for name in ("classes_1000", "classes_100", "text", "views"))
    (folder / "rate-distortion.json").write_text(json.dumps(figures, indent=1) + "\n")
    panels = {"C = 1000": wide, "C = 100": narrow, "C = 1024, text": [line for line in text if line["1"] is not None]}
    _plot(folder / "rate-distortion.png", panels)
    crops = f": the whole image and {num_views} random crops of each\n(35 to 100 % of the area, half flipped)"
    page = _TEMPLATE.format(
        fit_rows=800 * (1 + num_views),
        views=crops if num_views else "",
        wide=_table(wide),
        narrow=_table(narrow),
        text=_table(text, ("row", "mean")),
    )
    (folder / "rate-distortion.md").write_text(page)


def _table(lines: Lines, more: tuple[str, ...] = ()) -> str:
    heads = ["encoding", "bytes", "T = 1", "T = 2", "T = 4", *more]
    rows = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for line in lines:
        name = line["name"] if any(word in line["name"] for word in _PEERS) else f"**{line['name']}**"
        found = [line[key] for key in ("1", "2", "4", *more)]
        values = " | ".join("∞" if value is None else f"{value:.4f}" for value in found)
        rows.append(f"| {name} | {line['bytes']:.0f} | {values} |")
    return "\n".join(rows)


def _family(name: str) -> str:
    if "uniform tail (peers)" in name or "Megatron" in name:
        return "uniform top-k fp16 (peers)"
    if name.startswith("polynomial"):
        return "polynomial (peers)"
    if name.startswith("dense int4"):
        return "int4 (peers)"
    if name.startswith("topk+tail 10"):
        return "topk+tail, k = 10"
    if name.startswith("topk+tail 20"):
        return "topk+tail, k = 20"
    if name.startswith("topk 10, uniform"):
        return "topk, uniform tail"
    return "topk, predicted" if name.startswith("topk") else "dense"


def _plot(path: Path, panels: dict[str, Lines]) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {
        "uniform top-k fp16 (peers)": ("tab:gray", "o", "--"),
        "polynomial (peers)": ("tab:brown", "D", ":"),
        "int4 (peers)": ("tab:olive", "s", ""),
        "topk, uniform tail": ("tab:purple", "x", ""),
        "topk, predicted": ("tab:orange", "o", "-"),
        "topk+tail, k = 10": ("tab:blue", "o", "-"),
        "topk+tail, k = 20": ("tab:cyan", "^", "-"),
        "dense": ("tab:red", "s", "-"),
    }
    figure, axes = plt.subplots(len(panels), 3, figsize=(14, 4 * len(panels)), squeeze=False)
    for row, (title, lines) in zip(axes, panels.items(), strict=True):
        for axis, temperature in zip(row, ("1", "2", "4"), strict=True):
            for family, (colour, marker, style) in styles.items():
                mine = [line for line in lines if _family(line["name"]) == family]
                size, loss = [line["bytes"] for line in mine], [max(line[temperature], 1e-6) for line in mine]
                axis.plot(size, loss, color=colour, marker=marker, linestyle=style or "none", label=family, ms=5)
            axis.set(xscale="log", yscale="log", title=f"{title}, T = {temperature}", xlabel="bytes per row")
            axis.grid(alpha=0.3)
        row[0].set_ylabel("KL(teacher || decoded) T$^2$, nats")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


_TEMPLATE = """# Bytes against fidelity

How much of a teacher's answer survives in how many bytes, on real logits and on rows that no predictor was
fitted on. Fidelity is KL(teacher || decoded) times T^2 in nats, lower is better. Bytes are a row's arrays
after compression (blosc-zstd, level 1), without keys, the predictor, and what a row says of its label and its tail's
shift (5 bytes more in a store, [bytes of a row](../reference/glossary.md#bytes-of-a-row)). **Bold** rows are this
program's encodings; the others are those of other tools ("peers": of several), written anew for this comparison.

![Fidelity against bytes, for 1,000 and 100 classes and for a vocabulary](rate-distortion.png)

Written by `python -m bench.rate_distortion --views VIEWS.npy --out docs/measurements` (figures in
[rate-distortion.json](rate-distortion.json)).

## C = 1000

MobileNetV2 on 1,000 photographs. Five folds over the images, seed 0: each of the 1,000 measured rows is
decoded with a predictor that was fitted on {fit_rows:,} answers to the other 800 images only{views}. More
rows of the same images help (800 instead of 20,000 give 0.070 at T = 1); more images are not measured here.

{wide}

## C = 100

A CIFAR-100 ResNet (71.7 % accurate) on the 10,000 test images, seed 0: 7,000 rows fit, 3,000 are measured.

{narrow}

## A language model: C = 1,024

A GPT of 2 M parameters (width 192) with a vocabulary of 1,024, on text that it was not trained on: 32,768 tokens fit,
the 8,192 behind them are measured. ∞: a class that the teacher thinks possible has probability 0 in the target. Two
more columns are about the target at T = 1, whose difference from the teacher is the error of a student's gradient:
*row* is the mean total variation between a row's target and the teacher's distribution, *mean* that between the means
over all measured rows, where noise averages out and bias stays.

{text}

- **A linear head leaves the tail little room**, so it is predicted well from the head, and coded in few directions: 16
  bytes of coded tail beside the ten best leave less than ten more classes do at the same size, and 64 bytes a seventh
  of what the fifty best leave, at every temperature more.
- **What the peers keep is biased**, as Anshumann et al. say of top-k (*Sparse Logit Sampling*, ACL 2025): an even tail
  gives the rare classes too much, and made to add to 1 the head gets it. DistillKit's polynomial and Megatron's class
  for the rest are about the head and its size; they leave what their K leaves.
- **Samples** of that paper are unbiased at T = 1, and what they miss is noise. At 35 bytes, 50 of them are .385 from
  the teacher in a row and .013 in the mean over 8,192 rows; ten classes and 16 bytes of tail, at 37 bytes, are .051
  and .007. The noise falls with the root of the number of rows, so the means of some 30,000 rows would be as near; the
  rows never are. They hold at one temperature and give a row no KL. So samples are a line of this table, and no
  encoding here.

Only this part again: `python -m bench.rate_distortion --text-only --out docs/measurements`.

## What to read off

- **The prediction costs almost nothing per row** and removes a third to two thirds of the error. It is a ridge
  regression from the row's sparse head to its dense logits, stored once per teacher; one shift per row
  makes the tail's mass at T = 1 exact. A store keeps that shift (3 bytes), so that no reader computes it again.
- **A coded tail is where a high temperature's fidelity comes from.** The residual of the prediction is
  rotated into its principal directions and each gets the bits that remove most error, down to none.
  `--tail-bits` is the average over all classes.
- **More head entries are a poor use of bytes** once T is above 1: two bytes for a class that already has
  little mass.
- **Dense int8** stays within 0.0003 nats at every temperature; up to 256 classes it is the default.

`topk` could take 4 to 5 bytes less at C = 1000 by storing each class id as its place in a list sorted for
the best class (7.9 instead of 12.6 bytes, measured). It does not: `index` stays what a person expects to
read.
"""
