"""The ``code`` check: fenced code is missing where the original has some, or does not parse.

Only what can be told for certain is a fault: Python is parsed, and a few languages whose strings and comments can be
told from code must have balanced brackets. Where a quote, a slash or a raw string may be read in two ways, code passes.
"""

import ast
import re
import textwrap
import warnings
from typing import NamedTuple

from axolotl_sdft.inference.interfaces import Answer, Target

_MARK = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[^\s`]*)(?P<rest>[^\n`]*)")
_OPENING = re.compile(r"^[ \t]*(?:`{3,}|~{3,})", re.MULTILINE)
_SAME_LANGUAGE = {
    **{"py": "python", "python3": "python", "js": "javascript", "ts": "typescript", "golang": "go", "rs": "rust"},
    **{"sh": "bash", "shell": "bash", "c++": "cpp", "c#": "csharp", "cs": "csharp"},
}
_STRING = r"\"(?:\\.|[^\"\\\n])*\""
_COMMENTS = r"/\*.*?\*/|//[^\n]*"
_CHARACTER = r"'(?:\\[^\n']{1,9}|\\'|[^'\\\n])'"
_C_LIKE = rf"{_STRING}|{_CHARACTER}|{_COMMENTS}|^[ \t]*#[^\n]*"
_SCRIPT = rf"{_STRING}|'(?:\\.|[^'\\\n])*'|`[^`]*`|{_COMMENTS}"
# What holds no bracket of the code, per language, and what can't be told from code when it is left over.
_QUOTED = {
    **dict.fromkeys(("c", "cpp"), (_C_LIKE, r"[\"']|R\"|#\s*(?:if|else|elif)")),
    "csharp": (_C_LIKE, r"[\"'@]|\$\"|#\s*(?:if|else|elif)"),
    "java": (rf"{_STRING}|{_CHARACTER}|{_COMMENTS}", r"[\"']|\"\"\""),
    "go": (rf"{_STRING}|`[^`]*`|{_CHARACTER}|{_COMMENTS}", r"[\"'`]"),
    "rust": (rf"{_STRING}|{_CHARACTER}|'\w+|{_COMMENTS}", r"[\"']|\br#*\"|/\*"),
    **dict.fromkeys(("javascript", "typescript"), (_SCRIPT, r"[\"'`/<]|\$\{")),
    "json": (_STRING, r"[\"'/#]"),
}
_CODE = {
    language: (re.compile(quoted, re.DOTALL | re.MULTILINE), re.compile(unclear))
    for language, (quoted, unclear) in _QUOTED.items()
}
_NESTED = re.compile(r"\"\"\"|R\"|@\"|\$\"|\br#+\"|#\s*(?:if|else|elif)|`[^`]*\$\{[^`}]*`")
_NOTEBOOK_LINE = re.compile(r"^([ \t]*)(?:[!%?][^\n]*)$", re.MULTILINE)
_TRANSCRIPT = re.compile(
    r"^[ \t]*(?:>>> ?|In ?\[\d*\]:|Out ?\[\d*\]:|\$ |\w+@[\w.-]+[:~]|C:\\|%%\w|Traceback \(most recent)", re.MULTILINE
)
# Python of a later version than the one that runs here.
_NEWER_PYTHON = re.compile(
    r"^\s*type\s+\w+.*=|\b(?:def|class)\s+\w+\[|\bf[rR]?(?:\"[^\"\n]*\{[^}\n]*\"|'[^'\n]*\{[^}\n]*')|\bexcept\s*\*|"
    r"\bt[\"']"
    r"|^\s*except\s+\w+(?:\s*,\s*\w+)+\s*:",
    re.MULTILINE,
)
_PAIRS = {")": "(", "]": "[", "}": "{"}


class Block(NamedTuple):
    """A piece of code between fences."""

    language: str
    """The tag behind the opening fence in lower case, one name per language; empty without a tag."""

    code: str


def code(answer: Answer, target: Target) -> str | None:
    """Reject an answer without the fenced code that the original has, or with code that does not parse.

    Python is parsed, transcripts of a session left alone. C, C++, C#, Go, Java, JavaScript, JSON, Rust and TypeScript
    must have balanced brackets, as far as strings and comments can be told from code. A language whose blocks fail the
    same test in the original is not tested.
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
    languages = dict.fromkeys(block.language for block in blocks if block.language not in excused)
    faults = (_first_fault([block for block in blocks if block.language == language]) for language in languages)
    return next(filter(None, faults), None)


def fenced_blocks(text: str) -> list[Block]:
    """Return the code between fences, in order."""
    blocks: list[Block] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        mark = _MARK.fullmatch(line.rstrip("\r\n"))
        if opened is None:
            opened, lines = mark, []
        elif mark and mark["fence"] == opened["fence"] and not mark["tag"] and not mark["rest"].strip():
            blocks.append(Block(_language(opened["tag"]), "".join(lines)))
            opened = None
        else:
            lines.append(line)
    return blocks


def _language(tag: str) -> str:
    tag = tag.strip("{}.").lower()
    return _SAME_LANGUAGE.get(tag, tag)


def _first_fault(blocks: list[Block]) -> str | None:
    """Return the first fault of the blocks of one language; none where they are pieces that are whole together."""
    fault = next(filter(None, map(_fault, blocks)), None)
    if fault and len(blocks) > 1:
        joined = "\n".join(block.code for block in blocks)
        return fault if _fault(Block(blocks[0].language, joined)) else None
    return fault


def _fault(block: Block) -> str | None:
    if block.language == "python":
        return _python_fault(block.code)
    return _bracket_fault(block.language, block.code) if block.language in _CODE else None


def _python_fault(text: str) -> str | None:
    if _TRANSCRIPT.search(text):
        return None
    text = _NOTEBOOK_LINE.sub(r"\1pass", textwrap.dedent(text))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an odd escape in someone's string is not a fault of ours
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        if _NEWER_PYTHON.search(text):
            return None
        return f"the python block does not parse: {getattr(err, 'msg', err)}"
    return None


def _bracket_fault(language: str, text: str) -> str | None:
    quoted, unclear = _CODE[language]
    plain = quoted.sub(" ", text)
    if _NESTED.search(text) or unclear.search(plain):
        return None
    open_brackets: list[str] = []
    for character in plain:
        if character in _PAIRS.values():
            open_brackets.append(character)
        elif character in _PAIRS and (not open_brackets or open_brackets.pop() != _PAIRS[character]):
            return f"the {language} block has a {character} too many"
    return f"the {language} block leaves a {open_brackets[-1]} open" if open_brackets else None
