import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from axolotl_sdft.cli.settings_reference import (
    BLOCKS,
    main,
    markdown_files,
    markdown_table,
    plain_help,
    refresh,
    settings_rows,
)
from axolotl_sdft.core.errors import ConfigError, UnknownNameError
from axolotl_sdft.core.safe_output import is_secret_name

REPO_ROOT = Path(__file__).parents[2]
TASK = create_model("Task", name=(str, ...), shots=(int | None, None))


@pytest.fixture
def define(monkeypatch):
    """Replace all blocks by one called ``sample`` that has the given fields."""

    def define(**fields: Any) -> None:
        monkeypatch.setattr("axolotl_sdft.cli.settings_reference.BLOCKS", {"sample": create_model("Sample", **fields)})

    return define


# Rows


def test_nested_blocks_are_flattened_where_they_stand():
    keys = [row.key for row in settings_rows("self_distillation")]
    nested = keys.index("self_distillation.generation.backend")
    assert keys[0] == "self_distillation.template"
    assert keys[nested - 1] == "self_distillation.general_rows"
    assert keys[nested + 1] == "self_distillation.generation.max_new_tokens"
    assert "self_distillation.generation" not in keys


def test_a_block_that_may_be_absent_has_a_row_of_its_own_before_its_keys(define):
    nested = create_model("Nested", seed=(int, Field(42, description="Seed.")))
    define(sampling=(nested | None, Field(None, description="Present: answers are sampled.")))
    assert settings_rows("sample") == [
        ("sample.sampling", "block", "unset", "Present: answers are sampled."),
        ("sample.sampling.seed", "int", "42", "Seed."),
    ]


def test_blocks_one_of_which_a_key_chooses_have_one_row_for_each_setting_that_says_for_which(define):
    shared = {"seed": (int, Field(42, description="Random seed."))}
    here = create_model("Here", kind=(Literal["here"], Field("here", description="Which.")), **shared)
    there = create_model("There", kind=(Literal["there"], "there"), **shared, url=(str, Field(description="Where.")))
    own = create_model("Own", kind=(str, ...), **shared, url=(str, Field(description="Unused.")))
    define(place=(here | there | own, here()))

    assert [tuple(row) for row in settings_rows("sample")] == [
        ("sample.place.kind", "here or there or str", "here", "Which."),
        ("sample.place.seed", "int", "42", "Random seed."),
        ("sample.place.url", "str", "required", "Only with ``kind`` ``there`` or a plugin's. Where."),
    ]


def test_the_settings_of_each_backend_are_listed_with_its_name():
    texts = {row.key.rpartition(".")[2]: row.description for row in settings_rows("self_distillation")}

    assert texts["base_urls"].startswith("Only with ``backend`` ``openai``. ")
    assert texts["vllm_args"].startswith("Only with ``backend`` ``vllm``. ")
    assert texts["dtype"].startswith("Only with ``backend`` ``transformers`` or ``vllm`` or a plugin's. ")
    assert texts["options"].startswith("Only with ``backend`` a plugin's. ")
    assert "Only with" not in texts["max_new_tokens"]


@pytest.mark.parametrize("block", BLOCKS)
def test_no_setting_is_taken_for_a_secret_and_masked(block):
    assert [row.key for row in settings_rows(block) if is_secret_name(row.key.rpartition(".")[2])] == []


def test_a_row_holds_key_bounded_type_default_and_text():
    rows = {row.key: tuple(row) for row in settings_rows("layer_pruning")}
    assert rows["layer_pruning.calibration.sequence_len"] == (
        "layer_pruning.calibration.sequence_len",
        "int >= 8",
        "1024",
        "Tokens kept of each row.",
    )


@pytest.mark.parametrize("block_name", BLOCKS)
def test_every_setting_has_a_text_of_whole_sentences_on_one_line(block_name):
    for row in settings_rows(block_name):
        assert row.description.endswith("."), row.key
        assert "\n" not in row.description, row.key


@pytest.mark.parametrize(
    ("annotation", "field", "text"),
    [
        (bool, Field(True), "bool"),
        (int | None, Field(None, ge=1), "int >= 1"),
        (float, Field(0.5, gt=0), "float > 0"),
        (float, Field(0.5, gt=0.0, le=1.0), "0 < float <= 1"),
        (float, Field(0.5, ge=0.1, lt=1_000_000), "0.1 <= float < 1000000"),
        (int, Field(2, le=8), "int <= 8"),
        (Literal["auto", "bf16"], Field("auto"), "auto or bf16"),
        (str | dict[str, Any] | None, Field(None), "str or dict"),
        (tuple[str, ...], Field(()), "list of str"),
        (list[int | str], Field([]), "list of int or str"),
    ],
)
def test_a_type_is_told_with_its_bounds_and_without_its_absence(define, annotation, field, text):
    define(key=(annotation, field))
    assert settings_rows("sample")[0].type_text == text


@pytest.mark.parametrize(
    ("annotation", "default", "text"),
    [
        (bool, Field(False), "false"),
        (int | None, Field(None), "unset"),
        (float, Field(2.0), "2.0"),
        (str, Field("5GB"), "5GB"),
        (str, Field(""), '""'),
        (tuple[str, ...], Field(("leak", "empty")), "[leak, empty]"),
        (list[bool], Field(default_factory=lambda: [True]), "[true]"),
        (int, Field(), "required"),
        (tuple[TASK, ...], Field((TASK(name="a", shots=5), TASK(name="b"))), "[{name: a, shots: 5}, {name: b}]"),
        (dict[str, Any], Field({"b": [True]}), "{b: [true]}"),
    ],
)
def test_a_default_is_told_as_it_would_stand_in_yaml(define, annotation, default, text):
    define(key=(annotation, default))
    assert settings_rows("sample")[0].default == text


def test_an_unknown_block_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="'pruning' is not a block of settings; known: layer_pruning, self_dist"):
        settings_rows("pruning")


# Tables and help


def test_a_markdown_table_has_a_line_for_each_setting_and_escapes_bars(define):
    nested = create_model("Nested", seed=(int, Field(42, ge=0, description="Seed of ``a | b``.")))
    define(path=(str | None, Field(None, description="A file.")), generation=(nested, nested()))
    assert markdown_table("sample").splitlines() == [
        "| Key | Type | Default | Meaning |",
        "|---|---|---|---|",
        "| `sample.path` | `str` | unset | A file. |",
        r"| `sample.generation.seed` | `int >= 0` | `42` | Seed of `a \| b`. |",
    ]


def test_help_is_a_line_for_each_setting_with_its_text_below(define):
    define(seed=(int, Field(42, ge=0, description="Seed of the ``sampling``.")))
    assert plain_help("sample") == "sample.seed: int >= 0 (default: 42)\n    Seed of the sampling."


def test_help_breaks_a_long_default_at_spaces(define):
    define(keys=(tuple[str, ...], Field(("a" * 60, "b" * 60))))
    assert plain_help("sample").splitlines() == [
        f"sample.keys: list of str (default: [{'a' * 60},",
        f"    {'b' * 60}])",
    ]


def test_help_breaks_long_texts_but_never_inside_code(define):
    define(key=(str, Field("x", description="a" * 90 + " ``{{ instruction }}`` " + "b" * 90)))
    assert plain_help("sample").splitlines()[1:] == ["    " + "a" * 90, "    {{ instruction }}", "    " + "b" * 90]


@pytest.mark.parametrize("block_name", BLOCKS)
def test_help_fits_a_hundred_columns_and_is_one_paragraph(block_name):
    lines = plain_help(block_name).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line.strip() for line in lines)
    assert not any("`" in line for line in lines)


# Files kept fresh


def marked(table: str) -> str:
    """A file with a section for each block that holds the same table."""
    sections = [f"## {name}\n<!-- settings:{name} -->\n{table}\n<!-- /settings:{name} -->\n" for name in BLOCKS]
    return "# Title\n" + "between\n".join(sections) + "the end\n"


def test_refreshing_replaces_what_is_between_the_markers_and_nothing_else():
    (fresh,) = refresh([marked("an old\n\ntable")])
    for name in BLOCKS:
        assert f"<!-- settings:{name} -->\n{markdown_table(name)}\n<!-- /settings:{name} -->\n" in fresh
        fresh = fresh.replace(markdown_table(name), "an old\n\ntable")
    assert fresh == marked("an old\n\ntable")


def test_refreshing_twice_changes_nothing_more():
    once = refresh([marked("")])
    assert refresh(once) == once


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<!-- settings:dynsdpb -->", ""),
        ("<!-- /settings:dynsdpb -->", ""),
        ("<!-- settings:dynsdpb -->", "<!-- settings:dynsdpb --><!-- settings:dynsdpb -->"),
        ("<!-- /settings:dynsdpb -->", "<!-- /settings:dynsdpb --><!-- /settings:dynsdpb -->"),
        (
            "<!-- settings:dynsdpb -->\n\n<!-- /settings:dynsdpb -->",
            "<!-- /settings:dynsdpb --><!-- settings:dynsdpb -->",
        ),
    ],
)
def test_markers_that_are_not_one_pair_are_refused_by_name(old, new):
    broken = marked("").replace(old, new)
    assert broken != marked("")
    with pytest.raises(ConfigError, match=r"the markers <!-- settings:dynsdpb --> and .* must be there once each"):
        refresh([broken])


def test_a_marker_of_an_unknown_block_is_refused():
    with pytest.raises(
        ConfigError, match="a marker names 'merging', which is not a block of settings; known: layer_pr"
    ):
        refresh([marked("") + "<!-- settings:merging -->"])


def test_the_command_rewrites_the_file(tmp_path):
    (tmp_path / "README.md").write_text(marked("größer"), encoding="utf-8")
    command = [sys.executable, "-m", "axolotl_sdft.cli.settings_reference", str(tmp_path / "README.md")]
    subprocess.run(command, cwd=REPO_ROOT, check=True)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == refresh([marked("")])[0]


@pytest.mark.parametrize(("content", "cause"), [(None, "No such file"), ("# Title", "the markers <!-- settings:lay")])
def test_the_command_ends_with_the_cause_and_leaves_the_file_alone(tmp_path, content, cause):
    path = tmp_path / "README.md"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=rf"error: .*README\.md: .*{cause}"):
        main([str(path)])
    assert (path.read_text() if path.exists() else None) == content


def test_a_folder_stands_for_the_files_in_it_and_blocks_may_be_spread_over_them(tmp_path):
    first, second = marked("").split("between\n", maxsplit=1)
    for name, text in (("a.md", first), ("inner/b.md", second), ("notes.txt", "<!-- settings:nothing -->")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    main([str(tmp_path)])
    fresh = [(tmp_path / name).read_text() for name in ("a.md", "inner/b.md")]
    assert fresh == refresh([first, second])
    assert markdown_table("layer_pruning") in fresh[0]
    assert markdown_table("dynsdpb") in fresh[1]


@pytest.mark.parametrize("block", ["layer_pruning", "dynsdpb"])
def test_markers_of_one_block_in_two_files_are_refused(block):
    again = f"<!-- settings:{block} --><!-- /settings:{block} -->"
    with pytest.raises(ConfigError, match=f"the markers <!-- settings:{block} --> and .* must be there once each"):
        refresh([marked(""), again])


def test_a_pair_of_markers_that_lies_in_two_files_is_refused():
    opening, closing = marked("").split("<!-- /settings:layer_pruning -->")
    with pytest.raises(ConfigError, match=r"the markers <!-- settings:layer_pruning --> and .* must be there once"):
        refresh([opening, "<!-- /settings:layer_pruning -->" + closing])


def test_the_documentation_is_fresh():
    pages = markdown_files([REPO_ROOT / "README.md", REPO_ROOT / "docs"])
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert refresh(texts) == texts, "run: python -m axolotl_sdft.cli.settings_reference README.md docs"


def test_every_block_is_a_pydantic_model_with_a_text():
    for name, model in BLOCKS.items():
        assert issubclass(model, BaseModel), name
        assert model.__doc__, name
