"""The metric that tries blocks out, and what is made of its figures."""

import pytest
import torch

from axolotl_sdft import LayerPruningConfig, LayerScores, fit_patch, plan_pruning, score_layers
from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.pruning.patching.ranking import NUM_TRIED
from axolotl_sdft.pruning.planning.report import report_lines
from axolotl_sdft.pruning.planning.savings import Footprint, Savings
from axolotl_sdft.pruning.scoring.measure import ScoreCache
from axolotl_sdft.pruning.scoring.scores import BlockDivergence
from tests.pruning.patching.models import llama, text


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def scores(model):
    return score_layers(model, text(), "divergence", num_layers=2)


def of_length(scores, length):
    return [block for block in scores.divergences if block.end - block.start == length]


def test_the_best_blocks_of_the_wanted_length_and_one_of_each_smaller_length_are_tried(model, scores):
    cheap = score_layers(model, text(), "angular_distance")
    by_cost = sorted(range(5), key=lambda start: cheap.block_costs[start][start + 2])
    assert {block.start for block in of_length(scores, 2)} == set(by_cost[:NUM_TRIED])
    single = min(range(6), key=lambda start: cheap.block_costs[start][start + 1])
    assert [block.start for block in of_length(scores, 1)] == [single]
    assert scores.block_costs == cheap.block_costs


def test_the_figures_are_those_of_a_patch_fitted_alone(model, scores):
    for block in scores.divergences:
        patch = fit_patch(model, text(), range(block.start, block.end))
        if block.start == 0:
            assert block.patched is None
            continue
        assert block.bare == pytest.approx(patch.cuts[0].divergence_without, rel=1e-4)
        assert block.patched == pytest.approx(patch.cuts[0].divergence_with, rel=1e-4)


def test_blocks_that_were_tried_before_are_not_tried_again(model, scores, monkeypatch):
    from axolotl_sdft.pruning.patching import ranking

    again = score_layers(model, text(), "divergence", num_layers=2, known=scores)
    assert again == scores
    tried = []
    own = ranking.cut_with_projection
    monkeypatch.setattr(
        ranking,
        "cut_with_projection",
        lambda model, removed, probe: tried.append(removed) or own(model, removed, probe),
    )
    more = score_layers(model, text(), "divergence", num_layers=3, known=scores)
    assert {len(removed) for removed in tried} == {3}
    assert set(scores.divergences) < set(more.divergences)


def test_protected_layers_and_those_that_may_not_go_are_not_tried(model):
    scores = score_layers(
        model,
        text(),
        "divergence",
        num_layers=2,
        protect_first=1,
        protect_last=1,
        may_go=lambda layers: 3 not in layers,
    )
    assert {(block.start, block.end) for block in of_length(scores, 2)} == {(1, 3)}


def test_a_number_of_layers_and_two_rows_are_needed(model):
    with pytest.raises(ConfigError, match=r"metric divergence needs num_layers"):
        score_layers(model, text(), "divergence")
    with pytest.raises(DatasetError, match="a single row"):
        score_layers(model, text(num_batches=1, rows=1), "divergence", num_layers=1)


def made_up(*blocks):
    costs = tuple(tuple(0.1 * max(0, end - start) for end in range(7)) for start in range(7))
    return LayerScores(
        "divergence", 6, costs, True, 100, divergences=tuple(BlockDivergence(*block) for block in blocks)
    )


MADE_UP = made_up((2, 3, 0.3, 0.2), (1, 3, 0.9, 0.4), (3, 5, 0.8, 0.6), (0, 2, 0.7, None))


def test_the_block_without_which_the_patched_model_is_nearest_goes():
    plan = plan_pruning(MADE_UP, LayerPruningConfig(num_layers=2))
    assert (plan.drop_layers, plan.cost) == ((1, 2), 0.4)


def test_without_a_patch_the_bare_figures_choose():
    plan = plan_pruning(MADE_UP, LayerPruningConfig(num_layers=2, patch="none"))
    assert (plan.drop_layers, plan.cost) == ((0, 1), 0.7)


def test_a_patch_that_leads_away_counts_as_the_bare_cut():
    plan = plan_pruning(made_up((1, 3, 0.5, 3.0), (3, 5, 0.6, 0.6)), LayerPruningConfig(num_layers=2))
    assert (plan.drop_layers, plan.cost) == ((1, 2), 0.5)


def test_lengths_that_were_not_tried_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"has tried no block of 3 layers .* score again with num_layers=3"):
        plan_pruning(MADE_UP, LayerPruningConfig(num_layers=3))


def test_scores_come_back_from_their_file_and_serve_the_lengths_that_were_tried(tmp_path):
    made = []
    cache = ScoreCache(tmp_path / "scores", {})
    assert cache.find_or_make(2, lambda known: made.append(known) or MADE_UP) == MADE_UP
    assert cache.find_or_make(1, lambda known: made.append(known) or MADE_UP) == MADE_UP
    assert made == [None]
    cache.find_or_make(3, lambda known: made.append(known) or made_up((1, 4, 1.0, 0.5)))
    assert made[1] == MADE_UP


def test_the_report_shows_both_figures_of_each_block_and_marks_the_chosen_one():
    whole, less = (Footprint(count, 100 * count, 400 * count, None, None, None) for count in (6, 4))
    config = LayerPruningConfig(num_layers=2)
    lines = list(
        report_lines("seed", plan_pruning(MADE_UP, config), MADE_UP, Savings(whole, less, (100,) * 6, ()), config)
    )
    table = lines[
        lines.index("Blocks tried: KL to the seed model in nats per token of held-out text, bare and patched") :
    ]
    assert [line.split() for line in table[1:]] == [
        ["go", "KL", "bare", "KL", "patched", "parameters", "left", "layers"],
        ["1", "0.3000", "0.2000", "500", "83.3", "%", "2"],
        [">", "2", "0.9000", "0.4000", "400", "66.7", "%", "1", "to", "2"],
        ["0.8000", "0.6000", "400", "66.7", "%", "3", "to", "4"],
        ["0.7000", "no", "patch", "400", "66.7", "%", "0", "to", "1"],
    ]


def test_the_model_comes_back_as_it_was(model, scores):
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
