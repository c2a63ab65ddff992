"""Measures what a step with the seed model as teacher costs at equal tokens.

    python -m tests.benchmarks.bench_logit_step --model-dir DIR --drop-layers 12 13 14 15 16 17

Four ways in turn, several rounds, each in a process of its own so that its peak memory is its own:

* plain: ``transformers.Trainer`` with LoRA on the pruned model
* forward: the seed model alone, one pass without gradient over the same rows
* shared: ``LogitDistillationTrainer``, whose teacher shares the student's layers
* loaded: the same with the seed model loaded beside the student

Prints medians of the time of a step, of the time of the processor for it, and of the peak memory while steps run (that
of the device where there is one), as a table, and what the removed layers weigh. Times are compared by the processor's
time on a CPU, by the clock on a GPU. With ``--mode qlora`` student and teacher are quantized to 4 bits (bitsandbytes,
nf4). ``--workdir`` keeps the pruned model, so that a large one is cut once and not for each way.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_dynsdpb_step import _WARM_UP_STEPS, _rows, _watch, loading
from tests.benchmarks.rounds import forget_peak, in_turn, peak_megabytes

WAYS = ("plain", "forward", "shared", "loaded")
_TITLES = {
    "plain": "plain training of the pruned model",
    "forward": "the seed model's forward pass alone",
    "shared": "teacher that shares the layers",
    "loaded": "seed model loaded beside the student",
}


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the median times of a step in seconds and the peak memory meanwhile, in MB."""
    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if way == "forward":
            return _forward(options)
        trainer, watch = _trainer(way, _pruned_dir(options, Path(folder)), Path(folder), options)
        trainer.train()
    times = {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds}
    return {name: statistics.median(taken) for name, taken in times.items()} | {"megabytes": peak_megabytes()}


def _pruned_dir(options: argparse.Namespace, temporary: Path) -> Path:
    """Return the folder of the pruned model, made unless it is there."""
    from axolotl_sdft import cut_layers

    name = "-".join(["pruned", *map(str, options.drop_layers)])
    folder: Path = (options.workdir or temporary) / name
    return folder if folder.is_dir() else cut_layers(options.model_dir, options.drop_layers, folder)


def _model(folder: Path, options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    settings = loading(options.mode, getattr(torch, options.dtype))
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def _trainer(way: str, pruned: Path, folder: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    from axolotl_sdft import LogitDistillationConfig, LogitDistillationTrainer

    model = get_peft_model(_model(pruned, options), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    steps, watch = _WARM_UP_STEPS + options.steps, _watch()
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=options.rows,
        max_steps=steps,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=options.checkpointing,
    )
    kind, own = Trainer, {}
    if way != "plain":
        kind = LogitDistillationTrainer
        settings = {"teacher": "own", "load_in_4bit": options.mode == "qlora"} if way == "loaded" else {"teacher": way}
        own = {"logit_distillation": LogitDistillationConfig(**settings)}
    rows = _rows(model, steps * options.rows, options)
    return kind(model=model, args=args, train_dataset=rows, callbacks=[watch], **own), watch


def _forward(options: argparse.Namespace) -> dict[str, float]:
    import torch

    seed = _model(options.model_dir, options).eval()
    rows = _rows(seed, options.rows, options)
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    batch = {name: value.to(seed.device) for name, value in batch.items()}
    taken = []
    forget_peak()
    for _ in range(_WARM_UP_STEPS + options.steps):
        started = time.perf_counter(), time.process_time()
        with torch.no_grad():
            seed(**batch, use_cache=False).logits.flatten()[-1].item()
        taken.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    seconds, cpu_seconds = (statistics.median(values) for values in zip(*taken[_WARM_UP_STEPS:], strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": peak_megabytes()}


def main() -> None:
    """Run all ways in child processes and print the table, or one way in this process."""
    options = _options()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    found = in_turn("tests.benchmarks.bench_logit_step", options.ways, options.rounds, options.json)
    print("\n".join(table(found, clock())))
    print(f"The removed layers weigh {removed_megabytes(options):.0f} MB in {options.dtype}.")


def clock() -> str:
    """Return which time tells what a step costs: the processor's on a CPU, where other work may run beside it."""
    import torch

    return "seconds" if torch.cuda.is_available() else "cpu_seconds"


def table(found: dict[str, list[dict[str, float]]], compared: str = "cpu_seconds") -> list[str]:
    """Return the lines of a Markdown table; ratios are within a round, to plain training plus the forward pass."""
    lines = [
        "| | seconds a step | CPU seconds | times plain + forward | peak, MB | beside plain, MB |",
        "|---" * 6 + "|",
    ]
    for way, rounds in found.items():
        together = list(zip(rounds, found["plain"], found["forward"], strict=True))
        ratio = statistics.median(own[compared] / (plain[compared] + bare[compared]) for own, plain, bare in together)
        beside = statistics.median(own["megabytes"] - plain["megabytes"] for own, plain, _ in together)
        seconds, cpu_seconds, peak = (
            statistics.median(figures[key] for figures in rounds) for key in ("seconds", "cpu_seconds", "megabytes")
        )
        lines.append(
            f"| {_TITLES[way]} | {seconds:.2f} | {cpu_seconds:.2f} | {ratio:.3f} | {peak:.0f} | {beside:+.0f} |"
        )
    return lines


def removed_megabytes(options: argparse.Namespace) -> float:
    """Return what the removed layers take in memory, unquantized."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model_dir)).model.layers
    size = torch.finfo(getattr(torch, options.dtype)).bits / 8
    return sum(weight.numel() * size for layer in options.drop_layers for weight in layers[layer].parameters()) / 2**20


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--mode", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--drop-layers", type=int, nargs="+", default=[12, 13, 14, 15, 16, 17])
    parser.add_argument("--rows", type=int, default=2, help="rows a step (default: 2)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each row (default: 256)")
    parser.add_argument("--prompt", type=int, default=0, help="leading tokens of each row that are not trained")
    parser.add_argument("--steps", type=int, default=3, help="steps measured in each process (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured (default: 3)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument(
        "--ways", choices=WAYS, nargs="+", default=WAYS, help="ways to compare, plain and forward among them"
    )
    parser.add_argument("--workdir", type=Path, help="keeps the pruned model (default: cut anew for each way)")
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process and print it as JSON")
    parser.add_argument("--json", type=Path, help="file for the figures, written after each way")
    return parser.parse_args()


if __name__ == "__main__":
    main()
