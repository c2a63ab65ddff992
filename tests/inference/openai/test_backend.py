"""What servers are asked, what is made of their answers, and how the caller is served."""

import asyncio
import json
import resource
import threading

import pytest

from axolotl_sdft.config import OpenAIGeneration
from axolotl_sdft.core.errors import ConfigError, SdftError
from axolotl_sdft.inference.interfaces import Answer, Prompt
from axolotl_sdft.inference.openai.backend import OpenAIBackend
from axolotl_sdft.inference.prompts import load_tokenizer, prompt_ids
from tests.inference.openai.openai_server import (
    CANARY_TEXT,
    SILENCE,
    FakeServer,
    Fault,
)
from tests.inference.openai.rows import answers_of, prompts, right_answers

pytestmark = pytest.mark.usefixtures("impatient")

# What is asked, and what is made of the answer


def test_every_row_gets_its_own_answer_and_the_server_stays_full(backend_for):
    with FakeServer(waits_for=8) as server:
        assert answers_of(backend_for(server, concurrency=8), prompts(60)) == right_answers(60)
    assert server.most_in_flight == 8
    assert sorted(server.texts()) == sorted(f"row {row}" for row in range(60))


def test_batches_depend_on_the_prompts_alone(backend_for):
    backend = backend_for(base_urls=["http://localhost:1/v1"])
    asked = prompts(5)
    assert backend.batches(asked[::-1]) == backend.batches(asked) == [[prompt] for prompt in asked]


def test_a_batch_of_several_prompts_comes_back_whole_and_in_order(backend_for):
    with FakeServer() as server:
        [(batch, answers)] = backend_for(server).generate([prompts(3)])
    assert [answer.text for answer in answers] == ["re: row 0", "re: row 1", "re: row 2"]
    assert batch == prompts(3)


def test_a_greedy_request_holds_the_chat_and_the_settings_and_no_more(backend_for):
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    with FakeServer() as server:
        backend = backend_for(server, max_new_tokens=7, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        answers_of(backend, [Prompt((0, 0), messages)])
    assert server.chats[-1] == {
        "model": "seed",
        "messages": list(messages),
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 1.0,
        "chat_template_kwargs": {"enable_thinking": False},
    }


BEGUN = Prompt((0, 0), ({"role": "user", "content": "row 0"}, {"role": "assistant", "content": "Well,\n"}))


def test_a_server_is_told_to_go_on_where_the_answer_has_begun(backend_for):
    with FakeServer() as server:
        [answer] = answers_of(backend_for(server), [BEGUN]).values()
    assert server.chats[-1]["messages"] == list(BEGUN.messages)
    assert server.chats[-1]["continue_final_message"] is True
    assert server.chats[-1]["add_generation_prompt"] is False
    assert answer.text == "Well,\nre: Well,"


def test_a_beginning_that_a_server_repeats_stands_there_once(backend_for):
    with FakeServer(choice={"message": {"role": "assistant", "content": "Well,\nwell."}}) as server:
        [answer] = answers_of(backend_for(server), [BEGUN]).values()
    assert answer.text == "Well,\nwell."


@pytest.mark.parametrize(
    ("room", "asked_for"),
    [
        (65, 64),  # the longest answer, and a token that the server may put at the beginning
        (41, 40),
        (0, 1),  # the server says itself that the prompt is too long
    ],
)
def test_no_more_is_asked_for_than_the_server_has_room_for(tiny_llama_dir, room, asked_for):
    [prompt] = prompts(1)
    num_prompt = len(prompt_ids(load_tokenizer(tiny_llama_dir), prompt.messages))
    with FakeServer(model=tiny_llama_dir.name, max_model_len=num_prompt + room) as server:
        backend = OpenAIBackend(tiny_llama_dir, OpenAIGeneration(base_urls=(server.url,), max_new_tokens=64))
        answers_of(backend, [prompt])
        backend.close()
    assert server.chats[-1]["max_tokens"] == asked_for


@pytest.mark.parametrize("told", [None, 0, -1, "4096", True])
def test_a_server_that_tells_no_length_is_asked_for_the_longest_answer(tiny_llama_dir, told):
    with FakeServer(model=tiny_llama_dir.name, max_model_len=told) as server:
        backend = OpenAIBackend(tiny_llama_dir, OpenAIGeneration(base_urls=(server.url,), max_new_tokens=64))
        answers_of(backend, prompts(1))
        backend.close()
    assert server.chats[-1]["max_tokens"] == 64


def test_a_server_that_opens_another_turn_behind_the_beginning_is_found_out(tiny_llama_dir):
    tokenizer = load_tokenizer(tiny_llama_dir)
    meant = len(prompt_ids(tokenizer, BEGUN.messages))

    def usage_of(num_prompt):
        return {"prompt_tokens": num_prompt, "completion_tokens": 3}

    with FakeServer(model=tiny_llama_dir.name) as server:
        backend = OpenAIBackend(tiny_llama_dir, OpenAIGeneration(base_urls=(server.url,)))
        server.usage = usage_of(meant)
        [fitting] = answers_of(backend, [BEGUN]).values()
        server.usage = usage_of(meant + 5)
        [other] = answers_of(backend, [BEGUN]).values()
        backend.close()
    assert fitting.finish_reason == "stop"
    assert other.error.startswith(f"the server read {meant + 5} tokens where the chat with answer_prefix has {meant}")
    assert other.is_final


def test_the_seed_models_own_control_tokens_end_an_answer_and_its_other_special_tokens_are_text(tiny_llama_dir):
    said = {
        "row 0": "Paris.<|im_end|>\n",
        "row 1": "Run cat <filename> twice.",
        "row 2": "Paris.<|im_end|>\n<|im_start|>user\nAnd Spain?",
    }

    def choice_for(text, number):
        message = {"role": "assistant", "content": said.get(text, "yes")}
        return Fault(body=json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())

    with FakeServer(choice_for, model=tiny_llama_dir.name) as server:
        backend = OpenAIBackend(tiny_llama_dir, OpenAIGeneration(base_urls=(server.url,)))
        answers = answers_of(backend, prompts(3))
        backend.close()
    assert [answers[row].text for row in range(2)] == ["Paris.", "Run cat <filename> twice."]
    assert answers[2].error.startswith("the answer goes on behind <|im_end|>")


def test_sampling_is_seeded_by_the_settings_the_chat_and_the_attempt(backend_for):
    asked = [Prompt(one.key, one.messages, attempt) for one in prompts(2) for attempt in range(2)]
    with FakeServer() as server:
        for seed in (1, 1, 2):
            answers_of(backend_for(server, temperature=0.8, top_p=0.9, seed=seed), asked)
    chats = [chat for chat in server.chats if chat["messages"][-1]["content"] != CANARY_TEXT]
    seeds = [chat["seed"] for chat in chats]
    assert set(seeds[:4]) == set(seeds[4:8])
    assert len(set(seeds)) == 8
    assert {(chat["temperature"], chat["top_p"], chat["top_k"]) for chat in chats} == {(0.8, 0.9, -1)}


def test_a_second_attempt_samples_even_where_the_first_is_greedy(backend_for):
    with FakeServer() as server:
        answers_of(backend_for(server), [Prompt((0, 0), prompts(1)[0].messages, attempt=1)])
    assert server.chats[-1]["temperature"] > 0


def test_the_mean_log_probability_is_read_when_sampling(backend_for):
    with FakeServer() as server:
        sampled = answers_of(backend_for(server, temperature=1.0), prompts(1))
        greedy = answers_of(backend_for(server), prompts(1))
    assert sampled[0].mean_logprob == -0.5  # the server's tokens have -0.25 and -0.75
    assert greedy[0].mean_logprob is None


def test_fields_that_a_server_refuses_are_left_out(backend_for):
    with FakeServer(refused_fields=("logprobs", "top_k", "min_p")) as server:
        answers = answers_of(backend_for(server, temperature=1.0), prompts(2))
    assert [answers[row].text for row in range(2)] == ["re: row 0", "re: row 1"]
    assert {"seed", "temperature"} <= server.chats[-1].keys()


def test_top_k_reaches_the_server_and_is_never_left_out_in_silence(backend_for):
    with FakeServer() as server:
        answers_of(backend_for(server, temperature=0.95, top_k=50), prompts(1))
    assert server.chats[-1]["top_k"] == 50
    with FakeServer(refused_fields=("top_k",)) as server, pytest.raises(SdftError, match="top_k"):
        answers_of(backend_for(server, temperature=0.95, top_k=50), prompts(1))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"finish_reason": "length"}, Answer("re: row 0", "length", 3)),
        ({"finish_reason": "MAX_TOKENS"}, Answer("re: row 0", "length", 3)),
        ({"finish_reason": "eos_token"}, Answer("re: row 0", "stop", 3)),
        ({"message": {"content": None}}, Answer("", "stop", 3)),
        ({"message": {"content": " spaced \n"}}, Answer("spaced", "stop", 3)),
    ],
)
def test_an_answer_tells_whether_it_was_cut_off(backend_for, choice, expected):
    with FakeServer(choice=choice) as server:
        assert answers_of(backend_for(server), prompts(1)) == {0: expected}


def test_an_answer_that_is_not_finished_fails_with_the_reason_and_is_not_asked_for_again(backend_for):
    filtered = b'{"choices": [{"message": {"content": "half a sen"}, "finish_reason": "content_filter"}]}'
    with FakeServer(lambda text, number: Fault(body=filtered) if text == "row 1" else None) as server:
        answers = answers_of(backend_for(server), prompts(3))
    message = "no finished answer (finish_reason 'content_filter')"
    assert answers == right_answers(3) | {1: Answer("", "error", 0, error=message, is_final=True)}
    assert server.texts().count("row 1") == 1


# The consumer


def test_batches_are_drawn_at_most_twice_as_far_ahead_as_requests_are_in_flight(backend_for):
    drawn = 0

    def source():
        nonlocal drawn
        for prompt in prompts(100):
            drawn += 1
            yield [prompt]

    furthest = 0
    with FakeServer(reply_s=0.002) as server:
        for done, _ in enumerate(backend_for(server, concurrency=5).generate(source())):
            furthest = max(furthest, drawn - done)
    assert drawn == 100
    assert furthest <= 10


def test_batches_are_drawn_in_the_callers_own_thread(backend_for):
    threads = set()

    def source():
        for prompt in prompts(5):
            threads.add(threading.current_thread())
            yield [prompt]

    with FakeServer() as server:
        assert len(list(backend_for(server).generate(source()))) == 5
    assert threads == {threading.current_thread()}


def test_an_error_of_the_source_reaches_the_caller_as_it_is(backend_for):
    def source():
        yield prompts(1)
        raise KeyError("row 1")

    with FakeServer() as server, pytest.raises(KeyError, match="row 1"):
        list(backend_for(server).generate(source()))


def test_closing_early_cancels_what_is_under_way_and_the_backend_can_be_used_again(backend_for):
    with FakeServer() as server:
        server.fault = lambda text, number: SILENCE if text in ("row 1", "row 2") else None
        backend = backend_for(server, concurrency=3)
        answers = backend.generate(backend.batches(prompts(3)))
        assert next(answers)[1][0].text == "re: row 0"
        answers.close()
        server.fault = lambda text, number: None
        assert answers_of(backend, prompts(3)) == right_answers(3)


def test_answers_that_outlive_the_backend_end_quietly(backend_for):
    with FakeServer(lambda text, number: SILENCE if text == "row 1" else None) as server:
        backend = backend_for(server)
        answers = backend.generate(backend.batches(prompts(2)))
        assert next(answers)[1][0].text == "re: row 0"
        backend.close()
        answers.close()
        assert answers_of(backend, prompts(1)) == right_answers(1)


def test_it_works_where_an_event_loop_runs_already_as_in_a_notebook(backend_for):
    async def cell():
        with FakeServer() as server:
            return answers_of(backend_for(server), prompts(2))

    assert asyncio.run(cell()) == right_answers(2)


def test_several_ranks_share_the_requests_in_flight(backend_for, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with FakeServer(waits_for=2) as server:
        assert answers_of(backend_for(server, concurrency=8), prompts(12)) == right_answers(12)
    assert server.most_in_flight == 2


def test_more_requests_in_flight_than_the_machine_allows_are_refused_before_any_is_sent(backend_for, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    with FakeServer() as server, pytest.raises(ConfigError, match=r"concurrency: 4000 requests .* allows 4096; lower"):
        backend_for(server, concurrency=4000).check()
    assert not server.headers


def test_the_limit_of_open_files_is_raised_where_that_is_enough(backend_for, monkeypatch):
    limits = {resource.RLIMIT_NOFILE: (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    with FakeServer() as server:
        backend_for(server, concurrency=2000).check()
    assert limits == {resource.RLIMIT_NOFILE: (2512, 4096)}
