import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.losses.dynsdpb import StudentPrediction, distil, dynsdpb_loss
from axolotl_sdft.training.losses.fused_divergence import FullVocabularyKL, any_divergence
from axolotl_sdft.training.losses.head import OutputHead
from axolotl_sdft.training.teachers.previous_prediction import (
    TeacherHiddenStates,
    TeacherLogits,
    TeacherTopK,
    identity,
    keep_top_k,
)

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
STATIC = DynSDPBConfig(alpha=2.0, temperature=1.0, dynamic_alpha=False, dynamic_temperature=False)


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_logits(num_tokens: int, vocab: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(num_tokens, vocab, generator=torch.Generator().manual_seed(seed))).to(dtype)


def divergence(name: str, previous: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """The definitions, over probabilities of one token."""
    mixture = (previous + present) / 2

    def kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one * (one / other).log()).sum()

    if name == "jsd":
        return kl(previous, mixture) / 2 + kl(present, mixture) / 2
    return kl(previous, present) if name == "forward_kl" else kl(present, previous)


def bucketed(probabilities: torch.Tensor, previous: torch.Tensor, k: int | None) -> torch.Tensor:
    """The k tokens that the previous held most likely, and the sum of the rest."""
    if k is None:
        return probabilities
    order = previous.argsort(descending=True)
    rest = probabilities[order[k:]].sum(0, keepdim=True)
    return torch.cat([probabilities[order[:k]], rest]) if k < len(previous) else probabilities[order]


def slow_reference(
    student: torch.Tensor, teacher: torch.Tensor, config: DynSDPBConfig, k: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formulas, one token at a time in float64: the sum, and its gradient with respect to the student."""
    student, total = student.detach().double().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for now, before in zip(student, teacher.double(), strict=True):
        plain = before.softmax(-1).sort(descending=True).values.tolist()
        alpha, temperature = config.alpha, config.temperature
        if config.dynamic_alpha and len(plain) > 1:
            alpha *= math.exp(sum(p * math.log(p) for p in plain))
        if config.dynamic_temperature:
            gap = plain[0] - plain[1] if len(plain) > 1 else 1.0
            temperature = config.temperature_min + (config.temperature - config.temperature_min) * (1 - gap)
        p_now, p_before = (logits.div(temperature).softmax(-1) for logits in (now, before))
        buckets = (bucketed(probabilities, p_before, k) for probabilities in (p_before, p_now))
        total = total + alpha * temperature**2 * divergence(config.divergence, *buckets)
    return total.detach(), torch.autograd.grad(total, student)[0]


configs = st.builds(
    DynSDPBConfig,
    alpha=st.floats(0.0, 3.0),
    temperature=st.floats(1.0, 5.0),
    temperature_min=st.floats(0.5, 1.0),
    dynamic_alpha=st.booleans(),
    dynamic_temperature=st.booleans(),
    divergence=st.sampled_from(DIVERGENCES),
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # previous (3/4, 1/4), present (1/4, 3/4): 3/4 ln 3 - 1/4 ln 3
        ("forward_kl", 0.5 * math.log(3)),
        ("reverse_kl", 0.5 * math.log(3)),
        # the mixture is (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2, the same from both sides
        ("jsd", 0.75 * math.log(1.5) - 0.25 * math.log(2)),
    ],
)
def test_each_divergence_has_the_value_worked_out_by_hand(name: str, expected: float):
    config = STATIC.model_copy(update={"divergence": name})
    terms = dynsdpb_loss(logits_of([0.25, 0.75]), logits_of([0.75, 0.25]), config)
    assert terms.divergence_sum.item() == pytest.approx(expected)


def test_the_forward_divergence_asks_for_all_that_was_likely_and_the_reverse_for_nothing_else():
    previous, narrow = logits_of([0.5, 0.5]), logits_of([0.999, 0.001])
    forward, reverse = (STATIC.model_copy(update={"divergence": name}) for name in DIVERGENCES[:2])
    missed = dynsdpb_loss(narrow, previous, forward).divergence_sum
    assert missed > dynsdpb_loss(narrow, previous, reverse).divergence_sum
    assert missed < dynsdpb_loss(previous, narrow, reverse).divergence_sum + 1e-12


def test_only_tokens_that_the_previous_prediction_had_right_are_distilled():
    config = STATIC.model_copy(update={"teacher_correct_only": True})
    student, teacher = logits_of([0.25, 0.75], [0.25, 0.75]).requires_grad_(), logits_of([0.6, 0.4], [0.4, 0.6])
    terms = dynsdpb_loss(student, teacher, config, labels_N=torch.tensor([0, 0]))
    terms.kl_sum.backward()
    alone = dynsdpb_loss(student[:1], teacher[:1], STATIC)
    assert terms.kl_sum.item() == pytest.approx(alone.kl_sum.item())
    assert student.grad[1].tolist() == [0.0, 0.0]
    # Both tokens count: how many were right must not change the weight of the others.
    assert (terms.num_tokens, terms.alpha_sum.item()) == (2, 2.0)


def test_only_correct_needs_labels():
    with pytest.raises(ConfigError, match=r"teacher_correct_only needs the labels.*pass labels_N, or set it to false"):
        dynsdpb_loss(torch.zeros(1, 2), torch.zeros(1, 2), DynSDPBConfig(teacher_correct_only=True))


def test_agreement_and_uncertainty_are_summed_for_the_log():
    student, teacher = logits_of([0.1, 0.9], [0.2, 0.8], [0.9, 0.1]), logits_of([0.0, 1.0], [1.0, 0.0], [1.0, 0.0])
    assert dynsdpb_loss(student, teacher, STATIC).agreement_sum.item() == 2.0
    terms = dynsdpb_loss(student, logits_of([0.5, 0.5], [0.0, 1.0], [0.5, 0.5]), STATIC)
    assert terms.uncertainty_sum.item() == pytest.approx(1.0)


def test_the_logged_sums_are_free_of_influence_and_temperature_squared():
    config = DynSDPBConfig(alpha=3.0, temperature=2.0, dynamic_alpha=False, dynamic_temperature=False)
    # At temperature 2 these logits become those of (1/4, 3/4) and (1/2, 1/2).
    terms = dynsdpb_loss(2 * logits_of([0.25, 0.75]), 2 * logits_of([0.5, 0.5]), config)
    divergence = 0.5 * math.log(4 / 3)
    assert terms.divergence_sum.item() == pytest.approx(divergence)
    assert terms.kl_sum.item() == pytest.approx(3.0 * 4.0 * divergence)
    assert (terms.num_tokens, terms.alpha_sum.item(), terms.temperature_sum.item()) == (1, 3.0, 2.0)


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
    torch.testing.assert_close(terms.kl_sum.detach().double(), total, **tolerance)
    torch.testing.assert_close(student.grad.double(), gradient, **tolerance)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 100])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_numerical_differences_confirm_the_gradient(chunk_tokens: int, divergence: str):
    config = DynSDPBConfig(alpha=1.3, temperature=2.5, chunk_tokens=chunk_tokens, divergence=divergence)
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
    assert terms.kl_sum.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(student.grad, gradient.bfloat16(), rtol=2**-7, atol=1e-6)


def test_the_previous_prediction_is_a_constant():
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
    for name in ("kl_sum", "divergence_sum", "alpha_sum", "temperature_sum", "uncertainty_sum", "agreement_sum"):
        torch.testing.assert_close(getattr(whole, name), sum(getattr(part, name) for part in parts))


def test_no_tokens_give_zero_that_can_be_differentiated():
    student = torch.zeros(0, 5, requires_grad=True)
    terms = dynsdpb_loss(student, torch.zeros(0, 5), DynSDPBConfig())
    terms.kl_sum.backward()
    assert (terms.kl_sum.item(), terms.num_tokens, student.grad.shape) == (0.0, 0, (0, 5))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_token_that_both_predictions_rule_out_adds_nothing(divergence: str):
    config = DynSDPBConfig(dynamic_alpha=False, divergence=divergence)
    student = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -math.inf]])
    terms = dynsdpb_loss(student, teacher, config)
    terms.kl_sum.backward()
    without = dynsdpb_loss(student[:, :2], teacher[:, :2], config)
    assert terms.divergence_sum.item() == pytest.approx(without.divergence_sum.item())
    assert student.grad[0, 2].item() == 0.0


def test_the_lean_way_gives_what_the_general_one_gives():
    config = DynSDPBConfig(alpha=1.3, temperature=3.0, temperature_min=0.5, teacher_correct_only=True)
    student, teacher, labels = random_logits(9, 6, 0), random_logits(9, 6, 1), torch.arange(9) % 6
    terms = FullVocabularyKL(config).terms(student, teacher, labels)
    previous = TeacherLogits(teacher).chunk(slice(0, 9), config, student.device, torch.float64)
    reference = any_divergence(student, previous, config, labels)
    for name in ("divergence", "alpha", "temperature", "uncertainty", "agreement", "gradient"):
        torch.testing.assert_close(getattr(terms, name), getattr(reference, name))


@pytest.mark.parametrize("feeds_loss", [False, True])
@pytest.mark.parametrize("form", ["logits", "hidden", "top_k"])
def test_full_precision_is_paid_for_one_chunk_at_a_time(feeds_loss: bool, form: str):
    class LargestFloat32(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if torch.is_tensor(value) and value.dtype == torch.float32:
                    self.numel = max(self.numel, value.numel())
            return result

    config = DynSDPBConfig(chunk_tokens=8, top_k=2)
    hidden, head = random_logits(64, 6, 1, torch.bfloat16), torch.nn.Linear(6, 50, dtype=torch.bfloat16)
    raw = (random_logits(80, 50, 0, torch.bfloat16).requires_grad_() * 1).view(4, 20, 50)
    present = StudentPrediction(raw, torch.arange(8, 72), feeds_loss=feeds_loss)
    with LargestFloat32() as seen:
        logits = head(hidden).detach()
        previous = {
            "logits": lambda: TeacherLogits(logits),
            "hidden": lambda: TeacherHiddenStates(hidden, head),
            "top_k": lambda: TeacherTopK(**keep_top_k((part.float() for part in logits.split(8)), config)),
        }[form]()
        (distil(present, previous, config).kl_sum + raw.sum()).backward()
    pieces = 1 if form == "top_k" else 3  # of working memory, in one tensor
    assert seen.numel == pieces * 8 * 50


def test_logits_of_different_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"student logits of shape \(3, 5\) meet teacher logits of shape \(2, 5\)"):
        dynsdpb_loss(torch.zeros(3, 5), torch.zeros(2, 5), DynSDPBConfig())


def test_gradients_are_added_to_those_of_a_loss_that_the_logits_feed():
    config, rows = DynSDPBConfig(chunk_tokens=2, alpha=1.7), torch.tensor([0, 2, 3])
    weights, logits, teacher = random_logits(4, 5, 0), random_logits(4, 5, 1), random_logits(3, 5, 2)

    def gradient(feeds_loss: bool) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        raw = (leaf * 2).view(2, 2, 5)
        present = StudentPrediction(raw, rows, torch.tanh, feeds_loss)
        term = distil(present, TeacherLogits(teacher), config).kl_sum
        (3.0 * term + (weights.view(2, 2, 5) * raw).sum()).backward()
        return leaf.grad

    reference = logits.clone().requires_grad_()
    term = dynsdpb_loss((reference * 2).tanh()[rows], teacher, config).kl_sum
    (3.0 * term + 2 * (weights * reference).sum()).backward()
    torch.testing.assert_close(gradient(False), reference.grad)
    torch.testing.assert_close(gradient(True), reference.grad)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logit_transform", [identity, torch.tanh])
def test_previous_logits_that_nobody_else_needs_give_their_memory_to_the_gradient(
    divergence: str, dtype: torch.dtype, logit_transform: Any
):
    config, rows = DynSDPBConfig(chunk_tokens=2, divergence=divergence), torch.tensor([0, 2, 3, 4, 6])
    logits, teacher = random_logits(7, 5, 0, dtype), random_logits(5, 5, 1, dtype)

    def gradient(previous: torch.Tensor, is_read_once: bool) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        present = StudentPrediction(leaf * 1, rows, logit_transform)
        distil(present, TeacherLogits(previous, logit_transform, is_read_once=is_read_once), config).kl_sum.backward()
        return leaf.grad

    for_others, spent = teacher.clone(), teacher.clone()
    torch.testing.assert_close(gradient(spent, True), gradient(for_others, False), rtol=0.0, atol=0.0)
    assert torch.equal(for_others, teacher)
    assert torch.equal(spent, gradient(for_others, False)[rows])


@given(st.integers(1, 9), st.integers(1, 7), configs, st.booleans(), st.integers(0, 99))
def test_hidden_states_and_the_head_get_the_gradients_that_they_would_get_through_logits(
    num_tokens: int, vocab: int, config: DynSDPBConfig, is_capped: bool, seed: int
):
    logit_transform = torch.tanh if is_capped else identity
    head = torch.nn.Linear(3, vocab, dtype=torch.float64)
    hidden, teacher = random_logits(num_tokens + 1, 3, seed), random_logits(num_tokens, vocab, seed + 1)
    rows = torch.arange(num_tokens) + 1

    def gradients(through_logits: bool) -> list[torch.Tensor]:
        leaf = hidden.clone().requires_grad_()
        if through_logits:
            term = dynsdpb_loss(logit_transform(head(leaf))[rows], teacher, config).kl_sum
        else:
            present = StudentPrediction(leaf * 1, rows, logit_transform, head=OutputHead(head))
            term = distil(present, TeacherLogits(teacher), config).kl_sum
        return [term.detach(), *torch.autograd.grad(2.0 * term, (leaf, head.weight, head.bias))]

    for found, expected in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_constant_head_gets_no_gradient():
    head = OutputHead(torch.nn.Linear(3, 5)).as_constant()
    hidden = torch.randn(4, 3).requires_grad_()
    distil(StudentPrediction(hidden, head=head), TeacherLogits(torch.randn(4, 5)), STATIC).kl_sum.backward()
    assert hidden.grad.abs().sum() > 0
    assert head.module.weight.grad is None


def test_a_loss_that_the_logits_do_not_feed_is_refused_instead_of_losing_the_gradient():
    raw = random_logits(2, 3, 0).requires_grad_() * 1
    terms = distil(StudentPrediction(raw, feeds_loss=True), TeacherLogits(random_logits(2, 3, 1)), DynSDPBConfig())
    with pytest.raises(ConfigError, match="does not depend on what came out of the output head"):
        terms.kl_sum.backward()


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 9), configs, st.integers(0, 99))
def test_top_k_is_the_divergence_between_k_tokens_and_the_rest(
    num_tokens: int, vocab: int, k: int, config: DynSDPBConfig, seed: int
):
    config = config.model_copy(update={"top_k": k})
    student, teacher = random_logits(num_tokens, vocab, seed).requires_grad_(), random_logits(num_tokens, vocab, -seed)
    kept = keep_top_k(teacher.split(config.chunk_tokens), config)
    terms = distil(StudentPrediction(student), TeacherTopK(**kept), config)
    terms.kl_sum.backward()
    total, gradient = slow_reference(student, teacher, config, k)
    torch.testing.assert_close(terms.kl_sum.detach(), total, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(student.grad, gradient, rtol=1e-8, atol=1e-10)


def test_a_rest_that_is_tiny_is_not_lost_in_rounding():
    teacher, student = torch.tensor([[[0.0, -60.0, -61.0]], [[0.0, -30.0, -31.0]]], dtype=torch.float64)
    config = STATIC.model_copy(update={"top_k": 1, "divergence": "reverse_kl"})
    terms = distil(StudentPrediction(student), TeacherTopK(**keep_top_k([teacher], config)), config)
    # The rest rose from e^-60 (1 + 1/e) to e^-30 (1 + 1/e): p ln(p/q) = 30 p, less the p that the first token lost.
    rest = math.exp(-30) * (1 + math.exp(-1))
    assert terms.divergence_sum.item() == pytest.approx(29 * rest, rel=1e-3, abs=0.0)
