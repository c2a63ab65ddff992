"""Shows how much of the seed model comes back after pruning with each way of training (arXiv 2410.09982, 2411.16991).

    python -m tests.benchmarks.effect_recovery --data DATA --workdir bench --picture recovery.svg

The seed model loses layers, chosen by block influence, and is then trained on Dolly with LoRA: on the original answers;
on those that the unpruned seed model rewrote, greedily or sampling; and on these with DynSDPB, at half the epochs since
each row is seen twice. Two controls: the batches that DynSDPB joins, but without its term; and
answers that the seed model gave without seeing the original ones, as if rewriting could close all of the gap.
Two models that were trained on rewritten answers, one on Dolly and one on GSM8K, are merged by SLERP: as full weights,
which is the paper's way, and as LoRA adapters.

In percent of the seed model is 100 * perplexity(seed) / perplexity(model), on held-out original answers of Dolly, and
on the seed model's own greedy answers to held-out prompts of GSM8K and OpenFunctions; beside it stands how often it and
the seed model hold the same token most likely on those own answers. Prints the tables; ``--picture`` draws them.
Finished runs and adapters are kept in ``--workdir``; ``--finished-only`` shows what is there.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from axolotl_sdft import DynSDPBConfig, LayerPruningConfig, cut_layers, plan_pruning, score_layers
from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.evaluation.merging.merge import merge_models
from axolotl_sdft.inference.likelihood import ScoredIds
from axolotl_sdft.pruning.scoring.loading import encode_texts
from tests.benchmarks.effect_runs import FinishedRuns, markdown_table, mean_and_spread, seeds_first
from tests.benchmarks.effect_training import SETS, Bench, Training, measured, remembering, study_parser, train

SECOND = "distilled_gsm8k"
"""The other model of a merge."""

WAYS = {
    "none": "no training",
    "plain": "plain fine-tuning",
    "distilled": "self-distilled",
    "dynsdpb": "self-distilled + DynSDPB",
    "joined": "the same batches, `alpha: 0`",
    "sampled": "self-distilled, sampled at temperature 1",
    "unaided": "the seed model's own answers, original ones unseen",
    SECOND: "self-distilled, on GSM8K",
    "merged": "merged, full weights",
    "merged_adapters": "merged, adapters",
}
_TRAINING = Training(rank=32, learning_rate=1e-3, epochs=2, batch_rows=4)
_DYNSDPB = replace(_TRAINING, epochs=1, dynsdpb=True)
TRAINED = {
    "plain": ("dolly", False, _TRAINING),
    "distilled": ("dolly", True, _TRAINING),
    "dynsdpb": ("dolly", True, _DYNSDPB),
    "joined": ("dolly", True, _DYNSDPB),
    "sampled": ("dolly", True, _TRAINING),
    "unaided": ("dolly", True, _TRAINING),
    SECOND: ("gsm8k", True, _TRAINING),
}
"""The set that is trained on, whether its answers are the rewritten ones, and how."""

MEASURES = {
    "dolly": "original Dolly answers, % of the seed model",
    "own": "the seed model's own answers, % of it",
    "agreement": "agreement with the seed model, own answers, %",
}
_BAR_WIDTH = 0.09
_OTHERS = ("gsm8k", "openfunctions")

Found = dict[tuple[int, str, int | None], dict[str, Any]]
"""Figures of the runs by number of dropped layers, way and seed; the seed model has dropped none."""


def main() -> None:
    """Make the runs that are not there yet, print the tables, draw the picture."""
    options = study_parser(__doc__)
    options.add_argument("--num-layers", type=int, nargs="+", default=[3, 6, 9], help="how many layers are removed")
    ways = [way for way in WAYS if way != "none"]
    options.add_argument(
        "--ways", nargs="+", default=ways, choices=ways, help="merged ones need those they are made of"
    )
    options.add_argument("--rows", type=int, default=64, help="rows of Dolly")
    options.add_argument("--second-rows", type=int, default=32, help="rows of GSM8K, for the merge")
    options.add_argument("--held-out", type=int, default=32)
    options.add_argument("--others", type=int, default=8, help="held-out prompts of each other set")
    args = options.parse_args()
    bench = Bench(args.model_dir, args.data, args.workdir)
    with remembering(bench.seed):
        found = find_or_make_runs(bench, FinishedRuns(args.workdir / "recovery.jsonl"), args)
    counts = [count for count in args.num_layers if (count, "none", None) in found]
    print(f"Layers that go: {'; '.join(str(list(dropped_layers(bench, count))) for count in counts)}.\n")
    print(quality_table(found, counts))
    if args.picture:
        draw(found, counts, args.picture)


def find_or_make_runs(bench: Bench, runs: FinishedRuns, args: argparse.Namespace) -> Found:
    """Return all figures: those of the seed model, of the untrained models, then of all ways, seed by seed."""
    measuring = {"held_out": args.held_out, "others": args.others}
    wanted: list[tuple[dict[str, Any], Callable[..., dict[str, Any]]]] = [
        ({"num_layers": count, "way": "none", **measuring}, untrained_run) for count in (0, *args.num_layers)
    ]
    variants = []
    for count in args.num_layers:
        for way in args.ways:
            trained = TRAINED[way] if way in TRAINED else (TRAINED["distilled"], TRAINED[SECOND])
            sizes = {"rows": args.rows, "second_rows": args.second_rows, **measuring}
            rewriting = {name: asdict(SETS[name]) for name in ("dolly", "gsm8k")}
            variants.append(
                {"num_layers": count, "way": way, "trained": repr(trained), "rewriting": rewriting, **sizes}
            )
    for run in seeds_first(args.seeds, variants):
        wanted.append((run, merged_run if run["way"].startswith("merged") else trained_run))
    found: Found = {}
    for run, make in wanted:
        known = runs.find(run) if args.finished_only else runs.find_or_make(run, partial(make, bench, run))
        if known is not None:
            found[run["num_layers"], run["way"], run.get("seed")] = known
    return found


def untrained_run(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the seed model, or what is left of it after pruning."""
    count = settings["num_layers"]
    return figures(bench, bench.load(pruned(bench, count)) if count else bench.seed, settings)


def trained_run(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """Train a pruned model one way, keep its adapter, and measure it."""
    name, is_distilled, training = TRAINED[settings["way"]]
    count = settings["second_rows" if settings["way"] == SECOND else "rows"]
    if settings["way"] == "unaided":
        targets = bench.unaided(name, count)
    else:
        rows = bench.rows(name, "train", count, temperature=1.0 if settings["way"] == "sampled" else 0.0)
        targets = rows.distilled if is_distilled else rows.original
    base = bench.load(pruned(bench, settings["num_layers"]))
    dynsdpb = DynSDPBConfig(alpha=0.0) if settings["way"] == "joined" else None
    model = train(bench, base, targets, training, settings["seed"], dynsdpb=dynsdpb)
    model.save_pretrained(adapter_dir(bench, settings, settings["way"]))
    return figures(bench, model.merge_and_unload(), settings)


def merged_run(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """Merge the two models that were trained on rewritten answers, halfway, and measure the result."""
    base = pruned(bench, settings["num_layers"])
    with TemporaryDirectory(dir=bench.workdir) as folder:
        parts = [adapter_dir(bench, settings, way) for way in ("distilled", SECOND)]
        if settings["way"] == "merged":
            parts = [_full_checkpoint(bench, base, part, Path(folder) / part.name) for part in parts]
        result = merge_models(parts[0], parts[1], Path(folder) / "merged", ratio=0.5)
        is_full = settings["way"] == "merged"
        return figures(bench, bench.load(result) if is_full else _with_adapter(bench, base, result), settings)


def _full_checkpoint(bench: Bench, base: Path, adapter: Path, folder: Path) -> Path:
    _with_adapter(bench, base, adapter).save_pretrained(folder)
    bench.tokenizer.save_pretrained(folder)
    return folder


def _with_adapter(bench: Bench, base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(bench.load(base), adapter).merge_and_unload()


def adapter_dir(bench: Bench, settings: dict[str, Any], way: str) -> Path:
    """Return where the adapter of a run is kept; all that shapes it is in the name."""
    rows, rewriting = settings["second_rows" if way == SECOND else "rows"], asdict(SETS[TRAINED[way][0]])
    made_of = [settings["num_layers"], way, repr(TRAINED[way]), rewriting, rows, settings["seed"]]
    return bench.workdir / "adapters" / f"{way}-{fingerprint(made_of)}"


def figures(bench: Bench, model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a model beside the seed model."""
    answers: dict[str, list[ScoredIds]] = {
        "dolly": bench.encoded(bench.targets("dolly", "test", settings["held_out"])),
        "own": bench.own_answers(_OTHERS, settings["others"]),
    }
    return {kind: measured(model, bench.seed, texts) for kind, texts in answers.items()}


def dropped_layers(bench: Bench, count: int) -> Sequence[int]:
    """Return the layers that block influence chooses, on the first rows of Dolly."""
    rows = bench.targets("dolly", "train", 32)
    texts = [bench.tokenizer.decode(text.ids) for text in bench.encoded(rows)]
    batches = encode_texts(texts, bench.model_dir, CalibrationConfig(sequence_len=128))
    scores = score_layers(bench.seed, batches, "block_influence")
    return plan_pruning(scores, LayerPruningConfig(num_layers=count, metric="block_influence")).drop_layers


def pruned(bench: Bench, count: int) -> Path:
    """Return the folder of the seed model less some layers, made unless it is there."""
    folder = bench.workdir / f"less-{count}"
    return folder if folder.is_dir() else cut_layers(bench.model_dir, dropped_layers(bench, count), folder)


def value_of(measure: str, run: dict[str, Any], seed_run: dict[str, Any]) -> float:
    """Return one of ``MEASURES``, in percent."""
    if measure == "agreement":
        return 100 * run["own"]["agreement"]
    return 100 * math.exp(seed_run[measure]["nll"] - run[measure]["nll"])


def _values(found: Found, count: int, way: str, measure: str) -> list[float]:
    runs = [run for (count_, way_, _), run in found.items() if (count_, way_) == (count, way)]
    return [value_of(measure, run, found[0, "none", None]) for run in runs]


def quality_table(found: Found, counts: Sequence[int]) -> str:
    """Return the table of all ways by numbers of layers."""
    lines = []
    for count in counts:
        for way, title in WAYS.items():
            runs = [run for (count_, way_, _), run in found.items() if (count_, way_) == (count, way)]
            if not runs:
                continue
            columns = [mean_and_spread(_values(found, count, way, measure), 1) for measure in MEASURES]
            lines.append([count, title, *columns, mean_and_spread([run["own"]["kl"] for run in runs], 2)])
    return markdown_table(["layers less", "then", *MEASURES.values(), "KL to the seed model, own answers"], lines)


def draw(found: Found, counts: Sequence[int], path: Path) -> None:
    """Draw a panel for each measure: groups of bars by dropped layers, a bar for each way, with its spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(MEASURES), 3.8), layout="constrained")
    for panel, (measure, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for number, (way, label) in enumerate(WAYS.items()):
            told = [(place, _values(found, count, way, measure)) for place, count in enumerate(counts)]
            places = [place + (number - len(WAYS) / 2 + 0.5) * _BAR_WIDTH for place, values in told if values]
            means = [statistics.fmean(values) for _, values in told if values]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in told if values]
            panel.bar(places, means, _BAR_WIDTH, yerr=spreads, label=label, color=f"C{number}")
        panel.set_xticks(range(len(counts)), map(str, counts))
        panel.set_xlabel("layers less, of 30")
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3, axis="y")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
