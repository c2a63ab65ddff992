"""The ``code`` check: fenced code is missing where the original has some, or does not parse."""

import ast
import re
import textwrap
import warnings
from typing import NamedTuple

from axolotl_sdft.distillation.interfaces import Answer, Target

_MARK = r"^[ \t]*(?P<fence>`{3,}|~{3,})"
_FENCE = re.compile(
    rf"{_MARK}[ \t]*(?P<tag>[^\s`]*)[^\n`]*\n(?P<code>.*?)^[ \t]*(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE
)
_OPENING = re.compile(_MARK, re.MULTILINE)
_SAME_LANGUAGE = {
    **{"py": "python", "python3": "python", "js": "javascript", "ts": "typescript"},
    **{"sh": "bash", "shell": "bash", "c++": "cpp", "c#": "csharp"},
}
_PROSE = ("text", "txt", "markdown", "md", "console", "output", "plaintext")
# Strings and comments, in which brackets need no partner.
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`[^`]*`|/\*.*?\*/|//[^\n]*|#[^\n]*", re.DOTALL)
_NOTEBOOK_LINE = re.compile(r"^([ \t]*)(?:[!%][^\n]*)$", re.MULTILINE)
_PAIRS = {")": "(", "]": "[", "}": "{"}


class Block(NamedTuple):
    """A piece of code between fences."""

    language: str
    """The tag behind the opening fence in lower case, one name per language; empty without a tag."""

    code: str


def code(answer: Answer, target: Target) -> str | None:
    """Reject an answer without the fenced code that the original has, or with code that does not parse.

    Python is parsed; in other languages brackets must be balanced. A language whose blocks fail the same test in the
    original is not tested.
    """
    blocks, expected = fenced_blocks(answer.text), fenced_blocks(target.reference)
    if expected and not blocks:
        return "no code block"
    if len(_OPENING.findall(answer.text)) % 2 and not len(_OPENING.findall(target.reference)) % 2:
        return "a code block is left open"
    missing = {block.language for block in expected} - {block.language for block in blocks} - {""}
    if missing:
        return f"no {min(missing)} block"
    excused = {block.language for block in expected if _fault(block)}
    faults = (_fault(block) for block in blocks if block.language not in excused)
    return next(filter(None, faults), None)


def fenced_blocks(text: str) -> list[Block]:
    """Return the code between fences, in order."""
    return [Block(_language(found["tag"]), found["code"]) for found in _FENCE.finditer(text)]


def _language(tag: str) -> str:
    tag = tag.strip("{}.").lower()
    return _SAME_LANGUAGE.get(tag, tag)


def _fault(block: Block) -> str | None:
    if block.language == "python":
        return _python_fault(block.code)
    if block.language and block.language not in _PROSE:
        return _bracket_fault(block.language, block.code)
    return None


def _python_fault(text: str) -> str | None:
    text = _NOTEBOOK_LINE.sub(r"\1pass", textwrap.dedent(text))
    if text.lstrip().startswith(">>>"):
        text = "\n".join(line[4:] for line in text.splitlines() if line.startswith((">>>", "...")))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an odd escape in someone's string is no fault of ours
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        return f"the python block does not parse: {getattr(err, 'msg', err)}"
    return None


def _bracket_fault(language: str, text: str) -> str | None:
    open_brackets: list[str] = []
    for character in _QUOTED.sub("", text):
        if character in _PAIRS.values():
            open_brackets.append(character)
        elif character in _PAIRS and (not open_brackets or open_brackets.pop() != _PAIRS[character]):
            return f"the {language} block has a {character} too many"
    return f"the {language} block leaves a {open_brackets[-1]} open" if open_brackets else None
