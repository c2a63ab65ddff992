import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import forks

REPOSITORY = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent


@pytest.fixture(scope="session")
def alpaca_file(tmp_path_factory):
    """The first 24 conversations of the quickstart's dataset, as instructions and answers."""
    path = tmp_path_factory.mktemp("data") / "alpaca.jsonl"
    with path.open("w") as file:
        for line in (REPOSITORY / "example_configs/data/quickstart.jsonl").read_text().splitlines()[:24]:
            question, answer = (message["content"] for message in json.loads(line)["messages"])
            file.write(json.dumps({"instruction": question, "input": "", "output": answer}) + "\n")
    return path


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory):
    """Twelve conversations of two turns each."""
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    with path.open("w") as file:
        for number in range(12):
            turns = [("user", f"What is {number} plus 1?"), ("assistant", f"It is {number + 1}.")]
            turns += [("user", "And one more?"), ("assistant", f"Then it is {number + 2}.")]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    return path


@pytest.fixture(scope="session")
def base_config(tiny_llama_dir, alpaca_file):
    """The least that trains the tiny model with LoRA on a CPU."""
    return {
        "base_model": str(tiny_llama_dir),
        "plugins": ["axolotl_sdft.SDFTPlugin"],
        "datasets": [{"path": str(alpaca_file), "type": "alpaca"}],
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_mlp_kernel": False,
        "sequence_len": 256,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "optimizer": "adamw_torch",
        "learning_rate": 0.001,
        "logging_steps": 1,
        "seed": 42,
        "bf16": False,
        "dataset_num_proc": 1,
        "dataset_prepared_path": "prepared",
        "output_dir": "out",
        "layer_pruning": {"num_layers": 2, "calibration": {"num_samples": 8, "sequence_len": 64, "general_share": 0}},
        "self_distillation": {"checks": [], "generation": {"max_new_tokens": 6}, "gap_samples": 4},
        "dynsdpb": {},
    }


def write_config(folder, config):
    """Write a configuration into a folder and return its path."""
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def run_axolotl(folder, *args, check=True, as_program=False, stdin="", **env):
    """Run the real command in a folder and return what it printed, both streams together.

    It is a fork that has the imports done, unless it is to be the program that is installed.
    """
    path = f"{BINARIES}{os.pathsep}{os.environ['PATH']}"  # Axolotl starts other programs by name
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPOSITORY}", "PATH": path} | env
    words = [str(arg) for arg in args]
    if as_program:
        streams = {"input": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        program = [str(BINARIES / "axolotl"), *words]
        done = subprocess.run(program, cwd=folder, env=environment, timeout=1200, **streams)
        code, printed = done.returncode, done.stdout
    else:
        log = Path(folder) / "printed.txt"
        code = forks.run_axolotl(words, folder, log, environment, stdin)
        printed = log.read_text()
    if check:
        assert code == 0, printed[-6000:]
    return printed
