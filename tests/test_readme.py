"""Every Python block of the README runs as it stands, and every YAML block passes Axolotl's real schema.

The blocks run where a newcomer would run them: in a folder that holds ``models/`` and a small ``train.jsonl``.
"""

import json
import re
import types
from pathlib import Path

import pytest
import yaml

from axolotl_sdft.plugins import Registry
from tests.test_example_configs import LEAST, sdft_plugin, validate

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS = [{"instruction": f"Say the number {n}.", "input": "", "output": f"It is {n}."} for n in range(2)]

__all__ = ["sdft_plugin"]  # a fixture: Axolotl's schema knows our keys


def blocks(language):
    """Return the blocks of one language, each with the first line that tells what it is about as its name."""
    texts = re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)
    return [pytest.param(text, id=_name(text)) for text in texts]


def _name(text):
    used = re.findall(r"^from axolotl_sdft[\w.]* import (.*)$|^(\w+):", text, flags=re.M)
    return " ".join(used[0]).strip() if used else text.splitlines()[0]


@pytest.fixture
def newcomer_folder(smollm2_dir, tiny_llama_dir, tmp_path, monkeypatch):
    """The current folder, with the models that the README names; a tiny one takes the place of the large one."""
    monkeypatch.chdir(tmp_path)
    for name, folder in (("models/SmolLM2-135M-Instruct", smollm2_dir), ("Qwen/Qwen3-8B", tiny_llama_dir)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(folder.absolute())
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def your_own(tiny_llama_dir, tmp_path):
    """What a block may take from the reader's own script: a model, its tokenized rows and training arguments."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    rows = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(row["output"])["input_ids"] for row in ROWS)]
    return {
        "model": AutoModelForCausalLM.from_pretrained(tiny_llama_dir),
        "args": TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[]),
        "rows": Dataset.from_list(rows),
    }


@pytest.mark.smollm2
@pytest.mark.parametrize("text", blocks("python"))
def test_a_python_block_runs(text, newcomer_folder, your_own):
    block = types.ModuleType("readme_block")
    vars(block).update(your_own)
    exec(compile(text, "README.md", "exec"), vars(block))
    if hasattr(block, "hookimpl"):  # a plugin does nothing until it is registered
        Registry().add_plugin(block, "readme_block")


@pytest.mark.smollm2
def test_pruning_from_python_prints_what_each_choice_costs_and_writes_a_smaller_model(newcomer_folder, capsys):
    (text,) = [block.values[0] for block in blocks("python") if "cut_layers" in block.values[0]]
    exec(compile(text, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [len(re.findall(r"\d+(?=[,)])", line.partition(":")[0])) for line in printed] == [3, 6, 9, 0]
    assert printed[-1] == "134.5M parameters before, 113.3M after"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_yaml_block_is_valid(text):
    validate({"base_model": "seed"} | LEAST | yaml.safe_load(text))
