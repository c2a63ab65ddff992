"""A project whose model is pruned and trained, without the training: what it does to the folders is enough."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file

pytest.importorskip("axolotl")

import axolotl.cli  # noqa: F401  its import sets up logging anew, which would take caplog's handler away in a test
from axolotl.utils.dict import DictDefault

from axolotl_sdft import SDFTPlugin
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.stages import prepare, record_start

_CALIBRATION = {"num_samples": 3, "sequence_len": 16, "general_share": 0}


@pytest.fixture
def config(tiny_llama_dir, tmp_path, monkeypatch):
    """A configuration in a project folder that holds its data and its seed model, which is the current one."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    shutil.copytree(tiny_llama_dir, "seed")
    write_rows(4)
    return {
        "base_model": "seed",
        "plugins": ["axolotl_sdft.SDFTPlugin"],
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
        "output_dir": "out",
        "layer_pruning": {"num_layers": 2, "patch": "none", "calibration": _CALIBRATION},
        **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1},
    }


@pytest.fixture
def run(monkeypatch):
    """Prepare a configuration as a command does; return it as it is then."""

    def prepared(command, config):
        monkeypatch.setattr(compat, "running_command", lambda: command)
        cfg = DictDefault(json.loads(json.dumps(config)))
        prepare(cfg, own_plugin=SDFTPlugin())
        return cfg

    return prepared


@pytest.fixture
def train(run):
    """Do what a training does to the folders, up to its end; return the pruned checkpoint."""

    def trained(config, weight=1.0, ends=True, is_full=False):
        cfg = run("train", config)
        record_start(cfg)
        out = Path(config["output_dir"])
        out.mkdir(exist_ok=True)
        shutil.copyfile(Path(cfg.base_model) / "config.json", out / "config.json")
        if not is_full:
            (out / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": cfg.base_model}))
        if ends:
            save_weights(out / ("model.safetensors" if is_full else "adapter_model.safetensors"), weight)
        return Path(cfg.base_model)

    return trained


def write_rows(count, name="rows.jsonl"):
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": "1, 2, 3 " * n} for n in range(1, count + 1)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_weights(path, value):
    import numpy

    save_file({"weight": numpy.full(3, value, dtype="float32")}, path)


def everything(folder):
    """Return all files and folders with the time of their last change."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}
