"""What is read from the files of a run: losses that were logged, and numbers of layers that were tried."""

import json
import os

import pytest

from axolotl_sdft.evaluation.figures import Curve, TriedRemoval
from axolotl_sdft.evaluation.records import KL_MEASURE, log_history, training_curves, tried_removals


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def block(start, end, bare, patched=None):
    return {"start": start, "end": end, "bare": bare, "patched": patched}


@pytest.fixture
def pruned(tmp_path):
    """Gives what a checkpoint with these scores in its provenance tells."""

    def tell(scores):
        write(tmp_path / "provenance" / "layer_pruning.json", {"scores": scores})
        return tried_removals(tmp_path)

    return tell


def written_at(time, path, *losses):
    write(path, {"log_history": [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]})
    os.utime(path, (time, time))


def test_losses_are_those_of_the_last_training_however_many_steps_one_before_had(tmp_path):
    written_at(1, tmp_path / "checkpoint-3/trainer_state.json", 9.0, 8.0, 7.0)
    written_at(2, tmp_path / "checkpoint-1/trainer_state.json", 3.0)
    written_at(3, tmp_path / "checkpoint-2/trainer_state.json", 3.0, 2.0)
    assert training_curves("trained", tmp_path) == (Curve("trained", "loss", (1, 2), (3.0, 2.0)),)


def test_of_one_training_the_state_that_got_furthest_counts_where_the_times_of_the_files_do_not_tell(tmp_path):
    written_at(5, tmp_path / "checkpoint-2/trainer_state.json", 3.0, 2.0)
    written_at(4, tmp_path / "checkpoint-3/trainer_state.json", 3.0, 2.0, 1.0)
    assert training_curves("trained", tmp_path) == (Curve("trained", "loss", (1, 2, 3), (3.0, 2.0, 1.0)),)


def test_losses_are_those_of_the_state_that_got_furthest(tmp_path):
    write(tmp_path / "checkpoint-2/trainer_state.json", {"log_history": [{"step": 2, "loss": 9.0}]})
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "eval_loss": 2.5}, {"step": 4, "loss": 2.0}, {"step": 4, "x": 1}]
    write(tmp_path / "checkpoint-4/trainer_state.json", {"log_history": history})
    write(tmp_path / "trainer_state.json", "{broken")

    assert log_history(tmp_path) == history
    assert training_curves("trained", tmp_path) == (Curve("trained", "loss", (1, 4), (3.0, 2.0)),)


def test_a_loss_that_is_no_number_is_left_out(tmp_path):
    history = [{"step": step, "loss": loss} for step, loss in enumerate((1.0, float("nan"), "off", 0.5))]
    write(tmp_path / "trainer_state.json", {"log_history": history})
    assert training_curves("trained", tmp_path) == (Curve("trained", "loss", (0, 3), (1.0, 0.5)),)


def test_a_folder_without_a_state_has_no_curves(tmp_path):
    assert training_curves("trained", tmp_path) == ()


def test_each_number_of_layers_stands_with_its_best_block(pruned):
    blocks = [block(3, 4, 0.4, 0.3), block(1, 3, 0.5, 0.45), block(2, 4, 0.6, 0.4), block(2, 3, 0.2)]
    removals = (TriedRemoval(1, 0.2), TriedRemoval(2, 0.6, 0.4))
    assert pruned({"metric": "divergence", "divergences": blocks}) == (removals, KL_MEASURE)


def test_the_costs_of_a_greedy_metric_are_told_by_their_number_of_layers(pruned):
    removals = (TriedRemoval(1, 11.0), TriedRemoval(2, 13.5))
    assert pruned({"metric": "perplexity", "removal_costs": [11.0, 13.5]}) == (
        removals,
        "cost by the metric perplexity",
    )


@pytest.mark.parametrize("scores", [None, {}, {"divergences": [block(3, 4, 0.4)]}, {"removal_costs": [11.0]}])
def test_a_single_number_is_no_curve(pruned, scores):
    assert pruned(scores) == ((), "")


def test_a_checkpoint_without_provenance_tells_nothing(tmp_path):
    assert tried_removals(tmp_path) == ((), "")
