from dataclasses import replace

import pytest

from axolotl_sdft import LayerPruningConfig, LayerScores, PruningPlan, plan_pruning
from axolotl_sdft.pruning.planning.removable import Removable
from axolotl_sdft.pruning.planning.report import report_lines, savings_lines
from axolotl_sdft.pruning.planning.savings import Footprint, Savings
from axolotl_sdft.pruning.scoring.scores import BlockDivergence

BEFORE = Footprint(5, 1_000_000, 2_000_000, 5_000, 0, 1_900_000_000)
AFTER = Footprint(3, 800_000, 1_600_000, 3_000, 0, 1_500_000_000)
SAVINGS = Savings(BEFORE, AFTER, (100_000,) * 5, ())


def scores(costs, contiguous=True):
    """Scores of five layers from {(start, end): cost}; blocks not named cost 9."""
    table = tuple(tuple(costs.get((i, j), 9.0) if j > i else 0.0 for j in range(6)) for i in range(6))
    return LayerScores("by_hand", 5, table, contiguous, num_tokens=1234)


BLOCKS = scores({(0, 1): 0.05, (0, 2): 0.5, (1, 3): 0.1, (2, 4): 0.2, (3, 5): 0.3, (1, 4): 0.7, (0, 4): 0.8})
SINGLES = scores({(0, 1): 0.5, (1, 2): 0.1, (2, 3): 0.4, (3, 4): 0.2, (4, 5): 0.3}, contiguous=False)
GREEDY = LayerScores("greedy", 5, (), False, 99, removal_order=(3, 0, 4), removal_costs=(10.0, 11.5, 20000.0))


def lines(scores, **settings):
    config = LayerPruningConfig(**{"num_layers": 2} | settings)
    return list(report_lines("org/seed", plan_pruning(scores, config), scores, SAVINGS, config))


def test_the_report_of_a_block_reads_like_this():
    assert (
        "\n".join(lines(BLOCKS))
        == """\
org/seed: 2 of 5 layers removed
layers, counted from 0: 1, 2
by_hand: 0.1000, over 1,234 tokens (lower: less is lost)

                    before    after     saved
layers                   5        3         2  40.0 %
parameters           1.0 M  800.0 k   200.0 k  20.0 %
weights             2.0 MB   1.6 MB  400.0 kB  20.0 %
KV cache per token  5.0 kB   3.0 kB    2.0 kB  40.0 %
FLOPs per token      1.9 G    1.5 G   400.0 M  21.1 %
FLOPs: forward pass of one token without a context before it; a multiply-add counts as two

The cheapest block of each length
   go  by_hand  parameters left          layers
    1   0.0500          900.0 k  90.0 %  0
>   2   0.1000          800.0 k  80.0 %  1 to 2
    3   0.7000          700.0 k  70.0 %  1 to 3
    4   0.8000          600.0 k  60.0 %  0 to 3
Next-best blocks of 2: 2 to 3 (0.2000), 3 to 4 (0.3000), 0 to 1 (0.5000)"""
    )


def test_what_can_not_go_is_told_and_the_choice_is_marked_instead():
    removable = Removable({}, {}, lambda layers: "layer 1 is needed" if 1 in layers else None)
    config = LayerPruningConfig(num_layers=2)
    plan = plan_pruning(BLOCKS, config, removable)
    printed = list(report_lines("org/seed", plan, BLOCKS, SAVINGS, config))
    assert "layers, counted from 0: 2, 3" in printed
    assert "layers 1+2 would be chosen by by_hand, but can't be removed: layer 1 is needed" in printed
    assert ">   2   0.2000          800.0 k  80.0 %  2 to 3" in printed
    assert printed[-2:] == [
        "Next-best blocks of 2: 3 to 4 (0.3000), 0 to 1 (0.5000)",
        "Other numbers of layers are by the scores alone: what can't be removed may be among them",
    ]


def test_single_layers_are_listed_from_the_cheapest_on():
    printed = lines(SINGLES)
    start = printed.index("The cheapest single layers")
    assert [line.split()[-1] for line in printed[start + 2 :]] == ["1", "3", "4", "2"]
    assert printed[start + 3].startswith(">   2   0.3000")  # 0.1 + 0.2


def test_a_greedy_order_is_listed_as_it_goes_on():
    printed = lines(GREEDY)
    start = printed.index("Layers one after the other, as each hurts least")
    rows = [line.lstrip("> ").split() for line in printed[start + 2 :]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("1", "10.0000", "3"),
        ("2", "11.5000", "0"),
        ("3", "2.000e+04", "4"),
    ]


def test_protected_layers_are_no_alternative():
    printed = lines(BLOCKS, protect_first=1, protect_last=1)
    assert printed[-1] == "Next-best blocks of 2: 2 to 3 (0.2000)"
    assert not any(line.startswith("    4 ") for line in printed)  # three layers are left to choose from


def test_layers_named_by_the_user_have_no_scores_to_compare():
    plan = PruningPlan((0, 4), 5, None, None)
    printed = list(report_lines("seed", plan, None, SAVINGS, LayerPruningConfig(drop_layers=(0, 4))))
    assert printed[:3] == ["seed: 2 of 5 layers removed", "layers, counted from 0: 0, 4", ""]
    assert printed[-1].startswith("FLOPs:")


def test_a_metric_that_measures_nothing_is_said_to():
    last = LayerScores("last", 5, (), False, 0, removal_order=(3, 2, 1, 0))
    printed = lines(last)
    assert printed[1:3] == ["layers, counted from 0: 2, 3", "chosen by last, which measures nothing"]
    assert printed[-1].startswith("FLOPs:")


def test_an_encoder_has_no_row_for_what_it_remembers():
    footprint = Footprint(5, 1, 1, None, None, 100)
    assert [line.split()[0] for line in savings_lines(Savings(footprint, footprint, (), ()))][1:] == [
        *("layers", "parameters", "weights", "FLOPs", "FLOPs:"),
    ]


def test_no_line_is_longer_than_100_columns():
    size = 126
    costs = tuple(tuple(float(max(0, j - i)) for j in range(size + 1)) for i in range(size + 1))
    large = LayerScores("angular_distance", size, costs, True, 10**6)
    footprint = Footprint(size, 405 * 10**9, 810 * 10**9, 516_096, 0, 810 * 10**9)
    config = LayerPruningConfig(num_layers=60)
    savings = Savings(footprint, footprint, (3 * 10**9,) * size, ())
    printed = list(report_lines("org/large", plan_pruning(large, config), large, savings, config))
    assert max(len(line) for line in printed) <= 100
    assert ", ".join(map(str, range(60))) in " ".join(line.strip() for line in printed)


@pytest.mark.parametrize(
    ("cache", "state", "expected"),
    [
        (None, None, ["KV cache per token unknown unknown"]),
        (0, 4608, ["state per sequence 4.6 kB 4.6 kB"]),
        (32, 3840, ["state per sequence 3.8 kB 3.8 kB", "KV cache per token 32 B 32 B"]),
    ],
)
def test_what_a_model_remembers_is_a_cache_or_a_state_or_both(cache, state, expected):
    footprint = Footprint(5, 1, 1, cache, state, None)
    printed = [" ".join(line.split()) for line in savings_lines(Savings(footprint, footprint, (), ("a note",)))]
    remembered = [line for line in printed if line.startswith(("KV", "state"))]
    assert len(remembered) == len(expected)
    assert all(line.startswith(start) for line, start in zip(remembered, expected, strict=True))
    assert printed[-2:] == ["FLOPs per token unknown unknown", "a note"]


def test_blocks_that_were_tried_are_shown_bare_and_patched():
    tried = (BlockDivergence(1, 2, 0.5, 0.25), BlockDivergence(1, 3, 1.0, None), BlockDivergence(2, 4, 2.0, 0.75))
    printed = lines(replace(BLOCKS, metric="divergence", divergences=tried), metric="divergence")
    title = "Blocks tried: KL to the seed model in nats per token of held-out text, bare and patched"
    table = printed[printed.index(title) :]
    assert [line.split() for line in table[1:]] == [
        ["go", "KL", "bare", "KL", "patched", "parameters", "left", "layers"],
        ["1", "0.5000", "0.2500", "900.0", "k", "90.0", "%", "1"],
        [">", "2", "2.0000", "0.7500", "800.0", "k", "80.0", "%", "2", "to", "3"],
        ["1.0000", "no", "patch", "800.0", "k", "80.0", "%", "1", "to", "2"],
    ]
