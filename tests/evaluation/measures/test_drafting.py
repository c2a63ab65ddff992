"""Speculative decoding: counts against a slow reference, the answers of the seed model, and when a draft pays.

Shapes: T tokens.
"""

import copy
import dataclasses

import pytest
import torch

from axolotl_sdft.config.evaluation import DraftingConfig
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.evaluation.measures import drafting
from axolotl_sdft.evaluation.measures.drafting import expected_speedup, highest_cost_ratio, measure_drafting

PROMPTS = [[11, 42, 300, 7], [3000, 12, 9], [77], [1, 2, 3, 4, 5, 6]]


@pytest.fixture(scope="module")
def seed(tiny_llama_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_llama_dir)


@pytest.fixture(scope="module")
def draft(seed):
    """The seed model with noise on its weights: some of its tokens are accepted, some not."""
    return _noisy(seed, 0.02), seed[1]


def _noisy(seed, scale):
    model = copy.deepcopy(seed[0])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            weights += scale * torch.randn(weights.shape, generator=generator)
    return model


@torch.inference_mode()
def _most_likely(model, ids):
    """The token that a model holds most likely after each of the given ones."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()


def _reference(seed, draft, prompt, num_draft_tokens, max_new_tokens, end):
    """Answer a prompt by speculative decoding, written out: the new tokens, steps, tokens proposed and accepted."""
    ids, longest = list(prompt), len(prompt) + max_new_tokens
    steps = proposed = accepted = 0
    while len(ids) < longest and (len(ids) == len(prompt) or ids[-1] != end):
        proposal = []
        while len(proposal) < min(num_draft_tokens, longest - len(ids) - 1) and end not in proposal:
            proposal.append(_most_likely(draft, ids + proposal)[-1])
        chosen = _most_likely(seed, ids + proposal)[len(ids) - 1 :]
        kept = 0
        while kept < len(proposal) and proposal[kept] == chosen[kept]:
            kept += 1
        ids += proposal[:kept]
        if end not in proposal[:kept]:
            ids.append(chosen[kept])
        steps, proposed, accepted = steps + 1, proposed + len(proposal), accepted + kept
    return ids[len(prompt) :], steps, proposed, accepted


def _alone(model, prompt, max_new_tokens, end):
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens and (len(ids) == len(prompt) or ids[-1] != end):
        ids.append(_most_likely(model, ids)[-1])
    return ids[len(prompt) :]


def _with_end(loaded, end):
    """The same model with another token that ends an answer."""
    model = copy.deepcopy(loaded[0])
    model.generation_config.eos_token_id = end
    return model, loaded[1]


@pytest.mark.parametrize("num_draft_tokens", [1, 4])
def test_counts_are_those_of_speculative_decoding_written_out(seed, draft, num_draft_tokens):
    config = DraftingConfig(num_draft_tokens=num_draft_tokens, max_new_tokens=13)
    figures = measure_drafting(seed, draft, PROMPTS, config)
    end = seed[1].eos_token_id
    runs = [_reference(seed[0], draft[0], prompt, num_draft_tokens, 13, end) for prompt in PROMPTS]
    new_ids, steps, proposed, accepted = zip(*runs, strict=True)
    assert 0 < sum(accepted) < sum(proposed)  # or the test would say little
    assert figures.acceptance == sum(accepted) / sum(proposed)
    assert figures.tokens_per_step == sum(map(len, new_ids)) / sum(steps)
    assert list(new_ids) == [_alone(seed[0], prompt, 13, end) for prompt in PROMPTS]
    assert figures.same_answers == 1.0
    assert figures.prompts == len(PROMPTS)


def test_an_answer_that_ends_early_is_counted_to_its_end(seed, draft):
    # The fifth token of the answer becomes the one that ends it, wherever it first comes.
    end = _alone(seed[0], PROMPTS[0], 5, None)[4]
    ended = _with_end(seed, end)
    figures = measure_drafting(ended, draft, PROMPTS[:1], DraftingConfig(num_draft_tokens=3, max_new_tokens=20))
    new_ids, steps, proposed, accepted = _reference(seed[0], draft[0], PROMPTS[0], 3, 20, end)
    assert len(new_ids) <= 5
    assert (figures.acceptance, figures.tokens_per_step) == (accepted / proposed, len(new_ids) / steps)


def test_all_tokens_of_a_draft_like_the_seed_are_accepted(seed):
    config = DraftingConfig(num_draft_tokens=4, max_new_tokens=10)
    figures = measure_drafting(seed, (copy.deepcopy(seed[0]), seed[1]), PROMPTS, config)
    assert figures.acceptance == 1.0
    assert figures.tokens_per_step == 5.0  # 4 of the draft and 1 of the seed model, twice
    assert figures.same_answers == 1.0


def test_a_draft_like_the_seed_may_end_the_answer_itself(seed):
    end = _alone(seed[0], PROMPTS[0], 3, None)[2]
    ended = _with_end(seed, end)
    config = DraftingConfig(num_draft_tokens=4, max_new_tokens=10)
    figures = measure_drafting(ended, (copy.deepcopy(seed[0]), seed[1]), PROMPTS[:1], config)
    new_ids = _alone(seed[0], PROMPTS[0], 10, end)
    assert figures.acceptance == 1.0
    assert figures.tokens_per_step == len(new_ids)  # the seed model agrees with the draft's end in its only step


def test_a_draft_of_other_weights_changes_no_answer(seed):
    figures = measure_drafting(seed, (_noisy(seed, 1.0), seed[1]), PROMPTS, DraftingConfig(max_new_tokens=8))
    assert figures.acceptance < 0.2
    assert 1.0 <= figures.tokens_per_step < 2.0
    assert figures.same_answers == 1.0


def test_sampling_settings_of_a_checkpoint_are_left_aside(seed, draft):
    sampling = copy.deepcopy(seed[0])
    sampling.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, repetition_penalty=3.0)
    config = DraftingConfig(max_new_tokens=8)
    plain = measure_drafting(seed, draft, PROMPTS, config)
    figures = measure_drafting((sampling, seed[1]), draft, PROMPTS, config)
    assert (figures.acceptance, figures.tokens_per_step) == (plain.acceptance, plain.tokens_per_step)


def test_the_draft_is_as_before_afterwards(seed, draft):
    before = draft[0].generation_config.to_dict(), draft[0].config.to_dict(), sorted(vars(draft[0]))
    measure_drafting(seed, draft, PROMPTS[:1], DraftingConfig(max_new_tokens=3))
    assert (draft[0].generation_config.to_dict(), draft[0].config.to_dict(), sorted(vars(draft[0]))) == before


def test_a_draft_whose_embedding_is_padded_serves_as_well(seed, draft):
    padded = copy.deepcopy(draft[0])
    padded.resize_token_embeddings(padded.config.vocab_size + 64)
    with torch.no_grad():  # even where the padding would win
        padded.get_output_embeddings().weight[-64:] = 100 * padded.get_output_embeddings().weight[:1]
    config = DraftingConfig(max_new_tokens=8)
    plain, figures = (measure_drafting(seed, (model, seed[1]), PROMPTS, config) for model in (draft[0], padded))
    assert (figures.acceptance, figures.same_answers) == (plain.acceptance, 1.0)
    assert padded.config.vocab_size == seed[0].config.vocab_size + 64


def test_a_draft_with_another_tokenizer_is_refused(seed, draft):
    other = copy.deepcopy(seed[1])
    other.get_vocab = lambda: {**seed[1].get_vocab(), "the": 1}
    with pytest.raises(
        CheckpointError, match=r"the draft has another tokenizer than the seed model \(the token 'the' .*, 1 in its own"
    ):
        measure_drafting(seed, (draft[0], other), PROMPTS, DraftingConfig())


def test_tokens_that_only_the_draft_knows_are_no_hindrance(seed, draft):
    other = copy.deepcopy(seed[1])
    other.add_tokens(["<one more>"])
    drafting.check_draft(seed, (draft[0], other))


def test_a_model_whose_state_can_not_go_back_is_refused(seed):
    stateful = copy.deepcopy(seed[0])
    stateful._is_stateful = True
    with pytest.raises(ConfigError, match=r"the draft .* keeps a state that can't go back"):
        drafting.check_draft(seed, (stateful, seed[1]))


def test_answers_beyond_the_context_are_refused(seed, draft):
    config = DraftingConfig(max_new_tokens=2046)
    with pytest.raises(ConfigError, match=r"max_new_tokens is 2046, .* makes 2052 tokens, .* take at most 2048"):
        measure_drafting(seed, draft, PROMPTS, config)


def test_one_slow_spell_of_the_machine_changes_no_speed():
    even = drafting._Run(drafting._Counts(2, 6, 4), 6, 2.0, 6, 3.0, True)
    spell = dataclasses.replace(even, seconds=200.0)
    figures = drafting._figures([even, spell, even])
    assert figures.tokens_per_second_alone == 2.0
    assert figures.tokens_per_second == 3.0
    assert figures.acceptance == 2 / 3
    assert figures.tokens_per_step == 3.0


@pytest.mark.parametrize(
    ("acceptance", "num_draft_tokens", "cost_ratio", "speedup"),
    [
        (0.5, 2, 0.0, 1.75),  # 1 + 1/2 + 1/4 tokens for one pass
        (0.5, 2, 0.25, 1.75 / 1.5),
        (1.0, 4, 0.25, 2.5),  # 5 tokens for the time of 2 passes
        (1.0, 4, 1.0, 1.0),  # a draft as slow as the seed model wins nothing, even if always right
        (0.0, 4, 0.25, 0.5),
        (0.9, 0, 0.8, 1.0),
    ],
)
def test_the_speed_up_follows_from_acceptance_and_cost(acceptance, num_draft_tokens, cost_ratio, speedup):
    assert expected_speedup(acceptance, num_draft_tokens, cost_ratio) == pytest.approx(speedup)


@pytest.mark.parametrize("settings", [(-0.1, 3, 0.5), (1.1, 3, 0.5), (0.5, -1, 0.5), (0.5, 3, -0.5)])
def test_no_speed_up_follows_from_impossible_settings(settings):
    with pytest.raises(ValueError, match="no speed-up follows from acceptance="):
        expected_speedup(*settings)


def test_a_draft_at_the_highest_cost_ratio_breaks_even():
    tokens_per_step = 1 + 0.7 + 0.7**2 + 0.7**3
    assert expected_speedup(0.7, 3, highest_cost_ratio(tokens_per_step, 3)) == pytest.approx(1.0)
