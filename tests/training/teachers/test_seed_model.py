"""Which teacher a student gets, a teacher of its own, and what either predicts for a batch."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import CheckpointError, ConfigError, MissingExtraError
from axolotl_sdft.training.batching import label_mask
from axolotl_sdft.training.teachers.loading import load_own_teacher
from axolotl_sdft.training.teachers.origin import find_origin, origin_of
from axolotl_sdft.training.teachers.seed_model import SeedTeacher, plan_teacher
from tests.training.teachers.students import IDS, adapted, load, logits, prune, put_on_hub

pytest.importorskip("peft")

MASK = label_mask({"labels": IDS.masked_fill(torch.arange(IDS.shape[1]) % 3 == 0, -100)})
COMPARISON = DynSDPBConfig(alpha=1.0, dynamic_alpha=False, dynamic_temperature=False, chunk_tokens=4)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(tmp_path_factory.mktemp("models"))


def planned(model: Any, **settings: Any) -> tuple[bool, str]:
    plan = plan_teacher(model, LogitDistillationConfig(**settings))
    return plan.is_shared, plan.reason


def test_layers_are_shared_where_they_are_frozen(pruned: Path):
    assert planned(adapted(load(pruned))) == (True, "the student's own layers are frozen")
    assert planned(adapted(load(pruned)), teacher="own") == (False, "teacher is own")
    is_shared, reason = planned(load(pruned))
    assert not is_shared
    assert "39 of the student's own weights are trained, model.embed_tokens.weight among them" in reason


def test_removed_layers_that_can_not_be_loaded_apart_leave_a_teacher_of_its_own(tmp_path: Path):
    # Only layers without attention were removed, and no model consists of these.
    pruned = prune(tmp_path, "qwen3_next", [0, 1])
    is_shared, reason = planned(adapted(load(pruned), target_modules=["down_proj"]))
    assert not is_shared
    assert "layers 0, 1 of" in reason
    assert "can't be loaded apart from the others: " in reason
    with pytest.raises(ConfigError, match=r"teacher is shared, but layers 0, 1 of .*set it to own or auto"):
        planned(adapted(load(pruned), target_modules=["down_proj"]), teacher="shared")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_student_that_an_adapter_was_merged_into_has_a_teacher_of_its_own(family: str, tmp_path: Path):
    projection = {"llama": "v_proj", "gpt2": "c_attn"}[family]
    pruned = prune(tmp_path, family)
    student = adapted(adapted(load(pruned), target_modules=[projection]).merge_and_unload())
    plan = plan_teacher(student, LogitDistillationConfig())
    assert not plan.is_shared
    assert f"{projection}.weight is no longer as the seed model in {tmp_path}/seed has it" in plan.reason
    assert torch.equal(logits(plan.load(student)), logits(load(tmp_path / "seed").eval()))
    with pytest.raises(ConfigError, match=r"teacher is shared, but .* is no longer as the seed model .*set it to own"):
        planned(student, teacher="shared")


def test_a_teacher_of_its_own_is_the_seed_model(pruned: Path):
    student = load(pruned)
    teacher = load_own_teacher(student, find_origin(pruned))
    assert torch.equal(logits(teacher), logits(load(pruned.parent / "seed").eval()))
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not {id(weight) for weight in teacher.parameters()} & {id(weight) for weight in student.parameters()}


def test_a_model_that_was_not_pruned_has_its_own_checkpoint_as_teacher(pruned: Path):
    student = load(pruned)
    with torch.no_grad():
        student.lm_head.weight.add_(1.0)
    teacher = load_own_teacher(student, None)
    assert torch.equal(logits(teacher), logits(load(pruned).eval()))
    student.config._name_or_path = ""
    with pytest.raises(CheckpointError, match=r"doesn't say which checkpoint it was loaded from.*name the seed model"):
        load_own_teacher(student, None)


@pytest.mark.parametrize(("bits", "kind"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_a_teacher_of_its_own_may_have_fewer_bits(tmp_path: Path, bits: int, kind: str):
    pytest.importorskip("bitsandbytes")
    pruned = prune(tmp_path, hidden_size=64, intermediate_size=64, head_dim=16)
    teacher = load_own_teacher(load(pruned), find_origin(pruned), bits)
    assert type(teacher.model.layers[2].mlp.up_proj).__name__ == kind
    exact = logits(load(tmp_path / "seed").eval()).log_softmax(-1)
    divergence = (exact.exp() * (exact - logits(teacher).log_softmax(-1))).sum(-1).mean()
    assert 0 < divergence < 0.2


def test_without_bitsandbytes_fewer_bits_are_refused_at_once(pruned: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"load_in_8bit is true, but bitsandbytes is not installed"):
        planned(adapted(load(pruned)), load_in_8bit=True)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_predictions_are_the_logits_at_the_tokens_in_the_first_pass_and_in_later_ones(family: str, tmp_path: Path):
    prune(tmp_path, family)
    seed = load(tmp_path / "seed").eval().requires_grad_(False)
    expected_NV = logits(seed)[MASK]
    teacher = SeedTeacher(seed, COMPARISON)
    for _ in range(3):
        prediction = teacher.predict({"input_ids": IDS, "labels": IDS}, MASK)
        parts = [slice(start, min(start + 4, len(expected_NV))) for start in range(0, len(expected_NV), 4)]
        found = [prediction.logits(part, torch.device("cpu"), torch.float32).clone() for part in parts]
        torch.testing.assert_close(torch.cat(found), expected_NV, rtol=1e-5, atol=1e-5)


def test_after_the_first_pass_logits_are_made_of_the_tokens_alone(pruned: Path):
    seed = load(pruned.parent / "seed").eval().requires_grad_(False)
    teacher, seen = SeedTeacher(seed, COMPARISON), []
    seed.lm_head.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[-2]))
    for _ in range(2):
        teacher.predict({"input_ids": IDS}, MASK)
    # The first pass shows how logits are made, with a few of them made once more.
    assert seen[0] == IDS.shape[1]
    assert seen[-1] == 1


def test_a_batch_without_tokens_predicts_nothing(pruned: Path):
    teacher = SeedTeacher(load(pruned.parent / "seed").eval().requires_grad_(False), COMPARISON)
    for mask_BT in (torch.zeros_like(MASK), MASK, torch.zeros_like(MASK)):
        assert teacher.predict({"input_ids": IDS}, mask_BT).num_tokens == int(mask_BT.sum())


def test_the_seed_model_is_found_by_what_is_recorded_and_by_name(tmp_path: Path):
    pruned = prune(tmp_path)
    origin = find_origin(pruned)
    assert origin is not None
    assert (origin.seed_dir, origin.drop_layers, origin.kept) == (tmp_path / "seed", (2, 3), (0, 1, 4, 5))
    assert find_origin(tmp_path / "seed") is None
    (tmp_path / "seed").rename(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"seed, which is gone or was moved.*Put it back"):
        find_origin(pruned)
    assert find_origin(pruned, tmp_path / "other").seed_dir == tmp_path / "other"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def mark(folder: Path) -> None:
    """Let a checkpoint say that it was pruned, as those do that ``axolotl prune-layers`` writes."""
    settings = json.loads((folder / "config.json").read_text()) | {"axolotl_sdft_pruning": "0123456789ab"}
    (folder / "config.json").write_text(json.dumps(settings))


def test_a_student_named_by_its_hub_id_has_the_seed_model_of_its_provenance(tmp_path: Path, hub_cache: Path):
    name = put_on_hub(prune(tmp_path), hub_cache)
    origin = origin_of(load(name))
    assert origin is not None
    assert (origin.seed_dir, origin.drop_layers) == (tmp_path / "seed", (2, 3))
    assert origin_of(load(put_on_hub(tmp_path / "seed", hub_cache, "some-org/seed"))) is None


def test_a_pruned_student_on_the_hub_without_provenance_is_refused(tmp_path: Path, hub_cache: Path):
    pruned = prune(tmp_path)
    mark(pruned)
    shutil.rmtree(pruned / "provenance")
    student = load(put_on_hub(pruned, hub_cache))
    with pytest.raises(CheckpointError, match=r"which was pruned, lacks provenance/layer_pruning.json"):
        planned(adapted(student))


def test_the_commit_that_the_student_was_loaded_at_tells(tmp_path: Path, hub_cache: Path):
    name = put_on_hub(prune(tmp_path), hub_cache, commit="a" * 40)
    student = load(name)
    if getattr(student.config, "_commit_hash", None) is None:
        pytest.skip("this transformers does not say which commit it has loaded")
    put_on_hub(tmp_path / "seed", hub_cache, commit="b" * 40)
    assert origin_of(load(name)) is None
    assert origin_of(student) is not None


def test_a_student_whose_checkpoint_can_not_be_found_again_is_pruned_where_its_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    prune(tmp_path)
    monkeypatch.chdir(tmp_path)
    student = load("pruned")
    monkeypatch.chdir(tmp_path.parent)
    assert origin_of(student) is None
    assert "loaded from 'pruned', which is neither the folder of a model here nor in the Hub's cache" in caplog.text
    student.config.axolotl_sdft_pruning = "0123456789ab"
    with pytest.raises(CheckpointError, match=r"was pruned and was loaded from 'pruned', which is neither the folder"):
        origin_of(student)
    student.config._name_or_path = student.name_or_path = ""
    with pytest.raises(CheckpointError, match=r"was pruned and doesn't say which checkpoint it was loaded from"):
        origin_of(student)


def test_a_seed_model_that_is_named_teaches_a_student_without_provenance(tmp_path: Path):
    pruned = prune(tmp_path)
    mark(pruned)
    shutil.rmtree(pruned / "provenance")
    student = adapted(load(pruned))
    plan = plan_teacher(student, LogitDistillationConfig(), tmp_path / "seed")
    assert not plan.is_shared
    assert plan.reason == f"nothing tells which of its layers are those of {tmp_path}/seed, which seed_model names"
    assert torch.equal(logits(plan.load(student)), logits(load(tmp_path / "seed").eval()))
    with pytest.raises(ConfigError, match=r"teacher is shared, but nothing tells .*seed_model names; set it to own"):
        plan_teacher(student, LogitDistillationConfig(teacher="shared"), tmp_path / "seed")


def test_a_seed_model_that_is_named_teaches_a_student_that_was_made_in_memory(pruned: Path):
    student = load(pruned)
    student.config._name_or_path = student.name_or_path = ""
    plan = plan_teacher(student, LogitDistillationConfig(), pruned.parent / "seed")
    assert torch.equal(logits(plan.load(student)), logits(load(pruned.parent / "seed").eval()))


def test_a_student_that_is_the_named_seed_model_shares_its_layers_with_it(tmp_path: Path):
    prune(tmp_path)
    shutil.copytree(tmp_path / "seed", tmp_path / "copy")
    for folder in ("seed", "copy"):
        plan = plan_teacher(adapted(load(tmp_path / "seed")), LogitDistillationConfig(), tmp_path / folder)
        assert (plan.is_shared, plan.origin) == (True, None)


@pytest.mark.parametrize(
    ("family", "settings", "error", "message"),
    [
        (None, {}, CheckpointError, "seed_model is '.*named/seed', which is not a local folder and could not be"),
        ("llama", {"vocab_size": 72}, ConfigError, "vocabulary has 72 tokens, but the student's has 67"),
        ("gpt2", {}, CheckpointError, "the seed model is a gpt2, the student a llama; they must be of one kind"),
    ],
)
def test_a_named_seed_model_that_can_not_teach_is_refused(
    pruned: Path, tmp_path: Path, family: Any, settings: Any, error: type[Exception], message: str
):
    if family is not None:
        prune(tmp_path / "named", family, **settings)
    student = load(pruned.parent / "seed")
    with pytest.raises(error, match=message):
        plan_teacher(student, LogitDistillationConfig(), tmp_path / "named" / "seed")


def test_a_vocabulary_that_was_resized_is_noticed_by_hub_id_as_well(tmp_path: Path, hub_cache: Path):
    prune(tmp_path)
    student = load(put_on_hub(tmp_path / "seed", hub_cache))
    student.resize_token_embeddings(72)
    with pytest.raises(ConfigError, match="vocabulary was resized from 67 to 72 tokens"):
        planned(adapted(student))
