import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.losses.divergences import confidence_of, influence, temperature


def log_probs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def schedule(log_probs_NV: torch.Tensor, config: DynSDPBConfig) -> tuple[torch.Tensor, torch.Tensor]:
    confidence = confidence_of(log_probs_NV)
    return influence(confidence.uncertainty, config), temperature(confidence.discrimination, config)


def test_uncertainty_grows_with_the_number_of_tokens_that_it_wavers_between():
    result = confidence_of(log_probs([0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]))
    assert result.uncertainty.tolist() == pytest.approx([3 / 4, 1 / 2, 0.0])


def test_uncertainty_does_not_depend_on_how_many_tokens_there_are():
    # H = 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2 in both, so e^-H = 2^-1.5
    small, large = ([0.5, 0.25, 0.25], [0.5, 0.25, 0.25] + [0.0] * 97)
    for probabilities in (small, large):
        result = confidence_of(log_probs(probabilities))
        assert result.uncertainty.item() == pytest.approx(1 - 2**-1.5)


def test_discrimination_is_the_gap_between_the_two_most_likely_tokens():
    result = confidence_of(log_probs([0.2, 0.7, 0.1], [0.5, 0.0, 0.5]))
    assert result.discrimination.tolist() == pytest.approx([0.5, 0.0])
    assert result.top[0] == 1
    assert result.top[1] in (0, 2)


def test_influence_falls_with_uncertainty_and_temperature_with_discrimination():
    config = DynSDPBConfig(alpha=2.0, temperature=5.0, temperature_min=1.0)
    alpha, temperatures = schedule(log_probs([0.5, 0.5], [0.75, 0.25], [1.0, 0.0]), config)
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert alpha.tolist() == pytest.approx([1.0, 2.0 * math.exp(-entropy), 2.0])
    assert temperatures.tolist() == pytest.approx([5.0, 3.0, 1.0])


def test_static_settings_give_constants():
    config = DynSDPBConfig(alpha=0.5, temperature=3.0, dynamic_alpha=False, dynamic_temperature=False)
    alpha, temperatures = schedule(log_probs([0.5, 0.5], [0.9, 0.1]), config)
    assert (alpha.tolist(), temperatures.tolist()) == ([0.5, 0.5], [3.0, 3.0])


@pytest.mark.parametrize(("dynamic_alpha", "expected"), [(True, (0.5, 4.0)), (False, (1.0, 1.0))])
def test_one_of_the_two_can_be_dynamic_alone(dynamic_alpha: bool, expected: tuple[float, float]):
    config = DynSDPBConfig(
        temperature=4.0, temperature_min=1.0, dynamic_alpha=dynamic_alpha, dynamic_temperature=not dynamic_alpha
    )
    alpha, temperatures = schedule(log_probs([0.5, 0.5] if dynamic_alpha else [1.0, 0.0]), config)
    assert (alpha.item(), temperatures.item()) == pytest.approx(expected)


def test_a_vocabulary_of_one_token_is_certain():
    alpha, temperatures = schedule(log_probs([1.0]), DynSDPBConfig(alpha=1.5, temperature=4.0))
    assert (alpha.item(), temperatures.item()) == (1.5, 1.0)
    assert confidence_of(log_probs([1.0])).top.item() == 0


def test_no_tokens_give_no_influences():
    alpha, temperatures = schedule(torch.zeros(0, 5), DynSDPBConfig())
    assert alpha.shape == temperatures.shape == (0,)


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0.0, 40.0), st.integers(0, 1000))
def test_influence_and_temperature_stay_within_their_bounds(num_tokens: int, vocab: int, spread: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(num_tokens, vocab, generator=generator)
    alpha, temperatures = schedule(logits.log_softmax(-1), DynSDPBConfig(alpha=2.0, temperature=3.0))
    assert ((alpha >= 0.0) & (alpha <= 2.0)).all()
    assert ((temperatures >= 1.0 - 1e-6) & (temperatures <= 3.0 + 1e-6)).all()
