"""Axolotl's own loading of configurations and datasets around the hooks; a backend answers at once."""

import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

import datasets
from axolotl.utils.dict import DictDefault
from datasets import load_from_disk

from axolotl_sdft import cut_layers
from axolotl_sdft.core.errors import CheckpointError, ConfigError, ServerError, UnknownNameError
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.integrations.axolotl.commands import find_artifacts
from axolotl_sdft.integrations.axolotl.rewriting import check_distillation, distillation_specs
from axolotl_sdft.integrations.axolotl.stages import record_start
from tests.distillation.echo_backend import EchoBackend
from tests.integrations.rewritten_project import TOP, loaded_by_axolotl, outputs, rewrite
from tests.integrations.rewritten_project import cfg as cfg

pytestmark = pytest.mark.usefixtures("echo_plugin")


def test_validation_rows_are_those_that_axolotl_splits_off_and_stay_as_they_are(cfg, tiny_llama_dir):
    plain_cfg = DictDefault({key: value for key, value in cfg.items() if key not in ("plugins", "self_distillation")})
    plain_cfg.val_set_size = cfg.val_set_size = 0.3
    plain_train, plain_held_out = loaded_by_axolotl(plain_cfg, tiny_llama_dir)
    train, held_out = loaded_by_axolotl(cfg, tiny_llama_dir)
    assert held_out == plain_held_out
    assert len(held_out) == 6
    assert [text.partition("\n")[0] for text in train] == [text.partition("\n")[0] for text in plain_train]
    assert all("original" in text for text in held_out)
    assert all("messages, the last ends in" in text for text in train)


def test_a_dataset_changes_how_it_is_rewritten_and_another_is_left_alone(cfg, tiny_llama_dir):
    cfg.datasets[0].self_distillation = {"template": "reference"}
    cfg.datasets[1].self_distillation = {"enabled": False}
    train, held_out = loaded_by_axolotl(cfg, tiny_llama_dir)
    assert held_out == []
    assert sum(text.endswith("the last ends in answer.<|im_end|>") for text in train) == 12
    assert sum("original pear" in text for text in train) == 8


def test_a_dataset_that_is_left_alone_takes_part_in_the_split(cfg):
    cfg.val_set_size = 6
    cfg.datasets[1].self_distillation = {"enabled": False}
    (folder,) = rewrite(cfg)
    assert cfg.val_set_size == 0
    assert [entry.path == str(folder) for entry in cfg.datasets] == [True, False]
    assert all("original pear" in text for text in outputs(cfg.datasets[1:]))
    everything = outputs(cfg.datasets[1:]) + outputs(cfg.test_datasets)
    assert len(everything) + len(load_from_disk(str(folder))) == 20
    assert len(outputs(cfg.test_datasets)) == 6


def test_without_a_validation_split_entries_that_are_left_alone_stay_the_same(cfg):
    cfg.datasets[1].self_distillation = {"enabled": False}
    rewrite(cfg)
    assert dict(cfg.datasets[1]) == {"path": "pears.jsonl", "type": "alpaca"}
    assert cfg.test_datasets is None


def test_test_sets_are_left_as_they_are(cfg):
    cfg.test_datasets = [{"path": "pears.jsonl", "type": "alpaca"}]
    rewrite(cfg)
    assert [dict(entry) for entry in cfg.test_datasets] == [{"path": "pears.jsonl", "type": "alpaca"}]


def test_what_was_never_rewritten_is_left_as_it_is_where_nothing_may_be_made(cfg):
    cfg.val_set_size = 0.3
    before = cfg.to_dict()
    assert rewrite(cfg, only_if_done=True) == []
    assert cfg.to_dict() == before
    rewrite(DictDefault(before))
    again = DictDefault(before)
    assert len(rewrite(again, only_if_done=True)) == 2
    assert all("original" in text for text in outputs(again.test_datasets))


def test_the_same_folders_are_found_before_and_after_axolotl_has_validated(cfg):
    from axolotl.cli.config import load_cfg

    cfg.val_set_size = 0.3
    cfg.datasets[0].self_distillation = {"template": "reference"}
    raw = [task.dataset_dir for _, task in distillation_specs(cfg)]
    assert [task.dataset_dir for _, task in distillation_specs(load_cfg(cfg))] == raw


def test_equal_rows_are_rewritten_once_where_axolotl_would_drop_one(cfg, tmp_path):
    apples = (tmp_path / "apples.jsonl").read_text().splitlines(keepends=True)
    with (tmp_path / "pears.jsonl").open("a") as file:
        file.writelines(apples[:3])
    assert [len(task.dataset) for _, task in distillation_specs(cfg)] == [12, 11]
    cfg.dataset_exact_deduplication = True
    assert [len(task.dataset) for _, task in distillation_specs(cfg)] == [12, 8]


@pytest.mark.parametrize("size", [0, 4])
def test_a_dataset_that_only_repeats_another_is_left_out_and_the_others_train(size, cfg, tmp_path, caplog):
    lines = [json.loads(line) for line in (tmp_path / "apples.jsonl").read_text().splitlines()]
    (tmp_path / "pears.jsonl").write_text("".join(json.dumps({**line, "id": 7}) + "\n" for line in lines[:5]))
    cfg.dataset_exact_deduplication = True
    cfg.val_set_size = size
    cfg.shuffle_merged_datasets = False
    (folder,) = rewrite(cfg)
    assert [entry.path for entry in cfg.datasets] == [str(folder)]
    assert len(load_from_disk(str(folder))) == 12 - size
    assert "5 of 5 rows of datasets[1] train what another row trains, and are left out; nothing of it" in caplog.text


def test_a_dataset_that_is_left_alone_keeps_no_row_that_another_has_rewritten(cfg, tmp_path):
    with (tmp_path / "pears.jsonl").open("a") as file:
        file.write((tmp_path / "apples.jsonl").read_text())
    cfg.dataset_exact_deduplication = True
    cfg.datasets[1].self_distillation = {"enabled": False}
    rewrite(cfg)
    assert outputs(cfg.datasets[1:]) == sorted(f"original pear {n}" for n in range(8))


@pytest.mark.parametrize("has_own", [False, True])
def test_a_seed_without_a_chat_template_is_asked_with_that_of_the_configuration(has_own, cfg, tiny_llama_dir, tmp_path):
    shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    if not has_own:
        (tmp_path / "seed" / "chat_template.jinja").unlink()
    cfg.base_model = str(tmp_path / "seed")
    cfg.chat_template = "chatml"
    cfg.datasets[1].chat_template_jinja = "{{ messages }}"
    first, second = [task.config.generation.chat_template for _, task in distillation_specs(cfg)]
    if has_own:
        assert first is second is None
    else:
        assert "<|im_start|>" in first
        assert second == "{{ messages }}"


def test_where_the_base_model_was_pruned_before_the_seed_model_that_its_record_names_rewrites(cfg, tiny_llama_dir):
    expected = [spec.dataset_dir for _, spec in distillation_specs(cfg)]
    cfg.base_model = str(cut_layers(tiny_llama_dir, [1], "pruned"))
    specs = [spec for _, spec in distillation_specs(cfg)]
    assert {spec.seed_dir for spec in specs} == {tiny_llama_dir}
    assert [spec.dataset_dir for spec in specs] == expected  # what was rewritten before the pruning is found again

    (record,) = Path("pruned").rglob("layer_pruning.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seed_model": "gone", "seed_dir": "gone"}))
    message = r"the seed model that .*pruned was pruned from, gone, which is gone or was moved.* take provenance out of"
    with pytest.raises(CheckpointError, match=message):
        distillation_specs(cfg)


def test_an_unknown_name_is_blamed_on_the_dataset_that_uses_it(cfg):
    cfg.datasets[1].self_distillation = {"template": "plane"}
    with pytest.raises(UnknownNameError, match=r"^datasets\[1\].self_distillation.template is 'plane'"):
        check_distillation(cfg)


def test_servers_that_are_gone_after_rewriting_do_not_keep_the_rows_from_being_trained_on(cfg, monkeypatch):
    def is_gone(backend):
        raise ServerError("no server can be used")

    before = DictDefault(cfg.to_dict())
    with monkeypatch.context() as servers:
        servers.setattr(EchoBackend, "check", is_gone)
        with pytest.raises(ServerError, match="no server can be used"):
            check_distillation(cfg)
    rewrite(cfg)
    monkeypatch.setattr(EchoBackend, "check", is_gone)

    check_distillation(before)


@pytest.fixture
def caching():
    """What the datasets library does with what it makes of rows, as it was before once the test has ended."""
    yield datasets.is_caching_enabled
    datasets.enable_caching()


def test_rows_in_a_folder_that_can_only_be_read_are_trained_on_without_a_cache_there(
    cfg, tiny_llama_dir, monkeypatch, caching
):
    cfg.val_set_size = 0.2
    rewrite(DictDefault(cfg))
    before = sorted(Path("sdft_prepared").rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # of root, no chmod would take the right to write

    training, held_out = loaded_by_axolotl(cfg, tiny_llama_dir)

    assert (len(training), len(held_out)) == (16, 4)
    assert sorted(Path("sdft_prepared").rglob("*")) == before
    assert not caching()


def test_rows_for_validation_go_elsewhere_where_those_of_a_colleague_can_only_be_read(cfg, monkeypatch, caching):
    cfg.val_set_size, cfg.self_distillation = 0.2, {**TOP, "output_dir": "team"}
    for _, spec in distillation_specs(cfg):  # as `axolotl self-distill` does, which makes no other rows
        run_distillation(spec)
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    rewritten = rewrite(cfg)

    assert [folder.parent.name for folder in rewritten] == ["team", "team"]
    assert {Path(entry.path).parent for entry in cfg.test_datasets} == {Path("sdft_prepared").absolute()}
    assert len(outputs(cfg.test_datasets)) == 4
    assert not caching()


def test_rows_in_a_folder_of_ones_own_leave_the_caches_of_axolotl_where_they_are(cfg, caching):
    rewrite(cfg)
    assert caching()


def test_a_block_that_leaves_every_dataset_alone_is_refused(cfg):
    for entry in cfg.datasets:
        entry.self_distillation = {"enabled": False}
    with pytest.raises(ConfigError, match=r"each of the datasets says self_distillation: {enabled: false}; enable one"):
        check_distillation(cfg)


def test_a_completion_dataset_names_its_prompt_in_its_own_block(cfg, tmp_path):
    (tmp_path / "apples.jsonl").write_text('{"start": "Once", "text": "Once upon a time."}\n')
    cfg.datasets = [{"path": "apples.jsonl", "type": "completion", "self_distillation": {"prompt_field": "start"}}]
    (folder,) = rewrite(cfg)
    (row,) = load_from_disk(str(folder))
    assert row["text"] == "Once 1 messages, the last ends in time."


GENERAL = TOP | {"general_rows": 4}


def test_general_rows_are_trained_beside_those_of_the_datasets(cfg, tiny_llama_dir):
    cfg.self_distillation = GENERAL
    cfg.val_set_size = 0.3
    again = DictDefault(cfg.to_dict())

    *_, folder = rewrite(cfg)

    assert [entry.type for entry in cfg.datasets] == ["alpaca", "alpaca", "chat_template"]
    assert cfg.datasets[2].path == str(folder)
    assert len(load_from_disk(str(folder))) == 4
    assert len(outputs(cfg.test_datasets)) == 6  # of the 20 of the datasets, as without general rows
    train, held_out = loaded_by_axolotl(again, tiny_llama_dir)
    assert (len(train), len(held_out)) == (18, 6)


def test_general_rows_alone_leave_the_datasets_as_they_are(cfg):
    cfg.self_distillation = GENERAL
    for entry in cfg.datasets:
        entry.self_distillation = {"enabled": False}

    (folder,) = rewrite(cfg)

    assert [entry.path for entry in cfg.datasets] == ["apples.jsonl", "pears.jsonl", str(folder)]


def test_general_rows_that_were_never_answered_are_no_dataset(cfg):
    rewrite(cfg)
    again = DictDefault({**cfg.to_dict(), "self_distillation": GENERAL, "datasets": cfg.datasets[:0]})
    again.datasets = [{"path": "apples.jsonl", "type": "alpaca"}, {"path": "pears.jsonl", "type": "alpaca"}]

    assert len(rewrite(again, only_if_done=True)) == 2
    assert len(again.datasets) == 2


def test_general_rows_of_a_single_dataset_are_refused(cfg):
    cfg.datasets[1].self_distillation = {"general_rows": 4}

    with pytest.raises(
        ConfigError, match=r"datasets\[1\].self_distillation.general_rows is set, but these rows belong"
    ):
        check_distillation(cfg)


@pytest.mark.parametrize("backend", ["transformers", "vllm", "openai", "echo"])
@pytest.mark.parametrize(("own", "trusts"), [({}, True), ({"trust_remote_code": False}, False)])
def test_every_backend_may_run_the_code_that_the_configuration_trusts(cfg, backend, own, trusts):
    served = {"base_urls": ["http://localhost:1/v1"]} if backend == "openai" else {}
    cfg.trust_remote_code = True
    cfg.self_distillation = TOP | {"generation": {"backend": backend, **served, **own}}
    specs = [spec for _, spec in distillation_specs(cfg)]
    assert [spec.config.generation.trust_remote_code for spec in specs] == [trusts, trusts]


@pytest.fixture
def trained(cfg):
    """The configuration of a model that was trained on rewritten rows without a pruning, and the rows' folders."""
    asked = DictDefault({**cfg, "datasets": [{"path": "apples.jsonl", "type": "alpaca"}], "output_dir": "out"})
    used = DictDefault(asked)
    folders = rewrite(used)
    record_start(used)
    Path("out").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        Path("out", name).write_text("{}")
    return asked, folders


def test_the_rows_that_a_model_was_trained_on_stay_known_where_data_is_gone_or_others_are_asked_for(trained, caplog):
    cfg, folders = trained
    assert find_artifacts(cfg).distilled_dirs == folders
    assert "asks for others" not in caplog.text
    cfg.self_distillation = TOP | {"max_attempts": 2}
    assert find_artifacts(cfg).distilled_dirs == folders
    assert f"was trained on ({folders[0].name}); the configuration asks for others by now (not rewritten" in caplog.text
    (others,) = rewrite(DictDefault(cfg))
    assert find_artifacts(cfg).distilled_dirs == folders
    assert f"asks for others by now ({others.name}). To have those, train again" in caplog.text
    Path("apples.jsonl").unlink()
    assert find_artifacts(cfg).distilled_dirs == folders


def test_a_training_that_breaks_off_leaves_the_rows_of_the_earlier_one_known(trained):
    cfg, folders = trained
    again = DictDefault({**cfg, "self_distillation": TOP | {"max_attempts": 2}})
    used = DictDefault(again)
    rewrite(used)
    record_start(used)
    assert find_artifacts(again).distilled_dirs == folders
