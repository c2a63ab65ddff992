"""Puts previewed answers on a terminal: two columns where it is wide enough, else one below the other."""

import unicodedata
from collections.abc import Iterator
from itertools import zip_longest

from axolotl_sdft.core.texts import cut, duration, printable
from axolotl_sdft.distillation.output.preview import Preview, PreviewedAnswer

_LEAST_WIDTH = 100
_MOST_WIDTH = 200
_SHOWN_CHARS = 1200
_LABEL = 11
_BETWEEN = " | "


def answer_lines(shown: PreviewedAnswer, where: str, width: int | None) -> Iterator[str]:
    """Yield prompt, reference and rewritten answer with the verdict.

    Args:
        shown: The answer.
        where: What messages call its dataset.
        width: Columns of the terminal; None when the lines go into a file or a pipe, where nothing is wrapped.
    """
    turn = f", answer {shown.turn + 1} of {shown.num_turns}" if shown.num_turns > 1 else ""
    yield printable(f"--- {where}, row {shown.row}{turn}: {shown.verdict}".replace("\n", " "))
    texts = [_shown(text) for text in (shown.target.instruction, shown.target.reference, shown.answer.text)]
    yield from _labelled("prompt:", texts[0], width)
    if width is None or width < _LEAST_WIDTH:
        yield from _labelled("reference:", texts[1], width)
        yield from _labelled("rewritten:", texts[2], width)
    else:
        yield from _columns(("reference:", texts[1]), ("rewritten:", texts[2]), min(width, _MOST_WIDTH))
    yield ""


def preview_lines(previewed: Preview, where: str, num_rows: int) -> Iterator[str]:
    """Yield acceptance, distribution gap and the time that the whole dataset would take.

    Args:
        previewed: The rows that were looked at.
        where: What messages call the dataset.
        num_rows: Rows of the whole dataset.
    """
    if not previewed.answers:
        reasons = previewed.left_alone.named()
        yield printable(
            f"{where}: none of the {previewed.num_rows} rows holds an answer to rewrite: {reasons}; or show more rows"
        )
        return
    total = len(previewed.answers)
    rejected = ", ".join(f"{name} {count}" for name, count in previewed.rejections.most_common())
    yield (
        f"{where}: {previewed.num_accepted} of {total} answers accepted ({100 * previewed.num_accepted / total:.0f} %)"
        + (f", rejected: {rejected}" if rejected else "")
    )
    if previewed.left_alone.answers:
        yield printable(f"left alone: {previewed.left_alone.named()}")
    if previewed.gap is not None:
        before, after = previewed.gap
        yield f"distribution gap: {before:.2f} nats per token before, {after:.2f} after"
    each = previewed.seconds / previewed.num_rows
    yield (
        f"time: {each:.2g} s a row; about {duration(each * num_rows)} for all {num_rows:,} rows at this rate "
        "(less where the backend gains from fuller batches)"
    )


def _shown(text: str) -> str:
    return printable(cut(text, _SHOWN_CHARS)).expandtabs(4)


def _labelled(label: str, text: str, width: int | None) -> Iterator[str]:
    """Yield a text beside its label."""
    lines = text.split("\n") if width is None else _wrapped(text, max(20, width - _LABEL))
    for place, line in enumerate(lines):
        yield f"{label if place == 0 else '':<{_LABEL}}{line}".rstrip()


def _columns(left: tuple[str, str], right: tuple[str, str], width: int) -> Iterator[str]:
    """Yield two texts beside each other, each under its label."""
    column = (width - len(_BETWEEN)) // 2
    pairs = zip_longest(*([label, *_wrapped(text, column)] for label, text in (left, right)), fillvalue="")
    for one, other in pairs:
        yield f"{one}{' ' * (column - _cells(one))}{_BETWEEN}{other}".rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines of at most ``width`` terminal cells, broken at spaces where there are any."""
    lines = []
    for paragraph in text.split("\n"):
        line, cells = "", 0
        for word in paragraph.split(" "):
            size = _cells(word)
            if line and cells + 1 + size > width:
                lines.append(line)
                line, cells = "", 0
            elif line:
                line, cells = line + " ", cells + 1
            for character in word:  # a word longer than the line is broken; Chinese has no spaces at all
                size = _cells(character)
                if cells + size > width:
                    lines.append(line)
                    line, cells = "", 0
                line, cells = line + character, cells + size
        lines.append(line)
    return lines


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for wide characters, none for combining ones."""
    return sum(_CELLS.get(unicodedata.east_asian_width(char), 1) for char in text if not unicodedata.combining(char))


_CELLS = {"W": 2, "F": 2}
