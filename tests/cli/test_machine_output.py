"""Standard output of a real process: a result, and nothing that others print."""

import json
import subprocess
import sys

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
