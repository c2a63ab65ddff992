"""A project of two datasets that the echo backend rewrites, through Axolotl's own loading."""

import json

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from datasets import load_from_disk

from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.integrations.axolotl.rewriting import rewrite_datasets

TOP = {"template": "plain", "checks": [], "generation": {"backend": "echo"}, "gap_samples": 0}


@pytest.fixture
def cfg(tiny_llama_dir, tmp_path, monkeypatch):
    """Two datasets of 12 and 8 rows, rewritten by the echo backend, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "apples.jsonl", "apple", 12)
    write_rows(tmp_path / "pears.jsonl", "pear", 8)
    return DictDefault(
        {
            "base_model": str(tiny_llama_dir),
            "plugins": ["axolotl_sdft.SDFTPlugin"],
            "self_distillation": TOP,
            "datasets": [{"path": "apples.jsonl", "type": "alpaca"}, {"path": "pears.jsonl", "type": "alpaca"}],
            "seed": 5,
            "sequence_len": 256,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "learning_rate": 0.001,
            "bf16": False,
            "dataset_num_proc": 1,
            "dataset_prepared_path": "prepared",
        }
    )


def write_rows(path, name, count):
    lines = [{"instruction": f"{name} {n}", "input": "", "output": f"original {name} {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rewrite(cfg, **options):
    return rewrite_datasets(cfg, read_blocks(cfg).self_distillation, **options)


def outputs(entries):
    return sorted(row["output"] for entry in entries for row in load_from_disk(entry.path))


def loaded_by_axolotl(cfg, tiny_llama_dir):
    """Return the texts that Axolotl trains on and those it evaluates on; the hooks are called as a command does."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from transformers import AutoTokenizer

    cfg = load_cfg(cfg)
    if cfg.plugins:
        PluginManager.get_instance().load_datasets(cfg, preprocess=False)
    meta = load_datasets(cfg=cfg)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    return [
        sorted(tokenizer.decode(row["input_ids"]).partition("### Instruction:")[2].strip() for row in part or [])
        for part in (meta.train_dataset, meta.eval_dataset)
    ]
