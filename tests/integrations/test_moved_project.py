"""Projects that were moved, or have lost their data and their seed model since the training."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.summary import RunSummary
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.commands import find_artifacts
from axolotl_sdft.integrations.axolotl.merging import merge_alone
from axolotl_sdft.integrations.axolotl.recovery import recovery_spec
from axolotl_sdft.integrations.axolotl.stages import record_start
from tests.integrations.pruned_project import config as config
from tests.integrations.pruned_project import run as run
from tests.integrations.pruned_project import train as train
from tests.integrations.pruned_project import write_rows


@pytest.mark.parametrize("with_record", [True, False], ids=["record", "adapter_config alone"])
def test_a_project_that_was_moved_and_lost_its_data_and_seed_still_has_its_checkpoint(
    config, run, train, tmp_path, monkeypatch, with_record
):
    pruned = train(config)
    if not with_record:
        Path("out/sdft_trained_on.json").unlink()
    shutil.rmtree("seed")
    Path("rows.jsonl").unlink()
    moved = (tmp_path / "project").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(moved)
    for path in [moved / "sdft_prepared", *(moved / "sdft_prepared").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    assert Path(run("merge-lora", config).base_model) == moved / "sdft_prepared" / pruned.name


def test_a_model_that_was_moved_alone_is_told_where_its_checkpoint_was_looked_for(config, run, train, tmp_path):
    train(config)
    shutil.move("out", tmp_path / "out")
    shutil.rmtree("sdft_prepared")
    with pytest.raises(CheckpointError, match=r"was trained on the checkpoint seed-drop2-\w+, which is gone; .*looked"):
        run("inference", config | {"lora_model_dir": str(tmp_path / "out")})


@pytest.fixture
def moved_project(config, run, tmp_path, monkeypatch):
    """A project with an adapter of the pruned checkpoint, moved since, without data and seed model; its config."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cfg = run("train", config)
    record_start(cfg)
    model = AutoModelForCausalLM.from_pretrained(cfg.base_model)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained("out")
    AutoTokenizer.from_pretrained(cfg.base_model).save_pretrained("out")
    write_rows(7)
    moved = (tmp_path / "project").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(moved)
    shutil.rmtree("seed")
    Path("rows.jsonl").unlink()
    return config


def test_the_summary_of_a_moved_project_tells_what_was_pruned_and_lets_the_models_answer(moved_project):
    lines = list(RunSummary.of(find_artifacts(DictDefault(moved_project)), "Hello", max_new_tokens=2).lines())
    assert lines[0].startswith("Layers dropped    2 of 6: ")
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["pruned", "trained"]
    assert "Seed model        gone" in lines


def test_reports_and_merges_of_a_moved_project_find_the_checkpoint_under_the_adapter(moved_project, tmp_path):
    (pruned,) = Path("sdft_prepared").absolute().glob("[!.]*-drop2-*")
    assert weights_dir(Path("out").absolute()) == pruned
    assert weights_dir(Path("out")) == pruned
    merged = DictDefault(moved_project | {"merge": {"ratio": 0.5}})
    list(merge_alone(merged))
    adapter = json.loads(Path("out/sdft_merged/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(pruned)
    with pytest.raises(CheckpointError, match="base_model is 'seed'"):
        recovery_spec(DictDefault(moved_project))


def test_reports_and_merges_refuse_settings_that_ask_for_another_checkpoint(moved_project):
    cfg = DictDefault(moved_project | {"layer_pruning": {"drop_layers": [0]}, "merge": {}})
    for use in (find_artifacts, lambda cfg: list(merge_alone(cfg))):
        with pytest.raises(ConfigError, match=r"output_dir .*drop_layers is \[0\], was"):
            use(cfg)


def test_quantize_does_not_look_for_the_base_of_a_moved_adapter_at_its_old_place(moved_project, run, monkeypatch):
    with pytest.raises(ConfigError, match=r"whose base model was moved since; run axolotl merge-lora first, then"):
        run("quantize", moved_project)
    monkeypatch.setattr(compat, "option", {"base_model": "out/merged"}.get)
    assert "elsewhere" in run("quantize", moved_project).base_model


def test_evaluate_takes_the_rows_that_were_trained_on_where_data_and_seed_are_gone(config, run, caplog):
    from datasets import Dataset

    rows = Dataset.from_list([{"instruction": "Count.", "input": "", "output": "1"}])
    for name in ("distilled-1", "held-out-1"):
        rows.save_to_disk(f"rows/{name}")
    config |= {"self_distillation": {}, "val_set_size": 0.5}
    cfg = run("train", config)
    cfg.datasets = [DictDefault(config["datasets"][0] | {"path": str(Path("rows/distilled-1").absolute())})]
    cfg.test_datasets = [DictDefault(config["datasets"][0] | {"path": str(Path("rows/held-out-1").absolute())})]
    record_start(cfg)
    Path("out/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": cfg.base_model}))
    shutil.rmtree("seed")
    Path("rows.jsonl").unlink()

    evaluated = run("evaluate", config)

    assert [entry.path for entry in evaluated.datasets] == [str(Path("rows/distilled-1").absolute())]
    assert [entry.path for entry in evaluated.test_datasets] == [str(Path("rows/held-out-1").absolute())]
    assert evaluated.val_set_size == 0
    assert "those that were trained on are taken" in caplog.text
    shutil.rmtree("rows")
    assert run("evaluate", config).datasets[0].path == "rows.jsonl"
    assert "they are evaluated as datasets has them" in caplog.text
