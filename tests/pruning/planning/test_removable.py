import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.pipeline import PruningRun
from axolotl_sdft.pruning.planning.plan import PruningPlan, avoided_lines, plan_pruning
from axolotl_sdft.pruning.planning.removable import Removable, cheapest_set, find_removable
from axolotl_sdft.pruning.scoring.scores import LayerScores
from axolotl_sdft.pruning.spec import PruningSpec
from tests.pruning.architectures import build, tiny_config

# Layers of a home-made model: attention in one of six layers only, as a hybrid cache needs it.
HYBRID = {
    "model_type": "homemade",
    "num_hidden_layers": 6,
    "layer_types": ["conv", "conv", "full_attention", "conv", "conv", "conv"],
}
PAIRS = {"model_type": "homemade", "num_hidden_layers": 6, "expert_layer_period": 2, "expert_layer_offset": 0}


def singles(costs):
    """Scores by which single layers are chosen."""
    length = len(costs)
    table = [[costs[i] if j == i + 1 else 9.0 * (j > i) for j in range(length + 1)] for i in range(length + 1)]
    return LayerScores("by_hand", length, tuple(map(tuple, table)), False, 10)


def blocks(costs, width):
    """Scores by which one block of a width is chosen, by its first layer."""
    length = len(costs) + width - 1
    table = [[costs[i] if j == i + width else 9.0 * (j > i) for j in range(length + 1)] for i in range(length + 1)]
    return LayerScores("by_hand", length, tuple(map(tuple, table)), True, 10)


# What can't be removed


def test_a_layer_that_no_other_can_stand_in_for_is_known_with_the_reason():
    removable = find_removable(HYBRID, 2, range(6))
    assert removable.free_blocks == [(0, 1), (3, 4), (4, 5)]
    (line,) = removable.fixed_lines()
    assert line.startswith("layer 2 can't be removed, so others are chosen: model type 'homemade' can't be cut soundly")
    assert "no layer with attention would be left; keep one of 2" in line


def test_a_layer_that_can_go_with_another_only_is_not_held_to_stay():
    removable = find_removable(PAIRS, 2, range(6))
    assert removable.fixed == {}
    assert removable.reason_against((1,)) is not None
    assert removable.reason_against((0, 1)) is None


def test_protected_layers_are_not_looked_at():
    assert find_removable(HYBRID, 2, range(3, 6)).fixed == {}
    assert list(find_removable(HYBRID, 2, range(3, 6)).blocks) == [(3, 4), (4, 5)]


def test_a_model_of_which_nothing_can_go_is_refused_at_once():
    with pytest.raises(CheckpointError, match="it has an encoder and a decoder"):
        find_removable(HYBRID | {"is_encoder_decoder": True}, 2, range(6))


# What is chosen instead


def test_the_cheapest_block_that_can_go_is_chosen_and_the_cheaper_ones_are_named():
    removable = find_removable(HYBRID, 2, range(6))
    plan = plan_pruning(blocks([0.5, 0.1, 0.2, 0.3, 0.4], 2), LayerPruningConfig(num_layers=2), removable)
    assert (plan.drop_layers, plan.cost) == ((3, 4), 0.3)
    (line,) = avoided_lines(plan)
    assert line.startswith("layers 1+2, 2+3 would be chosen by by_hand, but can't be removed: ")


def test_the_cheapest_single_layers_that_can_go_are_chosen():
    removable = find_removable(HYBRID, 2, range(6))
    plan = plan_pruning(singles([0.5, 0.1, 0.2, 0.3, 0.4, 0.6]), LayerPruningConfig(num_layers=2), removable)
    assert (plan.drop_layers, plan.cost) == ((1, 3), pytest.approx(0.4))
    assert [layers for layers, _ in plan.avoided] == [(2,)]


def test_of_several_layers_of_which_one_must_stay_the_dearest_stays():
    two = HYBRID | {"layer_types": ["conv", "full_attention", "conv", "full_attention", "conv", "conv"]}
    removable = find_removable(two, 3, range(6))
    plan = plan_pruning(singles([0.5, 0.1, 0.9, 0.2, 0.3, 0.8]), LayerPruningConfig(num_layers=3), removable)
    # 1, 3, 4 (0.6) would leave no attention; next come 0, 1, 3 (0.8), which neither, and 0, 1, 4 (0.9).
    assert plan.drop_layers == (0, 1, 4)
    assert [layers for layers, _ in plan.avoided] == [(1, 3, 4), (0, 1, 3)]


def test_layers_that_go_in_pairs_are_chosen_in_pairs():
    removable = find_removable(PAIRS, 2, range(6))
    plan = plan_pruning(singles([0.1, 0.5, 0.2, 0.3, 0.4, 0.6]), LayerPruningConfig(num_layers=2), removable)
    assert removable.reason_against(plan.drop_layers) is None
    others = [pair for pair in itertools.combinations(range(6), 2) if removable.reason_against(pair) is None]
    costs = [0.1, 0.5, 0.2, 0.3, 0.4, 0.6]
    assert plan.cost == pytest.approx(min(costs[a] + costs[b] for a, b in others))


def test_a_greedy_order_goes_on_without_the_layer_that_must_stay():
    order = LayerScores("greedy", 6, (), False, 10, removal_order=(2, 4, 3, 1), removal_costs=(1.0, 2.0, 3.0, 4.0))
    plan = plan_pruning(order, LayerPruningConfig(num_layers=2), find_removable(HYBRID, 2, range(6)))
    assert (plan.drop_layers, plan.cost) == ((3, 4), None)
    assert plan.avoided[0][0] == (2, 4)


def test_without_any_choice_the_reason_is_given():
    removable = Removable({}, {}, lambda _layers: "they are needed")
    with pytest.raises(CheckpointError, match="no 2 removable layers can be removed together: they are needed"):
        plan_pruning(singles([0.1, 0.2, 0.3]), LayerPruningConfig(num_layers=2), removable)
    with pytest.raises(CheckpointError, match="no block of removable layers can be removed: they are needed"):
        plan_pruning(blocks([0.1, 0.2], 2), LayerPruningConfig(num_layers=2), removable)
    order = LayerScores("greedy", 3, (), False, 10, removal_order=(1, 0))
    with pytest.raises(CheckpointError, match=r"metric greedy chose layers 0, 1, .* they are needed"):
        plan_pruning(order, LayerPruningConfig(num_layers=2), removable)


def test_where_all_can_go_the_plan_has_nothing_to_say():
    plan = plan_pruning(singles([0.3, 0.1, 0.2]), LayerPruningConfig(num_layers=2))
    assert plan == PruningPlan((1, 2), 3, "by_hand", pytest.approx(0.3))
    assert list(avoided_lines(plan)) == []


@settings(max_examples=50)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=7), st.data())
def test_sets_are_tried_in_the_order_of_their_cost(costs, data):
    count = data.draw(st.integers(1, len(costs)))
    allowed = data.draw(st.sets(st.sampled_from(list(itertools.combinations(range(len(costs)), count))), min_size=1))
    removable = Removable({}, {}, lambda layers: None if tuple(layers) in allowed else "no")
    layers, _ = cheapest_set(dict(enumerate(costs)), count, removable)
    assert layers in allowed
    assert sum(costs[layer] for layer in layers) == min(sum(costs[layer] for layer in each) for each in allowed)


# The whole stage


@pytest.mark.parametrize("metric", ["angular_distance", "block_influence", "perplexity", "last"])
def test_each_metric_spares_the_only_layer_with_attention(metric, tmp_path, monkeypatch, caplog):
    kinds = ["conv", "conv", "full_attention", "conv", "conv", "conv"]
    build(tiny_config("lfm2", layer_types=kinds)).save_pretrained(tmp_path / "seed")
    config = LayerPruningConfig(num_layers=2, protect_last=1, metric=metric)
    batch = {"input_ids": torch.arange(2, 26).reshape(2, 12)}
    pruning = PruningRun(PruningSpec(tmp_path / "seed", "seed", config, "text", lambda: [batch], tmp_path / "root"))
    with caplog.at_level(logging.WARNING):
        plan = pruning.plan()
    assert len(plan.drop_layers) == 2
    assert 2 not in plan.drop_layers
    assert any("layer 2 can't be removed, so others are chosen" in message for message in caplog.messages)
    assert pruning.run().is_dir()


@pytest.mark.parametrize(
    "choice",
    [
        {"num_layers": 1, "protect_first": 2, "protect_last": 3, "metric": "block_influence"},
        {"num_layers": 4},  # each block of four neighbours holds layer 2
    ],
)
def test_the_reason_comes_before_the_text_is_read_when_no_choice_is_left(choice, tmp_path):
    kinds = ["conv", "conv", "full_attention", "conv", "conv", "conv"]
    build(tiny_config("lfm2", layer_types=kinds)).save_pretrained(tmp_path / "seed")
    config = LayerPruningConfig(**choice)

    def unread():
        raise AssertionError("the text was read")

    pruning = PruningRun(PruningSpec(tmp_path / "seed", "seed", config, "text", unread, tmp_path / "root"))
    with pytest.raises(CheckpointError, match="no layer with attention would be left"):
        pruning.plan()
