"""What the backend asks of vLLM, and what it makes of the answers. test_vllm_engine.py runs the real one."""

import os
import sys
from functools import cache

import pytest

from axolotl_sdft.config import VLLMGeneration
from axolotl_sdft.core.errors import BackendError, ConfigError, MissingExtraError
from axolotl_sdft.inference.interfaces import Prompt, Target, sampling_seed
from axolotl_sdft.inference.prompts import end_ids, load_tokenizer, prompt_ids
from axolotl_sdft.inference.vllm.backend import VLLMBackend
from axolotl_sdft.plugins.registry import BACKENDS, registry
from tests.inference.vllm import fake_vllm


@pytest.fixture(autouse=True)
def _tokenizer_is_loaded_once(monkeypatch):
    """Save the seconds that it takes; the same one serves every test."""
    monkeypatch.setattr("axolotl_sdft.inference.vllm.backend.load_tokenizer", loaded_once)


@pytest.fixture
def engines(monkeypatch):
    """Replace vLLM; the list of the engines that were started."""
    modules, started = fake_vllm.package()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return started


@pytest.fixture
def engines_on_gpus(monkeypatch):
    modules, started = fake_vllm.package(gpu_variable="CUDA_VISIBLE_DEVICES")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    return started


loaded_once = cache(load_tokenizer)


def chat(row, text="Hi", attempt=0):
    return Prompt((row, 0), ({"role": "user", "content": text},), attempt)


def backend_for(model_dir, vllm_args=None, **settings):
    return VLLMBackend(model_dir, VLLMGeneration(vllm_args=vllm_args or {}, **settings))


def test_the_backend_is_chosen_by_its_name(tiny_llama_dir):
    factory = registry().resolve(BACKENDS, "vllm", "self_distillation.generation.backend")

    assert isinstance(factory(tiny_llama_dir, VLLMGeneration()), VLLMBackend)


def test_without_vllm_the_error_names_the_extra(tiny_llama_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)

    with pytest.raises(MissingExtraError, match=r"backend is vllm.*pip install 'axolotl-sdft\[vllm\]'"):
        backend_for(tiny_llama_dir).check()


def test_vllm_built_for_another_torch_is_told_from_a_missing_one(tiny_llama_dir, engines, monkeypatch):
    def broken(name):
        raise ImportError("libcudart.so.99: cannot open shared object file")

    monkeypatch.delattr(sys.modules["vllm"], "LLM")
    monkeypatch.setattr(sys.modules["vllm"], "__getattr__", broken, raising=False)

    with pytest.raises(MissingExtraError, match=r"can't be imported \(libcudart.*built for this machine's torch"):
        backend_for(tiny_llama_dir).check()


def test_an_argument_that_vllm_does_not_know_is_refused_before_anything_loads(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir, {"max_model_length": 64})

    with pytest.raises(
        ConfigError, match=r"vllm_args: vLLM knows no argument 'max_model_length'; did you mean 'max_mo"
    ):
        backend.check()
    assert engines == []


def test_a_seed_that_vllm_can_not_ask_is_refused_before_anything_loads(tiny_llama_dir, tmp_path, engines):
    loaded_once(tiny_llama_dir).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is an adapter; merge it into its base model first"):
        backend_for(tmp_path).check()

    (tmp_path / "chat_template.jinja").unlink()
    loaded_once.cache_clear()
    with pytest.raises(ConfigError, match=r"has no chat template"):
        backend_for(tmp_path).check()
    assert engines == []


def test_batches_hold_64_prompts_in_the_order_of_their_keys(tiny_llama_dir):
    asked = [chat(row) for row in range(130)]

    batches = backend_for(tiny_llama_dir).batches(list(reversed(asked)))

    assert [len(batch) for batch in batches] == [64, 64, 2]
    assert [prompt for batch in batches for prompt in batch] == asked


def test_the_engine_is_asked_what_transformers_would_be_asked(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir, dtype="float32", max_new_tokens=8)
    tokenizer = loaded_once(tiny_llama_dir)
    prompt = chat(0, "Name a colour, please.")

    list(backend.generate([[prompt]]))

    assert engines[0].settings == {"model": str(tiny_llama_dir), "dtype": "float32", "disable_log_stats": True}
    ids, parameters = engines[0].llm.llm_engine.asked[0]
    assert ids == prompt_ids(tokenizer, prompt.messages)
    assert parameters.stop_token_ids == end_ids(None, tokenizer) == [tokenizer.eos_token_id]
    assert (parameters.temperature, parameters.max_tokens, parameters.seed, parameters.logprobs) == (0.0, 8, None, None)
    assert parameters.repetition_penalty == 1.0


def test_each_sampled_answer_has_a_seed_of_its_own_and_its_mean_log_probability(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir, temperature=0.8, top_p=0.9, seed=7, max_new_tokens=8)
    batch = [chat(0, "Hi"), chat(1, "Hello"), chat(1, "Hello", attempt=1)]

    [(_, answers)] = backend.generate([batch])

    asked = [parameters for _, parameters in engines[0].llm.llm_engine.asked]
    assert [parameters.seed for parameters in asked] == [
        sampling_seed(7, batch[0].messages, 0),
        sampling_seed(7, batch[1].messages, 0),
        sampling_seed(7, batch[1].messages, 1),
    ]
    assert {(parameters.temperature, parameters.top_p, parameters.logprobs) for parameters in asked} == {(0.8, 0.9, 0)}
    assert [answer.mean_logprob for answer in answers] == [-0.5, -0.5, -0.5]  # the end of the turn counts as a token


def test_a_second_attempt_is_sampled_even_where_the_first_is_greedy(tiny_llama_dir, engines):
    [(_, answers)] = backend_for(tiny_llama_dir).generate([[chat(0), chat(0, attempt=1)]])

    first, second = (parameters for _, parameters in engines[0].llm.llm_engine.asked)
    assert (first.temperature, second.temperature) == (0.0, 0.7)
    assert (first.seed, second.seed) == (None, sampling_seed(42, chat(0).messages, 1))
    assert [answer.mean_logprob for answer in answers] == [None, -0.5]


def test_the_penalty_that_the_checkpoint_asks_for_is_kept_as_transformers_keeps_it(tiny_llama_dir, tmp_path, engines):
    loaded_once(tiny_llama_dir).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05, "eos_token_id": [3, 2]}')
    backend = backend_for(tmp_path)

    list(backend.generate([[chat(0)]]))

    [(_, parameters)] = engines[0].llm.llm_engine.asked
    assert parameters.repetition_penalty == 1.05
    assert parameters.stop_token_ids == [2, 3]  # 2 is the tokenizer's own as well


@pytest.mark.parametrize(("max_new_tokens", "finish_reason", "num_tokens"), [(8, "stop", 3), (2, "length", 2)])
def test_an_answer_that_ends_itself_is_told_from_one_that_was_cut_off(
    tiny_llama_dir, engines, max_new_tokens, finish_reason, num_tokens
):
    backend = backend_for(tiny_llama_dir, max_new_tokens=max_new_tokens)

    [(_, [answer])] = backend.generate([[chat(0)]])

    words = loaded_once(tiny_llama_dir).decode(list(range(40, 40 + num_tokens)))
    assert (answer.text, answer.finish_reason, answer.num_tokens) == (words, finish_reason, num_tokens)
    assert answer.mean_logprob is None


def test_an_answer_that_the_engine_gave_up_is_none_and_its_reason_is_told(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir)
    [(_, [finished])] = backend.generate([[chat(0)]])
    engines[0].llm.llm_engine.finish_reason = "abort"

    [(_, [answer])] = backend.generate([[chat(1)]])

    assert finished.error is None
    assert (answer.text, answer.finish_reason) == ("", "error")
    assert answer.error == "no finished answer (finish_reason 'abort')"


def test_the_engine_is_kept_full_across_batches_and_each_comes_back_whole(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir, {"max_num_seqs": 1})
    batches = [[chat(3 * number + place) for place in range(3)] for number in range(200)]
    drawn = []

    def drawing():
        for batch in batches:
            drawn.append(batch)
            yield batch

    came = backend.generate(drawing())
    first_batch, first_answers = next(came)

    assert first_batch in batches
    assert len(first_answers) == 3
    assert len(drawn) == 87  # 1 at work and 256 queued are 257; 2 more came after the first 2 answers: 259 = 86 * 3 + 1
    assert [first_batch, *(batch for batch, _ in came)] == batches
    assert engines[0].llm.llm_engine.most_waiting == 257


def test_what_is_under_way_is_given_up_when_the_caller_stops_early(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir)
    came = backend.generate([[chat(0), chat(1)], [chat(2), chat(3)]])
    next(came)

    came.close()

    assert len(engines[0].llm.llm_engine.given_up) == 2


def test_a_prompt_longer_than_the_model_gets_an_error_and_the_others_their_answers(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir, {"max_model_len": 50})
    too_long, fine = chat(0, "word " * 60), chat(1)
    num_tokens = len(prompt_ids(loaded_once(tiny_llama_dir), too_long.messages))

    [(_, [refused, answered])] = backend.generate([[too_long, fine]])

    assert (refused.text, refused.finish_reason) == ("", "error")
    assert refused.error == f"the prompt has {num_tokens} tokens, of 50 that the model takes"
    assert answered.finish_reason == "stop"


def test_the_likelihood_is_the_mean_over_the_answer_and_the_end_of_its_turn(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir)
    target = Target(({"role": "user", "content": "Hi"},), "unused")
    tokenizer = loaded_once(tiny_llama_dir)
    num_answer = len(tokenizer("blue sky", add_special_tokens=False)["input_ids"]) + 1

    [value] = backend.answer_nll([(target, "blue sky")])

    [(ids, parameters)] = engines[0].llm.llm_engine.asked
    assert ids[-1] == tokenizer.eos_token_id
    assert parameters.prompt_logprobs == 0
    places = range(len(ids) - num_answer, len(ids))  # the engine's token at place n has log-probability -n / 4
    assert value == pytest.approx(sum(place / 4 for place in places) / num_answer)


def test_a_conversation_too_long_to_be_scored_loses_its_beginning(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir, {"max_model_len": 20})
    context = ({"role": "user", "content": "word " * 60},)

    backend.answer_nll([(Target(context, "unused"), "fine"), (Target(context, "unused"), "word " * 60)])

    short, long = (ids for ids, _ in engines[0].llm.llm_engine.asked)
    whole = backend._tokenizer.apply_chat_template(list(context), add_generation_prompt=True, return_dict=False)
    answer = [*backend._tokenizer("fine")["input_ids"], backend._tokenizer.eos_token_id]
    assert short == [*whole, *answer][-19:]  # and one token that vLLM insists on writing
    assert long[0] == whole[-1]
    assert len(long) == 19


def test_the_engine_starts_as_if_no_launcher_had_started_the_process(tiny_llama_dir, engines, monkeypatch):
    launcher = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    before, main = dict(os.environ), sys.modules["__main__"]

    list(backend_for(tiny_llama_dir).generate([[chat(0)]]))

    [engine] = engines
    assert not launcher.keys() & engine.environment.keys()
    assert engine.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert not hasattr(engine.main, "__file__")
    assert dict(os.environ) == before
    assert sys.modules["__main__"] is main


def test_each_rank_has_gpus_of_its_own(tiny_llama_dir, engines_on_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    backend = backend_for(tiny_llama_dir, {"tensor_parallel_size": 2})

    list(backend.generate([[chat(0)]]))

    [engine] = engines_on_gpus
    assert engine.environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert engine.settings["dtype"] == "float16"  # the first that this platform names
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_more_gpus_than_there_are_is_refused_before_anything_loads(tiny_llama_dir, engines_on_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    backend = backend_for(tiny_llama_dir, {"tensor_parallel_size": 2})

    with pytest.raises(ConfigError, match=r"4 processes times 2 GPUs each are 8, but 4 are visible; lower tensor_par"):
        backend.check()


def test_an_engine_that_does_not_start_is_reported_with_the_settings_that_may_help(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir, {"max_model_len": 1})

    with pytest.raises(
        ConfigError, match=r"could not load .*: no room for a cache\. Where memory is short, lower .*max"
    ):
        list(backend.generate([[chat(0)]]))


def test_an_engine_that_dies_stops_the_run_and_says_what_is_kept(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir)
    came = backend.generate([[chat(0)], [chat(1)], [chat(2)]])
    next(came)
    engines[0].llm.llm_engine.dies = True

    with pytest.raises(BackendError, match=r"vLLM's engine died.*what it had answered is kept"):
        list(came)


def test_closing_ends_the_engine_and_the_next_use_starts_another(tiny_llama_dir, engines):
    backend = backend_for(tiny_llama_dir)
    list(backend.generate([[chat(0)]]))

    backend.close()
    backend.close()
    list(backend.generate([[chat(0)]]))

    assert [engine.llm.llm_engine.is_shut_down for engine in engines] == [True, False]
