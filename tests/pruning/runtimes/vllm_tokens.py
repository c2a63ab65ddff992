"""Runs in vLLM's own environment: reads folders and prompts as JSON, prints the greedy tokens of each."""

import json
import os
import sys
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process for all models: starting one takes longer than a model

from vllm import LLM, SamplingParams


def main() -> None:
    """Answer ``{"runs": [{"folder", "prompts", "options"}], "num_tokens"}`` on standard input, a line for each run."""
    asked = json.load(sys.stdin)
    for run in asked["runs"]:
        try:
            said = _run(run, asked["num_tokens"])
        except Exception as err:  # the next model may run
            said = {"error": f"{type(err).__name__}: {err}"}
        print("TOKENS", json.dumps(said), flush=True)


def _run(run: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "kv_cache_memory_bytes": 2**26}
    model = LLM(run["folder"], **(options | run["options"]))
    sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    answers = model.generate([{"prompt_token_ids": ids} for ids in run["prompts"]], sampling)
    return {"tokens": [list(answer.outputs[0].token_ids) for answer in answers]}


if __name__ == "__main__":
    main()
