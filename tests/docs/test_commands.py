"""Every command that a page names exists, takes these options, and finds the files that it is given."""

import math
import re
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import tomllib
import yaml

pytest.importorskip("axolotl")

from axolotl_sdft.configs.catalogue import find_config
from tests.docs.pages import PAGES, REPOSITORY, blocks, commands, each_block, name_of, prose

OWN_CONCERN = {"docker", "vllm", "llama-server", "llama-quantize", "curl", "source"}
"""Programs that are not part of this project; what they take is theirs to say."""
FOREIGN_MODULES = {"sglang.launch_server"}
FOREIGN_SCRIPTS = {"convert_hf_to_gguf.py"}  # llama.cpp's
OPTIONS_OF_TRL = {"--use_peft", "--model_name_or_path", "--teacher_model_name_or_path"}
MAKEFILE = (REPOSITORY / "Makefile").read_text()
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def parse_axolotl(words):
    """Let the real command read its arguments, and run nothing."""
    from axolotl.cli.main import cli

    command, context = cli, click.Context(cli, info_name="axolotl")
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"axolotl has no command {name!r}"
        command = found
    given = command.make_context(name, words).params
    if command.name in ("show", "copy"):  # of sdft-configs
        find_config(given["name"])


def check_python(words):
    if words[0] == "-m":
        assert words[1] in FOREIGN_MODULES or find_spec(words[1]), f"there is no module {words[1]!r}"
        return
    if words[0] in FOREIGN_SCRIPTS:
        return
    script = REPOSITORY / words[0]
    assert script.is_file(), f"there is no script {words[0]!r}"
    for option in (word for word in words[1:] if word.startswith("--")):
        is_setting = option.startswith("--dynsdpb_") or option in OPTIONS_OF_TRL
        assert is_setting or f'"{option}"' in script.read_text(), f"{words[0]} takes no {option}"


def check_make(words):
    for word in words:
        variable, is_variable, _ = word.partition("=")
        pattern = rf"^{re.escape(variable)} \?=" if is_variable else rf"^{re.escape(word)}:"
        assert re.search(pattern, MAKEFILE, flags=re.MULTILINE), f"the Makefile has no {variable!r}"


def check_pip(words):
    """The package by its name, from the checkout with extras that exist, or as the wheel that was built there."""
    if words[0] == "wheel":
        assert words[1:] == ["--no-deps", "--wheel-dir", "dist", "."]
        return
    assert words[0] == "install"
    for word in words[1:]:
        from_checkout = re.fullmatch(r"\.\[([\w,]+)\]", word)
        assert not from_checkout or set(from_checkout[1].split(",")) <= set(EXTRAS)
        assert from_checkout or word.startswith("axolotl-sdft[") or word == "dist/axolotl_sdft-*.whl"


def check(words):
    program, *rest = words
    if program == "axolotl":
        parse_axolotl(rest)
    elif program == "python":
        check_python(rest)
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)
    else:
        assert program in OWN_CONCERN, f"what is {program!r}?"


@each_block("console")
def test_the_commands_of_a_block_exist_and_take_these_arguments(block, newcomer_folder):
    checkpoint_of_the_tutorial().mkdir(parents=True)
    for words in commands(block):
        assert not {"<", ">"} & set("".join(words)), "a shell would redirect here"
        check(words)


def checkpoint_of_the_tutorial():
    """Return the folder that the tutorial's run saves after its first epoch."""
    (block,) = [block for block in blocks(REPOSITORY / "docs" / "tutorial.md") if block.title == "config.yml"]
    config = yaml.safe_load(block.text)
    num_rows = len((REPOSITORY / config["datasets"][0]["path"]).read_text().splitlines())
    num_trained = num_rows - math.ceil(num_rows * config["val_set_size"])
    steps = math.ceil(num_trained / (config["micro_batch_size"] * config["gradient_accumulation_steps"]))
    return Path(config["output_dir"]) / f"checkpoint-{steps}"


def test_the_cookbook_resumes_from_a_checkpoint_that_the_tutorial_makes():
    page = (REPOSITORY / "docs" / "cookbook.md").read_text(encoding="utf-8")
    assert f"--resume-from-checkpoint {checkpoint_of_the_tutorial()}\n" in page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_sentences_exist_too(page, newcomer_folder):
    for text in re.findall(r"`((?:axolotl|make) [^`]+)`", prose(page)):
        words = text.split()
        try:
            check(words)
        except click.MissingParameter:  # a command as one speaks of it, without the file that it takes
            check([*words, "config.yml"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_that_a_page_names_exist(page):
    for extras in re.findall(r"axolotl-sdft\[([\w,-]+)\]", page.read_text(encoding="utf-8")):
        assert set(extras.split(",")) <= set(EXTRAS)
