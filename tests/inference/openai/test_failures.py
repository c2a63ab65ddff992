"""What becomes of rows and servers when requests fail: for a while, for good, for one row, for all."""

import contextlib
import itertools
import json
import time
from pathlib import Path

import pytest
from datasets import Dataset

from axolotl_sdft import distill_dataset
from axolotl_sdft.config import OpenAIGeneration, SelfDistillationConfig
from axolotl_sdft.core.errors import ConfigError, ServerError
from axolotl_sdft.inference.interfaces import Answer
from axolotl_sdft.inference.openai.api_key import ApiKey
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
from tests.inference.openai.rows import answers_of, once_per_row, prompts, right_answers

pytestmark = pytest.mark.usefixtures("impatient")

OUT_OF_ORDER = Fault(500)


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


def test_a_limit_is_halved_once_for_all_that_was_in_flight_and_grows_by_one_per_round_of_answers():
    server = Server("http://localhost/v1", ApiKey("OPENAI_API_KEY"), concurrency=32, timeout_s=1, max_retries=0)
    sent_at = time.monotonic()
    assert [server.has_too_much(sent_at) for _ in range(32)] == [False] * 32
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
    # Of two questions in flight either may reach the server first.
    assert len(set(kept)) == len(kept) == 5
    assert set(kept) < {f"re: row {row}" for row in range(6)}


def test_a_dataset_with_a_question_that_the_server_will_not_have_is_finished(seed_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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


@pytest.mark.parametrize("fault", [Fault(400), Fault(413), Fault(404), Fault(500), Fault()])
def test_what_a_server_will_not_answer_another_one_is_asked(backend_for, fault):
    with (
        FakeServer(reply_s=0.01) as server,
        FakeServer(lambda text, _: None if text == CANARY_TEXT else fault) as other,
    ):
        answers = answers_of(backend_for(server, other, concurrency=2, max_retries=2), prompts(40))
    assert answers == right_answers(40)
    assert other.texts()


def test_a_question_is_refused_for_good_when_all_servers_refuse_it(backend_for):
    def refusing(text, number):
        return Fault(400) if text == "row 1" else None

    with FakeServer(refusing) as server, FakeServer(refusing) as other:
        answers = answers_of(backend_for(server, other), prompts(3))
    assert (answers[1].finish_reason, answers[1].is_final) == ("error", True)
    assert [each.texts().count("row 1") for each in (server, other)] == [1, 1]


def test_a_question_that_a_dead_server_may_answer_yet_is_asked_again_at_the_next_start(backend_for):
    with FakeServer(lambda text, _: Fault(400) if text == "row 1" else None) as server, FakeServer() as dead:
        backend = backend_for(server, dead, max_retries=0)
        dead.die()
        answers = answers_of(backend, prompts(3))
    assert (answers[1].finish_reason, answers[1].is_final) == ("error", False)
    assert answers | {1: None} == right_answers(3) | {1: None}


def test_when_one_server_dies_the_others_take_its_rows(backend_for, caplog):
    with FakeServer(reply_s=0.05) as survivor, FakeServer(reply_s=0.01) as victim:
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
