import math

import pytest

from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.evaluation.measures.likelihood import MeasuredRows, RowSums, relative_to_seed

RESAMPLER = Resampler(500)


def likelihoods(*sums):
    """Rows of two tokens each, with these negative log-likelihoods."""
    return [RowSums(2, nll, 0.0, 2) for nll in sums]


SEED = MeasuredRows(
    held_out=likelihoods(2.0, 4.0),
    general=likelihoods(1.0, 1.0),
    exact_match=[True, True, False, True],
    tool_calls=[True, True],
    tasks={"gsm8k": [1.0, 0.0, 1.0, 0.0], "mmlu": [1.0, 1.0]},
)


def test_the_seed_keeps_all_of_its_own_quality():
    kept = relative_to_seed(SEED, SEED, RESAMPLER)

    assert list(kept) == ["tasks", "exact_match", "tool_calls", "held_out", "general"]
    assert kept["exact_match"].value == 100.0
    for figure in kept.values():
        assert (figure.value, figure.low, figure.high) == (100.0, 100.0, 100.0)


def test_each_source_is_in_percent_of_the_seed():
    model = MeasuredRows(
        held_out=likelihoods(3.0, 5.0),
        general=likelihoods(1.0, 3.0),
        exact_match=[True, False, False, False],
        tool_calls=[False, True],
        tasks={"gsm8k": [1.0, 0.0, 0.0, 0.0], "mmlu": [1.0, 0.0]},
    )

    kept = relative_to_seed(SEED, model, RESAMPLER)

    assert kept["tasks"].value == pytest.approx(100 * (0.25 + 0.5) / (0.5 + 1.0))
    assert kept["exact_match"].value == pytest.approx(100 / 3)
    assert kept["tool_calls"].value == 50.0
    # 6 nats over 4 tokens against 8; both rows lost 1 nat over 2 tokens, so that no resample differs.
    perplexities = 100 * math.exp(6 / 4 - 8 / 4)
    assert kept["held_out"] == Estimate(*[pytest.approx(perplexities)] * 3, rows=2)
    # Either row may be drawn alone: nothing lost, or 2 nats over 2 tokens.
    assert kept["general"] == Estimate(
        *(pytest.approx(100 * math.exp(-share)) for share in (0.5, 1.0, 0.0)),
        rows=2,
    )


def test_a_better_model_keeps_more_than_all():
    model = MeasuredRows(held_out=likelihoods(1.0, 2.0))

    assert relative_to_seed(SEED, model, RESAMPLER)["held_out"].value == pytest.approx(100 * math.exp(0.75))


def test_what_was_not_measured_of_both_is_left_out():
    model = MeasuredRows(tasks={"mmlu": [1.0, 0.0], "winogrande": [1.0]})

    kept = relative_to_seed(SEED, model, RESAMPLER)

    assert list(kept) == ["tasks"]
    assert kept["tasks"].value == 50.0  # of the one task that both have


def test_where_the_seed_scores_nothing_there_is_nothing_to_keep():
    seed = MeasuredRows(exact_match=[False, False], tool_calls=[False], tasks={"gsm8k": [0.0, 0.0]})
    model = MeasuredRows(exact_match=[True, False], tool_calls=[True], tasks={"gsm8k": [1.0, 0.0]})

    assert relative_to_seed(seed, model, RESAMPLER) == {}


def test_rows_of_different_number_are_refused():
    with pytest.raises(ValueError, match=r"values of \[2, 2, 1, 1\] rows; all need the same"):
        relative_to_seed(MeasuredRows(held_out=SEED.held_out), MeasuredRows(held_out=likelihoods(1.0)), RESAMPLER)
