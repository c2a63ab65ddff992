import json
import math
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.inference.interfaces import Prompt, Target
from axolotl_sdft.inference.local import backend
from axolotl_sdft.inference.local.backend import TransformersBackend


def prompts(*texts):
    return [Prompt((row, 0), ({"role": "user", "content": text},)) for row, text in enumerate(texts)]


def backend_for(model_dir, **settings):
    settings = {"dtype": "float32", "temperature": 0.0} | settings
    return TransformersBackend(model_dir, TransformersGeneration(**settings))


def answers_by_row(backend, batches):
    return {
        prompt.key[0]: answer
        for batch, answers in backend.generate(batches)
        for prompt, answer in zip(batch, answers, strict=True)
    }


def test_a_batch_holds_as_many_rows_as_the_token_budget_allows_for_its_longest(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir, max_new_tokens=10, max_batch_tokens=200, max_batch_size=3)
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


def test_an_answer_goes_on_behind_what_the_assistant_said_last(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir, max_new_tokens=6)
    question = {"role": "user", "content": "Name a colour."}
    begun = {"role": "assistant", "content": "My answer is:\n"}
    [answer] = answers_by_row(backend, [[Prompt((0, 0), (question, begun))]]).values()

    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_llama_dir),
        AutoModelForCausalLM.from_pretrained(tiny_llama_dir),
    )
    text = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True) + "My answer is:\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    [written] = model.generate(ids, max_new_tokens=6, do_sample=False)
    new = tokenizer.decode(written[ids.shape[1] :], skip_special_tokens=True)

    assert answer.text == f"My answer is:\n{new}".strip()
    assert answer.num_tokens == 6


def test_a_sampled_answer_depends_on_its_prompt_and_attempt_alone(tiny_llama_dir):
    asked = prompts("Hello", "Goodbye", "Hello again")
    again = Prompt(asked[0].key, asked[0].messages, attempt=1)
    backend = backend_for(tiny_llama_dir, max_new_tokens=8, temperature=1.0, top_p=0.9)
    torch.manual_seed(1)
    together = answers_by_row(backend, [asked])
    state = torch.random.get_rng_state()
    alone = answers_by_row(backend, [[asked[2]], [asked[0]]])
    [(_, [second_attempt])] = backend.generate([[again]])

    assert {row: answer.text for row, answer in alone.items()} == {row: together[row].text for row in (0, 2)}
    assert len({together[0].text, together[2].text, second_attempt.text}) == 3
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state), "generating must leave the caller's random state alone"


def test_a_greedy_first_attempt_has_no_log_probability_and_a_second_one_which_is_sampled_has(tiny_llama_dir):
    [first] = prompts("Hello")
    second = Prompt(first.key, first.messages, attempt=1)

    [(_, [greedy]), (_, [sampled])] = backend_for(tiny_llama_dir, max_new_tokens=6).generate([[first], [second]])

    assert greedy.mean_logprob is None
    assert sampled.mean_logprob is not None
    assert sampled.mean_logprob < 0


def test_each_batch_comes_whole_as_soon_as_its_last_row_is_done(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir, max_new_tokens=3, max_batch_size=2)
    asked = prompts("One", "Two", "Three", "Four", "Five")
    drawn = []

    def drawing():
        for batch in (asked[:2], asked[2:4], asked[4:]):
            drawn.append(batch)
            yield batch

    stream = backend.generate(drawing())
    came = [([prompt.key[0] for prompt in batch], len(answers), len(drawn)) for batch, answers in stream]

    # The first row of the next batch is drawn while this one is written, to see whether it fits.
    assert came == [([0, 1], 2, 2), ([2, 3], 2, 3), ([4], 1, 3)]


@pytest.mark.parametrize(("is_ended", "finish_reason", "num_tokens"), [(True, "stop", 2), (False, "length", 4)])
def test_an_answer_that_ends_itself_is_told_from_one_that_was_cut_off(
    tiny_llama_dir, is_ended, finish_reason, num_tokens
):
    backend = backend_for(tiny_llama_dir, max_new_tokens=4)
    [asked] = prompts("Hello")
    ids = torch.tensor([backend._prompt_ids(asked.messages)])
    new = backend._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    tokens = new[0, ids.shape[1] :].tolist()
    assert len(set(tokens)) == 4
    if is_ended:
        backend._model.generation_config.eos_token_id = tokens[2]

    [(_, [answer])] = backend.generate([[asked]])

    text = backend._tokenizer.decode(tokens[:num_tokens]).strip()
    assert (answer.text, answer.finish_reason, answer.num_tokens) == (text, finish_reason, num_tokens)


def test_a_prompt_longer_than_the_model_gets_an_error_and_the_others_their_answers(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir, max_new_tokens=8)
    too_long, nearly, fine = prompts("word " * 90, "word " * 60, "Hi")
    limit = len(backend._prompt_ids(nearly.messages)) + 3
    backend._model.config.max_position_embeddings = limit
    num_tokens = len(backend._prompt_ids(too_long.messages))

    [(_, [refused])], [(_, [cut_off, answered])] = backend.generate([[too_long]]), backend.generate([[nearly, fine]])

    assert (refused.text, refused.finish_reason) == ("", "error")
    assert refused.error == f"the prompt has {num_tokens} tokens, of {limit} that the model takes"
    assert (cut_off.num_tokens, cut_off.finish_reason) == (3, "length")
    assert (answered.num_tokens, answered.error) == (8, None)


def test_the_penalty_that_the_checkpoint_asks_for_changes_answers_as_in_plain_transformers(tiny_llama_dir, tmp_path):
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    model.generation_config.repetition_penalty = 1.8
    model.save_pretrained(tmp_path)
    backend, asked = backend_for(tmp_path, max_new_tokens=32), prompts("Hello there", "Hi")

    answers = answers_by_row(backend, [asked])

    for prompt in asked:
        ids = torch.tensor([backend._prompt_ids(prompt.messages)])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        expected = backend._tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert answers[prompt.key[0]].text == expected
    assert answers != answers_by_row(backend_for(tiny_llama_dir, max_new_tokens=32), [asked])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_does_not_fit_is_left_to_generate_and_answers_the_same(
    tiny_llama_dir, monkeypatch, caplog, temperature
):
    asked = prompts("Hello there, how are you?", "Hi", "Name three colours, please.")
    settings = {"max_new_tokens": 8, "temperature": temperature}
    expected = answers_by_row(backend_for(tiny_llama_dir, **settings), [asked])
    monkeypatch.setattr(backend, "unsupported_reason", lambda model, ids: "it is odd")

    with caplog.at_level("INFO"):
        plain = answers_by_row(backend_for(tiny_llama_dir, **settings), [asked])

    assert {row: answer.text for row, answer in plain.items()} == {row: expected[row].text for row in expected}
    assert plain[0].mean_logprob == pytest.approx(expected[0].mean_logprob, abs=1e-4)
    assert "is decoded with transformers' generate, since it is odd" in caplog.text


def test_an_answer_ends_at_a_string_that_the_checkpoints_settings_stop_at(tiny_llama_dir, tmp_path):
    asked = prompts("Hello there, how are you?", "Hi", "Name three colours, please.")
    whole = answers_by_row(backend_for(tiny_llama_dir, max_new_tokens=32), [asked])
    stop = whole[0].text[10:16]
    seed_dir = shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    settings = json.loads((seed_dir / "generation_config.json").read_text())
    (seed_dir / "generation_config.json").write_text(json.dumps(settings | {"stop_strings": [stop]}))

    stopped = answers_by_row(backend_for(seed_dir, max_new_tokens=32), [asked])

    assert stopped[0].finish_reason == "stop"
    assert stopped[0].num_tokens < 32
    assert whole[0].text.startswith(stopped[0].text)
    assert stop.strip() in stopped[0].text[10:]
    assert not any(stop in whole[row].text for row in (1, 2))
    assert [stopped[row] for row in (1, 2)] == [whole[row] for row in (1, 2)]


def test_as_many_answers_come_as_were_asked_for_whatever_the_checkpoints_settings_say(tiny_llama_dir, tmp_path):
    seed_dir = shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    settings = json.loads((seed_dir / "generation_config.json").read_text())
    several = {"do_sample": True, "num_return_sequences": 2, "min_length": 2}
    (seed_dir / "generation_config.json").write_text(json.dumps(settings | several))
    answers = answers_by_row(backend_for(seed_dir, max_new_tokens=4), [prompts("Hi", "Why?")])
    assert [answers[row].num_tokens for row in (0, 1)] == [4, 4]


def seed_with_new_tokens(source, target, template=None, **tokens):
    """Copy a seed model, with special tokens that it has no embedding for."""
    shutil.copytree(source, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_special_tokens(tokens)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(target)
    return target


@pytest.mark.parametrize("reason", [None, "it is odd"])
def test_a_padding_token_without_an_embedding_reaches_no_model(tiny_llama_dir, tmp_path, monkeypatch, reason):
    asked = prompts("Hello there, how are you?", "Hi", "Name three colours, please.")
    expected = answers_by_row(backend_for(tiny_llama_dir, max_new_tokens=8), [asked])
    monkeypatch.setattr(backend, "unsupported_reason", lambda model, ids: reason)
    seed_dir = seed_with_new_tokens(tiny_llama_dir, tmp_path / "seed", pad_token="<pad>")
    assert answers_by_row(backend_for(seed_dir, max_new_tokens=8), [asked]) == expected


def test_a_prompt_with_a_token_without_an_embedding_gets_an_error_and_the_others_their_answers(
    tiny_llama_dir, tmp_path
):
    seed_dir = seed_with_new_tokens(tiny_llama_dir, tmp_path / "seed", additional_special_tokens=["<new>"])
    seed_model = backend_for(seed_dir, max_new_tokens=4)
    answers = answers_by_row(seed_model, [prompts("Hi", "What is <new>?")])
    assert answers[0].error is None
    assert answers[1].error == (
        "the tokenizer writes '<new>' as token 4096, but the model has embeddings for tokens 0 to 4095 alone"
    )
    assert answers[1].is_final
    targets = [(Target(({"role": "user", "content": text},), ""), "Yes.") for text in ("Hi", "What is <new>?")]
    assert [math.isnan(value) for value in seed_model.answer_nll(targets)] == [False, True]


def test_a_chat_template_whose_tokens_have_no_embedding_ends_the_run(tiny_llama_dir, tmp_path):
    template = "{% for message in messages %}<new>{{ message.content }}{% endfor %}"
    seed_dir = seed_with_new_tokens(tiny_llama_dir, tmp_path / "s", template, additional_special_tokens=["<new>"])
    with pytest.raises(
        CheckpointError, match=r"can't be asked: the tokenizer writes '<new>' as token 4096, but the mo"
    ):
        answers_by_row(backend_for(seed_dir), [prompts("Hi")])


def test_closing_frees_the_model_and_the_next_use_loads_it_again(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir, max_new_tokens=4)
    asked = prompts("Hello")
    first = answers_by_row(backend, [asked])
    model = weakref.ref(backend._model)

    backend.close()

    assert model() is None
    assert answers_by_row(backend, [asked]) == first


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


def test_of_a_conversation_too_long_to_be_scored_the_beginning_is_left_out(tiny_llama_dir):
    backend = backend_for(tiny_llama_dir)
    context = ({"role": "user", "content": "word " * 60},)
    whole = [*backend._prompt_ids(context), *backend._tokenizer("fine")["input_ids"], backend._tokenizer.eos_token_id]
    backend._model.config.max_position_embeddings = 20

    [value] = backend.answer_nll([(Target(context, "unused"), "fine")])

    log_probs = backend._model(torch.tensor([whole[-20:]])).logits[0].log_softmax(-1)
    num_answer = len(whole) - len(backend._prompt_ids(context))
    picked = [log_probs[place - 1, whole[-20:][place]].item() for place in range(20 - num_answer, 20)]
    assert value == pytest.approx(-sum(picked) / num_answer, abs=1e-4)


def test_a_seed_without_chat_template_takes_the_one_that_is_given_and_another_keeps_its_own(
    tiny_llama_dir, tmp_path, caplog
):
    shutil.copytree(tiny_llama_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    for folder, expected in (
        (tmp_path, "<|im_start|>Hi<|im_end|>"),
        (tiny_llama_dir, "<|im_start|>user\nHi<|im_end|>"),
    ):
        backend = backend_for(folder, max_new_tokens=4, chat_template=template)
        backend.check()
        [prompt] = prompts("Hi")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert expected in tokenizer.decode(backend._prompt_ids(prompt.messages))
    [said] = [record.message for record in caplog.records if "has no effect" in record.message]
    assert said.endswith(f"since {tiny_llama_dir} has a chat template of its own; change it there")


def test_the_tokenizer_of_mistral_common_is_refused_with_its_own_reason(tmp_path):
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data" / "tekken_240911.json"
    shutil.copy(data, tmp_path / "tekken.json")
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(ConfigError, match=r"is that of mistral-common \(tekken.json\).*set generation.backend: openai"):
        backend_for(tmp_path, chat_template="{{ messages }}").check()


def test_a_seed_without_chat_template_is_refused_without_loading_weights(tiny_llama_dir, tmp_path):
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()

    with pytest.raises(ConfigError, match=r"has no chat template.*instruction-tuned base_model"):
        backend_for(tmp_path).check()


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}])
def test_a_model_whose_weights_are_not_numbers_is_refused_before_it_is_asked(tiny_llama_dir, settings):
    broken = backend_for(tiny_llama_dir, max_new_tokens=4, **settings)
    broken._model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(CheckpointError, match=r"the model predicts no numbers \(NaN\): .*; try dtype: bfloat16 or"):
        broken.load()


def test_a_model_without_a_tokenizer_of_its_own_is_refused(tiny_llama_dir, tmp_path):
    bare = Path(shutil.copytree(tiny_llama_dir, tmp_path / "bare"))
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"the tokenizer of .*bare can't be loaded \(.*; put the tokenizer's"):
        backend_for(bare).check()
