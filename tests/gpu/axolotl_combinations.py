"""Trains with `dynsdpb` and with `logit_distillation` in each combination that needs a GPU, through the real Axolotl.

    python -m tests.gpu.axolotl_combinations                  # all that this machine's GPUs and packages allow
    python -m tests.gpu.axolotl_combinations qlora fsdp2      # some of them
    python -m tests.gpu.axolotl_combinations --list
    python -m tests.gpu.axolotl_combinations --on-cpu lora    # to try this script itself

Each case is a configuration laid over the same small one. It passes when Axolotl ends well, the first step's
cross-entropy is that of the trainer's plain case, and something is distilled: from the previous prediction from the
second step on, from the seed model in each. Cases that must be refused pass when the error says so. The output of each
is kept in its folder.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.children import run_module
from tests.benchmarks.rounds import keep_figures
from tests.gpu.cases import CASES, PLAIN, Case

REPOSITORY = Path(__file__).parents[2]
_STEPS = 6
_TOLERANCE = 0.05
"""Of the first step's cross-entropy: kernels and dtypes round differently."""


def configuration(case: Case, model: str, *, on_cpu: bool) -> dict[str, Any]:
    """Return the configuration of a case, as Axolotl reads it."""
    kernels = {f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o", "embedding")}
    return {
        "base_model": model,
        "plugins": ["axolotl_sdft.SDFTPlugin"],
        "datasets": [{"path": str(REPOSITORY / "example_configs/data/quickstart.jsonl"), "type": "chat_template"}],
        case.trainer: dict(case.block),
        "sequence_len": 512,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": _STEPS,
        "optimizer": "adamw_torch",
        "learning_rate": 0.0002,
        "logging_steps": 1,
        "save_steps": _STEPS,
        "seed": 42,
        "dataset_num_proc": 1,  # a process each would import everything again
        "bf16": not on_cpu,
        "dataset_prepared_path": "prepared",
        "output_dir": "out",
        **(kernels if case.settings.get("adapter") else {}),
        **case.settings,
    }


def why_not_here(case: Case, num_gpus: int, *, on_cpu: bool) -> str | None:
    """Return what this machine lacks for a case, or None."""
    missing = [package for package in case.packages if not _is_installed(package)]
    if missing:
        return f"{missing[0]} is not installed"
    if not on_cpu and num_gpus < case.gpus:
        return f"needs {case.gpus} GPUs"
    return None


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # what it is a part of is missing
        return False


def fault_of(case: Case, returncode: int | None, printed: str, folder: Path, plain_start: float | None) -> str | None:
    """Return what is wrong with a finished run, or None; the return code is None where it was killed at its limit."""
    if returncode is None:
        return "was stopped at its time limit"
    if case.refusal is not None:
        if returncode == 0:
            return "was not refused"
        return None if case.refusal in printed else f"failed, but not with an error about {case.refusal!r}"
    if returncode:
        return f"exit code {returncode}"
    return _fault_of_logs(case, training_logs(folder), plain_start)


def _fault_of_logs(case: Case, logs: list[dict[str, float]], plain_start: float | None) -> str | None:
    if len(logs) < _STEPS:
        return f"logged {len(logs)} of {_STEPS} steps"
    if not all(math.isfinite(log["loss"]) for log in logs):
        return "a loss is not finite"
    # Nothing is repeated yet in the first step of DynSDPB.
    distilled = [log.get(f"{case.trainer}/kl", math.nan) for log in logs[case.trainer == "dynsdpb" :]]
    if not all(math.isfinite(divergence) and divergence > 0 for divergence in distilled):
        return "nothing was distilled in some step"
    start = logs[0][f"{case.trainer}/ce"]
    if case.same_start and plain_start is not None and abs(start - plain_start) > _TOLERANCE * plain_start:
        return f"starts at a cross-entropy of {start:.4f}, the plain case at {plain_start:.4f}"
    return None


def training_logs(folder: Path) -> list[dict[str, float]]:
    """Return what was logged at each step, from the newest state file; empty where there is none."""
    states = sorted(folder.glob("out/**/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    history = json.loads(states[-1].read_text())["log_history"] if states else []
    return [log for log in history if "loss" in log]


def run(name: str, folder: Path, options: argparse.Namespace) -> tuple[int | None, str]:
    """Run Axolotl on a case; return its exit code, None where its time was up, and all that it printed."""
    case = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    model = str(Path(options.model).absolute()) if Path(options.model).exists() else options.model
    config = configuration(case, model, on_cpu=options.on_cpu)
    (folder / "config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    is_alone = case.gpus == 1 and "deepspeed" not in case.settings  # which wants a launcher even so
    launcher = ["python"] if is_alone else ["accelerate", "--", "--num_processes", str(case.gpus)]
    search_path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": search_path, "AXOLOTL_DO_NOT_TRACK": "1"}
    # One process that sees several GPUs would drive them all.
    if case.gpus == 1 and not options.on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    log = (folder / "printed.txt").absolute()
    train = ["train", "config.yml", "--launcher", *launcher]
    code = run_module("axolotl.cli.main", train, log, options.limit, folder=folder, environment=environment)
    return code, log.read_text(encoding="utf-8", errors="replace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print a line for each, and return 1 if any failed."""
    options = _options(arguments)
    if options.list:
        print("\n".join(f"{name:<30} {case.gpus} GPU{'s' * (case.gpus > 1)}" for name, case in CASES.items()))
        return 0
    num_gpus = _num_gpus()
    if not num_gpus and not options.on_cpu:
        print("no GPU is visible here")
        return 1
    found: dict[str, dict[str, Any]] = {}
    for name, result in _results(options, num_gpus):
        found[name] = result
        keep_figures(options.json, found)
        reason = f": {result['reason']}" if "reason" in result else ""
        print(f"{name:<30} {result['status']}{reason}", flush=True)
    return int(any(result["status"] == "FAILED" for result in found.values()))


def _results(options: argparse.Namespace, num_gpus: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each case with its status and reason, as it is done: the plain cases first, then the others."""
    names = options.cases or list(CASES)
    starts: dict[str, float] = {}
    here = []
    for name in names:
        missing = why_not_here(CASES[name], num_gpus, on_cpu=options.on_cpu)
        if missing:
            yield name, {"status": "skipped", "reason": missing}
        else:
            here.append(name)
    plain = [name for name in here if name in PLAIN.values()]
    for some in (plain, [name for name in here if name not in plain]):
        if options.jobs == 1:  # without a thread: forks of one end in an error of Python's
            yield from ((name, _result(name, options, starts)) for name in some)
            continue
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = {pool.submit(_result, name, options, starts): name for name in some}
            yield from ((futures[future], future.result()) for future in as_completed(futures))


def _result(name: str, options: argparse.Namespace, starts: dict[str, float]) -> dict[str, Any]:
    """Return status and reason of a case; a plain one leaves its first cross-entropy in ``starts``."""
    case, folder = CASES[name], options.folder / name
    started = time.monotonic()
    returncode, printed = run(name, folder, options)
    seconds = round(time.monotonic() - started, 1)
    fault = fault_of(case, returncode, printed, folder, starts.get(case.trainer))
    if fault is not None:
        return {"status": "FAILED", "reason": f"{fault}; see {folder}", "seconds": seconds}
    if name == PLAIN[case.trainer]:
        starts[case.trainer] = training_logs(folder)[0][f"{case.trainer}/ce"]
    return {"status": "works", "seconds": seconds}


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases to run (default: all)")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="folder or Hub id of a Llama")
    parser.add_argument("--folder", type=Path, default=Path("gpu_runs"), help="where each case has a folder")
    parser.add_argument("--list", action="store_true", help="print the cases and what they need")
    parser.add_argument("--jobs", type=int, default=1, help="cases that run at the same time (default: 1)")
    parser.add_argument("--limit", type=float, help="most seconds of a case (default: no limit)")
    parser.add_argument("--json", type=Path, help="file for the outcome, written after each case")
    parser.add_argument("--on-cpu", action="store_true", help="run without a GPU, for cases that can")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; known: {', '.join(CASES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
