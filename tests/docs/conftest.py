"""Where a newcomer stands: a folder with the models, the data and the configurations that the pages name."""

import json
import linecache
import types
from pathlib import Path

import pytest

from axolotl_sdft.plugins.registry import registry
from tests.docs.pages import REPOSITORY, blocks

ROWS = [{"instruction": f"Say the number {n}.", "input": "", "output": f"It is {n}."} for n in range(2)]


@pytest.fixture
def newcomer_folder(smollm2_dir, tiny_llama_dir, tmp_path, monkeypatch):
    """The current folder, with the models that the pages name; a tiny one takes the place of the large one."""
    monkeypatch.chdir(tmp_path)
    for name, folder in (("models/SmolLM2-135M-Instruct", smollm2_dir), ("Qwen/Qwen3-8B", tiny_llama_dir)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(folder.absolute())
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("config.yml", "my.yml", "round2.yml"):
        Path(name).write_text("base_model: models/SmolLM2-135M-Instruct\n")
    Path("example_configs").symlink_to(REPOSITORY / "example_configs")
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


@pytest.fixture
def plugins_of_the_pages(monkeypatch):
    """The plugins of docs/plugins.md are installed."""
    known = registry()
    monkeypatch.setattr(known, "entries", {kind: dict(names) for kind, names in known.entries.items()})
    monkeypatch.setattr(known, "owners", dict(known.owners))
    for block in blocks(REPOSITORY / "docs" / "plugins.md"):
        if block.language == "python" and "hookimpl" in block.text:
            known.add_plugin(run(block), block.name)


def run(block, names=()):
    """Run a block of Python, with these names known, and return it as a module."""
    module = types.ModuleType("block")
    # As a notebook does with its cells: functions can show their source.
    linecache.cache[block.name] = (len(block.text), None, block.text.splitlines(keepends=True), block.name)
    vars(module).update(names)
    exec(compile(block.text, block.name, "exec"), vars(module))
    return module
