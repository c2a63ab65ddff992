"""Tells what stands around an answer: a thinking part, markers of a solution, control tokens of raw text.

What stands around the answer of a row stays in the row. What the seed model puts around an answer of its own falls
away: it thinks about the request to rewrite, of which nothing may be trained.
"""

import re
from typing import NamedTuple

_FINAL_CHANNEL = "<|channel|>final<|message|>"
_PARTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<reasoning>": "</reasoning>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "[THINK]": "[/THINK]",  # Mistral
    "<|channel|>": _FINAL_CHANNEL,  # gpt-oss, whose answer stands in the last of its channels
    "<|channel>": "<channel|>",  # Gemma 4
}
"""How thinking parts begin and end."""

THINKING_TOKENS = (*_PARTS, *_PARTS.values(), "<|message|>")
"""Tokens that tell a thinking part from the answer; tokenizers take some of them for special ones."""

_THINKING = re.compile(
    rf"\s*(?:{'|'.join(f'{re.escape(start)}.*?{re.escape(end)}' for start, end in _PARTS.items())})\s*", re.DOTALL
)
_START = re.compile(rf"\s*(?!{re.escape(_FINAL_CHANNEL)})(?:{'|'.join(map(re.escape, _PARTS))})")
# Of parts that some chat templates start themselves. A mark between quotes is only talked about.
_ENDS = ("</think>", "[/THINK]", _FINAL_CHANNEL)
_ANY_END = f"(?:{'|'.join(map(re.escape, _ENDS))})"
_END = re.compile(rf"""(?:(?<![`'"]){_ANY_END}|{_ANY_END}(?![`'"]))\s*""")
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
        """Return another answer in the same frame, without a thinking part of its own."""
        return self.before + answer_alone(text) + self.after


def framed(answer: str) -> Framed:
    """Return an answer without its thinking part, and without the markers of a solution that may follow it."""
    found = _THINKING.match(answer)
    before, rest = (found.group(), answer[found.end() :]) if found else ("", answer)
    solution = _SOLUTION.fullmatch(rest)
    if solution is None:
        return Framed(before, rest, "")
    return Framed(before + solution[1], solution[2], solution[3])


def answer_alone(written: str) -> str:
    """Return what a model wrote without its thinking part; a text that ends within that part stays as it is."""
    end = _END.search(written) if any(mark in written for mark in _ENDS) else None  # a plain search is much faster
    is_started_by_the_template = end is not None and _START.search(written, 0, end.start()) is None
    answer = written[end.end() :] if end and is_started_by_the_template else framed(written).text
    return answer if answer == written else answer_alone(answer)


def is_unfinished_thought(written: str) -> bool:
    """Whether what a model wrote ends within its thinking part, so that it holds no answer."""
    return _START.match(answer_alone(written)) is not None


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
