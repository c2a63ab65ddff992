"""Pages can be found, links lead somewhere, and blocks are of kinds that some test looks at."""

import html
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

import axolotl_sdft
from axolotl_sdft.cli.settings_reference import settings_rows
from axolotl_sdft.config import BLOCKS
from tests.docs.pages import PAGES, REPOSITORY, anchors, blocks, commands, name_of, prose

TESTED = {"yaml", "python", "console", "toml", "json"}
SHOWN_ONLY = {"text"}
"""What programs print."""


RESULTS = REPOSITORY / "tests" / "benchmarks" / "RESULTS.md"
PARTS = sorted(RESULTS.with_name("results").glob("*.md"))


def links(page):
    """Return the targets of a page's links to other pages and files."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


@pytest.mark.parametrize("page", [*PAGES, RESULTS, *PARTS], ids=name_of)
def test_relative_links_lead_to_files_and_headings_that_are_there(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_results_have_an_index_with_each_part_and_its_verdict():
    index = RESULTS.read_text(encoding="utf-8")
    for page in PARTS:
        text = page.read_text(encoding="utf-8")
        titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
        verdicts = re.findall(r"^\*\*In short:\*\* (.*)$", text, flags=re.MULTILINE)
        for title, verdict in zip(titles, verdicts, strict=True):
            assert f"| [{title}](results/{page.name}#" in index
            assert f" | {verdict} |" in index


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page):
    assert {block.language for block in blocks(page)} <= TESTED | SHOWN_ONLY


def test_the_readme_can_be_read_in_five_minutes_and_starts_with_the_two_commands_that_set_all_up():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1300  # at some 260 words a minute
    assert commands(blocks(REPOSITORY / "README.md")[0]) == [["make", "quickstart"], ["make", "test"]]


def test_every_page_is_in_the_navigation():
    navigation = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    assert set(leaves(navigation)) == {page.relative_to(REPOSITORY / "docs").as_posix() for page in PAGES[1:]}


def leaves(tree):
    if isinstance(tree, str):
        return [tree]
    return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(branch)]


def test_the_reference_holds_every_public_name():
    text = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: axolotl_sdft\.(\w+)$", text, flags=re.MULTILINE))
    assert {name for name in axolotl_sdft.__all__ if not name.startswith("_")} <= named


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


needs_site = pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="needs the extra docs")


def shown(page):
    """Return what a reader sees of a page of the site, without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@needs_site
def test_the_reference_shows_types_and_plain_defaults(site):
    text = shown(site / "reference.html")
    assert "What it costs to remove layers; a lower cost is a less important block or layer." in text
    assert "batches: Iterable[Batch]," in text
    assert "protect_first: int = 0" in text
    assert not re.findall(r":class:|Field\(|ByteSize\(|= _\w+", text)


@needs_site
@pytest.mark.parametrize("block", BLOCKS)
def test_every_setting_stands_in_the_site_with_its_whole_type(site, block):
    text = "\n".join(shown(page) for page in sorted(site.glob("*.html")))
    for row in settings_rows(block):
        assert f"{row.key}\n{row.type_text}\n{row.default}\n" in text


@needs_site
def test_the_search_works_without_a_network(site):
    assert (site / "search" / "search_index.js").is_file()
    page = (site / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<script[^>]* src="([^"]*)"', page)[0] == "assets/iframe-worker.js"
    assert not re.findall(r'(?:src|rel="stylesheet" href)="https?:', page)
