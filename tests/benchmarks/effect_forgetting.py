"""Shows how much less a model forgets that is trained on self-distilled answers (SDFT, arXiv 2402.13669).

    python -m tests.benchmarks.effect_forgetting --data DATA --workdir bench --picture forgetting.svg

For each of three sets: training on the original answers against training on the answers that the seed model rewrote,
with the same rows, the same LoRA and the same steps. Along each run two things are measured:

* skill: the negative log-likelihood of held-out answers of the set, once of the original ones (which favours plain
  training by construction) and once of their rewritten versions (which favours SDFT)
* forgetting: KL(seed || model) per token of the seed model's own greedy answers to prompts of the other two sets

The seed model writes, and LoRA trains, in bfloat16 (autocast); all is measured in float32. Forgetting is compared at
equal skill: at the best skill that both ways reach with one random seed, and halfway there, linear between the points
of a curve. Prints the tables; ``--picture`` draws the curves. Finished runs are kept in ``--workdir``;
``--finished-only`` shows what is there.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from axolotl_sdft.config import ExactMatchConfig
from axolotl_sdft.evaluation.measures.answer_accuracy import exact_match
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.evaluation.measures.likelihood import answer_statistics
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.inference.likelihood import ScoredIds
from tests.benchmarks.effect_runs import FinishedRuns, markdown_table, mean_and_spread, seeds_first
from tests.benchmarks.effect_training import (
    SETS,
    TITLES,
    Bench,
    Rows,
    Training,
    measured,
    remembering,
    study_parser,
    train,
)


@dataclass(frozen=True)
class Way:
    """Where the answers come from that a model is trained on."""

    title: str
    colour: str
    """In the picture."""
    rewriting: Mapping[str, Any] | None = None
    """Fields of the set in which the rewriting differs from greedy rewriting; None trains the original answers."""
    unaided_first: bool = False
    """Whether each question is asked without the original answer first, and with it where no answer passes."""
    unaided_only: bool = False
    """Whether the original answers stay unseen; rows are added until as many answers have passed."""


PAPER: dict[str, Any] = {"temperature": 0.95, "top_p": 0.7, "top_k": 50}
SAMPLED: dict[str, Any] = {"temperature": 1.0}
TWICE = {"max_attempts": 2}
"""With two templates in turn, four attempts."""
WAYS = {
    "plain": Way("plain fine-tuning", "tab:red"),
    "sdft": Way("SDFT, greedy", "tab:blue", {}),
    "paper": Way("SDFT, sampled at 0.95, top_p 0.7, top_k 50", "tab:green", PAPER),
    "sampled": Way("SDFT, sampled at 1", "tab:orange", SAMPLED),
    "cascade": Way("SDFT, greedy, unaided first", "tab:cyan", TWICE, unaided_first=True),
    "paper_cascade": Way("SDFT, at 0.95, unaided first", "tab:olive", PAPER | TWICE, unaided_first=True),
    "sampled_cascade": Way("SDFT, at 1, unaided first", "tab:brown", SAMPLED | TWICE, unaided_first=True),
    "retried": Way("SDFT, at 1, four attempts", "tab:gray", SAMPLED | {"max_attempts": 4}),
    "unaided": Way("the seed model's own answers, original ones unseen", "tab:purple", {}, unaided_only=True),
    "unaided_sampled": Way("the seed model's own answers, sampled at 1", "tab:pink", SAMPLED, unaided_only=True),
}
COMPARED = tuple(way for way in WAYS if not WAYS[way].unaided_only and way != "retried")
"""What the choice of the defaults rests on; the others ask what stands in their way."""
SKILLS = {"original": "original answers", "rewritten": "rewritten answers"}
LEVELS = {0.5: "half", 1.0: "all that both reach"}
SHARES = (0.5, 1.0)
TRAINING = Training(rank=16, learning_rate=1e-3, epochs=2, bf16=True)

Point = dict[str, float]
Found = dict[tuple[str, str, int], dict[str, Any]]
"""Figures of the runs by set, way and seed."""


def main() -> None:
    """Make the runs that are not there yet, print the tables, draw the picture."""
    options = study_parser(__doc__)
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options.add_argument("--ways", nargs="+", default=COMPARED, choices=WAYS)
    options.add_argument("--learning-rate", type=float, default=TRAINING.learning_rate)
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--held-out", type=int, default=16, help="rows that skill is measured on")
    options.add_argument("--others", type=int, default=8, help="prompts of each other set")
    args = options.parse_args()
    bench = Bench(args.model_dir, args.data, args.workdir)
    runs = FinishedRuns(args.workdir / "forgetting.jsonl")
    sizes = {"rows": args.rows, "held_out": args.held_out, "others": args.others}
    found: Found = {}
    training = replace(TRAINING, learning_rate=args.learning_rate)
    settings = sizes | {"training": vars(training), "shares": SHARES}
    variants = [
        {"set": name, "way": way, "rewriting": asdict(SETS[name]), **settings}
        for name in args.sets
        for way in args.ways
    ]
    for run in seeds_first(args.seeds, variants):
        make = partial(forgetting_run, bench, run, runs)
        known = runs.find(run) if args.finished_only else runs.find_or_make(run, make)
        if known is not None:
            found[run["set"], run["way"], run["seed"]] = known
    names = [name for name in args.sets if any(set_ == name for set_, _, _ in found)]
    print(rows_table(bench, found, names, args.rows), end="\n\n")
    print(distance_table(bench, found, names, args.rows), end="\n\n")
    print(final_table(found, names), end="\n\n")
    if "plain" in args.ways:
        print(equal_skill_table(found, names))
    if args.picture:
        draw(found, names, args.picture)


def forgetting_run(bench: Bench, settings: dict[str, Any], runs: FinishedRuns) -> dict[str, Any]:
    """Train one way, and return what was measured along the run: ``points``, first those of the seed model."""
    name = settings["set"]
    targets = training_rows(bench, name, settings["way"], settings["rows"])
    answers = measured_answers(bench, settings)
    start = {key: settings[key] for key in ("set", "held_out", "others", "rewriting")} | {"untrained": True}
    with remembering(bench.seed):
        points = [runs.find_or_make(start, partial(point, bench, bench.seed, answers, 0.0))]

        def measure(share: float, model: Any) -> None:
            points.append(point(bench, model, answers, share))

        training = Training(**settings["training"])
        model = train(bench, bench.load(bench.model_dir), targets, training, settings["seed"], measure, SHARES)
    return {"points": points, **exact_figures(bench, model, name, settings["held_out"])}


def point(bench: Bench, model: Any, answers: dict[str, list[ScoredIds]], share: float) -> Point:
    """Return what is measured of a model when a share of its run is done."""
    figures: Point = {"share": share}
    for kind, texts in answers.items():
        figures |= {f"{kind}_{key}": value for key, value in measured(model, bench.seed, texts).items()}
    return figures


def training_rows(bench: Bench, name: str, way: str, count: int) -> list[Target]:
    """Return what a way trains on."""
    rewriting = WAYS[way].rewriting
    if rewriting is None:
        return bench.targets(name, "train", count)
    if WAYS[way].unaided_only:
        return bench.unaided(name, count, **rewriting)
    return rewritten_rows(bench, name, way, count).distilled


def rewritten_rows(bench: Bench, name: str, way: str, count: int) -> Rows:
    """Return the rows of a set as a way rewrites them."""
    template = {"template": ("unaided", SETS[name].template)} if WAYS[way].unaided_first else {}
    return bench.rows(name, "train", count, **WAYS[way].rewriting or {}, **template)


def measured_answers(bench: Bench, settings: dict[str, Any]) -> dict[str, list[ScoredIds]]:
    """Return the answers that a run is measured on, by what they show."""
    name = settings["set"]
    held_out = bench.rows(name, "test", settings["held_out"])
    if not held_out.taken:
        raise SystemExit(
            f"{name}: none of the {settings['held_out']} held-out answers was accepted after rewriting, so skill can't "
            "be told by rewritten ones; raise --held-out, or leave the set out of --sets"
        )
    others = [other for other in SETS if other != name]
    return {
        "original": bench.encoded(held_out.original),
        "rewritten": bench.encoded(held_out.taken),
        "others": bench.own_answers(others, settings["others"]),
    }


def exact_figures(bench: Bench, model: Any, name: str, count: int) -> dict[str, float]:
    """Return the share of held-out calls that the model writes right, where the set is about calls."""
    if name != "openfunctions":
        return {}
    config = ExactMatchConfig(
        checks=({"function_call": {"allow_text": True}},), max_new_tokens=SETS[name].most_new_tokens
    )
    targets = bench.targets(name, "test", count)
    figure, _ = exact_match(model.merge_and_unload(), bench.tokenizer, targets, config, Resampler(0))
    return {"exact_match": figure.value}


def ways_run(found: Found, name: str) -> list[str]:
    """Return the ways that have been run on a set, in the order of ``WAYS``."""
    there = {way for set_, way, _ in found if set_ == name}
    return [way for way in WAYS if way in there]


def equal_skill(
    plain: Sequence[Point], other: Sequence[Point], skill: str, share: float
) -> tuple[float, float, float] | None:
    """Return a skill that both ways reach, and what each has forgotten when it first reaches it.

    None where one of them never gets better than the seed model.

    Args:
        plain: The points of one way, the seed model itself first.
        other: Those of the other.
        skill: Which answers tell it.
        share: How much of what both gain at best: 1.0 is the best skill that both reach.
    """
    start = plain[0][f"{skill}_nll"]
    best = max(min(point[f"{skill}_nll"] for point in points) for points in (plain, other))
    if best >= start:
        return None
    level = max(best, start + share * (best - start))  # rounding must not put it below the best
    return level, forgotten_at(plain, skill, level), forgotten_at(other, skill, level)


def forgotten_at(points: Sequence[Point], skill: str, level: float) -> float:
    """Return what has been forgotten when a curve first comes down to a level, linear between its points."""
    for before, after in pairwise(points):
        above, below = before[f"{skill}_nll"], after[f"{skill}_nll"]
        if above > level >= below:
            share = (above - level) / (above - below)
            return before["others_kl"] + share * (after["others_kl"] - before["others_kl"])
    raise ValueError(f"the curve never comes down to {level}")


def rows_table(bench: Bench, found: Found, names: Sequence[str], count: int) -> str:
    """Return a table of how many answers were rewritten, and by how much that closes the distribution gap."""
    lines = []
    for name in names:
        for way in ways_run(found, name):
            if WAYS[way].rewriting is None or WAYS[way].unaided_only:
                continue
            summary = rewritten_rows(bench, name, way, count).summary
            gap, rejections = summary["gap"], summary["rejections"]
            rejected = ", ".join(f"{reason} {number}" for reason, number in rejections.items()) or "none"
            nats = f"{gap['nats_per_token_before']:.2f}, {gap['nats_per_token_after']:.2f}"
            accepted = f"{summary['turns_distilled']} of {count}"
            lines.append([TITLES[name], WAYS[way].title, accepted, rejected, nats])
    header = ["set", "training", "answers accepted", "rejected", "nats per token before, after"]
    return markdown_table(header, lines)


def distance_table(bench: Bench, found: Found, names: Sequence[str], count: int) -> str:
    """Return a table of how far from the seed model's own words is what each way trains on: means over answers."""
    lines = []
    for name in names:
        for way in ways_run(found, name):
            targets = training_rows(bench, name, way, count)
            answers = answer_statistics(bench.seed, bench.seed, bench.encoded(targets))
            gap = statistics.fmean(answer.nll / answer.tokens for answer in answers)
            lines.append([TITLES[name], WAYS[way].title, len(targets), f"{gap:.2f}"])
    return markdown_table(["set", "training", "rows", "nats per token of the trained answers under the seed"], lines)


def final_table(found: Found, names: Sequence[str]) -> str:
    """Return a table of skill and forgetting at the end of the runs."""
    lines = []
    for name in names:
        for way in ways_run(found, name):
            runs = [run for (set_, way_, _), run in found.items() if (set_, way_) == (name, way)]
            first, last = runs[0]["points"][0], [run["points"][-1] for run in runs]
            skills = [
                f"{first[f'{skill}_nll']:.2f} → {mean_and_spread([point[f'{skill}_nll'] for point in last], 3)}"
                for skill in SKILLS
            ]
            exact = [100 * run["exact_match"] for run in runs if "exact_match" in run]
            forgotten = mean_and_spread([point["others_kl"] for point in last], 3)
            agreement = mean_and_spread([100 * point["others_agreement"] for point in last], 1)
            lines.append([TITLES[name], WAYS[way].title, *skills, mean_and_spread(exact, 1), forgotten, agreement])
    header = [
        *("set", "training", "nll, original answers", "nll, rewritten answers", "right calls, %"),
        *("forgetting: KL to the seed model, others", "agreement with the seed model, others, %"),
    ]
    return markdown_table(header, lines)


def equal_skill_table(found: Found, names: Sequence[str]) -> str:
    """Return a table of forgetting at skills that plain training and another way both reach, by both measures."""
    lines = []
    for name in names:
        for way in (way for way in ways_run(found, name) if way != "plain"):
            for skill, title in SKILLS.items():
                for share, gained in LEVELS.items():
                    columns = _equal_skill_columns(found, name, way, skill, share)
                    lines.append([TITLES[name], WAYS[way].title, title, gained, *columns])
    header = [
        "set",
        "training",
        "skill measured on",
        "gained",
        "nll",
        "KL, plain",
        "KL, this way",
        "this / plain, median",
    ]
    return markdown_table(header, lines)


def _equal_skill_columns(found: Found, name: str, way: str, skill: str, share: float) -> list[str]:
    seeds = [seed for set_, way_, seed in found if (set_, way_) == (name, way) and (name, "plain", seed) in found]
    curves = [[found[name, each, seed]["points"] for each in ("plain", way)] for seed in seeds]
    told = [equal_skill(plain, other, skill, share) for plain, other in curves]
    known = [each for each in told if each is not None]
    if not known:
        return ["one way never improves", "-", "-", "-"]
    ratio = statistics.median(other / plain for _, plain, other in known)
    return [*(mean_and_spread(values, 3) for values in zip(*known, strict=True)), f"{ratio:.2f}"]


def draw(found: Found, names: Sequence[str], path: Path) -> None:
    """Draw forgetting over skill: a row for each set, a column for each measure of skill, a line for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(SKILLS), 3.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), len(SKILLS), squeeze=False)
    for panel_row, name in zip(panels, names, strict=True):
        for panel, (skill, title) in zip(panel_row, SKILLS.items(), strict=True):
            _draw_panel(panel, found, name, skill)
            panel.set_xlabel(f"held-out {title}, nats per token (better: right)")
        panel_row[0].set_ylabel(f"{TITLES[name]}: KL to the seed model,\nother sets, nats per token\n(better: down)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_panel(panel: Any, found: Found, name: str, skill: str) -> None:
    for key, way in WAYS.items():
        runs = [run["points"] for (set_, way_, _), run in found.items() if (set_, way_) == (name, key)]
        for number, points in enumerate(runs):
            across = [point[f"{skill}_nll"] for point in points]
            up = [point["others_kl"] for point in points]
            panel.plot(across, up, ".-", color=way.colour, alpha=0.8, label=None if number else way.title)
    panel.invert_xaxis()
    panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    main()
