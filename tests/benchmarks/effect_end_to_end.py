"""The whole tool as a user runs it, against plain fine-tuning: two tasks, one YAML file each way, one table.

    python -m tests.benchmarks.effect_end_to_end --data DATA --workdir bench

SmolLM2-135M-Instruct is trained on word problems (GSM8K) and tool calls (OpenFunctions), by ``axolotl train``:

* ``seed``: nothing is removed, plain fine-tuning
* ``bare``: six layers are removed and nothing else is done, plain fine-tuning
* ``whole``: six layers are removed, the cut is patched, the seed model rewrites the answers, the seed model teaches;
  answers are drawn as the authors of SDFT draw them, unaided first
* ``general``: the same with the default rewriting, and 48 general prompts with the seed model's own answers

Each adapter is merged into its base by ``axolotl merge-lora``. Then ``axolotl recovery-report`` measures all of them
and the seed model itself, once with held-out word problems and once with held-out calls: exact match, likelihood,
forgetting, refusals and answers that run in circles; these in bfloat16. What is done already is found again in
``--workdir``, which also keeps each command's log; ``--finished-only`` prints the table of what is there.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from axolotl_sdft.core.artifacts import read_json, write_json
from tests.benchmarks.children import run_module, tail
from tests.benchmarks.effect_runs import markdown_table
from tests.benchmarks.effect_training import SETS, Bench

TASKS = {"gsm8k": "word problems", "openfunctions": "tool calls"}
WAYS = {
    "seed": "the seed model, plain fine-tuning",
    "bare": "6 layers less, plain fine-tuning",
    "whole": "6 layers less, patch, self-distilled rows, the seed model as teacher",
    "general": "the same, rewritten by default, and general rows",
}
REPORTED = "general"
"""The way whose configuration makes the report, which calls its model ``trained``."""
SEED_MODEL = "the seed model, untrained"
_CHECKS = {"gsm8k": "numeric_answer", "openfunctions": "function_call"}
_ANSWER_TOKENS = {"gsm8k": 128, "openfunctions": 64}
_MOST_HELD_OUT_TOKENS = 400
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Do what is not done yet, and print the table."""
    options = _options()
    bench = Bench(options.model_dir.absolute(), options.data, options.workdir.absolute())
    if not options.finished_only:
        write_rows(bench, options.rows, options.problems)
        for way in WAYS:
            write_config(bench.workdir / f"{way}.yml", training_config(bench, way, options.rate))
            _run_once(bench.workdir, f"{way}-train", "train", f"{way}.yml", "--launcher", "python")
            _run_once(bench.workdir, f"{way}-merge", "merge-lora", f"{way}.yml")
        for task in TASKS:
            config = training_config(bench, REPORTED, options.rate) | report_config(bench, task, options.problems)
            write_config(bench.workdir / f"report-{task}.yml", config)
            _run(bench.workdir, f"report-{task}", "recovery-report", f"report-{task}.yml")  # finds its figures again
    reports = {task: read_json(bench.workdir / f"report-{task}" / "report.json") for task in TASKS}
    print(table(reports))
    for line in _seconds(bench.workdir):
        print(line)


def write_rows(bench: Bench, count: int, held_out: int) -> None:
    """Write the rows that are trained, those short enough, and those that are held out, as conversations."""
    for name in TASKS:
        for split, targets in (
            ("train", bench.targets(name, "train", count)),
            ("test", bench.targets(name, "test", held_out, _MOST_HELD_OUT_TOKENS)),
        ):
            rows = [{"messages": [*row.context, {"role": "assistant", "content": row.reference}]} for row in targets]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            path = bench.workdir / f"{name}_{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def training_config(bench: Bench, way: str, rate: float) -> dict[str, Any]:
    """Return what ``axolotl train`` is given for a way; all but the plugin's blocks is the same in each."""
    datasets: list[dict[str, Any]] = [{"path": f"{name}_train.jsonl", "type": "chat_template"} for name in TASKS]
    config: dict[str, Any] = {
        "base_model": str(bench.model_dir),
        "plugins": ["axolotl_sdft.SDFTPlugin"],
        "datasets": datasets,
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": _LINEAR,
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False),
        "sequence_len": 512,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_epochs": 2,
        "optimizer": "adamw_torch",
        "learning_rate": rate,
        "lr_scheduler": "cosine",
        "warmup_steps": 2,
        "logging_steps": 4,
        "bf16": False,  # Axolotl trains on a CPU in float32 alone
        "seed": 42,
        "dataset_num_proc": 1,
        "dataset_prepared_path": f"prepared-{way}",
        "output_dir": f"outputs/{way}",
    }
    if way == "bare":
        config["layer_pruning"] = {"num_layers": 6, "patch": "none"}
    if way in ("whole", "general"):
        config["layer_pruning"] = {"num_layers": 6}
        config["logit_distillation"] = {"tokens": "all"}
        for name, dataset in zip(TASKS, datasets, strict=True):
            task = SETS[name]
            dataset["self_distillation"] = {"template": task.template, "checks": list(task.checks)}
            dataset["self_distillation"]["generation"] = {"max_new_tokens": task.most_new_tokens}
        if way == "general":
            config["self_distillation"] = {"general_rows": 48, "generation": {"max_new_tokens": 256}}
        else:
            sampling = {"max_new_tokens": 256, "temperature": 0.95, "top_p": 0.7, "top_k": 50}
            config["self_distillation"] = {"max_attempts": 2, "generation": sampling}
            for dataset in datasets:
                template = dataset["self_distillation"]["template"]
                dataset["self_distillation"]["template"] = ["unaided", template]
    return config


def report_config(bench: Bench, task: str, problems: int) -> dict[str, Any]:
    """Return the block of a report that judges answers to a task."""
    merged = {title: f"outputs/{way}/merged" for way, title in WAYS.items() if way != REPORTED}
    block = {
        "models": merged,
        "held_out": {"path": f"{task}_test.jsonl", "type": "chat_template", "num_samples": problems},
        "exact_match": {
            "checks": [_CHECKS[task]],
            "num_samples": problems,
            "max_new_tokens": _ANSWER_TOKENS[task],
        },
        "speed": {"rounds": 0},
        "dtype": "bfloat16",
        "output_dir": f"report-{task}",
    }
    return {"recovery_report": block}


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration as YAML, its keys in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line for each model: right answers by task, likelihood, forgetting, circles, refusals."""
    models = {task: {model["name"]: model for model in report["models"]} for task, report in reports.items()}
    general = models[next(iter(TASKS))]
    names = {"seed": SEED_MODEL, "pruned": "6 layers less, patched, untrained"}
    names |= {title: title for way, title in WAYS.items() if way != REPORTED} | {"trained": WAYS[REPORTED]}
    lines = [[title, *_cells(name, models, general[name])] for name, title in names.items() if name in general]
    header = ["model", *(f"right {title}, %" for title in TASKS.values())]
    header += [f"nats a token, {title}" for title in TASKS.values()]
    header += ["forgotten: KL to the seed model", "everything else, % of the seed model", "in circles, %", "refused, %"]
    return markdown_table(header, lines)


def _cells(name: str, models: Mapping[str, Mapping[str, Any]], general: Mapping[str, Any]) -> list[str]:
    right = [_percent(models[task][name]["exact_match"]) for task in TASKS]
    nats = [_interval(models[task][name]["held_out"]["nll"], 2) for task in TASKS]
    kept = general["relative_to_seed"].get("general")
    return [
        *right,
        *nats,
        _interval(general["general"]["kl_to_seed"], 3),
        _interval(kept, 1) if kept else "100",
        _percent(general["repetition"].get("general")),
        _percent(general["refusals"]),
    ]


def _percent(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    scaled = {key: 100 * estimate[key] for key in ("value", "low", "high") if estimate[key] is not None}
    return _interval({**estimate, **scaled}, 0)


def _interval(estimate: Mapping[str, Any], digits: int) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    shown = f"{value:.{digits}f}"
    return shown if low is None else f"{shown} ({low:.{digits}f} to {high:.{digits}f})"


def _run_once(workdir: Path, name: str, command: str, *arguments: str) -> None:
    """Run a command of Axolotl to its end, unless it has ended well before; raise SystemExit where it fails."""
    if not _done(workdir, name).is_file():
        _run(workdir, name, command, *arguments)


def _done(workdir: Path, name: str) -> Path:
    return workdir / "done" / f"{name}.json"


def _run(workdir: Path, name: str, command: str, *arguments: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} axolotl {command} {' '.join(arguments)}", file=sys.stderr, flush=True)
    log, started = workdir / f"{name}.log", time.monotonic()
    places = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = run_module(
        "axolotl.cli.main",
        [command, *arguments],
        log,
        folder=workdir,
        environment={"PYTHONPATH": os.pathsep.join(places), "AXOLOTL_DO_NOT_TRACK": "1"},
    )
    if code != 0:
        raise SystemExit(f"axolotl {command} {' '.join(arguments)} ended with {code}; {log} ends with\n{tail(log)}")
    done = _done(workdir, name)
    done.parent.mkdir(parents=True, exist_ok=True)
    write_json(done, {"seconds": round(time.monotonic() - started, 1)})


def _seconds(workdir: Path) -> Iterable[str]:
    for path in sorted((workdir / "done").glob("*.json")):
        yield f"{path.stem}: {read_json(path)['seconds']} s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k_train.jsonl, ...")
    parser.add_argument("--workdir", type=Path, required=True, help="keeps all that is made")
    parser.add_argument("--rows", type=int, default=96, help="trained rows of each task")
    parser.add_argument("--problems", type=int, default=100, help="held-out rows of each task")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of each way")
    parser.add_argument("--finished-only", action="store_true", help="run nothing; print the table of what is there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
