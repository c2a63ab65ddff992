"""With ``use_ray`` the driver prepares a configuration, and workers in folders of their own go on with it."""

import json
import logging
import shutil
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft import SDFTPlugin
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.stages import prepare

PRUNING = {"drop_layers": [2, 3], "patch": "none"}


@pytest.fixture
def project(tiny_llama_dir, tmp_path, monkeypatch):
    """A folder with a seed model and rows, which is the current one."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(compat, "running_command", lambda: "train")
    shutil.copytree(tiny_llama_dir, "seed")
    Path("rows.jsonl").write_text(json.dumps({"instruction": "Add.", "input": "", "output": "Done."}) + "\n")
    return folder


@pytest.fixture
def driven(project):
    """Return a configuration as the driver leaves it."""

    def driven(**keys):
        cfg = {
            "base_model": "seed",
            "plugins": ["axolotl_sdft.SDFTPlugin"],
            "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
            "use_ray": True,
            **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1},
            **{"output_dir": str(project / "out"), "self_distillation": {"checks": ["empty"]}},
        }
        return prepared(cfg | keys)

    return driven


def prepared(cfg):
    cfg = DictDefault(json.loads(json.dumps(cfg)))
    prepare(cfg, own_plugin=SDFTPlugin())
    return cfg


@pytest.mark.parametrize(("named", "meant"), [({}, "sdft_prepared"), ({"output_dir": "kept"}, "kept")])
def test_workers_find_the_driver_s_folders_from_wherever_they_run(driven, project, tmp_path, monkeypatch, named, meant):
    cfg = driven(layer_pruning=PRUNING, self_distillation={"checks": ["empty"], **named})
    monkeypatch.chdir(tmp_path)
    worker = prepared(cfg.to_dict())
    assert worker.self_distillation.output_dir == str(project / meant)
    assert worker.self_distillation.checks == ["empty"]
    assert worker.sdft_seed_model == str(project / "seed")
    assert Path(worker.base_model).parent == project / "sdft_prepared"


def test_without_pruning_the_rows_have_their_folder_all_the_same(driven, project):
    cfg = driven(self_distillation=None)
    assert cfg.self_distillation is None
    assert driven().self_distillation.output_dir == str(project / "sdft_prepared")


def test_without_ray_folders_stay_as_they_are_written(driven):
    cfg = driven(layer_pruning=PRUNING, use_ray=False)
    assert cfg.self_distillation.output_dir is None
    assert cfg.sdft_seed_model == "seed"


def test_a_relative_output_dir_is_warned_of_with_the_whole_path(driven, project, caplog):
    with caplog.at_level(logging.WARNING):
        driven(output_dir="out")
    assert "use_ray is set and output_dir is out: Ray's workers run in a folder of its session" in caplog.text
    assert f"give the whole path, such as {project / 'out'}" in caplog.text


def test_a_worker_does_not_say_it_again(driven, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with caplog.at_level(logging.WARNING):
        driven(output_dir="out")
    assert "use_ray" not in caplog.text


def test_a_whole_output_dir_is_not(driven, caplog):
    with caplog.at_level(logging.WARNING):
        driven()
    assert "use_ray" not in caplog.text
