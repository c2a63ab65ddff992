"""Trains with `dynsdpb` in each combination that needs a GPU, through the real `axolotl train`, and says which work.

    python -m tests.gpu.axolotl_combinations                  # all that this machine's GPUs and packages allow
    python -m tests.gpu.axolotl_combinations qlora fsdp2      # some of them
    python -m tests.gpu.axolotl_combinations --list
    python -m tests.gpu.axolotl_combinations --on-cpu lora    # to try this script itself

Each case is a configuration laid over the same small one. It passes when Axolotl ends well, the first step's
cross-entropy is that of the plain case (nothing is repeated yet), and from the second step on the previous prediction
is distilled. Cases that must be refused pass when the error says so. The output of each is kept in its folder.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
_STEPS = 6
_TOLERANCE = 0.05
"""Of the first step's cross-entropy: kernels and dtypes round differently."""

_LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
_LIGER = {
    "plugins": ["axolotl_sdft.SDFTPlugin", "axolotl.integrations.liger.LigerPlugin"],
    "liger_rope": True,
    "liger_rms_norm": True,
    "liger_glu_activation": True,
}
_CUT_CROSS_ENTROPY = {
    "plugins": ["axolotl_sdft.SDFTPlugin", "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]
}
_FSDP2 = {
    "fsdp_version": 2,
    "fsdp_config": {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
    },
}


def _zero(stage: int) -> dict[str, Any]:
    automatic = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
    settings = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}, "gradient_clipping": "auto"}
    return {"deepspeed": {**automatic, "gradient_accumulation_steps": "auto", **settings}}


@dataclass(frozen=True)
class Case:
    """A combination, and what it needs."""

    settings: Mapping[str, Any]
    """Laid over the small configuration."""

    gpus: int = 1
    packages: Sequence[str] = ()
    refusal: str | None = None
    """What the error must say; None where training must work."""

    same_start: bool = True
    """Whether the first step's cross-entropy is that of the plain case: not with noise or four bits."""

    dynsdpb: Mapping[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "lora": Case(_LORA),
    "full": Case({}),
    "dora": Case(_LORA | {"peft_use_dora": True}),
    "qlora": Case(_LORA | {"adapter": "qlora", "load_in_4bit": True}, packages=["bitsandbytes"], same_start=False),
    "lora_kernels": Case(_LORA | {f"lora_{part}_kernel": True for part in ("mlp", "qkv", "o")}),
    "neftune": Case(_LORA | {"neftune_noise_alpha": 5}, same_start=False),
    "gradient_checkpointing": Case(_LORA | {"gradient_checkpointing": True}),
    "activation_offload": Case(_LORA | {"gradient_checkpointing": True, "activation_offloading": True}),
    "flash_attention": Case(_LORA | {"flash_attention": True}, packages=["flash_attn"]),
    "flash_attention_packed": Case(
        _LORA | {"flash_attention": True, "sample_packing": True, "pad_to_sequence_len": True},
        packages=["flash_attn"],
        same_start=False,
    ),
    "liger_kernels": Case(_LORA | _LIGER | {"liger_cross_entropy": True}, packages=["liger_kernel"]),
    "liger_without_logits": Case(
        _LORA | _LIGER | {"liger_fused_linear_cross_entropy": True}, packages=["liger_kernel"]
    ),
    "liger_without_logits_full": Case(
        _LIGER | {"liger_fused_linear_cross_entropy": True},
        packages=["liger_kernel"],
        dynsdpb={"teacher_storage": "top_k"},
    ),
    "cut_cross_entropy": Case(_LORA | _CUT_CROSS_ENTROPY, packages=["cut_cross_entropy"]),
    "cut_cross_entropy_full": Case(_CUT_CROSS_ENTROPY, packages=["cut_cross_entropy"]),
    "cut_cross_entropy_fsdp2": Case(
        _LORA | _CUT_CROSS_ENTROPY | _FSDP2, gpus=2, refusal="no process has the whole head to run"
    ),
    "torch_compile": Case(_LORA | {"torch_compile": True}),
    "memory_on_the_cpu": Case(_LORA, dynsdpb={"cpu_offload": True}),
    "memory_of_logits": Case(_LORA, dynsdpb={"teacher_storage": "logits", "cpu_offload": True}),
    "memory_of_top_k": Case(_LORA, dynsdpb={"teacher_storage": "top_k"}),
    "ddp": Case(_LORA, gpus=2),
    "fsdp2": Case(_FSDP2, gpus=2),
    "fsdp2_lora": Case(_LORA | _FSDP2, gpus=2),
    "deepspeed_zero2": Case(_zero(2), gpus=2, packages=["deepspeed"]),
    "deepspeed_zero3": Case(_zero(3), gpus=2, packages=["deepspeed"]),
}


def configuration(case: Case, model: str, *, on_cpu: bool) -> dict[str, Any]:
    """Return the configuration of a case, as Axolotl reads it."""
    kernels = {f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o", "embedding")}
    return {
        "base_model": model,
        "plugins": ["axolotl_sdft.SDFTPlugin"],
        "datasets": [{"path": str(REPOSITORY / "example_configs/data/quickstart.jsonl"), "type": "chat_template"}],
        "dynsdpb": dict(case.dynsdpb),
        "sequence_len": 512,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": _STEPS,
        "optimizer": "adamw_torch",
        "learning_rate": 0.0002,
        "logging_steps": 1,
        "save_steps": _STEPS,
        "seed": 42,
        "bf16": not on_cpu,
        "dataset_prepared_path": "prepared",
        "output_dir": "out",
        **(kernels if case.settings.get("adapter") else {}),
        **case.settings,
    }


def why_not_here(case: Case, num_gpus: int, *, on_cpu: bool) -> str | None:
    """Return what this machine lacks for a case, or None."""
    missing = [package for package in case.packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"{missing[0]} is not installed"
    if not on_cpu and num_gpus < case.gpus:
        return f"needs {case.gpus} GPUs"
    return None


def fault_of(case: Case, returncode: int, printed: str, folder: Path, plain_start: float | None) -> str | None:
    """Return what is wrong with a finished run, or None."""
    if case.refusal is not None:
        if returncode == 0:
            return "was not refused"
        return None if case.refusal in printed else f"failed, but not with an error about {case.refusal!r}"
    if returncode:
        return f"exit code {returncode}"
    logs = training_logs(folder)
    if len(logs) < _STEPS:
        return f"logged {len(logs)} of {_STEPS} steps"
    if not all(math.isfinite(log["loss"]) for log in logs):
        return "a loss is not finite"
    if not all(math.isfinite(log.get("dynsdpb/kl", math.nan)) and log["dynsdpb/kl"] > 0 for log in logs[1:]):
        return "nothing was distilled from some iteration"
    start = logs[0]["dynsdpb/ce"]
    if case.same_start and plain_start is not None and abs(start - plain_start) > _TOLERANCE * plain_start:
        return f"starts at a cross-entropy of {start:.4f}, the plain case at {plain_start:.4f}"
    return None


def training_logs(folder: Path) -> list[dict[str, float]]:
    """Return what was logged at each step, from the newest state file; empty where there is none."""
    states = sorted(folder.glob("out/**/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    history = json.loads(states[-1].read_text())["log_history"] if states else []
    return [log for log in history if "loss" in log]


def run(name: str, folder: Path, model: str, *, on_cpu: bool) -> tuple[int, str]:
    """Run Axolotl on a case and return its exit code and all that it printed."""
    case = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    config.write_text(yaml.safe_dump(configuration(case, model, on_cpu=on_cpu), sort_keys=False))
    processes = [] if case.gpus == 1 else ["--", "--num_processes", str(case.gpus)]
    launcher = ["--launcher", "python"] if on_cpu else ["--launcher", "accelerate", *processes]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "AXOLOTL_DO_NOT_TRACK": "1"}
    # One process that sees several GPUs would drive them all.
    if case.gpus == 1 and not on_cpu:
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    command = [str(Path(sys.executable).parent / "axolotl"), "train", config.name, *launcher]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, check=False, **streams)
    (folder / "printed.txt").write_text(done.stdout)
    return done.returncode, done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print a line for each, and return 1 if any failed."""
    options = _options(arguments)
    if options.list:
        print("\n".join(f"{name:<24} {case.gpus} GPU{'s' * (case.gpus > 1)}" for name, case in CASES.items()))
        return 0
    num_gpus = _num_gpus()
    if not num_gpus and not options.on_cpu:
        print("no GPU is visible here")
        return 1
    model = str(Path(options.model).absolute()) if Path(options.model).exists() else options.model
    plain_start, failed = None, False
    for name in options.cases or CASES:
        missing = why_not_here(CASES[name], num_gpus, on_cpu=options.on_cpu)
        if missing:
            print(f"{name:<24} skipped: {missing}", flush=True)
            continue
        folder = options.folder / name
        returncode, printed = run(name, folder, model, on_cpu=options.on_cpu)
        fault = fault_of(CASES[name], returncode, printed, folder, plain_start)
        if name == "lora" and fault is None:
            plain_start = training_logs(folder)[0]["dynsdpb/ce"]
        print(f"{name:<24} {'works' if fault is None else f'FAILED: {fault}; see {folder}'}", flush=True)
        failed |= fault is not None
    return int(failed)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases to run (default: all)")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="folder or Hub id of a Llama")
    parser.add_argument("--folder", type=Path, default=Path("gpu_runs"), help="where each case has a folder")
    parser.add_argument("--list", action="store_true", help="print the cases and what they need")
    parser.add_argument("--on-cpu", action="store_true", help="run without a GPU, for cases that can")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; known: {', '.join(CASES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
