"""What a person is told of a pruned checkpoint."""

import json
import shutil
from pathlib import Path

import pytest

from axolotl_sdft.evaluation.summary import Artifacts, RunSummary, TrainingLoss, summarize_run

CUT = {"removed": [2, 3], "applied": True, "reason": None}


@pytest.fixture
def told(tmp_path):
    """The lines about a checkpoint whose provenance says this of the patch."""

    def lines(patch):
        counts = {"drop_layers": [2, 3], "num_layers_before": 8, "parameters_before": 4e6, "parameters_after": 3e6}
        folder = tmp_path / "pruned"
        (folder / "provenance").mkdir(parents=True)
        (folder / "provenance" / "layer_pruning.json").write_text(json.dumps(counts | {"patch": patch}))
        return list(RunSummary.of(Artifacts(None, folder, [], tmp_path / "out")).lines())

    return lines


def test_a_patch_is_told_by_how_much_nearer_it_brings_the_model(told):
    patch = {"divergence_bare": 0.4123, "divergence_patched": 0.25, "cuts": [CUT]}
    assert "Patch             KL to the seed model 0.412 nats per token without it, 0.25 with it" in told(patch)


def test_a_cut_that_stays_bare_is_told_with_its_reason(told):
    bare = CUT | {"applied": False, "reason": "the cut begins with layer 0"}
    lines = told({"divergence_bare": None, "divergence_patched": None, "cuts": [bare]})
    assert "Patch             none before layers 2, 3: the cut begins with layer 0" in lines


def test_without_a_patch_nothing_is_said_of_one(told):
    assert not [line for line in told(None) if line.startswith("Patch")]


def test_a_training_that_stopped_before_it_saved_weights_has_made_no_model_yet(tmp_path):
    summary = RunSummary.of(Artifacts(None, None, [], tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert str(summary).endswith("(holds no model yet)")

    (tmp_path / "model.safetensors").touch()
    assert str(summary).endswith(tmp_path.name)


def test_a_model_that_is_damaged_is_left_out_of_the_answers_under_its_own_name(tiny_llama_dir, tmp_path, caplog):
    trained = Path(shutil.copytree(tiny_llama_dir, tmp_path / "trained"))
    (trained / "model.safetensors").write_bytes(b"nonsense")
    summary = RunSummary.of(Artifacts(tiny_llama_dir, None, [], trained), "Hello", max_new_tokens=4)
    assert list(summary.answers) == ["seed"]
    [warning] = [record.getMessage() for record in caplog.records if "can't answer" in record.getMessage()]
    assert warning.startswith(
        f"the trained model can't answer the prompt: {trained} can't be loaded (SafetensorError: "
    )


def test_a_prompt_without_room_for_an_answer_is_told_as_the_reason(tiny_llama_dir, tmp_path, caplog):
    summary = RunSummary.of(Artifacts(tiny_llama_dir, None, [], tmp_path), "word " * 3000, max_new_tokens=4)
    assert summary.answers == {}
    assert "the seed model can't answer the prompt: the prompt has 30" in caplog.text


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0], TrainingLoss(2.0, 2.0, 1, 1)),
        ([3.0, 2.0, 2.0, 2.0, 1.0], TrainingLoss(3.0, 1.0, 1, 5)),
        ([4.0, 2.0, *[9.0] * 6, 2.0, 1.0], TrainingLoss(3.0, 1.5, 2, 10)),
    ],
)
def test_the_loss_is_told_by_the_means_of_the_first_and_the_last_fifth(tmp_path, losses, expected):
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [*history, {"train_runtime": 9.0}]}))
    assert TrainingLoss.of(tmp_path) == expected


def test_a_loss_that_is_no_number_is_null_in_json(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    losses = summarize_run(tmp_path).to_json()["training_loss"]
    assert losses == {"first": 2.0, "last": None, "averaged": 1, "logged": 2}


def test_where_nothing_is_logged_there_is_no_loss(tmp_path):
    assert TrainingLoss.of(tmp_path) is None
