"""Writes docs/measurements/rate-distortion.{md,json} from what `bench.rate_distortion` measured.

`python -m docs.pictures rate-distortion` draws the pictures from the .json.
"""

import json
from pathlib import Path
from typing import Any

Lines = list[dict[str, Any]]
_PEERS = ("peers", "axolotl", "Megatron", "DistillKit", "random-sampling")


def write_page(folder: Path, figures: dict[str, Any]) -> None:
    """The page, its figures and its plot; `figures` as they stand in the .json."""
    folder.mkdir(parents=True, exist_ok=True)
    wide, narrow, text, num_views = (figures[name] for name in ("classes_1000", "classes_100", "text", "views"))
    (folder / "rate-distortion.json").write_text(json.dumps(figures, indent=1) + "\n")
    crops = f": the whole image and {num_views} random crops of each\n(35 to 100 % of the area, half flipped)"
    page = _TEMPLATE.format(
        fit_rows=800 * (1 + num_views),
        views=crops if num_views else "",
        wide=_table(wide),
        narrow=_table(narrow),
        text=_table(text, ("row", "mean")),
        picture_1000=_picture("1000", "1,000 classes"),
        picture_100=_picture("100", "100 classes"),
        picture_text=_picture("text", "a vocabulary of 1,024"),
    )
    (folder / "rate-distortion.md").write_text(page)


def _picture(name: str, of: str) -> str:
    """Of `docs.pictures.rate_distortion`, on the reader's ground."""
    file = f"../pictures/rate-distortion-{name}"
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{file}-dark.svg">'
    words = f"KL divergence from the teacher at T = 2 against bytes a row, {of}"
    return f'<picture>\n  {dark}\n  <img src="{file}.svg" width="480" alt="{words}">\n</picture>'


def _table(lines: Lines, more: tuple[str, ...] = ()) -> str:
    heads = ["encoding", "bytes", "T = 1", "T = 2", "T = 4", *more]
    rows = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for line in lines:
        name = line["name"] if any(word in line["name"] for word in _PEERS) else f"**{line['name']}**"
        found = [line[key] for key in ("1", "2", "4", *more)]
        values = " | ".join("∞" if value is None else f"{value:.4f}" for value in found)
        rows.append(f"| {name} | {line['bytes']:.0f} | {values} |")
    return "\n".join(rows)


_TEMPLATE = """# Bytes against fidelity

How much of a teacher's answer survives in how many bytes, on real logits and on rows that no predictor was
fitted on. Fidelity is KL(teacher || decoded) times T^2 in nats, lower is better. Bytes are a row's arrays
after compression (blosc-zstd, level 1). Keys, the predictor, the label's arrays and the tail's shift are not counted:
up to [5 bytes](../reference/glossary.md#bytes-of-a-row) more a row in a store. **Bold** rows are this
program's encodings; the others are those of other tools ("peers": of several), written anew for this comparison.

Written by `python -m bench.rate_distortion --views VIEWS.npy --out docs/measurements` (figures in
[rate-distortion.json](rate-distortion.json)); the pictures by `python -m docs.pictures rate-distortion`. They show
T = 2 and some of the lines; the tables have all.

## C = 1000

MobileNetV2 on 1,000 photographs. Five folds over the images, seed 0: each of the 1,000 measured rows is decoded with a
predictor that was fitted on {fit_rows:,} answers to the other 800 images only{views}.
More rows of the same images help (800 instead of 20,000 give 0.070 at T = 1); more images are not measured here.

{picture_1000}

{wide}

## C = 100

A CIFAR-100 ResNet (71.7 % accurate) on the 10,000 test images, seed 0: 7,000 rows fit, 3,000 are measured.

{picture_100}

{narrow}

## A language model: C = 1,024

A GPT of 2 M parameters (width 192) with a vocabulary of 1,024, on text that it was not trained on: 32,768 tokens fit,
the 8,192 behind them are measured. ∞: a class that the teacher thinks possible has probability 0 in the target. Two
more columns are about the target at T = 1, whose difference from the teacher is the error of a student's gradient:
*row* is the mean total variation between a row's target and the teacher's distribution, *mean* that between the means
over all measured rows, where noise averages out and bias stays.

{picture_text}

{text}

- **The last layer is linear**, 192 numbers for 1,024 classes. So much of the tail follows from the head, and few
  directions code the rest. Beside the ten best, 16 bytes of coded tail leave less error than ten more classes of the
  same size. 64 bytes leave a seventh of what the fifty best leave, and at higher temperatures still less.
- **What other tools keep is biased**, as Anshumann et al. say of top-k (*Sparse Logit Sampling*, ACL 2025). An even
  tail gives the rare classes too much; a renormalised head gets it all itself. DistillKit's polynomial and Megatron's
  class for the rest describe the head and its mass; the shape of the tail is missing as in any top-k.
- **Samples** of that paper are unbiased at T = 1, and their error is noise. At 35 bytes, 50 of them are .385 from the
  teacher in a row and .013 in the mean over 8,192 rows. Ten classes and 16 bytes of tail, at 37 bytes, are .051 and
  .007. The noise falls with the root of the number of rows, so the means of some 30,000 rows would be as near; single
  rows never are. Samples serve one temperature, and give a row no finite KL. So they are a line of this table, and no
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
