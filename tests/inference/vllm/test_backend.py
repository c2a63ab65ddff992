"""What the backend asks of its vLLM server, and what it makes of the answers."""

import contextlib

import pytest

from axolotl_sdft.config import VLLMGeneration
from axolotl_sdft.core.errors import BackendError, CheckpointError, ConfigError
from axolotl_sdft.inference.interfaces import Prompt, Target, sampling_seed
from axolotl_sdft.inference.prompts import end_ids, prompt_ids
from axolotl_sdft.inference.vllm.backend import VLLMBackend
from axolotl_sdft.inference.vllm.server import server_arguments
from axolotl_sdft.plugins.registry import BACKENDS, registry
from tests.inference.vllm.conftest import is_running, loaded_once, told

pytestmark = pytest.mark.usefixtures("fake", "impatient")


@pytest.fixture(autouse=True)
def _tokenizer_is_loaded_once(monkeypatch):
    """Save the seconds that it takes; the same one serves every test."""
    monkeypatch.setattr("axolotl_sdft.inference.prompts.load_tokenizer", loaded_once)


@pytest.fixture
def backend_for(tiny_llama_dir):
    """Make backends that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(vllm_args=None, model_dir=tiny_llama_dir, **settings):
            backend = VLLMBackend(
                model_dir, VLLMGeneration(**{"vllm_args": vllm_args or {}, "temperature": 0.0} | settings)
            )
            stack.callback(backend.close)
            return backend

        yield make


def chat(row, text="Hi", attempt=0):
    return Prompt((row, 0), ({"role": "user", "content": text},), attempt)


def answers_of(backend, asked):
    return {batch[0].key[0]: answer for batch, [answer] in backend.generate(backend.batches(asked))}


def test_the_backend_is_chosen_by_its_name(tiny_llama_dir):
    factory = registry().resolve(BACKENDS, "vllm", "self_distillation.generation.backend")

    assert isinstance(factory(tiny_llama_dir, VLLMGeneration()), VLLMBackend)


def test_a_check_starts_no_server(backend_for):
    backend = backend_for()
    backend.check()

    assert backend._child is None


@pytest.mark.parametrize("name", ["max_model_len", "max-num-seqs", "enforce_eager"])
def test_an_argument_that_vllm_knows_passes_the_check(backend_for, name):
    backend_for({name: 8}).check()


def test_an_argument_that_vllm_does_not_know_is_told_before_anything_starts(backend_for):
    backend = backend_for({"max_model_lenght": 64})
    with pytest.raises(
        ConfigError,
        match=r"vllm_args holds 'max_model_lenght', which the installed vLLM does not know; .*max_model_len",
    ):
        backend.check()
    assert backend._child is None


@pytest.mark.parametrize("settings", [{"trust_remote_code": True}, {"vllm_args": {"trust_remote_code": True}}])
def test_code_of_the_seed_model_runs_here_and_in_the_server_where_it_may(backend_for, seed_with_code, settings):
    backend = backend_for(model_dir=seed_with_code, **settings)
    assert type(backend._tokenizer).__name__ == "OwnTokenizer"
    assert server_arguments(backend._vllm_config)["trust_remote_code"] is True
    assert "trust_remote_code" not in server_arguments(VLLMGeneration())
    with pytest.raises(CheckpointError, match=r"coded can't be loaded .*set trust_remote_code: true"):
        backend_for(model_dir=seed_with_code).check()


def test_a_vllm_whose_help_says_nothing_is_not_held_against_the_arguments(backend_for, tmp_path):
    (tmp_path / "site" / "vllm" / "entrypoints" / "cli" / "main.py").write_text("print('no help here')")
    backend_for({"whatever": 1}).check()


def test_a_seed_that_vllm_can_not_ask_is_refused_before_anything_starts(tiny_llama_dir, tmp_path, backend_for):
    loaded_once(tiny_llama_dir).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is an adapter; merge it into its base model first"):
        backend_for(model_dir=tmp_path).check()

    (tmp_path / "chat_template.jinja").unlink()
    loaded_once.cache_clear()
    with pytest.raises(ConfigError, match=r"has no chat template"):
        backend_for(model_dir=tmp_path).check()


def test_a_request_goes_on_behind_what_the_assistant_said_last(tiny_llama_dir, backend_for):
    backend = backend_for(max_new_tokens=8)
    messages = (*chat(0).messages, {"role": "assistant", "content": "Well,"})

    [answer] = answers_of(backend, [Prompt((0, 0), messages)]).values()

    [request] = told(backend)["asked"]
    tokenizer = loaded_once(tiny_llama_dir)
    assert (
        request["prompt"]
        == prompt_ids(tokenizer, messages[:1]) + tokenizer("Well,", add_special_tokens=False).input_ids
    )
    assert answer.text.startswith("Well,")


def test_a_greedy_request_holds_the_prompt_that_transformers_would_be_given(tiny_llama_dir, backend_for):
    backend, prompt = backend_for(max_new_tokens=8), chat(0, "Name a colour, please.")
    tokenizer = loaded_once(tiny_llama_dir)

    answers_of(backend, [prompt])

    assert told(backend)["asked"] == [
        {
            "model": "seed-model",
            "prompt": prompt_ids(tokenizer, prompt.messages),
            "max_tokens": 8,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": end_ids(None, tokenizer),
            "return_token_ids": True,
        }
    ]


def test_each_sampled_answer_has_a_seed_of_its_own_and_its_mean_log_probability(backend_for):
    backend = backend_for(temperature=0.8, top_p=0.9, top_k=50, seed=7)

    answers = answers_of(backend, [chat(0, "Hi"), chat(1, "Hello")])

    asked = told(backend)["asked"]
    seeds = {sampling_seed(7, chat(0, text).messages, 0) for text in ("Hi", "Hello")}
    assert {request["seed"] for request in asked} == seeds
    sampling = [tuple(request[name] for name in ("temperature", "top_p", "top_k", "logprobs")) for request in asked]
    assert sampling == [(0.8, 0.9, 50, 0)] * 2
    assert [answer.mean_logprob for answer in answers.values()] == [-0.5, -0.5]


def test_a_second_attempt_is_sampled_even_where_the_first_is_greedy(backend_for):
    backend = backend_for()
    answers_of(backend, [chat(0, attempt=1)])

    [request] = told(backend)["asked"]
    assert (request["temperature"], request["seed"]) == (0.7, sampling_seed(42, chat(0).messages, 1))


def test_the_penalty_that_the_checkpoint_asks_for_is_kept_as_transformers_keeps_it(
    tiny_llama_dir, tmp_path, backend_for
):
    loaded_once(tiny_llama_dir).save_pretrained(tmp_path / "seed")
    (tmp_path / "seed" / "generation_config.json").write_text('{"repetition_penalty": 1.05, "eos_token_id": [3, 2]}')
    backend = backend_for(model_dir=tmp_path / "seed")

    answers_of(backend, [chat(0)])

    [request] = told(backend)["asked"]
    assert request["repetition_penalty"] == 1.05
    assert request["stop_token_ids"] == [2, 3]  # 2 is the tokenizer's own as well


@pytest.mark.parametrize(("max_new_tokens", "finish_reason", "num_tokens"), [(8, "stop", 3), (2, "length", 2)])
def test_an_answer_that_ends_itself_is_told_from_one_that_was_cut_off(
    tiny_llama_dir, backend_for, max_new_tokens, finish_reason, num_tokens
):
    answer = answers_of(backend_for(max_new_tokens=max_new_tokens), [chat(0)])[0]

    words = loaded_once(tiny_llama_dir).decode(list(range(40, 40 + num_tokens)))
    assert (answer.text, answer.finish_reason, answer.num_tokens) == (words, finish_reason, num_tokens)
    assert answer.mean_logprob is None


def test_an_answer_has_the_room_that_its_prompt_leaves_and_none_is_asked_for_without(tiny_llama_dir, backend_for):
    num_tokens = len(prompt_ids(loaded_once(tiny_llama_dir), chat(0).messages))
    backend = backend_for({"max_model_len": num_tokens + 2})

    answers = answers_of(backend, [chat(0), chat(1, "word " * 60)])

    assert (answers[0].finish_reason, answers[0].num_tokens) == ("length", 2)
    assert len(told(backend)["asked"]) == 1
    assert answers[1].is_final
    assert answers[1].error.endswith(f"tokens, of {num_tokens + 2} that the model takes")


def test_the_likelihood_is_the_mean_over_the_answer_and_the_end_of_its_turn(tiny_llama_dir, backend_for):
    tokenizer, backend = loaded_once(tiny_llama_dir), backend_for()
    num_answer = len(tokenizer("blue sky", add_special_tokens=False)["input_ids"]) + 1

    [value] = backend.answer_nll([(Target(chat(0).messages, "unused"), "blue sky")])

    [request] = told(backend)["asked"]
    assert request["prompt"][-1] == tokenizer.eos_token_id
    places = range(len(request["prompt"]) - num_answer, len(request["prompt"]))
    assert value == pytest.approx(sum(place / 4 for place in places) / num_answer)


def test_a_conversation_too_long_to_be_scored_loses_its_beginning(tiny_llama_dir, backend_for):
    tokenizer, backend = loaded_once(tiny_llama_dir), backend_for({"max_model_len": 20})
    context = chat(0, "word " * 60).messages

    backend.answer_nll([(Target(context, "unused"), "fine"), (Target(context, "unused"), "word " * 60)])

    asked = sorted((request["prompt"] for request in told(backend)["asked"]), key=lambda ids: ids.count(ids[5]))
    whole = prompt_ids(tokenizer, context)
    short = [*whole, *tokenizer("fine")["input_ids"], tokenizer.eos_token_id][-19:]  # vLLM insists on writing one more
    assert short in asked
    assert [ids[0] for ids in asked if ids != short] == [whole[-1]]
    assert {len(ids) for ids in asked} == {19}


def test_only_the_main_rank_asks_and_all_requests_are_its_own(backend_for, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    backend = backend_for({"max_num_seqs": 16})

    assert backend.serves_all_ranks
    assert len(answers_of(backend, [chat(row) for row in range(5)])) == 5
    assert [server.concurrency for server in backend._started[1].servers] == [80]  # 16, and 64 in its queue


def test_a_server_that_ends_stops_the_run_and_says_why_and_what_is_kept(backend_for, caplog):
    backend = backend_for({"exit_after": 3, "max_num_seqs": 1})
    backend._config = backend._config.model_copy(update={"concurrency": 1})
    kept = []

    message = (
        r"vLLM ended with .*RuntimeError: the engine ran out of memory\. Its log is .*failed\.log.* before is kept"
    )
    with pytest.raises(BackendError, match=message) as caught:
        kept.extend(batch for batch, _ in backend.generate([[chat(row)] for row in range(6)]))

    assert len(kept) == 2
    assert "vLLM: RuntimeError: the engine ran out of memory" in caplog.text
    with open(str(caught.value).split("Its log is ")[1].split(". What")[0]) as log:
        assert "INFO: loading" in log.read()


def test_a_server_that_can_not_start_says_why(backend_for):
    with pytest.raises(BackendError, match=r"did not start with .*ValueError: no memory for the cache blocks.*lower"):
        answers_of(backend_for({"max_model_len": 1}), [chat(0)])


def test_an_argument_that_vllm_does_not_know_is_told_in_its_own_words(backend_for):
    with pytest.raises(BackendError, match=r"unrecognized arguments: --max-model-length 64.*correct it in vllm_args"):
        answers_of(backend_for({"max_model_length": 64}), [chat(0)])


def test_closing_ends_all_processes_of_the_server_and_the_next_use_starts_another(backend_for):
    backend = backend_for()
    answers_of(backend, [chat(0)])
    pids, log = told(backend)["pids"], backend._child._log

    backend.close()
    backend.close()

    assert not any(map(is_running, pids))
    assert not log.parent.exists()
    assert answers_of(backend, [chat(0)])[0].finish_reason == "stop"


def test_what_is_under_way_is_given_up_when_the_caller_stops_early(backend_for):
    backend = backend_for({"hold": 2})
    came = backend.generate([[chat(0)], [chat(1)]])
    next(came)

    came.close()

    assert answers_of(backend, [chat(2)])[2].finish_reason == "stop"


def test_no_proxy_stands_before_a_server_of_this_machine(backend_for, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    backend = backend_for()

    assert answers_of(backend, [chat(0)])[0].finish_reason == "stop"
