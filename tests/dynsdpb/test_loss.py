import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.dynsdpb.loss import dynsdpb_loss
from axolotl_sdft.errors import ConfigError

STATIC = DynSDPBConfig(alpha=2.0, temperature=1.0, dynamic_alpha=False, dynamic_temperature=False)


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_logits(num_tokens: int, vocab: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(num_tokens, vocab, generator=torch.Generator().manual_seed(seed))).to(dtype)


def softmax(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def slow_reference(student: torch.Tensor, teacher: torch.Tensor, config: DynSDPBConfig) -> tuple[float, list[Any]]:
    """The formulas, one token and one number at a time: the sum, and its gradient with respect to the student."""
    total, gradient = 0.0, []
    for now, before in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        plain = sorted(softmax(before, 1.0), reverse=True)
        alpha, temperature = config.alpha, config.temperature
        if config.dynamic_alpha and len(plain) > 1:
            alpha *= 1 + sum(p * math.log(p) for p in plain) / math.log(len(plain))
        if config.dynamic_temperature:
            gap = plain[0] - plain[1] if len(plain) > 1 else 1.0
            temperature = config.temperature_min + (config.temperature - config.temperature_min) * (1 - gap)
        p_now, p_before = softmax(now, temperature), softmax(before, temperature)
        divergence = sum(q * math.log(q / p) for q, p in zip(p_before, p_now, strict=True))
        total += alpha * temperature**2 * divergence
        gradient.append([alpha * temperature * (p - q) for q, p in zip(p_before, p_now, strict=True)])
    return total, gradient


configs = st.builds(
    DynSDPBConfig,
    alpha=st.floats(0.0, 3.0),
    temperature=st.floats(1.0, 5.0),
    temperature_min=st.floats(0.5, 1.0),
    dynamic_alpha=st.booleans(),
    dynamic_temperature=st.booleans(),
    chunk_tokens=st.integers(1, 12),
)


def test_the_sum_and_its_gradient_match_values_worked_out_by_hand():
    student = logits_of([0.25, 0.75]).requires_grad_()
    terms = dynsdpb_loss(student, logits_of([0.5, 0.5]), STATIC)
    terms.kl_sum.backward()
    # KL = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3, with influence 2
    assert terms.kl_sum.item() == pytest.approx(math.log(4 / 3))
    # 2 * (p_student - p_teacher)
    assert student.grad.tolist() == [pytest.approx([-0.5, 0.5])]


def test_the_logged_sums_are_free_of_influence_and_temperature_squared():
    config = DynSDPBConfig(alpha=3.0, temperature=2.0, dynamic_alpha=False, dynamic_temperature=False)
    # At temperature 2 these logits become those of (1/4, 3/4) and (1/2, 1/2).
    terms = dynsdpb_loss(2 * logits_of([0.25, 0.75]), 2 * logits_of([0.5, 0.5]), config)
    divergence = 0.5 * math.log(4 / 3)
    assert terms.divergence_sum.item() == pytest.approx(divergence)
    assert terms.kl_sum.item() == pytest.approx(3.0 * 4.0 * divergence)
    assert (terms.num_tokens, terms.alpha_sum.item(), terms.temperature_sum.item()) == (1, 3.0, 2.0)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), configs, st.booleans(), st.integers(0, 99))
def test_it_equals_the_formulas_for_any_shape_chunk_and_setting(
    num_tokens: int, vocab: int, config: DynSDPBConfig, is_double: bool, seed: int
):
    dtype = torch.float64 if is_double else torch.float32
    student = random_logits(num_tokens, vocab, seed, dtype).requires_grad_()
    teacher = random_logits(num_tokens, vocab, seed + 1000, dtype)
    terms = dynsdpb_loss(student, teacher, config)
    terms.kl_sum.backward()
    total, gradient = slow_reference(student.detach(), teacher, config)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if is_double else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(terms.kl_sum.detach().double(), torch.tensor(total, dtype=torch.float64), **tolerance)
    torch.testing.assert_close(student.grad.double(), torch.tensor(gradient, dtype=torch.float64), **tolerance)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 100])
def test_numerical_differences_confirm_the_gradient(chunk_tokens: int):
    config = DynSDPBConfig(alpha=1.3, temperature=2.5, chunk_tokens=chunk_tokens)
    student, teacher = random_logits(5, 4, 0).requires_grad_(), random_logits(5, 4, 1)
    assert torch.autograd.gradcheck(lambda logits: 0.7 * dynsdpb_loss(logits, teacher, config).kl_sum, student)


def test_low_precision_gradients_are_as_close_to_the_truth_as_their_format_allows():
    config = DynSDPBConfig(chunk_tokens=3)
    student = random_logits(8, 11, 0, torch.bfloat16).requires_grad_()
    teacher = random_logits(8, 11, 1, torch.bfloat16)
    terms = dynsdpb_loss(student, teacher, config)
    terms.kl_sum.backward()
    total, gradient = slow_reference(student.detach(), teacher, config)
    assert terms.kl_sum.dtype == torch.float32
    assert terms.kl_sum.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(student.grad, torch.tensor(gradient).bfloat16(), rtol=2**-7, atol=1e-6)


def test_the_former_prediction_is_a_constant():
    student, teacher = random_logits(3, 4, 0).requires_grad_(), random_logits(3, 4, 1).requires_grad_()
    dynsdpb_loss(student, teacher, DynSDPBConfig()).kl_sum.backward()
    assert teacher.grad is None


def test_an_unchanged_prediction_costs_nothing_and_pulls_nowhere():
    student = random_logits(6, 5, 3).requires_grad_()
    terms = dynsdpb_loss(student, student.detach().clone(), DynSDPBConfig())
    terms.kl_sum.backward()
    assert terms.kl_sum.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(student.grad))


def test_sums_of_parts_add_up_to_the_sum_of_the_whole():
    student, teacher = random_logits(7, 5, 0), random_logits(7, 5, 1)
    whole = dynsdpb_loss(student, teacher, DynSDPBConfig(chunk_tokens=4))
    parts = [dynsdpb_loss(student[cut], teacher[cut], DynSDPBConfig()) for cut in (slice(0, 3), slice(3, 7))]
    for name in ("kl_sum", "divergence_sum", "alpha_sum", "temperature_sum"):
        torch.testing.assert_close(getattr(whole, name), sum(getattr(part, name) for part in parts))


def test_no_tokens_give_zero_that_can_be_differentiated():
    student = torch.zeros(0, 5, requires_grad=True)
    terms = dynsdpb_loss(student, torch.zeros(0, 5), DynSDPBConfig())
    terms.kl_sum.backward()
    assert (terms.kl_sum.item(), terms.num_tokens, student.grad.shape) == (0.0, 0, (0, 5))


def test_a_token_that_both_predictions_rule_out_adds_nothing():
    student = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -math.inf]])
    terms = dynsdpb_loss(student, teacher, DynSDPBConfig())
    terms.kl_sum.backward()
    without = dynsdpb_loss(student[:, :2], teacher[:, :2], DynSDPBConfig(dynamic_alpha=False))
    assert terms.divergence_sum.item() == pytest.approx(without.divergence_sum.item())
    assert student.grad[0, 2].item() == 0.0


def test_full_precision_is_paid_for_one_chunk_at_a_time():
    class LargestFloat32(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if torch.is_tensor(value) and value.dtype == torch.float32:
                    self.numel = max(self.numel, value.numel())
            return result

    student = random_logits(64, 50, 0, torch.bfloat16).requires_grad_()
    teacher = random_logits(64, 50, 1, torch.bfloat16)
    with LargestFloat32() as seen:
        dynsdpb_loss(student, teacher, DynSDPBConfig(chunk_tokens=8)).kl_sum.backward()
    assert seen.numel == 8 * 50


def test_logits_of_different_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"present logits of shape \(3, 5\) meet former logits of shape \(2, 5\)"):
        dynsdpb_loss(torch.zeros(3, 5), torch.zeros(2, 5), DynSDPBConfig())
