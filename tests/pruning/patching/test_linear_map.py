"""The least-squares fit from sums, against one from all tokens at once."""

import torch

from axolotl_sdft.pruning.patching.linear_map import FitSums

WIDTH = 6


def tokens(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums_of(*pairs):
    sums = FitSums(WIDTH, torch.device("cpu"))
    for outputs, changes in pairs:
        sums.add(outputs, changes)
    return sums


def test_a_map_that_explains_all_is_found_again():
    outputs, wanted = tokens(200), tokens(WIDTH, seed=1)
    correction, num_directions = sums_of((outputs, outputs @ wanted)).correction(ridge=1e-12)
    torch.testing.assert_close(correction, wanted)
    assert num_directions == 0


def test_micro_batches_add_up_to_the_fit_over_all_tokens():
    outputs, changes = tokens(90), tokens(90, seed=1)
    parts = sums_of(*zip(outputs.split(30), changes.split(30), strict=True))
    squares = outputs.T @ outputs
    ridge = 0.25 * squares.diagonal().mean() * torch.eye(WIDTH, dtype=torch.float64)
    expected = torch.linalg.inv(squares + ridge) @ outputs.T @ changes
    torch.testing.assert_close(parts.correction(ridge=0.25)[0], expected)


def test_a_strong_ridge_leaves_the_outputs_as_they_are():
    outputs = tokens(50)
    correction, _ = sums_of((outputs, 3 * outputs)).correction(ridge=1e12)
    assert correction.abs().max() < 1e-9


def test_outputs_that_are_all_zero_change_nothing():
    correction, _ = sums_of((torch.zeros(5, WIDTH), tokens(5))).correction()
    assert torch.equal(correction, torch.zeros(WIDTH, WIDTH, dtype=torch.float64))


def with_sinks():
    """Ordinary tokens, and two sinks along one direction, a thousand times larger, that want something else."""
    outputs, wanted = tokens(400), tokens(WIDTH, seed=1)
    direction = torch.zeros(WIDTH, dtype=torch.float64)
    direction[2] = 2000.0
    sinks = torch.stack([direction, -direction])
    changes = torch.cat([outputs @ wanted, tokens(2, seed=2)])
    return torch.cat([outputs, sinks]), changes, wanted


def test_sinks_are_left_out_and_pass_the_map_unchanged():
    outputs, changes, wanted = with_sinks()
    sums = sums_of((outputs, changes))
    correction, num_directions = sums.correction(ridge=1e-12)
    assert (sums.num_sinks, sums.num_tokens, num_directions) == (2, 400, 1)
    assert (outputs[-2:] @ correction).abs().max() < 1e-9
    # Where ordinary tokens have nothing of the sinks' direction, the map is the one that explains them.
    free = [column for column in range(WIDTH) if column != 2]
    assert (correction[free] - wanted[free]).abs().max() < 0.2


def test_a_token_that_becomes_a_sink_only_in_the_layers_that_go_spoils_nothing():
    outputs, wanted = tokens(400), tokens(WIDTH, seed=1)
    changes = outputs @ wanted
    changes[7] = 5000.0
    sums = sums_of((outputs, changes))
    correction, num_directions = sums.correction(ridge=1e-12)
    assert (sums.num_sinks, sums.num_tokens, num_directions) == (1, 399, 0)
    torch.testing.assert_close(correction, wanted, atol=1e-6, rtol=0)


def test_sinks_within_the_fit_would_have_spoilt_it():
    outputs, changes, _ = with_sinks()
    ridge = 1e-3 * (outputs.T @ outputs).diagonal().mean() * torch.eye(WIDTH, dtype=torch.float64)
    naive = torch.linalg.inv(outputs.T @ outputs + ridge) @ outputs.T @ changes
    robust, _ = sums_of((outputs, changes)).correction()
    ordinary, wanted = outputs[:-2], changes[:-2]
    assert (ordinary @ robust - wanted).norm() < 0.6 * (ordinary @ naive - wanted).norm()


def test_as_many_directions_are_left_alone_as_the_sinks_have():
    directions = 2000 * torch.eye(WIDTH, dtype=torch.float64)[:3]
    sums = sums_of((torch.cat([tokens(300), directions]), tokens(303, seed=1)))
    correction, num_directions = sums.correction()
    assert num_directions == 3
    assert (directions @ correction).abs().max() < 1e-9
