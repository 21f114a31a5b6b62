"""A photograph's row of class scores under the four tail rules.

    python -m docs.pictures.tails LOGITS.npy

measures `tails.json` anew from raw logits [N, C] of photographs; the four rules are those of `--tail`. The picture is
drawn from that file. Of N rows, four fifths fit the predictor (seed 0); of the others it takes the one whose
predicted tail is as good as that of the median row, so that it is neither the best nor the worst.
"""

import json
import sys
from pathlib import Path
from typing import Any

from docs.pictures import COLOURS, FOLDER, INK, QUIET, chart, log_axes

FIGURES = FOLDER / "tails.json"
TOP_K = 10
RULES = {
    "predicted": "predicted: from the head",
    "bucket": "bucket: one class, the rest",
    "uniform": "uniform: spread evenly",
    "renormalise": "renormalised: no tail",
}


def measure(logits_file: Path) -> dict[str, Any]:
    """Probabilities of one row, by the teacher's order of the classes, and of what each rule makes of it."""
    import numpy as np
    import torch

    from logitbank.pipeline.encoding import Encoding, decode
    from logitbank.pipeline.encoding.encode import encode
    from logitbank.pipeline.encoding.fitting.predictor import TailFit

    logits = torch.from_numpy(np.load(logits_file)).float()
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    fit, rows = logits[order[: 4 * len(order) // 5]], order[4 * len(order) // 5 :]
    encoding = Encoding(kind="topk", num_classes=logits.shape[1], top_k=TOP_K, bits=8)
    fitted = TailFit(encoding.num_classes, TOP_K)
    fitted.update(fit)
    predictor, labels = fitted.fit(), torch.full((len(rows),), -1)
    stored = encode(logits[rows], labels, encoding, predictor=predictor)
    arrays = {name: torch.from_numpy(array) for name, array in stored.items()}
    log_prob = torch.log_softmax(logits[rows], 1)
    found = {
        rule: torch.log_softmax(decode(arrays, labels, encoding, predictor=predictor, tail=rule), 1)
        for rule in ("predicted", "uniform")
    }
    kl = (log_prob.exp() * (log_prob - found["predicted"])).sum(1)
    row = int(kl.argsort()[len(kl) // 2])
    best_first = log_prob[row].argsort(descending=True)
    tail_mass = float(log_prob[row, best_first[TOP_K:]].exp().sum())
    ranks = sorted({*range(1, 31), *(round(10 ** (power / 16)) for power in range(24, 49))})
    ranks = [rank for rank in ranks if rank <= len(best_first)]
    places = best_first[[rank - 1 for rank in ranks]]
    rounded = {
        rule: [float(f"{value:.3g}") for value in line[row, places].exp().tolist()]
        for rule, line in {"teacher": log_prob, **found}.items()
    }
    return {
        "num_classes": encoding.num_classes,
        "top_k": TOP_K,
        "row": int(rows[row]),
        "kl_predicted": round(float(kl[row]), 4),
        "tail_mass": round(tail_mass, 5),
        "ranks": ranks,
        "probability": rounded,
    }


def draw() -> list[Path]:
    """`tails.svg` and its dark twin."""
    return chart("tails", _draw, size=(4.8, 4.6))


def _draw(figure: Any, ground: str) -> None:
    found = json.loads(FIGURES.read_text())
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axis, (rule, title), colour in zip(panels.flat, RULES.items(), COLOURS[ground], strict=True):
        _draw_rule(axis, rule, found, colour, ground)
        axis.set_title(title, loc="left", fontsize=9, color=colour)
    figure.supxlabel("classes, the teacher's best first", fontsize=9)
    figure.supylabel("probability at T = 1", fontsize=9)


def _draw_rule(axis: Any, rule: str, found: dict[str, Any], colour: str, ground: str) -> None:
    ranks, teacher, top_k = found["ranks"], found["probability"]["teacher"], found["top_k"]
    tail = [place for place, rank in enumerate(ranks) if rank > top_k]
    of_tail = [ranks[place] for place in tail]
    least, mass = min(teacher) / 3, found["tail_mass"]
    axis.plot(ranks, teacher, color=QUIET[ground], linewidth=3, alpha=0.5)
    scale = 1 / (1 - mass) if rule == "renormalise" else 1.0
    axis.plot(ranks[:top_k], [scale * value for value in teacher[:top_k]], "o", color=colour, ms=4)
    if rule == "uniform":
        axis.hlines(found["probability"][rule][tail[0]], top_k + 0.6, ranks[-1], color=colour, linewidth=2)
    elif rule == "predicted":
        axis.annotate("grey: the teacher", (15, 0.2), color=QUIET[ground], fontsize=8)
        axis.plot(of_tail, [found["probability"][rule][place] for place in tail], "o", color=colour, ms=2.5)
    elif rule == "bucket":
        axis.fill_between([top_k + 0.6, ranks[-1]], least, mass, color=colour, alpha=0.18, linewidth=0)
        axis.hlines(mass, top_k + 0.6, ranks[-1], color=colour)
        axis.annotate(
            f"all together\n{mass:.1%}", (100, mass), (0, 5), textcoords="offset points", ha="center", fontsize=8
        )
    else:
        axis.annotate("each of them 0:\nimpossible", (100, least * 3), ha="center", color=INK[ground], fontsize=8)
    axis.axvline(top_k + 0.5, color=QUIET[ground], linewidth=0.8, linestyle=":")
    log_axes(axis, (1, 10, 100, 1000), (1e-6, 1e-4, 1e-2, 1))
    axis.set_ylim(least, 1.5)


if __name__ == "__main__":
    FIGURES.write_text(json.dumps(measure(Path(sys.argv[1]))) + "\n")
