"""The commands as a person types them."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner

from axolotl_sdft.configs.catalogue import find_config, shared_configs

GSM8K = "sdft/llama-2-7b-chat-gsm8k"


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def run(*args):
    """Run the command as `axolotl` finds it, through its entry point."""
    (point,) = entry_points(group="axolotl.cli_commands", name="sdft-configs")
    return CliRunner().invoke(point.load(), list(args))


def test_the_list_has_each_name_what_it_takes_and_its_title_in_100_columns():
    lines = run("list").output.splitlines()
    assert len(lines) == 2 * len(shared_configs())
    assert max(map(len, lines)) <= 100
    (place,) = [place for place, line in enumerate(lines) if line.startswith(f"{GSM8K} ")]
    assert lines[place].split(None, 1)[1] == "1 GPU of 40 GB"
    assert lines[place + 1] == "    SDFT: Llama-2-7B-chat rewrites and learns GSM8K"


def test_no_line_of_the_list_is_shortened():
    assert "[...]" not in run("list").output


@pytest.mark.parametrize("word", ["gemma", "GEMMA"])
def test_the_list_can_be_filtered_in_any_case(word):
    assert [line.split()[0] for line in run("list", "--filter", word).output.splitlines()][::2] == [
        "today/gemma-3-4b-24gb"
    ]


def test_a_filter_that_nothing_holds_says_so():
    assert run("list", "--filter", "zzz").output.strip().endswith("configurations holds 'zzz'")


def test_show_prints_the_file_as_it_is():
    assert run("show", GSM8K).output == find_config(GSM8K).text()


def test_a_wrong_name_is_one_line_and_exit_code_1():
    result = run("show", "quickstrat")
    assert result.exit_code == 1
    assert result.output == "Error: there is no configuration 'quickstrat'; did you mean quickstart?\n"


def test_copy_says_what_it_wrote_and_how_to_run_it():
    result = run("copy", "quickstart", "there/mine.yml")
    assert result.output.splitlines() == [
        "written: there/mine.yml",
        "written: there/data/quickstart.jsonl",
        "run it: cd there && axolotl train mine.yml",
    ]
    assert Path("there/data/quickstart.jsonl").is_file()


def test_a_slash_at_the_end_means_a_folder_that_is_made():
    assert run("copy", "quickstart", "new/").output.splitlines()[0] == "written: new/quickstart.yml"
    assert Path("new/data/quickstart.jsonl").is_file()


def test_copy_goes_to_the_current_folder_by_default_and_refuses_to_overwrite():
    assert run("copy", GSM8K).output.splitlines()[1] == "run it: axolotl train llama-2-7b-chat-gsm8k.yml"
    again = run("copy", GSM8K)
    assert (again.exit_code, "is there already" in again.output) == (1, True)
    assert run("copy", GSM8K, "--force").exit_code == 0


def test_check_passes_a_copy_with_advice_alone():
    pytest.importorskip("axolotl")
    run("copy", GSM8K)
    result = run("check", "llama-2-7b-chat-gsm8k.yml")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "llama-2-7b-chat-gsm8k.yml: fit to share; 3 to consider"


def test_check_fails_where_there_is_a_fault():
    run("copy", GSM8K)
    path = Path("llama-2-7b-chat-gsm8k.yml")
    path.write_text(path.read_text().replace("outputs/sdft", "/scratch/sdft"))
    result = run("check", str(path))
    assert result.exit_code == 1
    assert "fault: output_dir: '/scratch/sdft/llama-2-7b-chat-gsm8k' is a folder of this machine" in result.output
    assert result.output.splitlines()[-1] == "llama-2-7b-chat-gsm8k.yml: 1 to mend before others can use it"


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="pipes have no path here")
def test_check_reads_a_pipe_as_it_reads_the_file():
    run("copy", GSM8K)
    path = Path("llama-2-7b-chat-gsm8k.yml")
    readable, writable = os.pipe()
    os.write(writable, path.read_bytes())
    os.close(writable)
    piped = run("check", f"/dev/fd/{readable}")
    os.close(readable)
    assert piped.output.replace(f"/dev/fd/{readable}", path.name) == run("check", path.name).output


def test_help_names_the_four_commands():
    printed = run("--help").output
    assert all(name in printed for name in ("list", "show", "copy", "check"))


def test_check_shows_what_each_stage_needs_in_memory_where_the_model_is_at_hand(tiny_llama_dir):
    pytest.importorskip("axolotl")
    run("copy", GSM8K)
    path = Path("llama-2-7b-chat-gsm8k.yml")
    absent = run("check", str(path))
    assert (
        "advice: memory: was not computed: the config.json of 'meta-llama/Llama-2-7b-chat-hf' is not" in absent.output
    )
    path.write_text(path.read_text().replace("meta-llama/Llama-2-7b-chat-hf", str(tiny_llama_dir)))
    lines = run("check", str(path)).output.splitlines()
    (place,) = [place for place, line in enumerate(lines) if line.startswith("memory at the peak on each GPU of 40 GB")]
    assert lines[place + 1].startswith("  self_distillation: ")
    assert any(line.startswith("  training: ") for line in lines[place:])


def test_check_goes_on_without_the_memory_where_a_key_holds_a_value_of_another_kind(tiny_llama_dir):
    run("copy", GSM8K)
    path = Path("llama-2-7b-chat-gsm8k.yml")
    text = path.read_text().replace("meta-llama/Llama-2-7b-chat-hf", str(tiny_llama_dir))
    path.write_text(re.sub("micro_batch_size: .*", "micro_batch_size: auto", text))
    assert "advice: memory: was not computed: a key holds a value of another kind" in run("check", str(path)).output
