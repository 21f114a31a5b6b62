"""Who answers what: five teachers, each of which answers the fold that it has not seen."""

from pathlib import Path

from docs.pictures import FOLDER, diagram

FOLDS = 5
LEFT, TOP, WIDTH, HEIGHT = 78, 46, 56, 26


def draw() -> list[Path]:
    """`folds.svg`."""
    file = FOLDER / "folds.svg"
    file.write_text(drawn())
    return [file]


def drawn() -> str:
    """A line a teacher, a column a fold."""
    parts = ['<text class="small" x="8" y="18">the rows of your data, in five folds</text>']
    for fold in range(FOLDS):
        parts.append(f'<text class="middle" x="{_x(fold) + WIDTH / 2}" y="38">fold {fold}</text>')
    for teacher in range(FOLDS):
        y = TOP + teacher * (HEIGHT + 4)
        parts.append(f'<text x="8" y="{y + 17}">teacher {teacher}</text>')
        for fold in range(FOLDS):
            kind, word = ("chosen", "answers") if fold == teacher else ("box", "learns")
            style = "middle strong" if fold == teacher else "middle small"
            at = f'x="{_x(fold) + WIDTH / 2}" y="{y + 17}" style="font-size: 10.5px"'
            parts.append(f'<rect class="{kind}" x="{_x(fold)}" y="{y}" width="{WIDTH}" height="{HEIGHT}"/>')
            parts.append(f'<text class="{style}" {at}>{word}</text>')
    bottom = TOP + FOLDS * (HEIGHT + 4)
    for fold in range(FOLDS):
        x = _x(fold) + WIDTH / 2
        parts.append(f'<path class="line" d="M{x} {bottom - 2}v12"/>')
        parts.append(f'<path class="head" d="M{x - 4} {bottom + 9}l4 7 4-7z"/>')
    right = _x(FOLDS) - 4
    parts.append(f'<rect class="chosen" x="{LEFT}" y="{bottom + 18}" width="{right - LEFT}" height="30"/>')
    parts.append(f'<text class="middle" x="{(LEFT + right) / 2}" y="{bottom + 38}">the store: every row once</text>')
    said = "No answer comes from a teacher that has learnt from that row."
    parts.append(f'<text class="small" x="8" y="{bottom + 66}">{said}</text>')
    title = "Five teachers; each answers the fold that it has not learnt from, and the store holds one answer a row."
    return diagram(parts, width=right + 8, height=bottom + 76, title=title)


def _x(fold: int) -> int:
    return LEFT + fold * (WIDTH + 4)
