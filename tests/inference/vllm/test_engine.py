"""The backend with the real vLLM, against transformers. On a CPU an engine needs half a minute to start."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest

from axolotl_sdft.config import TransformersGeneration, VLLMGeneration
from axolotl_sdft.inference.interfaces import Prompt, Target
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.prompts import prompt_ids
from axolotl_sdft.inference.vllm.backend import VLLMBackend

pytest.importorskip("vllm")
pytestmark = pytest.mark.smollm2

SETTINGS = {"dtype": "float32", "max_new_tokens": 24}
VLLM_ARGS = {"max_model_len": 1024, "kv_cache_memory_bytes": 2**28, "enforce_eager": True}
QUESTIONS = (
    "Which metal is liquid at room temperature?",
    "Write a short note that thanks a neighbour for watering the plants.",
    "Hi!",
    "Explain to a child why the moon seems to change its shape in the course of a month, in two sentences.",
    "What is 17 plus 25?",
)

ONE_ENGINE = """
import os, sys, time
from multiprocessing import active_children
from pathlib import Path
from axolotl_sdft.config import VLLMGeneration
from axolotl_sdft.inference.vllm.backend import VLLMBackend
from axolotl_sdft.inference.interfaces import Prompt

args = {"max_model_len": 512, "kv_cache_memory_bytes": 2**28, "enforce_eager": True}
config = VLLMGeneration(dtype="float32", max_new_tokens=4, vllm_args=args)
backend = VLLMBackend(Path(sys.argv[1]), config)
backend.check()
if "RANK" in os.environ:
    import torch.distributed
    torch.distributed.init_process_group("gloo")
prompts = [Prompt((row, 0), ({"role": "user", "content": f"Say the number {row}."},)) for row in range(70)]
rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
for batch, answers in backend.generate(backend.batches(prompts)[rank::world]):
    print("\\nanswers:", rank, len(answers), flush=True)
"""


@pytest.fixture(scope="module")
def backend(smollm2_dir):
    backend = VLLMBackend(smollm2_dir, VLLMGeneration(vllm_args=VLLM_ARGS, **SETTINGS))
    backend.check()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def transformers(smollm2_dir):
    return TransformersBackend(smollm2_dir, TransformersGeneration(**SETTINGS))


def asked(texts=QUESTIONS):
    return [Prompt((row, 0), ({"role": "user", "content": text},)) for row, text in enumerate(texts)]


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


def test_a_sampled_answer_comes_again_alone_and_knows_its_likelihood(backend, transformers, smollm2_dir):
    config = VLLMGeneration(temperature=0.3, vllm_args=VLLM_ARGS, dtype="float32", max_new_tokens=200)
    sampling = VLLMBackend(smollm2_dir, config)
    sampling._running = backend._engine  # the same engine, for the time that starting another takes

    together, alone = answers_by_row(sampling, asked()), answers_by_row(sampling, asked()[:1])

    assert alone[0].text == together[0].text
    ended = {row: answer for row, answer in together.items() if answer.finish_reason == "stop"}
    measured = transformers.answer_nll([(Target(asked()[row].messages, "unused"), ended[row].text) for row in ended])
    assert [-answer.mean_logprob for answer in ended.values()] == pytest.approx(measured, abs=1e-3)
    assert ended


def test_a_prompt_longer_than_the_model_gets_an_error_and_the_others_their_answers(backend):
    answers = answers_by_row(backend, asked(["word " * 1100, "Hi!"]))

    assert answers[0].error is not None
    assert "of 1024 that the model takes" in answers[0].error
    assert answers[1].error is None


def test_an_answer_stops_where_the_model_is_full(backend):
    [prompt] = asked(["Count from one to a hundred. " * 139])
    room = VLLM_ARGS["max_model_len"] - len(prompt_ids(backend._tokenizer, prompt.messages))

    answer = answers_by_row(backend, [prompt])[0]

    assert 0 < room < SETTINGS["max_new_tokens"]
    assert (answer.finish_reason, answer.num_tokens) == ("length", room)


def test_closing_ends_the_engine_and_leaves_the_environment_as_it_was(smollm2_dir):
    before, children = dict(os.environ), set(active_children())
    backend = VLLMBackend(smollm2_dir, VLLMGeneration(vllm_args=VLLM_ARGS, **SETTINGS))
    answers_by_row(backend, asked()[:1])
    engines = [child for child in active_children() if child not in children]

    backend.close()

    assert engines
    assert not any(engine.is_alive() for engine in engines)
    assert dict(os.environ) == before


def test_a_killed_run_leaves_no_engine_behind(smollm2_dir):
    script = ONE_ENGINE + "print('engine:', active_children()[0].pid, flush=True); time.sleep(600)"
    run = subprocess.Popen([sys.executable, "-c", script, smollm2_dir], stdout=subprocess.PIPE, text=True)
    engine = next(int(line.split()[1]) for line in run.stdout if line.startswith("engine:"))
    assert is_running(engine)

    run.send_signal(signal.SIGKILL)
    run.communicate()

    for _ in range(120):
        if not is_running(engine):
            break
        time.sleep(0.5)
    assert not is_running(engine)


def test_ranks_have_an_engine_each_and_go_on_to_train_together(smollm2_dir, tmp_path):
    script = tmp_path / "two_ranks.py"  # unguarded on purpose: an engine must not run it again
    script.write_text(
        ONE_ENGINE + "backend.close()\ntotal = torch.ones(1)\n"
        "torch.distributed.all_reduce(total)\nprint('\\ntotal:', int(total), flush=True)\n"
    )

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, smollm2_dir]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.strip() for line in run.stdout.splitlines() if line.startswith(("answers:", "total:"))]
    assert sorted(lines) == ["answers: 0 64", "answers: 1 6", "total: 2", "total: 2"]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
