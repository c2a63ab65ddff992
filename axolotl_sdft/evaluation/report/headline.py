"""What a report says first: one sentence of verdict and two figures of equal rank, the task and everything else.

All of it follows from the figures by the rules that stand here, and from nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from axolotl_sdft.evaluation.figures import Estimate, ModelFigures, RecoveryReport, SpeedFigures

SEED, PRUNED, TRAINED = "seed", "pruned", "trained"

FEWEST_ROWS = 50
"""Of fewer rows, questions or answers no headline is made: its interval would hold nearly everything."""

USABLE, EQUAL = 90.0, 95.0
"""From so many percent of the seed model on, a model is usable for the task; a stand-in in everything."""

MANY_LOOPS = 0.1
"""A model of whose answers this share more than of the seed model's runs in circles is not usable, whatever else."""

SOURCES: Mapping[str, tuple[str, str]] = {
    "exact_match": (
        "right answers on held-out rows",
        "The share of held-out prompts whose answer passes the checks, divided by the seed model's.",
    ),
    "tool_calls": (
        "right calls on held-out rows",
        "The share of held-out prompts answered by the very calls of the reference, divided by the seed model's.",
    ),
    "held_out": (
        "likelihood of held-out answers",
        "The seed model's perplexity on the reference answers of held-out rows, divided by the model's. Training on "
        "the task can lift it above 100 %, and it says nothing of whether the model's own answers are right.",
    ),
    "tasks": (
        "tasks of lm-evaluation-harness",
        "The mean score over all tasks, divided by the seed model's.",
    ),
    "general": (
        "likelihood of general answers",
        "The seed model's perplexity on its own answers to prompts from outside the task, divided by the model's. It "
        "says how much of the seed model's behaviour is left, not how good an answer is.",
    ),
}
"""Where a figure in percent of the seed model comes from: what it is called, and what it says."""

OF_THE_TASK = ("exact_match", "tool_calls", "held_out")
OF_EVERYTHING_ELSE = ("tasks", "general")
"""The strongest evidence first."""

_HOW_TO_GET: Mapping[str, str] = {
    "exact_match": "set recovery_report.exact_match.num_samples to 50 or more, and have as many held-out rows",
    "tool_calls": "have at least 50 held-out rows whose reference calls a tool",
    "held_out": "hold out at least 50 rows: val_set_size, test_datasets or recovery_report.held_out.path",
    "tasks": "raise recovery_report.lm_eval.limit to 50 or more",
    "general": "set recovery_report.general_prompts.num_samples to 50 or more",
}


@dataclass(frozen=True)
class Tile:
    """One of the two headline figures."""

    title: str
    source: str | None = None
    """Which of :data:`SOURCES` it comes from."""

    before: Estimate | None = None
    """Of the pruned model, in percent of the seed model; None where there is no pruned model beside."""

    after: Estimate | None = None
    """Of the model that the report is about; None where there is no figure."""

    why_none: str = ""
    """Why there is no figure, and how to get one."""


@dataclass(frozen=True)
class SpeedGain:
    """How much faster a model is than the seed model."""

    ratio: float
    is_clear: bool
    """Whether the slowest round of the faster one beats the fastest of the slower one."""


@dataclass(frozen=True)
class Headline:
    """The figures of one model that matter most; None where something was not measured."""

    model: ModelFigures
    task: Tile
    everything_else: Tile
    parameters_saved: float | None
    """Share of the seed model's parameters that the model does without."""

    speed: SpeedGain | None
    loops: tuple[Estimate, Estimate] | None
    """Share of the answers that run in circles, of the seed model and of the model, on the prompts where they differ
    most."""

    @property
    def forgetting(self) -> Estimate | None:
        """KL to the seed model, in nats per token, on its own answers to general prompts."""
        return self.model.general.kl_to_seed if self.model.general else None

    @property
    def verdict(self) -> str:
        """The figures and what follows from them, in one sentence."""
        return verdict(self)


def headline(report: RecoveryReport) -> Headline | None:
    """Return the figures of the trained model, else of the last one that is not the seed model; None with the seed
    model alone."""
    seed, others = report.models[0], report.models[1:]
    if not others:
        return None
    model = next((other for other in others if other.name == TRAINED), others[-1])
    pruned = next((other for other in others if other.name == PRUNED and other is not model), None)
    return Headline(
        model=model,
        task=_tile("The task", OF_THE_TASK, pruned, model),
        everything_else=_tile("Everything else", OF_EVERYTHING_ELSE, pruned, model),
        parameters_saved=_parameters_saved(seed, model),
        speed=speed_gain(seed.speed, model.speed),
        loops=_loops(seed, model),
    )


def _tile(title: str, sources: Sequence[str], pruned: ModelFigures | None, model: ModelFigures) -> Tile:
    """Return the strongest figure of enough rows; where none has enough, why there is none."""
    measured = {source: model.relative_to_seed[source] for source in sources if source in model.relative_to_seed}
    source = next((source for source, figure in measured.items() if figure.rows >= FEWEST_ROWS), None)
    if source is not None:
        before = pruned.relative_to_seed.get(source) if pruned is not None else None
        return Tile(title, source, before, measured[source])
    if not measured:
        return Tile(title, why_none=f"Not measured. To get a figure, {_HOW_TO_GET[sources[-1]]}.")
    source, figure = max(measured.items(), key=lambda item: item[1].rows)
    few = f"Only {figure.rows} {'was' if figure.rows == 1 else 'were'} measured, of which a headline would say little"
    return Tile(title, why_none=f"{few}. To get one, {_HOW_TO_GET[source]}.")


def _parameters_saved(seed: ModelFigures, model: ModelFigures) -> float | None:
    if seed.footprint is None or model.footprint is None:
        return None
    return 1 - model.footprint.parameters / seed.footprint.parameters


def speed_gain(seed: SpeedFigures | None, model: SpeedFigures | None) -> SpeedGain | None:
    """Return how much faster a model is than the seed model, by medians, and whether the rounds of both lie apart."""
    if seed is None or model is None:
        return None
    slower, faster = sorted((seed, model), key=lambda speed: speed.tokens_per_second)
    ratio = model.tokens_per_second / seed.tokens_per_second
    return SpeedGain(ratio, min(faster.speeds) > max(slower.speeds))


def _loops(seed: ModelFigures, model: ModelFigures) -> tuple[Estimate, Estimate] | None:
    pairs = [
        (seed.repetition[prompts], model.repetition[prompts])
        for prompts in seed.repetition
        if prompts in model.repetition and model.repetition[prompts].rows >= FEWEST_ROWS
    ]
    return max(pairs, key=lambda pair: pair[1].value - pair[0].value) if pairs else None


def verdict(top: Headline) -> str:
    """Return one sentence: size and speed, the task and everything else, and whether the model is usable.

    Example:
        ``8 % smaller, 6 % faster; task 63 → 98 % of the seed model's (300 rows), everything else 81 %: usable for this
        task``
    """
    costs = ", ".join(filter(None, (_size_text(top.parameters_saved), _speed_text(top.speed))))
    task, rest = _task_text(top.task), _else_text(top.everything_else)
    return f"{costs + '; ' if costs else ''}{task}, {rest}: {usability(top)}"


def usability(top: Headline) -> str:
    """Return what the figures say of using the model, by the rules of this module.

    A figure is compared by its whole interval: where that reaches over the bar, the answer is only probable.
    """
    if top.loops is not None and top.loops[1].value - top.loops[0].value > MANY_LOOPS:
        seed, own = (f"{100 * share.value:.0f} %" for share in top.loops)
        return f"not usable, since {own} of its answers run in circles (seed model {seed})"
    if top.task.after is None:
        return "whether it is usable for the task is not known"
    fitness = _fitness(top.task.after, USABLE)
    rest = top.everything_else.after
    is_equal = fitness == "usable" and rest is not None and _fitness(rest, EQUAL) == "usable"
    what_for = "in the seed model's place" if is_equal else "for this task"
    caution = ", as far as likelihood tells" if top.task.source == "held_out" else ""
    return f"{fitness} {what_for}{caution}"


def _fitness(figure: Estimate, bar: float) -> str:
    low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
    if figure.value >= bar:
        return "usable" if low >= bar else "probably usable"
    return "not usable yet" if high < bar else "probably not usable yet"


def _size_text(saved: float | None) -> str:
    if saved is None:
        return ""
    if round(100 * abs(saved)) == 0:
        return "as large as the seed model"
    return f"{100 * abs(saved):.0f} % {'smaller' if saved > 0 else 'larger'}"


def _speed_text(speed: SpeedGain | None) -> str:
    if speed is None:
        return ""
    if not speed.is_clear or round(100 * abs(speed.ratio - 1)) == 0:
        return "no faster or slower than the rounds differ"
    return f"{100 * abs(speed.ratio - 1):.0f} % {'faster' if speed.ratio > 1 else 'slower'}"


def _task_text(tile: Tile) -> str:
    if tile.after is None:
        return "task without a figure"
    before = "" if tile.before is None else f"{tile.before.value:.0f} → "
    rows = f"{tile.after.rows:,} {'questions' if tile.source == 'tasks' else 'rows'}"
    if is_better(tile.after):
        before = f"{tile.before.value:.0f} % → " if tile.before is not None else ""
        return f"task {before}better than the seed model on this measure ({rows})"
    return f"task {before}{tile.after.value:.0f} % of the seed model's ({rows})"


def _else_text(tile: Tile) -> str:
    if tile.after is None:
        return "everything else without a figure"
    if is_better(tile.after):
        return "everything else better than the seed model on this measure"
    return f"everything else {tile.after.value:.0f} %"


def is_better(figure: Estimate) -> bool:
    """Whether a figure in percent of the seed model is above 100, and so is not a share of anything that was kept."""
    return round(figure.value, 1) > 100.0
