"""Shows what brings a pruned model back: the patch at the cut, the seed model as teacher, and what is trained.

    python -m tests.benchmarks.effect_teacher --data DATA --workdir bench

The seed model loses six layers, barely or with a patch that was fitted on a mixture of tasks, and is then trained on
Dolly: with cross-entropy, with the seed model's predictions as targets, or with half of each; on the original answers
or on those that the seed model rewrote. Further ways ask what else helps: the prompts' tokens distilled too, another
learning rate, the seed model's own answers to general prompts among the rows, and other choices of what is trained.

In percent of the seed model is 100 * perplexity(seed) / perplexity(model), on held-out original answers of Dolly, and
on the seed model's own greedy answers to held-out prompts of GSM8K and OpenFunctions. ``--parts`` are made one after
the other (``stages`` are the rows of the README's table, each with three random seeds); finished runs are kept in
``--workdir``, and ``--finished-only`` shows what is there. Training runs in bfloat16 (autocast), measuring in float32.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from axolotl_sdft import LogitDistillationConfig, LogitDistillationTrainer, cut_layers, fit_patch
from axolotl_sdft.config import CalibrationConfig, GeneralPromptsConfig
from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.evaluation.spec import general_prompts
from axolotl_sdft.inference.likelihood import ScoredIds
from axolotl_sdft.pruning.scoring.loading import encode_texts
from tests.benchmarks.effect_runs import FinishedRuns, markdown_table, mean_and_spread
from tests.benchmarks.effect_training import (
    SETS,
    Bench,
    Training,
    fit,
    measured,
    remembering,
    study_parser,
    with_adapter,
)

DROPPED = range(13, 19)
"""The layers that go, of 30."""
BESIDE = 3
"""Layers on each side of the cut that count as beside it."""

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_OTHERS = ("gsm8k", "openfunctions")
_CALIBRATION_ROWS = {"dolly": 64, "gsm8k": 32, "openfunctions": 32}
_LOSSES = {0.0: "cross-entropy", 1.0: "logit distillation", 0.5: "half and half"}
_RECIPES = {
    "everywhere": "LoRA everywhere",
    "beside": f"LoRA on the {BESIDE} layers on each side of the cut",
    "last": "last three layers and head, no adapter",
}


@dataclass(frozen=True)
class Way:
    """How a model comes back."""

    cut: str
    """``bare`` or ``patched``."""
    alpha: float
    """Share of the distillation in the loss."""
    answers: str = "original"
    """``original``, ``rewritten`` (greedy, asked once) or ``drawn`` (at temperature 1, up to four times)."""
    recipe: str = "everywhere"
    """What is trained."""
    tokens: str = "answers"
    """Which tokens are distilled: those of the answers, or all."""
    general: bool = False
    """Whether the seed model's own answers to general prompts are among the rows."""
    learning_rate: float = 5e-4

    @property
    def title(self) -> str:
        """How tables call it, apart from the cut and the answers."""
        further = [_RECIPES[self.recipe]] if self.recipe != "everywhere" else []
        further += ["all tokens distilled"] if self.tokens == "all" else []
        further += ["general prompts among the rows"] if self.general else []
        further += [f"rate {self.learning_rate:g}"] if self.learning_rate != Way.learning_rate else []
        return ", ".join([_LOSSES[self.alpha], *further])


CELLS = tuple(Way(cut, alpha) for cut in ("patched", "bare") for alpha in _LOSSES)
PLAIN, _HALF = Way("bare", 0.0), Way("patched", 0.5)
BEST = replace(_HALF, tokens="all", general=True, learning_rate=1e-3)
WIDER = (
    replace(_HALF, tokens="all", general=True),
    BEST,
    replace(_HALF, learning_rate=1e-3),
    replace(_HALF, general=True),
)
RECIPES = (replace(_HALF, recipe="beside"), replace(_HALF, recipe="last", learning_rate=1e-4))
_MAIN = (_HALF, Way("patched", 0.0), Way("bare", 0.5))
_REWRITTEN = tuple(
    replace(way, answers="rewritten") for way in (_HALF, PLAIN, *_MAIN[1:], Way("patched", 1.0), Way("bare", 1.0))
)
_STAGES = tuple(
    replace(Way("patched", alpha), answers=answers) for answers in ("rewritten", "original") for alpha in (0.0, 0.5)
)
_DRAWN = tuple(replace(way, answers="drawn") for way in (_HALF, Way("patched", 0.0)))
_DRAWING = {"temperature": 1.0, "max_attempts": 4}

Runs = Sequence[tuple[Way, int, int]]
"""Ways, numbers of rows, and seeds."""

PARTS: dict[str, Runs] = {
    "stages": [(way, 256, seed) for ways in (_STAGES, (PLAIN, BEST)) for seed in (0, 1, 2) for way in ways],
    "original": [(way, 256, 0) for way in CELLS],
    "wider": [(way, 256, 0) for way in WIDER],
    "seeds": [(way, 256, seed) for ways in ((BEST, PLAIN), _MAIN) for seed in (1, 2) for way in ways],
    "rewritten": [(way, 256, 0) for way in _REWRITTEN],
    "drawn": [(way, 256, 0) for way in _DRAWN],
    "recipes": [(way, 256, 0) for way in RECIPES],
    "many": [(way, 480, 0) for way in (BEST, PLAIN, *_MAIN)],
    "few": [(way, 64, seed) for seed in (0, 1, 2) for way in (BEST, PLAIN, *_MAIN)],
    "rewritten, seeds": [(way, 256, seed) for seed in (1, 2) for way in _REWRITTEN],
    "recipes, seeds": [(way, 256, seed) for seed in (1, 2) for way in RECIPES],
    "all few": [(way, 64, seed) for seed in (0, 1, 2) for way in (*CELLS, *_REWRITTEN)],
}
"""What is run, part by part; a run that two parts share is made once."""


def main() -> None:
    """Make the runs that are not there yet and print the tables."""
    options = study_parser(__doc__)
    options.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options.add_argument("--at-most", type=int, help="so many runs of each part, the first ones")
    options.add_argument("--rows", type=int, help="so many rows in each run, or all that the data folder has")
    options.add_argument("--held-out", type=int, default=48, help="held-out rows of Dolly")
    options.add_argument("--others", type=int, default=12, help="held-out prompts of each other set")
    args = options.parse_args()
    bench = Bench(args.model_dir, args.data, args.workdir)
    if args.rows is not None:
        args.rows = rows_to_take(args.rows, bench.count("dolly", "train"))
    with remembering(bench.seed):
        print(table(find_or_make_runs(bench, FinishedRuns(args.workdir / "teacher.jsonl"), args)))


def rows_to_take(wanted: int, available: int) -> int:
    """Return how many rows a run takes, and say so where there are fewer than wanted."""
    if available < wanted:
        print(f"{available} rows of Dolly are short enough, {wanted} wanted: each run takes {available}", flush=True)
    return min(wanted, available)


Found = list[tuple[dict[str, Any], dict[str, Any]]]
"""Settings and figures of runs; those without training have no ``way``."""


def find_or_make_runs(bench: Bench, runs: FinishedRuns, args: argparse.Namespace) -> Found:
    """Return all figures: those of the seed model, of the untrained models, then those of the parts."""
    measuring = {"held_out": args.held_out, "others": args.others}
    wanted: list[tuple[dict[str, Any], Callable[..., dict[str, Any]]]] = [
        ({"cut": cut, **measuring}, untrained_run) for cut in ("none", "bare", "patched")
    ]
    for part in args.parts:
        for way, rows, seed in PARTS[part][: args.at_most]:
            settings = {"way": asdict(way), "rows": args.rows or rows, "seed": seed, **measuring}
            if all(settings != known for known, _ in wanted):
                wanted.append((settings, trained_run))
    found: Found = []
    for settings, make in wanted:
        known = (
            runs.find(settings) if args.finished_only else runs.find_or_make(settings, partial(make, bench, settings))
        )
        if known is not None:
            found.append((settings, known))
    return found


def untrained_run(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the seed model, or what is left of it after the cut."""
    is_seed = settings["cut"] == "none"
    return figures(bench, bench.seed if is_seed else bench.load(pruned(bench, settings["cut"])), settings)


def trained_run(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """Train a pruned model one way, keep its adapter, and measure it."""
    way, seed = Way(**settings["way"]), settings["seed"]
    model = trained(bench, way, settings["rows"], seed)
    if way.recipe == "last":
        return figures(bench, model, settings)
    model.save_pretrained(adapter_dir(bench, way, settings["rows"], seed))
    return figures(bench, model.merge_and_unload(), settings)


def trained(bench: Bench, way: Way, count: int, seed: int) -> Any:
    """Return a pruned model, trained one way."""
    texts = training_texts(bench, way, count)
    torch.manual_seed(seed)
    model = prepared(bench.load(pruned(bench, way.cut)), way.recipe)
    kind: type[Trainer] = Trainer
    extra: dict[str, Any] = {}
    if way.alpha:
        kind = LogitDistillationTrainer
        extra = {"logit_distillation": LogitDistillationConfig(alpha=way.alpha, tokens=way.tokens)}
    training = Training(32, way.learning_rate, epochs=2 if count < 128 else 1, batch_rows=4)
    return fit(bench, model, texts, training, seed, kind, extra, lr_scheduler_type="cosine", bf16=True)


def training_texts(bench: Bench, way: Way, count: int) -> list[ScoredIds]:
    """Return what a way trains on."""
    if way.answers == "original":
        texts = bench.encoded(bench.targets("dolly", "train", count))
    else:
        changes = _DRAWING if way.answers == "drawn" else {}
        texts = bench.encoded(bench.rows("dolly", "train", count, **changes).distilled)
    return texts + (general_answers(bench) if way.general else [])


def general_answers(bench: Bench) -> list[ScoredIds]:
    """Return the seed model's own answers to the general prompts of the package, up to 64 tokens each."""
    return bench.answered("general", general_prompts(GeneralPromptsConfig())[:48], 64)


def prepared(model: Any, recipe: str) -> Any:
    """Return a pruned model in which only what a recipe trains asks for a gradient."""
    if recipe == "last":
        layers = model.config.num_hidden_layers
        trained_names = [f"model.layers.{layer}." for layer in range(layers - 3, layers)]
        for name, parameter in model.named_parameters():
            is_head = name.startswith(("lm_head.", "model.embed_tokens."))  # one matrix, where the two are tied
            parameter.requires_grad_(is_head or any(name.startswith(start) for start in trained_names))
        return model
    if recipe == "beside":
        beside = beside_the_cut(DROPPED, BESIDE)
        return with_adapter(model, 32, target_modules=list(_LINEAR), layers_to_transform=beside)
    return with_adapter(model, 32)


def beside_the_cut(dropped: Sequence[int], count: int) -> list[int]:
    """Return the numbers that the layers on both sides of a cut have in the pruned model."""
    first = dropped[0]
    return list(range(first - count, first + count))


def pruned(bench: Bench, cut: str) -> Path:
    """Return the folder of the pruned model, made unless it is there."""
    folder = bench.workdir / f"{cut}-{DROPPED[0]}-{DROPPED[-1]}"
    if folder.is_dir():
        return folder
    patch = None
    if cut == "patched":
        rows = [row for name, count in _CALIBRATION_ROWS.items() for row in bench.targets(name, "train", count)]
        texts = [bench.tokenizer.decode(text.ids) for text in bench.encoded(rows)]
        patch = fit_patch(bench.seed, encode_texts(texts, bench.model_dir, CalibrationConfig()), DROPPED)
    return cut_layers(bench.model_dir, DROPPED, folder, patch=patch)


def adapter_dir(bench: Bench, way: Way, rows: int, seed: int) -> Path:
    """Return where the adapter of a run is kept; all that shapes it is in the name."""
    return bench.workdir / "adapters" / fingerprint([repr(way), rows, seed, asdict(SETS["dolly"])])


def figures(bench: Bench, model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a model beside the seed model."""
    answers = {
        "dolly": bench.encoded(bench.targets("dolly", "test", settings["held_out"])),
        "own": bench.own_answers(_OTHERS, settings["others"]),
    }
    return {kind: measured(model, bench.seed, texts) for kind, texts in answers.items()}


def table(found: Found) -> str:
    """Return the table of all runs: one line for each way and number of rows, over seeds."""
    seed = next(run for settings, run in found if settings.get("cut") == "none")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for settings, run in found:
        groups.setdefault(_line_of(settings), []).append(run)
    lines = []
    for name, runs in sorted(groups.items(), key=lambda group: group[0][:1]):
        shares = [
            mean_and_spread([percent_of_seed(run[kind], seed[kind]) for run in runs], 1) for kind in ("dolly", "own")
        ]
        others = [
            cell
            for kind in ("dolly", "own")
            for cell in (
                mean_and_spread([run[kind]["kl"] for run in runs], 3),
                mean_and_spread([100 * run[kind]["agreement"] for run in runs], 1),
            )
        ]
        lines.append([*name, len(runs), *shares, *others])
    header = ["rows", "cut", "trained with", "answers", "random seeds", "Dolly, %", "own answers, %"]
    header += [f"{measure}, {kind}" for kind in ("Dolly", "own") for measure in ("KL", "agreement")]
    return markdown_table(header, lines)


def _line_of(settings: dict[str, Any]) -> tuple[Any, ...]:
    if "way" not in settings:
        return 0, settings["cut"], "no training", "-"
    way = Way(**settings["way"])
    return settings["rows"], way.cut, way.title, way.answers


def percent_of_seed(run: dict[str, float], seed: dict[str, float]) -> float:
    """Return the seed model's perplexity divided by a model's, in percent."""
    return 100 * math.exp(seed["nll"] - run["nll"])


if __name__ == "__main__":
    main()
