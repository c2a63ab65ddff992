"""Standard output of a real process: a result, and nothing that others print."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, subprocess, sys
logging.basicConfig(stream=sys.stdout, level="INFO")
from axolotl_sdft.cli.machine_output import json_text, result_alone
with result_alone() as show:
    logging.info("a log line")
    print("a library")
    subprocess.run(["echo", "a child"])
    show(json_text({"layers": 3, "name": "a\\x1b[2J"}))
logging.info("afterwards")
"""


def test_a_pipe_gets_the_result_alone_and_the_rest_goes_to_standard_error():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    result, afterwards = run.stdout[: run.stdout.index("}") + 1], run.stdout[run.stdout.index("}") + 1 :]
    assert json.loads(result) == {"layers": 3, "name": b"a\\u001b[2J".decode("unicode_escape")}
    assert afterwards.split() == ["INFO:root:afterwards"]
    assert [what in run.stderr for what in ("a log line", "a library", "a child")] == [True] * 3


def test_json_ends_its_last_line():
    from axolotl_sdft.cli.machine_output import json_text

    assert json_text([]) == "[]\n"


def test_a_command_that_axolotl_did_not_start_says_what_it_does(tiny_llama_dir, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "Snow falls in winter."}\n' * 4)
    calibration = "{path: texts.jsonl, num_samples: 4, sequence_len: 16, general_share: 0}"
    block = f"layer_pruning: {{num_layers: 1, calibration: {calibration}}}"
    plugins = "plugins: [axolotl_sdft.SDFTPlugin]"
    (tmp_path / "config.yml").write_text(f"base_model: {tiny_llama_dir}\n{plugins}\n{block}\n")
    program = Path(sys.executable).with_name("axolotl-sdft")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [program, "prune-layers", "config.yml", "--dry-run", "--json"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["num_layers"] == 6
    assert "[INFO] [axolotl_sdft.pruning.scoring.boundaries] scoring layers" in run.stderr
