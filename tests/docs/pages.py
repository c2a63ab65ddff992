"""The pages of the documentation and what stands in them: blocks of code, commands, links."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

_FENCED = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r'(\w*)(?: title="([^"]*)")?')


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    """Of its opening fence, counted from 1."""
    language: str
    title: str
    """What a reader sees above the block; empty where it has none."""
    text: str

    @property
    def name(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Return a page's path from the repository's root."""
    return page.relative_to(REPOSITORY).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCED.finditer(text):
        info = _TITLE.fullmatch(fence[1])
        assert info, f"{name_of(page)}: the fence ```{fence[1]} is neither a language nor a language with a title"
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, info[1], info[2] or "", fence[2]))
    return found


def all_blocks(language: str) -> list[Block]:
    """Return the blocks of one language on all pages."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def each_block(language, keep=lambda block: True):
    """Run a test for each block of a language, named by its page and line."""
    params = [pytest.param(block, id=block.name) for block in all_blocks(language) if keep(block)]
    return pytest.mark.parametrize("block", params)


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a block as lists of words, without comments and without variables set before them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [command for line in words if (command := _without_variables(line))]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the generator make them of plain text."""
    heads = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def _without_variables(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words
