import pytest
from huggingface_hub import ModelCard, ModelCardData

from axolotl_sdft.core.cards import card_with, code, escaped, fenced, metadata_of, public_name, versions_text


def test_a_card_is_read_back_with_its_metadata_and_its_text():
    card = ModelCard(card_with(ModelCardData(license="mit", language=["de"], tags=["a: b"]), "# Title\n"))
    assert card.data.to_dict() == {"license": "mit", "language": ["de"], "tags": ["a: b"]}
    assert card.text.strip() == "# Title"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_metadata_is_read_whatever_ends_its_lines(tmp_path, end):
    (tmp_path / "README.md").write_bytes(f"---{end}license: mit{end}---{end}# Title{end}".encode())
    assert metadata_of(tmp_path) == {"license": "mit"}


@pytest.mark.parametrize("text", ["", "# Title", "---\n- a\n---\n", "---\na: [\n---\n", "---\n---\n"])
def test_a_card_without_metadata_that_can_be_read_has_none(tmp_path, text):
    assert metadata_of(tmp_path) == {}
    (tmp_path / "README.md").write_text(text)
    assert metadata_of(tmp_path) == {}


def test_a_folder_of_this_machine_is_known_to_others_by_its_own_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert public_name("org/model") == "model"
    assert public_name("org/other") == "org/other"
    assert public_name(str(tmp_path / "mine")) == "mine"


def test_markdown_can_not_be_broken_by_what_it_holds():
    assert escaped("a|b\n**c**") == r"a\|b \*\*c\*\*"
    assert (code("a`b"), code("`a`")) == ("``a`b``", "`` `a` ``")
    assert fenced("```\n", "yaml") == "````yaml\n```\n````"


def test_versions_that_nobody_recorded_are_said_not_to_be():
    assert versions_text({}) == "not recorded"
    assert versions_text({"package_versions": {"torch": "2", "peft": "0.1"}}) == "torch 2, peft 0.1"
