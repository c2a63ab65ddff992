import json
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from axolotl_sdft import LayerPruningConfig, LayerScores, PruningPlan, plan_pruning
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.pruning.planning.plan import num_dropped, validate_pruning


def scores(costs, contiguous=True):
    """Scores of a model from {(start, end): cost}; blocks not named cost 9."""
    num_layers = max(end for _, end in costs)
    table = tuple(
        tuple(costs.get((i, j), 9.0) if j > i else 0.0 for j in range(num_layers + 1)) for i in range(num_layers + 1)
    )
    return LayerScores("by_hand", num_layers, table, contiguous, num_tokens=10)


BLOCKS = scores({(0, 2): 0.5, (1, 3): 0.3, (2, 4): 0.1, (3, 5): 0.2})
SINGLES = scores({(0, 1): 0.5, (1, 2): 0.1, (2, 3): 0.4, (3, 4): 0.2, (4, 5): 0.3}, contiguous=False)


def test_the_cheapest_block_of_this_length_goes():
    assert plan_pruning(BLOCKS, LayerPruningConfig(num_layers=2)) == PruningPlan((2, 3), 5, "by_hand", 0.1)


def test_the_cheapest_single_layers_go_where_the_metric_is_not_contiguous():
    plan = plan_pruning(SINGLES, LayerPruningConfig(num_layers=3))
    assert plan.drop_layers == (1, 3, 4)
    assert plan.cost == pytest.approx(0.1 + 0.2 + 0.3)


def test_protected_layers_are_never_chosen():
    assert plan_pruning(BLOCKS, LayerPruningConfig(num_layers=2, protect_last=2)).drop_layers == (1, 2)
    assert plan_pruning(BLOCKS, LayerPruningConfig(num_layers=2, protect_first=3)).drop_layers == (3, 4)
    single = LayerPruningConfig(num_layers=2, protect_first=2, protect_last=1)
    assert plan_pruning(SINGLES, single).drop_layers == (2, 3)


def test_the_lower_layers_win_a_tie():
    tie = scores({(0, 2): 0.5, (1, 3): 0.2, (2, 4): 0.2})
    assert plan_pruning(tie, LayerPruningConfig(num_layers=2)).drop_layers == (1, 2)


def test_named_layers_are_taken_in_order_whatever_they_score():
    assert plan_pruning(BLOCKS, LayerPruningConfig(drop_layers=(4, 0))) == PruningPlan((0, 4), 5, None, None)


@given(data=st.data(), contiguous=st.booleans(), num_layers=st.integers(2, 7))
def test_no_other_choice_costs_less(data, contiguous, num_layers):
    cost = st.floats(0.0, 1.0)
    pairs = [(i, j) for i in range(num_layers) for j in range(i + 1, num_layers + 1)]
    costs = {pair: data.draw(cost) for pair in pairs}
    first, last, count = (data.draw(st.integers(least, num_layers - 1)) for least in (0, 0, 1))
    assume(count <= num_layers - first - last)
    config = LayerPruningConfig(num_layers=count, protect_first=first, protect_last=last)

    plan = plan_pruning(scores(costs, contiguous), config)

    allowed = range(first, num_layers - last)
    assert len(plan.drop_layers) == count
    assert set(plan.drop_layers) <= set(allowed)
    if contiguous:
        starts = range(first, num_layers - last - count + 1)
        assert plan.cost == min(costs[start, start + count] for start in starts)
        assert plan.drop_layers == tuple(range(plan.drop_layers[0], plan.drop_layers[0] + count))
    else:
        assert plan.cost == pytest.approx(sum(sorted(costs[layer, layer + 1] for layer in allowed)[:count]))


@pytest.mark.parametrize("cost", [math.nan, math.inf])
def test_a_score_that_is_no_number_stops_the_plan(cost):
    broken = scores({(0, 1): 0.5, (1, 2): cost, (2, 3): 0.4})
    with pytest.raises(CheckpointError, match=r"by_hand scores removing layers 1 to 1 as (nan|inf); .*overflow"):
        plan_pruning(broken, LayerPruningConfig(num_layers=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_layers": 30},
            r"num_layers is 30, but the model has 30 layers; lower it so that at least one layer stays",
        ),
        ({"num_layers": 31}, r"num_layers is 31, but the model has 30 layers"),
        (
            {"num_layers": 5, "protect_first": 20, "protect_last": 6},
            r"num_layers is 5, .* protect_first \(20\) and protect_last \(6\) leave 4 of them to choose from; lower",
        ),
        ({"num_layers": 1, "protect_first": 40}, r"protect_first \(40\) and protect_last \(0\) leave 0 of them"),
        ({"drop_layers": (3, 30)}, r"layer_pruning\.drop_layers holds 30, but the model has 30 layers, 0 to 29"),
        ({"drop_layers": tuple(range(30))}, r"drop_layers names all 30 layers of the model; keep at least one"),
        ({"drop_layers": (1, 4), "protect_first": 2}, r"drop_layers names layer 1, but protect_first is 2"),
        ({"drop_layers": (29,), "protect_last": 1}, r"drop_layers names layer 29, but protect_last is 1"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate_pruning(LayerPruningConfig(**settings), num_layers=30)


def test_scores_of_another_metric_than_the_one_asked_for_are_refused():
    asked = LayerPruningConfig(num_layers=2, metric="block_influence")
    message = r"metric is block_influence, but the scores are those of by_hand; .*metric='block_influence'\)"
    with pytest.raises(ConfigError, match=message):
        plan_pruning(BLOCKS, asked)
    assert plan_pruning(BLOCKS, LayerPruningConfig(num_layers=2, metric="by_hand")).metric == "by_hand"


def test_a_target_is_no_number_of_layers():
    config = LayerPruningConfig(target={"parameters": 0.75})
    with pytest.raises(
        ConfigError, match=r"target\.parameters is 0\.75, but scores don't tell how many .*; set num_lay"
    ):
        plan_pruning(scores({(0, 1): 0.5}), config)


@pytest.mark.parametrize(
    "settings", [{"num_layers": 29}, {"num_layers": 4, "protect_first": 26}, {"drop_layers": (0, 29)}]
)
def test_settings_at_the_edge_pass(settings):
    validate_pruning(LayerPruningConfig(**settings), num_layers=30)


# Greedy metrics

GREEDY = LayerScores("greedy", 6, (), False, 10, removal_order=(3, 1, 4), removal_costs=(12.5, 14.0, 29.0))


def test_the_first_layers_of_a_removal_order_go_for_the_cost_after_the_last_of_them():
    assert plan_pruning(GREEDY, LayerPruningConfig(num_layers=1)) == PruningPlan((3,), 6, "greedy", 12.5)
    assert plan_pruning(GREEDY, LayerPruningConfig(num_layers=3)) == PruningPlan((1, 3, 4), 6, "greedy", 29.0)
    assert plan_pruning(GREEDY, LayerPruningConfig(num_layers=0.33)).drop_layers == (1, 3)


def test_an_order_without_costs_gives_a_plan_without_a_cost():
    order = LayerScores("last", 6, (), False, 0, removal_order=(4, 3, 2, 1, 0))
    assert plan_pruning(order, LayerPruningConfig(num_layers=2)) == PruningPlan((3, 4), 6, "last", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_layers": 4},
            r"but metric greedy gives 3 of 6 that may be removed; lower .* score again",
        ),
        ({"num_layers": 2, "protect_first": 2}, r"metric greedy chose layer 1, which protect_first \(2\) and"),
        ({"num_layers": 3, "protect_last": 2}, r"chose layer 4, .*protect_last \(2\) keep; score again with the same"),
    ],
)
def test_an_order_that_was_made_for_other_settings_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        plan_pruning(GREEDY, LayerPruningConfig(**settings))


def test_an_infinite_cost_stops_a_greedy_plan_only_when_it_is_reached():
    broken = LayerScores("greedy", 6, (), False, 10, removal_order=(3, 1), removal_costs=(2.0, math.inf))
    assert plan_pruning(broken, LayerPruningConfig(num_layers=1)).cost == 2.0
    with pytest.raises(CheckpointError, match=r"greedy scores removing layers 1, 3 as inf; .*dtype to float32"):
        plan_pruning(broken, LayerPruningConfig(num_layers=2))


# Fractions


@pytest.mark.parametrize(
    ("fraction", "num_layers", "expected"),
    # 0.25 of 30 is 7.5 and of 10 is 2.5: half a layer counts as one. Of 32: 8 exactly. 1 % of 30 is not a layer at all.
    [(0.25, 30, 8), (0.25, 10, 3), (0.25, 32, 8), (0.2, 32, 6), (0.01, 30, 1), (0.5, 2, 1)],
)
def test_a_fraction_of_the_layers_is_rounded_to_the_nearest_number_and_at_least_one(fraction, num_layers, expected):
    assert num_dropped(LayerPruningConfig(num_layers=fraction), num_layers) == expected


@given(st.floats(0.0, 1.0, exclude_min=True, exclude_max=True), st.integers(1, 200))
def test_a_fraction_is_never_off_by_more_than_half_a_layer_unless_it_is_less_than_one(fraction, num_layers):
    count = num_dropped(LayerPruningConfig(num_layers=fraction), num_layers)
    assert count == 1 or abs(count - fraction * num_layers) <= 0.5


def test_named_layers_are_counted_and_a_number_is_taken_as_it_is():
    assert num_dropped(LayerPruningConfig(drop_layers=(4, 7)), 30) == 2
    assert num_dropped(LayerPruningConfig(num_layers=5), 30) == 5


@pytest.mark.parametrize("found", [BLOCKS, GREEDY], ids=["blocks", "greedy"])
def test_scores_survive_json(found):
    assert LayerScores.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_scores_from_before_there_were_greedy_metrics_can_be_read():
    data = {key: value for key, value in BLOCKS.to_json().items() if not key.startswith("removal")}
    assert LayerScores.from_json(json.loads(json.dumps(data))) == BLOCKS
