import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from axolotl_sdft.configs import catalogue
from axolotl_sdft.configs.catalogue import configs_dir, find_config, read_description, shared_configs
from axolotl_sdft.core.errors import ArtifactError, UnknownNameError

REPOSITORY = Path(__file__).parent.parent.parent


def test_all_yaml_files_are_listed_by_folder_and_name_with_numbers_in_their_order():
    names = [config.name for config in shared_configs()]
    assert {*names} == {
        path.relative_to(configs_dir()).as_posix().removesuffix(".yml") for path in configs_dir().rglob("*.yml")
    }
    of_one_family = [name for name in names if "mistral-7b-less" in name and name.endswith("openmathinstruct")]
    counts = [name.split("less-")[1].split("-")[0] for name in of_one_family]
    assert counts == ["2", "4", "6", "8", "10"]


@pytest.mark.parametrize(
    "name", ["sdft/llama-2-7b-chat-gsm8k", "sdft/llama-2-7b-chat-gsm8k.yml", "llama-2-7b-chat-gsm8k"]
)
def test_a_configuration_is_found_by_its_name_with_or_without_folder_and_suffix(name):
    assert find_config(name).name == "sdft/llama-2-7b-chat-gsm8k"


def test_a_misspelt_name_is_answered_with_the_nearest_ones():
    with pytest.raises(UnknownNameError, match="no configuration 'quickstrat'; did you mean quickstart"):
        find_config("quickstrat")


def test_a_misspelt_name_without_its_folder_is_answered_with_the_nearest_ones_too():
    with pytest.raises(UnknownNameError, match=r"did you mean .*today/smollm3-3b-24gb"):
        find_config("smollm-3b-24gb")


def test_a_name_like_no_other_is_answered_with_how_to_list_them():
    with pytest.raises(UnknownNameError, match="see: axolotl sdft-configs list"):
        find_config("zzzz")


def test_a_file_name_in_two_folders_is_answered_with_both(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.yml").write_text("base_model: x\n")
    monkeypatch.setattr(catalogue, "configs_dir", lambda: tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean a/same or b/same"):
        find_config("same")


def test_without_the_folder_the_error_says_to_install_again(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "axolotl_sdft" / "configs" / "catalogue.py"))
    with pytest.raises(ArtifactError, match="install axolotl-sdft again"):
        configs_dir()


def test_a_description_is_the_first_lines_with_what_follows_on_indented_ones():
    text = "# title: A and B\n# needs: 1 GPU;\n#   and time\n\n# source: not at the top any more\nbase_model: x\n"
    assert read_description(text) == {"title": "A and B", "needs": "1 GPU; and time"}


def test_a_value_may_hold_colons():
    assert read_description("# source: SDFT: arXiv 2402.13669\n") == {"source": "SDFT: arXiv 2402.13669"}


@pytest.mark.parametrize("text", ["", "base_model: x\n", "# All three stages.\n#   more prose\nbase_model: x\n"])
def test_prose_is_no_description(text):
    assert read_description(text) == {}


@pytest.mark.skipif(find_spec("hatchling") is None, reason="the wheel is built with hatchling")
def test_the_wheel_holds_every_configuration_with_its_data(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        **{"cwd": REPOSITORY, "check": True, "capture_output": True},
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    expected = [path for path in (REPOSITORY / "example_configs").rglob("*") if path.suffix in (".yml", ".jsonl")]
    assert expected
    assert {f"axolotl_sdft/{path.relative_to(REPOSITORY).as_posix()}" for path in expected} <= held
