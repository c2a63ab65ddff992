"""Bad input is refused with one clear error before any model is loaded."""

import json
import shutil

import pytest

pytest.importorskip("axolotl.cli")  # it sets up logging, which must not happen while a test listens

from axolotl.utils.dict import DictDefault
from datasets import Dataset

from axolotl_sdft import SDFTPlugin
from axolotl_sdft.core.errors import SdftError
from axolotl_sdft.integrations.axolotl.compat import row_limit
from axolotl_sdft.integrations.axolotl.held_out import parts_of
from axolotl_sdft.integrations.axolotl.stages import prepare


@pytest.fixture
def cfg(tiny_llama_dir, tmp_path, monkeypatch):
    """A configuration that works, in a folder of its own, where loading a model fails the test."""
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Question {n}", "input": "", "output": f"Answer {n}"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DictDefault(
        {
            "base_model": str(tiny_llama_dir),
            "plugins": ["axolotl_sdft.SDFTPlugin"],
            "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.001,
            "num_epochs": 1,
        }
    )


def refused(cfg, message, **changes):
    with pytest.raises(SdftError, match=message):
        prepare(DictDefault(cfg.to_dict() | changes), own_plugin=SDFTPlugin())


def test_a_block_whose_keys_are_all_commented_out_is_told_at_the_start(cfg, caplog):
    prepare(DictDefault(cfg.to_dict() | {"self_distillation": None, "dynsdpb": {}}), own_plugin=SDFTPlugin())
    assert "self_distillation: is empty, which counts as not set" in caplog.text


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"num_layer": 2}, r"layer_pruning: unknown key 'num_layer'; did you mean 'num_layers'"),
        ({"num_layers": 6}, r"layer_pruning.num_layers is 6, but the model has 6 layers"),
        ({"num_layers": 2, "drop_layers": [1]}, r"both num_layers \(2\) and drop_layers \(\[1\]\) are set; remove one"),
        ({"drop_layers": [5, 6]}, r"layer_pruning.drop_layers.*6.*6 layers"),
        ({"num_layers": 2, "metric": "magnitude"}, r"metric is 'magnitude'.*known: angular_distance, block_influence"),
        ({"num_layers": 2, "calibration": {"path": "nowhere.jsonl"}}, r"calibration.path is 'nowhere.jsonl'"),
    ],
)
def test_a_wrong_pruning_block(cfg, block, message):
    refused(cfg, message, layer_pruning=block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"template": "refrence"}, r"self_distillation.template is 'refrence', .*known: .*reference"),
        ({"checks": ["leek"]}, r"self_distillation.checks.*'leek'.*known: .*leak"),
        ({"generation": {"backend": "vlm"}}, r"generation.backend is 'vlm', .*known: .*transformers"),
        ({"on_reject": "keep"}, r"self_distillation.on_reject is 'keep': Input should be 'original' or 'drop'"),
    ],
)
def test_a_wrong_distillation_block(cfg, block, message):
    refused(cfg, message, self_distillation=block)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"path": "nowhere.jsonl", "type": "alpaca"},
            r"datasets\[0\].path is 'nowhere.jsonl', which could not be loaded",
        ),
        ({"path": "empty.jsonl", "type": "alpaca"}, r"datasets\[0\].path is 'empty.jsonl', which has no rows"),
        ({"path": "rows.jsonl", "type": "alpaca", "split": "train[:0]"}, r"datasets\[0\].*corresponds to no data"),
        ({"path": "rows.jsonl", "type": "alpaca_chat.load_qa"}, r"datasets\[0\] has no column 'question'"),
        ({"path": "rows.jsonl", "type": "chat_template"}, r"datasets\[0\] has no column 'messages'"),
        ({"path": "rows.jsonl", "type": "no_such_type"}, r"no_such_type"),
        ({"path": "rows.jsonl", "type": "sharegpt"}, r"datasets\[0\].type is 'sharegpt'.*type: chat_template"),
        ({"path": "rows.jsonl", "type": "completion"}, r"datasets\[0\].type is 'completion'.*prompt_field"),
        (
            {"path": "rows.jsonl", "type": "alpaca", "self_distillation": {"checks": ["leek"]}},
            r"^datasets\[0\].self_distillation.checks.*'leek'",
        ),
        ({"type": "alpaca"}, r"datasets\[0\].path is not set"),
    ],
)
@pytest.mark.parametrize("pruning", [None, {"num_layers": 2}])
def test_a_wrong_dataset(cfg, entry, message, pruning):
    open("empty.jsonl", "w").close()
    refused(cfg, message, datasets=[entry], self_distillation={}, layer_pruning=pruning)


def test_a_seed_model_without_chat_template(cfg, tiny_llama_dir, tmp_path):
    seed = shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    (seed / "chat_template.jinja").unlink()
    refused(cfg, r"has no chat template.*instruction-tuned", base_model=str(seed), self_distillation={})


def test_a_base_model_folder_without_safetensors(cfg, tiny_llama_dir, tmp_path):
    seed = shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    (seed / "model.safetensors").rename(seed / "pytorch_model.bin")
    refused(cfg, r"safetensors", base_model=str(seed), layer_pruning={"num_layers": 2})


def test_a_base_model_that_is_nowhere(cfg):
    refused(cfg, r"base_model", base_model="no-one/nothing", layer_pruning={"num_layers": 2})


@pytest.mark.parametrize("block", ["layer_pruning", "self_distillation"])
def test_a_folder_that_can_not_be_written(cfg, tmp_path, block):
    (tmp_path / "file").touch()
    settings = {"output_dir": str(tmp_path / "file" / "below")} | (
        {"num_layers": 2} if block == "layer_pruning" else {}
    )
    refused(cfg, rf"{block}.output_dir: can't write to .*file.*name another folder", **{block: settings})


def test_an_output_dir_that_can_not_be_written_stops_before_pruning(cfg, tmp_path):
    (tmp_path / "out").symlink_to("/scratch/gone")
    pruning = {"num_layers": 2}
    message = (
        r"^output_dir: can't write to .*/out \(.*/out is a link to /scratch/gone, which is not there\); name another"
    )
    refused(cfg, message, output_dir="out", layer_pruning=pruning)
    assert not list(tmp_path.glob("sdft_prepared/*"))


def test_a_fault_that_axolotl_finds_itself_stops_before_pruning(cfg):
    with pytest.raises(ValueError, match="micro_batch_size"):
        prepare(DictDefault(cfg.to_dict() | {"micro_batch_size": "many", "layer_pruning": {"num_layers": 2}}), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"datasets": {"path": "rows.jsonl", "type": "alpaca"}},
            r"datasets is {'path': 'rows.jsonl', 'type': 'alpaca'}, which is not a list of datasets; write each with a",
        ),
        ({"datasets": ["rows.jsonl"]}, r"datasets is \['rows.jsonl'\], which is not a list of datasets"),
        ({"test_datasets": "rows.jsonl"}, r"test_datasets is 'rows.jsonl', which is not a list of datasets"),
        ({"base_model": ["a", "b"]}, r"base_model is \['a', 'b'\], which is not a text"),
        ({"revision_of_model": 7654321}, r"revision_of_model is 7654321, which is not a text; write one, in quotes"),
        ({"output_dir": 2026}, r"output_dir is 2026, which is not a text; write one, in quotes"),
        (
            {"plugins": "axolotl_sdft.SDFTPlugin"},
            r"plugins is 'axolotl_sdft.SDFTPlugin', which is not a list of names; write it as \[axolotl_sdft",
        ),
        ({"seed": "none"}, r"seed is 'none', which is not a whole number"),
        ({"val_set_size": "5 %"}, r"val_set_size is '5 %', which is not a fraction such as 0.05"),
        (
            {"context_parallel_size": "two", "dynsdpb": {}},
            r"context_parallel_size is 'two', which is not a whole number",
        ),
    ],
)
def test_a_value_of_another_kind_than_axolotl_takes(cfg, changes, message):
    refused(cfg, message, **({"layer_pruning": {"num_layers": 2}} | changes))


def test_numbers_in_quotes_are_read_as_axolotl_reads_them(cfg):
    written = {"val_set_size": "0", "seed": "7", "sequence_len": "64", "dataset_num_proc": "2", "dynsdpb": {}}
    changed = DictDefault(cfg.to_dict() | written | {"context_parallel_size": "1", "tensor_parallel_size": "1"})

    prepare(changed, own_plugin=SDFTPlugin())
    (rows,) = parts_of(changed, [("datasets[0]", changed.datasets[0], Dataset.from_list([{"output": "a"}]))])

    assert (len(rows.training), rows.held_out) == (1, None)
    assert row_limit(changed, changed.datasets[0]).max_tokens == 64
