import asyncio
import base64
import contextlib
import itertools
import json
import logging
import resource
import threading
import time
from pathlib import Path

import pytest
from datasets import Dataset

from axolotl_sdft import distill_dataset
from axolotl_sdft.config import OpenAIGeneration, SelfDistillationConfig
from axolotl_sdft.core.errors import ConfigError, ServerError
from axolotl_sdft.inference.interfaces import Answer, Prompt
from axolotl_sdft.inference.openai import dispatch, retries
from axolotl_sdft.inference.openai.api_key import ApiKey
from axolotl_sdft.inference.openai.backend import OpenAIBackend
from axolotl_sdft.inference.openai.servers import Server
from tests.inference.openai.openai_server import (
    CANARY_TEXT,
    HALF,
    OTHER_MODEL,
    RESET,
    RUBBISH,
    SILENCE,
    FakeServer,
    Fault,
)

OUT_OF_ORDER = Fault(500)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Wait hundredths of seconds where a user would wait seconds."""
    monkeypatch.setattr(retries, "BACKOFF_S", 0.01)
    monkeypatch.setattr(retries, "LONGEST_BACKOFF_S", 0.05)
    monkeypatch.setattr(dispatch, "PROBE_INTERVAL_S", 0.05)


@pytest.fixture
def backend_for(seed_dir):
    """Make backends that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(*servers, **settings):
            settings = {"base_urls": [server.url for server in servers], "backend": "openai"} | settings
            backend = OpenAIBackend(seed_dir, OpenAIGeneration(**settings))
            stack.callback(backend.close)
            return backend

        yield make


def prompts(num_rows):
    return [Prompt((row, 0), ({"role": "user", "content": f"row {row}"},)) for row in range(num_rows)]


def answers_of(backend, asked):
    return {batch[0].key[0]: answer for batch, [answer] in backend.generate(backend.batches(asked))}


def right_answers(num_rows):
    return {row: Answer(f"re: row {row}", "stop", 3) for row in range(num_rows)}


def once_per_row(fault):
    """Answer each row the second time only."""
    seen = set()

    def decide(text, number):
        if text == CANARY_TEXT or text in seen:
            return None
        seen.add(text)
        return fault

    return decide


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


# Faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        Fault(408),
        Fault(409),
        Fault(429),
        Fault(500),
        Fault(503),
        Fault(200, body=b'{"choices": []}'),
        Fault(200, body=b'{"error": {"message": "upstream is gone"}}'),
        Fault(200, body=b'{"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}'),
        RUBBISH,
        HALF,
        RESET,
        OTHER_MODEL,
    ],
    ids=lambda fault: f"{fault.status}-{fault.body[:12].decode()}",
)
def test_a_request_that_fails_once_is_sent_again(backend_for, fault):
    with FakeServer(once_per_row(fault)) as server:
        backend = backend_for(server, concurrency=4)
        assert answers_of(backend, prompts(6)) == right_answers(6)
    assert sorted(server.texts()) == sorted(2 * [f"row {row}" for row in range(6)])


def test_a_request_without_an_answer_is_sent_again(backend_for):
    with FakeServer(once_per_row(SILENCE)) as server:
        backend = backend_for(server, concurrency=4, timeout_s=2)
        assert answers_of(backend, prompts(4)) == right_answers(4)
    # On a busy machine the answer to the second request may come too late as well.
    assert all(server.texts().count(f"row {row}") >= 2 for row in range(4))


def test_a_server_that_asks_for_a_pause_gets_it_while_the_other_one_works(backend_for):
    pause = Fault(429, {"Retry-After": "1"})
    # Its first chat is the handshake, its third is the row that it puts off.
    busy, idle = FakeServer(lambda text, number: pause if number == 2 else None), FakeServer(reply_s=0.05)
    with busy, idle:
        assert answers_of(backend_for(busy, idle, concurrency=1), prompts(40)) == right_answers(40)
    put_off_at, next_at = busy.times[2:4]
    assert next_at - put_off_at >= 1
    assert any(put_off_at < at < next_at for at in idle.times)


def test_a_server_that_takes_few_at_once_is_soon_sent_no_more_than_that(backend_for):
    server = FakeServer(reply_s=0.03, waits_for=4)
    server.fault = lambda text, number: Fault(429) if server.in_flight > 3 else None
    with server:
        assert answers_of(backend_for(server, concurrency=32), prompts(60)) == right_answers(60)
    assert 0 < len(server.texts()) - 60 < 60


def test_a_limit_is_halved_once_for_all_that_was_in_flight_and_grows_by_one_per_round_of_answers(backend_for):
    server = Server("http://localhost/v1", ApiKey("OPENAI_API_KEY"), concurrency=32, timeout_s=1)
    sent_at = time.monotonic()
    assert [server.has_throttled(sent_at, None) for _ in range(32)] == [False] * 32
    assert server.limit == 16
    for _ in range(16):
        server.has_answered()
    assert int(server.limit) == 16
    server.has_answered()
    assert int(server.limit) == 17
    for _ in range(2000):
        server.has_answered()
    assert server.limit == 32


# Faults that stay


def test_a_row_that_the_server_refuses_says_why_and_the_others_go_on(backend_for):
    too_long = Fault(400, body=b'{"error": {"message": "the prompt has 9000 tokens, 8192 are allowed"}}')
    with FakeServer(lambda text, number: too_long if text == "row 1" else None) as server:
        answers = answers_of(backend_for(server), prompts(3))
    assert server.texts().count("row 1") == 1
    message = "HTTP 400 Whatever: the prompt has 9000 tokens, 8192 are allowed"
    assert answers == right_answers(3) | {1: Answer("", "error", 0, error=message, is_final=True)}


def in_place_of_an_answer(**choice):
    body = {"choices": [{"message": {"role": "assistant", "content": "Well"}, "finish_reason": "stop"} | choice]}
    return Fault(body=json.dumps(body).encode())


FILTERED = in_place_of_an_answer(finish_reason="content_filter")
DECLINED = in_place_of_an_answer(message={"role": "assistant", "content": None, "refusal": "I would rather not"})


@pytest.mark.parametrize("fault", [Fault(400), Fault(413), Fault(422), FILTERED, DECLINED])
def test_a_question_that_is_refused_for_its_own_sake_is_not_asked_again(backend_for, fault):
    with FakeServer(lambda text, number: fault if text == "row 1" else None) as server:
        answers = answers_of(backend_for(server), prompts(3))
    assert (answers[1].finish_reason, answers[1].is_final) == ("error", True)
    assert server.texts().count("row 1") == 1


@pytest.mark.parametrize("status", [403, 404, 408, 409, 418, 429, 500, 503])
def test_what_may_pass_is_asked_again_at_the_next_start(backend_for, status):
    with FakeServer(lambda text, number: Fault(status) if text == "row 1" else None) as server:
        answers = answers_of(backend_for(server, max_retries=1), prompts(3))
    assert (answers[1].finish_reason, answers[1].is_final) == ("error", False)
    assert answers | {1: None} == right_answers(3) | {1: None}


def test_a_server_that_finds_fault_with_everything_from_now_on_puts_no_blame_on_the_questions(backend_for):
    no_credit = Fault(400, body=b'{"error": {"message": "your credit is used up"}}')
    with FakeServer(lambda text, number: no_credit if number > 5 else None) as server:
        backend, kept = backend_for(server, concurrency=2, max_retries=1), []
        with pytest.raises(ConfigError, match=r"refuses a plain chat: HTTP 400 \w+: your credit is used up.*is kept"):
            kept.extend(answer.text for _, [answer] in backend.generate(backend.batches(prompts(30))))
    assert sorted(kept) == [f"re: row {row}" for row in range(5)]


def test_a_dataset_with_a_question_that_the_server_will_not_have_is_finished(seed_dir, tmp_path):
    rows = Dataset.from_list([{"instruction": f"row {row}", "output": f"answer {row}"} for row in range(3)])
    with FakeServer(lambda text, number: Fault(400) if "row 1" in text else None) as server:
        generation = OpenAIGeneration(backend="openai", base_urls=[server.url])
        config = SelfDistillationConfig(template="unaided", checks=["empty"], generation=generation)
        first = distill_dataset(rows, config, seed_model=seed_dir)
        num_asked = len(server.texts())
        second = distill_dataset(rows, config, seed_model=seed_dir)
    assert list(first["output"]) == list(second["output"])
    assert first["output"][1] == "answer 1"
    assert len(server.texts()) == num_asked
    assert not [path for path in Path(first.cache_files[0]["filename"]).parts if "-incomplete-" in path]
    assert "HTTP 400" in first["sdft_reasons"][1][0]


def test_servers_that_refuse_every_row_stop_the_run_before_one_is_recorded_as_failed(backend_for):
    fault = Fault(400, body=b'{"error": {"message": "no system role, please"}}')
    with FakeServer(lambda text, number: fault if text != CANARY_TEXT else None) as server:
        backend, kept = backend_for(server), []
        message = "the first 16 rows were refused by the servers, the last one with: HTTP 400 .*: no system role, p"
        with pytest.raises(ConfigError, match=message):
            kept.extend(backend.generate(backend.batches(prompts(40))))
    assert kept == []


def test_a_few_rows_that_are_refused_are_told_even_if_there_are_no_others(backend_for):
    with FakeServer(lambda text, number: Fault(400) if text != CANARY_TEXT else None) as server:
        answers = answers_of(backend_for(server), prompts(3))
    assert [answer.finish_reason for answer in answers.values()] == ["error"] * 3


@pytest.mark.parametrize("fault", [OUT_OF_ORDER, RESET, RUBBISH, Fault(429), Fault(403), Fault(404)])
def test_a_row_that_always_fails_on_a_server_that_is_well_fails_alone(backend_for, fault):
    with FakeServer(lambda text, number: fault if text == "row 2" else None) as server:
        answers = answers_of(backend_for(server, max_retries=4, concurrency=2), prompts(3))
    assert answers[2].finish_reason == "error"
    assert answers | {2: None} == right_answers(3) | {2: None}
    assert server.texts().count("row 2") <= 20


def test_when_one_server_dies_the_others_take_its_rows(backend_for, caplog):
    with FakeServer(reply_s=0.01) as survivor, FakeServer(reply_s=0.01) as victim:
        victim.fault = lambda text, number: victim.die_inside() if number == 5 else None
        answers = answers_of(backend_for(survivor, victim, concurrency=4, max_retries=3), prompts(80))
    assert answers == right_answers(80)
    assert len(victim.texts()) == 5
    assert f"{victim.url} is left out (connect error" in caplog.text


def test_a_server_that_comes_back_gets_rows_again(backend_for):
    with FakeServer(reply_s=0.01) as survivor, FakeServer(reply_s=0.01) as victim:
        backend = backend_for(survivor, victim, concurrency=2, max_retries=1)
        victim.fault = lambda text, number: victim.die_inside() if number == 3 else None
        endless = ([prompt] for row in itertools.count() for prompt in prompts(row + 1)[row:])
        with contextlib.closing(backend.generate(endless)) as answers:
            for _ in itertools.islice(answers, 60):
                pass
            before = len(victim.texts())
            assert before <= 4
            victim.revive()
            assert any(len(victim.texts()) > before for _ in itertools.islice(answers, 2000))


def test_when_all_servers_die_one_error_says_so_after_all_that_was_answered(backend_for):
    with FakeServer() as server:
        server.fault = lambda text, number: server.die_inside() if number == 10 else None
        backend, kept = backend_for(server, concurrency=1, max_retries=2), []
        message = r"base_urls: no server answers any more \(http.*connect error.* is kept: start a server and run"
        with pytest.raises(ServerError, match=message):
            kept.extend(answer.text for _, [answer] in backend.generate(backend.batches(prompts(30))))
    assert kept == [f"re: row {row}" for row in range(9)]


def test_a_server_that_never_answers_is_dead_though_it_lists_its_models(backend_for):
    with FakeServer() as server:
        server.fault = lambda text, number: SILENCE if number >= 3 else None
        backend = backend_for(server, concurrency=2, max_retries=1, timeout_s=2)
        with pytest.raises(ServerError, match=r"no server answers any more \(.*no answer within 2 s"):
            answers_of(backend, prompts(8))


def test_a_key_that_is_withdrawn_stops_the_run(backend_for, monkeypatch):
    monkeypatch.setenv("SDFT_TEST_KEY", "open-sesame")
    with FakeServer(key="open-sesame") as server:
        server.fault = lambda text, number: setattr(server, "key", "another") if number == 4 else None
        backend = backend_for(server, concurrency=1, api_key_env="SDFT_TEST_KEY")
        with pytest.raises(ConfigError, match=r"HTTP 401.*does not accept the key in the .* variable SDFT_TEST_KEY"):
            answers_of(backend, prompts(9))


def test_a_server_that_is_restarted_with_another_model_stops_the_run(backend_for):
    with FakeServer() as server:
        server.fault = lambda text, number: setattr(server, "model", "other") if number == 4 else None
        backend = backend_for(server, concurrency=1, max_retries=1)
        with pytest.raises(ConfigError, match=r"serves 'other', which is not the seed model 'seed'.*is kept"):
            answers_of(backend, prompts(9))


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


# A whole dataset


def test_a_dataset_is_rewritten_by_two_servers_and_the_key_is_written_nowhere(seed_dir, tmp_path, monkeypatch, caplog):
    key = "sk-very-secret-4711"
    monkeypatch.setenv("SDFT_TEST_KEY", key)
    rows = Dataset.from_list([{"instruction": f"Question {n}?", "input": "", "output": f"{n}"} for n in range(20)])
    flaky = once_per_row(Fault(500, body=f"internal error, Authorization: Bearer {key}".encode()))
    for library in ("axolotl_sdft", "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=library)
    with FakeServer(key=key) as first, FakeServer(flaky, key=key) as second:
        generation = OpenAIGeneration(
            backend="openai", base_urls=(first.url, second.url), api_key_env="SDFT_TEST_KEY", concurrency=4
        )
        output_dir = str(tmp_path / "out")
        config = SelfDistillationConfig(
            template="{{ reference }}", checks=(), gap_samples=0, output_dir=output_dir, generation=generation
        )
        distilled = distill_dataset(rows, config, seed_model=seed_dir)

    assert distilled["output"] == [f"re: {n}" for n in range(20)]
    assert all(headers["Authorization"] == f"Bearer {key}" for headers in first.headers + second.headers)
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(b"SDFT_TEST_KEY" in text for text in written)
    assert not any(key.encode() in text for text in written)
    assert "http" in caplog.text
    assert key not in caplog.text


KEY = "sk-very-secret-4711"


def said(**body):
    return json.dumps(body).encode()


def chosen(**choice):
    return said(choices=[{"message": {"content": "An answer"}, "finish_reason": "stop"} | choice])


LEAKS = [
    Fault(body=said(error={"message": f"upstream refused {KEY}"})),
    Fault(body=chosen(message={"content": f"Your key is {KEY}."})),
    Fault(body=chosen(message={"content": "Your key is " + "\u200b".join(KEY)})),
    Fault(body=chosen(message={"content": None, "refusal": f"not with {KEY}"})),
    Fault(body=chosen(finish_reason=KEY)),
    Fault(body=said(model=f"model of {KEY}", **json.loads(chosen()))),
    Fault(body=said(**{KEY: KEY})),
    Fault(400, body=said(error={"message": base64.b64encode(f"Bearer {KEY}".encode()).decode()})),
    Fault(400, {"X-Request-Key": KEY}, body=KEY.encode().hex().encode()),
    Fault(307, {"Location": f"http://127.0.0.1:9/{KEY}?key={KEY}"}),
    Fault(body=f"<p>{KEY}</p>".encode()),
]


def test_a_key_that_a_server_puts_everywhere_is_written_and_logged_nowhere(seed_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SDFT_TEST_KEY", KEY)
    rows = Dataset.from_list(
        [{"instruction": f"Row {n}.", "input": "", "output": f"{n}"} for n in range(len(LEAKS) + 1)]
    )
    leaks = {str(number): fault for number, fault in enumerate(LEAKS)}
    for library in ("axolotl_sdft", "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=library)
    with FakeServer(lambda text, number: leaks.get(text), key=KEY) as server:
        generation = OpenAIGeneration(
            **{"backend": "openai", "base_urls": (server.url,), "api_key_env": "SDFT_TEST_KEY", "max_retries": 1},
            extra_body={"provider": {"api_key": "another-secret"}, "user": "sk-third-secret-0123456789"},
        )
        output_dir = str(tmp_path / "out")
        config = SelfDistillationConfig(
            template="{{ reference }}", checks=(), gap_samples=0, output_dir=output_dir, generation=generation
        )
        distilled = distill_dataset(rows, config, seed_model=seed_dir)

    assert distilled["output"] == [*leaks, f"re: {len(LEAKS)}"]
    assert all(reasons[0].startswith("failed: ") for reasons in distilled["sdft_reasons"][:-1])
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    hidden = [
        KEY,
        base64.b64encode(KEY.encode()).decode()[:20],
        KEY.encode().hex(),
        "another-secret",
        "sk-third-secret",
    ]
    for secret in hidden:
        assert not any(secret.encode() in text for text in written), secret
        assert secret not in caplog.text
    assert any(b"extra_body" in text for text in written)


def test_a_key_among_the_names_of_models_is_not_shown(backend_for, monkeypatch):
    monkeypatch.setenv("SDFT_TEST_KEY", KEY)
    with FakeServer(model=f"\x1b[31m{KEY}", key=KEY) as server, pytest.raises(ConfigError, match="serves '") as caught:
        backend_for(server, api_key_env="SDFT_TEST_KEY").check()
    assert KEY not in str(caught.value)
    assert "\x1b" not in str(caught.value)


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
