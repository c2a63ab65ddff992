"""Lets a model answer before the cut, after it and after recovery, since likelihood alone flatters.

    python -m tests.benchmarks.effect_answers --data DATA --workdir bench

Each model answers held-out word problems of GSM8K, requests of OpenFunctions and questions of Dolly, greedily. Told are
right results, right calls, answers that run in circles, answers to Dolly that were not ended, and with how many words
of the seed model's answer those begin. The trained models are those that ``effect_teacher`` has kept in the same
``--workdir``, with the first seed; one that is not there is left out, with a note.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from axolotl_sdft.config import ExactMatchConfig
from axolotl_sdft.distillation.checks.loops import repetition
from axolotl_sdft.distillation.generation.selection import rejection_of
from axolotl_sdft.evaluation.measures.answer_accuracy import greedy_answers, right_answer_checks
from axolotl_sdft.inference.interfaces import Answer, Target
from tests.benchmarks.effect_runs import FinishedRuns, markdown_table
from tests.benchmarks.effect_teacher import BEST, PLAIN, Way, adapter_dir, pruned
from tests.benchmarks.effect_training import Bench, study_parser

_CALL = {"function_call": {"allow_text": True}}  # the call counts, whatever is said beside it
TRAINED = (PLAIN, Way("patched", 0.5), BEST)


@dataclass(frozen=True)
class Asked:
    """What the models are asked, and which checks a good answer passes."""

    name: str
    targets: Sequence[Target]
    check: str | dict[str, dict[str, Any]]
    most_new_tokens: int


def main() -> None:
    """Make the runs that are not there yet and print the table and some answers."""
    options = study_parser(__doc__)
    options.add_argument("--problems", type=int, default=60)
    options.add_argument("--calls", type=int, default=40)
    options.add_argument("--dolly", type=int, default=32)
    options.add_argument("--rows", type=int, default=256, help="rows that the trained models saw")
    args = options.parse_args()
    bench = Bench(args.model_dir, args.data, args.workdir)
    runs = FinishedRuns(args.workdir / "answers.jsonl")
    sizes = {"problems": args.problems, "calls": args.calls, "dolly": args.dolly}
    found = {}
    models: list[tuple[str, Way | str]] = [("seed", "seed"), ("bare cut", "bare"), ("patched cut", "patched")]
    models += [(f"{way.cut}, {way.title}", way) for way in TRAINED]
    for title, way in models:
        settings = {"model": way if isinstance(way, str) else asdict(way), "rows": args.rows, **sizes}
        if isinstance(way, Way) and not adapter_dir(bench, way, args.rows, 0).is_dir():
            print(f"not trained yet, left out: {title}", file=sys.stderr)
            continue
        make = partial(answers_run, bench, way, args.rows, sizes)
        known = runs.find(settings) if args.finished_only else runs.find_or_make(settings, make)
        if known is not None:
            found[title] = known
    print(table(found))


def answers_run(bench: Bench, way: Way | str, rows: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Let one model answer everything; return its texts, which of them are right, circle and are cut off."""
    model = _loaded(bench, way, rows)
    figures = {}
    for asked in questions(bench, sizes):
        checks = right_answer_checks(ExactMatchConfig(checks=(asked.check,)))
        chats = [target.context for target in asked.targets]
        written = greedy_answers(model, bench.tokenizer, chats, asked.most_new_tokens, asked.name)
        answers = [answer for _, answer in written]
        figures[asked.name] = {
            "passes": [rejection_of(*pair, checks) is None for pair in zip(answers, asked.targets, strict=True)],
            "unended": [answer.finish_reason == "length" for answer in answers],
            "texts": [answer.text for answer in answers],
        }
    return figures


def questions(bench: Bench, sizes: dict[str, int]) -> list[Asked]:
    """Return all that is asked."""
    return [
        Asked("problems", bench.targets("gsm8k", "test", sizes["problems"]), "numeric_answer", 112),
        Asked("calls", bench.targets("openfunctions", "test", sizes["calls"]), _CALL, 48),
        Asked("dolly", bench.targets("dolly", "test", sizes["dolly"]), "repetition", 96),
    ]


def _loaded(bench: Bench, way: Way | str, rows: int) -> Any:
    if way == "seed":
        return bench.seed
    if isinstance(way, str):
        return bench.load(pruned(bench, way))
    from peft import PeftModel

    base = bench.load(pruned(bench, way.cut))
    return PeftModel.from_pretrained(base, adapter_dir(bench, way, rows, 0)).merge_and_unload().eval()


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return a line for each model."""
    seed = found["seed"]["dolly"]["texts"]
    lines = []
    for title, run in found.items():
        cells = [counted(run["problems"]["passes"]), counted(run["calls"]["passes"])]
        cells += [counted([circles(text) for text in run["problems"]["texts"]])]
        cells += [counted([not passes for passes in run["dolly"]["passes"]]), counted(run["dolly"]["unended"])]
        same = [same_words(text, other) for text, other in zip(run["dolly"]["texts"], seed, strict=True)]
        lines.append([title, *cells, f"{sum(same) / len(same):.1f}"])
    header = ["model", "right results, GSM8K", "right calls", "GSM8K answers in circles", "Dolly answers in circles"]
    return markdown_table([*header, "not ended, Dolly", "first words that are the seed model's, Dolly"], lines)


def circles(text: str) -> bool:
    """Return whether an answer says things over and over."""
    return (
        repetition(Answer(text, "stop", len(text.split())), Target(({"role": "user", "content": ""},), "")) is not None
    )


def counted(are: Sequence[bool]) -> str:
    """Return ``"3 of 60"``."""
    return f"{sum(are)} of {len(are)}"


def same_words(text: str, other: str) -> int:
    """Return with how many equal words two texts begin."""
    pairs = zip(text.split(), other.split(), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


if __name__ == "__main__":
    main()
