"""A seed model that can't teach ends a run before its first stage."""

import json
import shutil

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft import SDFTPlugin, cut_layers
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.evaluation.publishing import plan_upload
from axolotl_sdft.evaluation.summary import Artifacts
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.stages import prepare
from axolotl_sdft.training.teachers.origin import find_origin
from tests.training.teachers.students import put_on_hub


@pytest.fixture
def pruned_dir(tiny_llama_dir, tmp_path):
    shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    return cut_layers(tmp_path / "seed", [2, 3], tmp_path / "pruned")


def prepared(command, monkeypatch, **config):
    monkeypatch.setattr(compat, "running_command", lambda: command)
    cfg = DictDefault({"plugins": ["axolotl_sdft.SDFTPlugin"], "output_dir": "out", **config})
    prepare(cfg, own_plugin=SDFTPlugin())  # another test may have registered one
    return cfg


def test_a_seed_model_that_is_there_may_teach(pruned_dir, monkeypatch):
    for teacher in ("auto", "shared", "own"):
        block = {"teacher": teacher}
        cfg = prepared("train", monkeypatch, base_model=str(pruned_dir), adapter="lora", logit_distillation=block)
        assert cfg.base_model == str(pruned_dir)


def test_a_seed_model_that_was_moved_is_named_before_training(pruned_dir, monkeypatch):
    pruned_dir.with_name("seed").rename(pruned_dir.with_name("elsewhere"))
    config = {"base_model": str(pruned_dir), "logit_distillation": {}}
    with pytest.raises(
        CheckpointError, match=r"seed model that .*pruned was pruned from, .*seed, which is gone or was"
    ):
        prepared("train", monkeypatch, **config)
    named = {"seed_model": str(pruned_dir.with_name("elsewhere"))}
    prepared("train", monkeypatch, **config | {"logit_distillation": named})
    prepared("train", monkeypatch, **config | {"logit_distillation": {"alpha": 0}})
    prepared("merge-lora", monkeypatch, **config)


def test_another_model_in_the_place_of_the_seed_model_is_refused(pruned_dir, monkeypatch):
    path = pruned_dir / "provenance/layer_pruning.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"but .*seed holds another model by now; put the previous one back"):
        prepared("train", monkeypatch, base_model=str(pruned_dir), logit_distillation={})


def test_a_pruned_model_named_by_its_hub_id_is_told_from_an_unpruned_one(pruned_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = json.loads((pruned_dir / "config.json").read_text()) | {"axolotl_sdft_pruning": "0123456789ab"}
    (pruned_dir / "config.json").write_text(json.dumps(settings))
    config = {"base_model": put_on_hub(pruned_dir, tmp_path / "hub"), "logit_distillation": {}}
    prepared("train", monkeypatch, **config)
    shutil.rmtree(next((tmp_path / "hub").rglob("provenance")))
    with pytest.raises(CheckpointError, match=r"which was pruned, lacks provenance/layer_pruning.json"):
        prepared("train", monkeypatch, **config)


def test_a_checkpoint_from_the_hub_is_taught_by_the_seed_model_that_its_published_record_names(
    pruned_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    record = pruned_dir / "provenance/layer_pruning.json"
    seed = put_on_hub(tmp_path / "seed", tmp_path / "hub", "some-org/seed")
    known = {"seed_model": seed, "seed": model_identity(tmp_path / "seed"), "seed_dir": str(tmp_path / "seed")}
    record.write_text(json.dumps(json.loads(record.read_text()) | known))
    upload = plan_upload(Artifacts(tmp_path / "seed", pruned_dir, [], tmp_path / "out", seed), "checkpoint", tmp_path)
    for name, content in upload.files.items():
        path = tmp_path / "published" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    shutil.rmtree(tmp_path / "seed")

    student = put_on_hub(tmp_path / "published", tmp_path / "hub", "some-org/pruned")
    block = {"teacher": "shared"}
    cfg = prepared("train", monkeypatch, base_model=student, adapter="lora", logit_distillation=block)

    assert cfg.base_model == student
    origin = find_origin(tmp_path / "published")
    assert (origin.drop_layers, origin.seed_dir.parents[1].name) == ((2, 3), "models--some-org--seed")


def test_a_named_seed_model_that_is_nowhere_is_refused_before_training(pruned_dir, tmp_path, monkeypatch):
    block = {"seed_model": str(tmp_path / "nowhere")}
    with pytest.raises(CheckpointError, match=r"nowhere, which is gone or was moved: .*logit_distillation.seed_model"):
        prepared("train", monkeypatch, base_model=str(pruned_dir), logit_distillation=block)
    shutil.rmtree(pruned_dir / "provenance")
    with pytest.raises(CheckpointError, match=r"^logit_distillation.seed_model is .*nowhere', which is not a local"):
        prepared("train", monkeypatch, base_model=str(pruned_dir), logit_distillation=block)


@pytest.mark.parametrize(
    ("blocks", "name"),
    [
        ({"logit_distillation": {}}, "LogitDistillationAxolotlTrainer"),
        ({"dynsdpb": {}}, "DynSDPBAxolotlTrainer"),
        ({"dynsdpb": {}, "logit_distillation": {}}, "DynSDPBLogitDistillationAxolotlTrainer"),
    ],
)
def test_the_blocks_choose_the_trainer(blocks, name):
    assert SDFTPlugin().get_trainer_cls(blocks).__name__ == name
    assert SDFTPlugin().get_trainer_cls({}) is None
