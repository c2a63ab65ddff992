"""The backend with a real vLLM, against transformers: of the environment whose Python AXOLOTL_SDFT_VLLM_PYTHON names.

On a CPU a server needs a minute to start.
"""

import contextlib
import os

import pytest

from axolotl_sdft.config import TransformersGeneration, VLLMGeneration
from axolotl_sdft.inference.interfaces import Prompt, Target
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.prompts import prompt_ids
from axolotl_sdft.inference.vllm.backend import VLLMBackend

PYTHON = os.environ.get("AXOLOTL_SDFT_VLLM_PYTHON")

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(not PYTHON, reason="AXOLOTL_SDFT_VLLM_PYTHON names no Python of an environment with vLLM"),
]

SETTINGS = {"dtype": "float32", "max_new_tokens": 24}
VLLM_ARGS = {"max_model_len": 1024, "kv_cache_memory_bytes": 2**28, "enforce_eager": True}
QUESTIONS = (
    "Which metal is liquid at room temperature?",
    "Write a short note that thanks a neighbour for watering the plants.",
    "Hi!",
    "What is 17 plus 25?",
)


@pytest.fixture(scope="module")
def backend(smollm2_dir):
    config = VLLMGeneration(vllm_args=VLLM_ARGS, python=PYTHON, **SETTINGS)
    with contextlib.closing(VLLMBackend(smollm2_dir, config)) as backend:
        backend.check()
        yield backend


@pytest.fixture(scope="module")
def transformers(smollm2_dir):
    return TransformersBackend(smollm2_dir, TransformersGeneration(**SETTINGS))


def asked(texts=QUESTIONS, attempt=0):
    return [Prompt((row, 0), ({"role": "user", "content": text},), attempt) for row, text in enumerate(texts)]


def answers_by_row(backend, prompts):
    return {
        prompt.key[0]: answer
        for batch, answers in backend.generate(backend.batches(prompts))
        for prompt, answer in zip(batch, answers, strict=True)
    }


def test_greedy_answers_are_those_of_transformers(backend, transformers):
    """Equal to the last token in float32 on a CPU; other hardware and bfloat16 round differently, so ties may break."""
    assert answers_by_row(backend, asked()) == answers_by_row(transformers, asked())


def test_likelihoods_are_those_of_transformers(backend, transformers):
    targets = [
        (Target(prompt.messages, "unused"), f"Well, {place} is my answer.") for place, prompt in enumerate(asked())
    ]

    assert backend.answer_nll(targets) == pytest.approx(transformers.answer_nll(targets), abs=1e-3)


def test_a_sampled_answer_comes_again_alone_and_has_a_likelihood(backend):
    together = answers_by_row(backend, asked(attempt=1))
    alone = answers_by_row(backend, asked(attempt=1)[:1])

    assert alone[0].text == together[0].text
    assert all(answer.mean_logprob < 0 for answer in together.values())


def test_a_prompt_longer_than_the_model_gets_an_error_and_the_others_their_answers(backend):
    answers = answers_by_row(backend, asked(["word " * 1100, "Hi!"]))

    assert "of 1024 that the model takes" in answers[0].error
    assert answers[1].error is None


def test_an_answer_stops_where_the_model_is_full(backend):
    [prompt] = asked(["Count from one to a hundred. " * 139])
    room = VLLM_ARGS["max_model_len"] - len(prompt_ids(backend._tokenizer, prompt.messages))

    answer = answers_by_row(backend, [prompt])[0]

    assert 0 < room < SETTINGS["max_new_tokens"]
    assert (answer.finish_reason, answer.num_tokens) == ("length", room)
