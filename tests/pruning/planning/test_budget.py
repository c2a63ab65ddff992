"""How many layers a budget of parameters takes."""

import pytest

from axolotl_sdft import LayerPruningConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.pruning.pipeline import PruningRun
from axolotl_sdft.pruning.planning.plan import within_budget
from axolotl_sdft.pruning.planning.savings import count_parameters
from axolotl_sdft.pruning.spec import PruningSpec

SIZES = (100,) * 6
TOTAL = 1000  # 600 in layers, 400 elsewhere


def count(parameters, sizes=SIZES, total=TOTAL, **settings):
    config = LayerPruningConfig(target={"parameters": parameters}, **settings)
    return within_budget(config, total, sizes).num_layers


@pytest.mark.parametrize(
    ("parameters", "expected"), [(999, 1), (900, 1), (899, 2), ("0.75K", 3), (0.8, 2), (0.79, 3), (500, 5)]
)
def test_as_few_layers_go_as_keep_to_the_budget(parameters, expected):
    assert count(parameters) == expected


def test_of_layers_of_unlike_size_the_smallest_are_counted_so_that_any_will_do():
    assert count(700, sizes=(300, 100, 100, 300, 100, 100)) == 3


def test_protected_layers_are_not_counted():
    sizes = (10, 100, 100, 100, 100, 10)
    assert count(890, sizes=sizes) == 3  # 10, 10 and 100
    assert count(890, sizes=sizes, protect_first=1, protect_last=1) == 2


def test_a_model_that_is_small_enough_already_is_said_to_be():
    with pytest.raises(ConfigError, match=r"target.parameters is 1000, but the model has only 1,000; lower it"):
        count(1000)


def test_a_budget_out_of_reach_is_refused_with_what_would_be_left():
    with pytest.raises(ConfigError, match=r"without 5 of its 6 layers, .* the model still has 500 of 1,000 parameters"):
        count(499)
    with pytest.raises(ConfigError, match=r"without 3 of its 6 layers, .* still has 700"):
        count(600, protect_first=3)


def test_without_a_target_the_settings_stay_as_they_are():
    config = LayerPruningConfig(num_layers=2)
    assert within_budget(config, TOTAL, SIZES) is config


def run_of(seed_dir, root, **settings):
    return PruningRun(
        PruningSpec(
            seed_dir=seed_dir,
            seed_name="org/seed",
            config=LayerPruningConfig(metric="last", patch="none", **settings),
            calibration_fingerprint="text",
            load_batches=list,
            root=root,
        )
    )


def test_the_stage_removes_as_many_layers_as_the_target_takes(checkpoint, tmp_path):
    total, layers = count_parameters(checkpoint())
    pruning = run_of(checkpoint(), tmp_path, target={"parameters": total - layers[0] - 1})
    folder = pruning.run()
    assert "-drop2-" in folder.name
    assert count_parameters(folder)[0] == total - 2 * layers[0]
    assert run_of(folder, tmp_path, target={"parameters": total - layers[0] - 1}).spec.is_input_pruned


def test_a_target_that_cannot_be_met_stops_the_stage_at_once(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"layer_pruning.target.parameters is 10"):
        run_of(checkpoint(), tmp_path, target={"parameters": 10})
