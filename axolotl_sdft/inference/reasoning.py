"""Tells what stands around an answer: a thinking part, markers of a solution, control tokens of raw text.

What stands around the answer of a row stays in the row. What the seed model puts around an answer of its own falls
away: it thinks about the request to rewrite, of which nothing may be trained.
"""

import re
from typing import NamedTuple

from axolotl_sdft.core.texts import well_formed
from axolotl_sdft.inference.call_markup import is_call_token

_FINAL_CHANNEL = "<|channel|>final<|message|>"
_PARTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",  # EXAONE
    "<reasoning>": "</reasoning>",
    "<antThinking>": "</antThinking>",
    "<longcat_think>": "</longcat_think>",
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",  # Cohere
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<unused94>": "<unused95>",  # MedGemma
    "\u25c1think\u25b7": "\u25c1/think\u25b7",  # Kimi-VL
    "[THINK]": "[/THINK]",  # Mistral
    "<|channel|>": _FINAL_CHANNEL,  # gpt-oss, whose answer stands in the last of its channels
    "<|channel>": "<channel|>",  # Gemma 4
}
"""How thinking parts begin and end."""

_HEADINGS = {
    r"Here(?:'s|\u2019s| is) my thought process:": r"Here(?:'s|\u2019s| is) my response:",  # Granite 3.2
    r"analysis(?=\S)": "assistantfinal",  # gpt-oss, where its control tokens were left out
}
"""The same in plain words, which only both together tell from an answer; as regular expressions."""

THINKING_TOKENS = (*_PARTS, *_PARTS.values(), "<|message|>")
"""Tokens that tell a thinking part from the answer; tokenizers take some of them for special ones."""

THINKING_STARTS = tuple(start for start in _PARTS if start != "<|channel|>")
"""With what a thinking part begins where a chat template opens it itself."""

_PAIRS = {**{re.escape(start): re.escape(end) for start, end in _PARTS.items()}, **_HEADINGS}
_SPEAKER = r"(?:<\|start\|>assistant)?"  # before a channel of gpt-oss
_THINKING = re.compile(
    rf"\s*{_SPEAKER}(?:{'|'.join(f'{start}.*?{end}' for start, end in _PAIRS.items())})\s*", re.DOTALL
)
_START = re.compile(rf"{_SPEAKER}(?!{re.escape(_FINAL_CHANNEL)})(?:{'|'.join(map(re.escape, _PARTS))})")
# Of parts that some chat templates start themselves. A mark between quotes is only talked about.
_ENDS = tuple(_PARTS.values())
_ANY_END = f"(?:{'|'.join(map(re.escape, _ENDS))})"
_END = re.compile(rf"""(?:(?<![`'"]){_ANY_END}|{_ANY_END}(?![`'"]))\s*""")
_SOLUTIONS = {
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
    "<answer>": "</answer>",
    "<response>": "</response>",
}
_SOLUTION = re.compile(
    "|".join(
        rf"(\s*{re.escape(start)}\s*)((?:(?!{re.escape(start)}).)*?)((?<!\s)\s*{re.escape(end)}\s*)"
        for start, end in _SOLUTIONS.items()
    ),
    re.DOTALL,
)

_FRAME_TOKENS = frozenset((*THINKING_TOKENS, *_SOLUTIONS, *_SOLUTIONS.values()))
_FIRST_CHARACTERS = tuple({mark[0]: None for mark in (*_PARTS, *_PARTS.values(), *_SOLUTIONS, *_SOLUTIONS.values())})
_HEADED = re.compile(rf"\s*{_SPEAKER}(?:{'|'.join(_HEADINGS)})")

# Where chat templates open a turn, the name of the role belongs to the token.
_ROLE = "(?:system|developer|user|assistant|model|tool|ipython|function)"
_OPENING = "|".join(
    (
        r"<\|im_start\|>[ \t]*\w*\n?",
        r"<\|(?:start_header_id|header_start|start_of_role|im_system|im_user|im_assistant)\|>[^<|]{0,200}"
        r"<\|(?:end_header_id|header_end|end_of_role|im_middle)\|>",  # Llama, Granite, Kimi
        rf"<\|start\|>(?:{_ROLE}\b)?(?:<\|message\|>)?",  # gpt-oss
        rf"<\|[^|<>\s]{{1,40}}\|>[ \t]*{_ROLE}[ \t]*(?=<\|)",
        r"(?:<start_of_turn>|<\|turn>)[ \t]*\w*\n?",  # Gemma
    )
)
# The wide bars are those of DeepSeek, the square brackets with bars those of EXAONE.
_TOKEN = (
    r"<\|(?!(?:begin|end)_of_(?:thought|solution)\|)[^|<>\s]{1,40}\|>|<\uff5c[^\uff5c<>\s]{1,40}\uff5c>|\[\|\w{1,40}\|\]|"
    r"</?s>|<bos>|<eos>|<end_of_turn>|<turn\|>|\[gMASK\]|<sop>|\[/?INST\]|\[/?SYSTEM_PROMPT\]|<</?SYS>>"
)
_LONGEST_TOKEN = 44
_CONTROL = rf"(?:{_OPENING}|{_TOKEN})"
_CHANNEL = r"<\|channel\|>[^<|]{0,80}(?:<\|constrain\|>\w*)?<\|message\|>"
_BETWEEN = re.compile(rf"(?:(?:{_CHANNEL}|{_CONTROL})\s*)+")
_NEXT = re.compile(_CONTROL)
_LAST = re.compile(rf"(?:{_TOKEN})\Z")
_NO_SPACE = re.compile(r"\S|\Z")


class Framed(NamedTuple):
    """An answer with what stands around it. Joined, the three are the original text."""

    before: str
    text: str
    after: str

    def with_text(self, text: str) -> str:
        """Return another answer in the same frame, without a thinking part of its own."""
        return self.before + answer_alone(text) + self.after


def framed(answer: str) -> Framed:
    """Return an answer without its thinking part, and without the markers of a solution that may follow it.

    A part that only ends in the answer counts as well: some chat templates write its beginning.
    """
    if not _may_hold_marks(answer):
        return Framed("", answer, "")
    place = _end_of_thinking(answer)
    before, rest = answer[:place], answer[place:]
    solution = _SOLUTION.fullmatch(rest)
    if solution is None:
        return Framed(before, rest, "")
    opening, text, closing = (part for part in solution.groups() if part is not None)
    return Framed(before + opening, text, closing)


def _may_hold_marks(text: str) -> bool:
    """Whether it is worth to look for what frames an answer: most texts hold none of the characters that begin it."""
    for first in _FIRST_CHARACTERS:  # a generator in any() would cost more than the search
        if first in text:
            return True
    return _HEADED.match(text) is not None


def _end_of_thinking(answer: str) -> int:
    """Return where the answer starts after its thinking part, with the space between them; 0 without such a part."""
    end = _END.search(answer) if any(mark in answer for mark in _ENDS) else None  # a plain search is much faster
    if end is not None and _START.search(answer, 0, end.start()) is None:
        return end.end()
    found = _THINKING.match(answer)
    return found.end() if found else 0


def answer_alone(written: str) -> str:
    """Return what a model wrote without its thinking part; a text that ends within that part stays as it is.

    Halves of surrogate pairs, which no file can hold, are replaced by U+FFFD.
    """
    answer = framed(written).text
    return well_formed(answer) if answer == written else answer_alone(answer)


def is_unfinished_thought(written: str) -> bool:
    """Whether what a model wrote ends within its thinking part, so that it holds no answer."""
    return _may_hold_marks(written) and _START.match(answer_alone(written).lstrip()) is not None


def framed_raw(text: str) -> Framed:
    """Return the answer in a piece of raw text: framed as any other, between space and control tokens.

    ``" Four.<|im_end|>\\n"`` is ``Four.`` between ``" "`` and ``"<|im_end|>\\n"``.
    """
    start = _start_of_answer(text)
    end = _end_of_answer(text, start)
    inner = framed(text[start:end])
    return Framed(text[:start] + inner.before, inner.text, inner.after + text[end:])


def is_control_token(token: str) -> bool:
    """Whether a token of a vocabulary ends or begins a turn by its look: ``<|im_end|>``, ``</s>``, ``[INST]``.

    Marks of a thinking part or of a solution are none, whatever they look like.
    """
    return token not in _FRAME_TOKENS and re.fullmatch(_CONTROL, token) is not None


def _start_of_answer(text: str) -> int:
    """Return where a raw text goes on after the space and the control tokens at its beginning."""
    start = 0
    while True:
        start = _NO_SPACE.search(text, start).start()  # type: ignore[union-attr]  # it finds the end as well
        token = _NEXT.match(text, start)
        if token is None or _belongs_to_answer(token.group()):
            return start
        start = token.end()


def _end_of_answer(text: str, start: int) -> int:
    """Return where the space and the control tokens at the end of a raw text begin, not before ``start``."""
    end = len(text)
    while True:
        end = max(start, len(text[:end].rstrip()))
        token = _LAST.search(text, max(start, end - _LONGEST_TOKEN), end)
        if token is None or _belongs_to_answer(token.group()):
            return end
        end = token.start()


def _belongs_to_answer(token: str) -> bool:
    """Whether a token that looks like a control token is a mark of thinking, of a solution or of a call."""
    return token in _FRAME_TOKENS or is_call_token(token)


def plain(raw: str) -> str:
    """Return raw text as a person would write it: control tokens and the role names beside them become blank lines."""
    *others, last = _BETWEEN.split(raw)
    # Space before a token is taken away afterwards: looked for with the token, a run of blanks takes quadratic time.
    return "\n\n".join([*(part.rstrip() for part in others), last]).strip()
