import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.config import GenerationConfig
from axolotl_sdft.distillation.backends.transformers import TransformersBackend
from axolotl_sdft.distillation.interfaces import Prompt, Target
from axolotl_sdft.errors import ConfigError


def prompts(*texts):
    return [Prompt((row, 0), ({"role": "user", "content": text},)) for row, text in enumerate(texts)]


def backend_for(model_dir, **settings):
    return TransformersBackend(model_dir, GenerationConfig(dtype="float32", **settings))


def answers_by_row(backend, batches):
    return {
        prompt.key[0]: answer
        for batch, answers in backend.generate(batches)
        for prompt, answer in zip(batch, answers, strict=True)
    }


def test_a_batch_holds_as_many_rows_as_the_token_budget_allows_for_its_longest(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir, max_new_tokens=10, batch_tokens=200, batch_rows=3)
    texts = ["word " * 60, "word " * 2, "word " * 30, "word", "word " * 3, "word " * 4, "word " * 5]
    asked = prompts(*texts)
    lengths = {prompt.key: len(backend._prompt_ids(prompt.messages)) for prompt in asked}

    batches = backend.batches(asked)

    assert sorted(prompt.key for batch in batches for prompt in batch) == sorted(lengths)
    for batch in batches:
        longest = max(lengths[prompt.key] for prompt in batch)
        assert len(batch) <= 3
        assert len(batch) == 1 or len(batch) * (longest + 10) <= 200
    assert batches == backend.batches(list(reversed(asked)))


def test_a_row_gets_the_same_answer_alone_and_padded_in_a_batch(tiny_llama_dir):
    asked = prompts("Hello there, how are you?", "Hi", "Name three colours that go well with dark blue, please.")
    backend = backend_for(tiny_llama_dir, max_new_tokens=8)

    together = answers_by_row(backend, [asked])
    alone = answers_by_row(backend, [[prompt] for prompt in asked])

    assert together == alone
    assert all(answer.finish_reason == "length" and answer.num_tokens == 8 for answer in together.values())


def test_sampling_gives_the_same_answer_again_whatever_ran_before(tiny_llama_dir):
    asked = prompts("Hello", "Goodbye")
    backend = backend_for(tiny_llama_dir, max_new_tokens=8, temperature=1.0)
    torch.manual_seed(1)
    first = answers_by_row(backend, [[asked[0]], [asked[1]]])
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    second = answers_by_row(backend, [[asked[1]]])

    assert second[1] == first[1]
    assert first[0].text != first[1].text
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state), "generating must leave the caller's random state alone"


def test_an_answer_that_ends_itself_is_told_from_one_that_was_cut_off(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir, max_new_tokens=4)
    end = backend._tokenizer.eos_token_id
    word = backend._tokenizer("word", add_special_tokens=False)["input_ids"][0]

    ended = backend._answer(torch.tensor([word, word, end, end]))
    cut_off = backend._answer(torch.tensor([word, word, word, word]))

    assert (ended.text, ended.finish_reason, ended.num_tokens) == ("wordword", "stop", 2)
    assert (cut_off.finish_reason, cut_off.num_tokens) == ("length", 4)


def test_likelihoods_agree_with_one_row_at_a_time_in_plain_transformers(tiny_llama_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    targets = [Target(({"role": "user", "content": text},), "unused") for text in ("Hi", "Name a colour.", "Why?")]
    answers = ["Red.", "A much longer answer about the colour red.", "No."]
    expected = []
    for target, answer in zip(targets, answers, strict=True):
        prompt = tokenizer.apply_chat_template(list(target.context), tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = prompt_ids + tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        picked = [log_probs[place - 1, ids[place]].item() for place in range(len(prompt_ids), len(ids))]
        expected.append(-math.fsum(picked) / len(picked))

    measured = backend_for(tiny_llama_dir).answer_nll(list(zip(targets, answers, strict=True)))

    assert measured == pytest.approx(expected, abs=1e-4)


def test_a_seed_without_chat_template_is_refused_without_loading_weights(tiny_llama_dir, tmp_path):
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()

    with pytest.raises(ConfigError, match=r"has no chat template.*instruction-tuned base_model"):
        backend_for(tmp_path).check()
