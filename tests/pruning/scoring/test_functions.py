"""Metrics that are given as functions, without a plugin."""

import pytest

from axolotl_sdft import LayerPruningConfig, plan_pruning, score_layers
from axolotl_sdft.core.errors import PluginError
from axolotl_sdft.pruning.scoring.measure import scoring_identity
from tests.core.test_callables import cell
from tests.pruning.conftest import load
from tests.pruning.test_pipeline import no_batches, read, run_of

CELL = """
    from axolotl_sdft.plugin_api import LayerScores, metric_traits

    FIRST = 1

    @metric_traits(needs_text=False, is_greedy=True)
    def from_the_front(model, batches, options):
        order = tuple(range(FIRST, model.config.num_hidden_layers))
        return LayerScores("from_the_front", model.config.num_hidden_layers, (), False, 0, removal_order=order)
"""


def metric(source=CELL):
    return cell(source, "from_the_front")


def test_a_function_scores_layers_as_a_registered_metric_does(checkpoint):
    scores = score_layers(load(checkpoint()), [], metric(), num_layers=2)

    assert scores.metric == "from_the_front"
    assert plan_pruning(scores, LayerPruningConfig(num_layers=2, metric=metric())).drop_layers == (1, 2)


def test_a_checkpoint_is_pruned_by_a_function_and_found_again(checkpoint, tmp_path):
    settings = {"num_layers": 2, "patch": "none"}
    first = run_of(checkpoint(), tmp_path, settings | {"metric": metric()}, no_batches)
    folder = first.run()

    assert read(folder, "provenance/scores.json")["removal_order"][:2] == [1, 2]
    assert run_of(checkpoint(), tmp_path, settings | {"metric": metric()}, no_batches).spec.output_dir == folder


def test_another_constant_of_the_metrics_cell_makes_other_scores():
    def identity(source):
        return scoring_identity("seed", LayerPruningConfig(num_layers=2, metric=metric(source)), "text")

    assert identity(CELL) == identity(CELL)
    assert identity(CELL) != identity(CELL.replace("FIRST = 1", "FIRST = 2"))
    assert identity(CELL)["metric"].startswith("notebook.from_the_front ")


def test_a_function_that_is_no_metric_is_refused_before_it_is_called(checkpoint):
    def scorer(model):
        pytest.fail("called")

    with pytest.raises(PluginError, match=r"^layer_pruning\.metric: the metric scorer must take \(model, batches, opt"):
        score_layers(load(checkpoint()), [], scorer)
