"""Tells what stands around an answer and stays: a thinking part, markers of a solution, control tokens of raw text."""

import re
from typing import NamedTuple

_THINKING = re.compile(
    r"\s*(?:<(think|thinking|reasoning)>.*?</\1>|<\|begin_of_thought\|>.*?<\|end_of_thought\|>)\s*", re.DOTALL
)
_SOLUTION = re.compile(r"(\s*<\|begin_of_solution\|>\s*)(.*?)(\s*<\|end_of_solution\|>\s*)", re.DOTALL)

# Where chat templates open a turn, the name of the role belongs to the token.
_OPENING = r"<\|im_start\|>[ \t]*\w*\n?|<\|start_header_id\|>\s*\w*\s*<\|end_header_id\|>|<start_of_turn>[ \t]*\w*\n?"
# The wide bars are those of DeepSeek.
_TOKEN = (
    r"<\|(?!(?:begin|end)_of_(?:thought|solution)\|)[^|<>\s]{1,40}\|>|<\uff5c[^\uff5c<>\s]{1,40}\uff5c>|"
    r"</?s>|<bos>|<eos>|<end_of_turn>|\[/?INST\]|\[/?SYSTEM_PROMPT\]|<</?SYS>>"
)
_CONTROL = rf"(?:{_OPENING}|{_TOKEN})"
_BETWEEN = re.compile(rf"\s*(?:{_CONTROL}\s*)+")
_LEADING = re.compile(rf"(?:\s|{_CONTROL})*")
_TRAILING = re.compile(rf"(?:\s|{_TOKEN})*\Z")


class Framed(NamedTuple):
    """An answer with what stands around it. Joined, the three are the original text."""

    before: str
    text: str
    after: str

    def with_text(self, text: str) -> str:
        """Return another answer in the same frame."""
        return self.before + text + self.after


def framed(answer: str) -> Framed:
    """Return an answer without its thinking part, and without the markers of a solution that may follow it."""
    found = _THINKING.match(answer)
    before, rest = (found.group(), answer[found.end() :]) if found else ("", answer)
    solution = _SOLUTION.fullmatch(rest)
    if solution is None:
        return Framed(before, rest, "")
    return Framed(before + solution[1], solution[2], solution[3])


def framed_raw(text: str) -> Framed:
    """Return the answer in a piece of raw text: framed as any other, between space and control tokens.

    ``" Four.<|im_end|>\\n"`` is ``Four.`` between ``" "`` and ``"<|im_end|>\\n"``.
    """
    start = _LEADING.match(text).end()  # type: ignore[union-attr]  # it matches an empty text as well
    end = max(start, _TRAILING.search(text).start())  # type: ignore[union-attr]
    inner = framed(text[start:end])
    return Framed(text[:start] + inner.before, inner.text, inner.after + text[end:])


def plain(raw: str) -> str:
    """Return raw text as a person would write it: control tokens and the role names beside them become blank lines."""
    return _BETWEEN.sub("\n\n", raw).strip()
