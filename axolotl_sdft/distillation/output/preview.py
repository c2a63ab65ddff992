"""Shows what rewriting would do to a few rows, side by side, before hours are spent on all of them."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.errors import PluginError
from axolotl_sdft.core.terminal import fact_lines, side_by_side
from axolotl_sdft.core.texts import cut, duration, evenly_spaced, printable
from axolotl_sdft.distillation.digest import as_rows
from axolotl_sdft.distillation.generation.journal_files import StoredAnswer, StoredVerdict
from axolotl_sdft.distillation.generation.judging import Judging
from axolotl_sdft.distillation.generation.selection import Selection
from axolotl_sdft.distillation.output.gap import gap_text, is_pure_sample, measure_answers
from axolotl_sdft.distillation.output.unchecked import UncheckedResults, unchecked_sentences
from axolotl_sdft.distillation.rows.left_alone import TOO_LONG_ROW, LeftAloneCounts, targets_of
from axolotl_sdft.inference.interfaces import Answer, Backend, Target

if TYPE_CHECKING:
    from axolotl_sdft.distillation.spec import DistillationSpec

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreviewedAnswer:
    """One trained answer, before and after."""

    row: int
    turn: int
    num_turns: int
    """Trained answers of the row."""

    settlement: Selection
    answer: Answer
    """The one that is taken, or the last that was rejected."""

    unchecked: str = ""
    """What a check that the run lacks says against an answer that is taken, or an empty text."""

    @property
    def target(self) -> Target:
        """The original answer, after those before it as they will be trained."""
        return self.settlement.target

    @property
    def verdict(self) -> str:
        """``accepted``, with what no check looks at, or the check that rejects it and why."""
        if self.settlement.answer is None:
            name, reason = self.settlement.rejections[-1]
            return f"rejected by {name}: {reason}"
        attempt = self.settlement.shown_attempt
        accepted = f"accepted at attempt {attempt + 1}" if attempt else "accepted"
        return f"{accepted}, though {self.unchecked}" if self.unchecked else accepted


@dataclass(frozen=True)
class Preview:
    """Some rows as they would come out."""

    answers: tuple[PreviewedAnswer, ...]
    """All trained answers of the rows, in order."""

    num_rows: int
    """How many rows were looked at."""

    seconds: float
    """What generating took, without loading the model where that could be told apart."""

    gap: tuple[float, float] | None
    """Nats per token of the trained answers under the seed model, before and after; None where it is not known."""

    left_alone: LeftAloneCounts = field(default_factory=LeftAloneCounts)
    """Answers of these rows that the seed model is not asked about."""

    full_batch: tuple[int, float] | None = None
    """How many further answers were written together, and in how many seconds; None where these rows fill a batch."""

    gap_seconds: float = 0.0
    """What measuring the distribution gap of these rows took."""

    gap_samples: int = 0
    """Of how many rows a full run measures it, if it has as many."""

    unchecked_results: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Accepted answers with another result than their original, by the check that the run lacks."""

    is_pure_sample: bool = False
    """Whether the answers are drawn from all that the seed model might say, so that the gap need not fall."""

    def seconds_for(self, num_rows: int) -> float:
        """Return how long so many rows would take, loading the model or starting its server left out."""
        gap_seconds = self.gap_seconds / self.num_rows * min(self.gap_samples, num_rows)
        if self.full_batch is None:
            return self.seconds / self.num_rows * num_rows + gap_seconds
        num_answers, seconds = self.full_batch
        num_asked = sum(shown.settlement.num_judged for shown in self.answers) / self.num_rows
        return seconds / num_answers * num_asked * num_rows + gap_seconds

    @property
    def num_accepted(self) -> int:
        """How many of the answers would be rewritten."""
        return sum(shown.settlement.answer is not None for shown in self.answers)

    @property
    def rejections(self) -> Counter[str]:
        """How many answers each check rejects for good."""
        return Counter(shown.settlement.rejections[-1][0] for shown in self.answers if shown.settlement.answer is None)


def preview(spec: "DistillationSpec", num_rows: int) -> Preview:
    """Rewrite up to ``num_rows`` rows, spread over the dataset, as a full run would; nothing is written.

    A conversation is rewritten turn by turn, each after the ones before it, and rejected answers are asked for again
    where the settings say so.

    Raises:
        PluginError: The backend leaves out answers that it was asked for.
    """
    originals, too_long = _rows_among(spec, evenly_spaced(len(spec.dataset), num_rows))
    backend = spec.backend_factory(spec.seed_dir, spec.config.generation)
    spec.check_backend(backend)
    try:
        return _preview(spec, backend, originals, too_long)
    finally:
        backend.close()


def _rows_among(spec: "DistillationSpec", indices: list[int]) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """Return some rows by their index, and the indices of those that are too long, about which nothing is asked."""
    rows = zip(indices, as_rows(spec.dataset[indices]), strict=True)
    return dict(rows), {index for index, is_long in zip(indices, spec.too_long_among(indices), strict=True) if is_long}


def _preview(
    spec: "DistillationSpec", backend: Backend, originals: dict[int, dict[str, Any]], too_long: set[int]
) -> Preview:
    row_format = spec.row_format
    before = {
        (index, turn): row_format.target(row, turn)
        for index, row in originals.items()
        for turn in range(row_format.num_targets(row))
    }
    measures = bool(spec.config.gap_samples)
    load = getattr(backend, "load", None)
    if before and load is not None:  # before the clock starts
        load()
    if before and measures:  # one answer, for backends that load nothing by themselves
        first = next(iter(before.values()))
        backend.answer_nll([(first, first.reference)])
    started = time.monotonic()
    unchecked = UncheckedResults(dict(spec.checks))
    asked = {index: row for index, row in originals.items() if index not in too_long}
    rewritten, shown = _rewritten(spec, backend, asked, unchecked)
    seconds = time.monotonic() - started
    rows = originals | rewritten
    pairs = [(target, row_format.target(rows[index], turn)) for (index, turn), target in before.items()]
    started = time.monotonic()
    told = measure_answers(backend, pairs) if measures else None
    gap_seconds = time.monotonic() - started
    told = [both for both in told or [] if all(map(math.isfinite, both))]
    gap = (fmean(one for one, _ in told), fmean(other for _, other in told)) if told else None
    left_alone = LeftAloneCounts()
    for index, row in originals.items():
        num_targets, reasons = targets_of(row_format, row)
        left_alone.add([*([TOO_LONG_ROW] * num_targets if index in too_long else []), *reasons])
    ordered = tuple(sorted(shown, key=lambda one: (one.row, one.turn)))
    full_batch = _full_batch(spec, backend, len(shown))
    samples, is_pure = spec.config.gap_samples, is_pure_sample(spec.config.generation.model_dump())
    return Preview(
        *(ordered, len(originals), seconds, gap, left_alone, full_batch, gap_seconds, samples),
        unchecked_results=unchecked.to_json(),
        is_pure_sample=is_pure,
    )


def _full_batch(spec: "DistillationSpec", backend: Backend, num_shown: int) -> tuple[int, float] | None:
    """Return how many answers fill the backend, and what writing them takes; None where the rows shown were as many.

    A few rows say little of the rate of a full run, which writes many answers at the price of one.
    """
    generation = spec.config.generation
    size = getattr(generation, "max_batch_size", None) or getattr(generation, "concurrency", None) or 1
    num_rows = min(size, len(spec.dataset))
    if not num_shown or num_shown >= num_rows:
        return None
    judging = Judging.of(spec, _Memory())
    rows, too_long = _rows_among(spec, evenly_spaced(len(spec.dataset), num_rows))
    prompts = [
        judging.prompt((index, 0), spec.row_format.target(row, 0), 0)
        for index, row in rows.items()
        if index not in too_long and spec.row_format.num_targets(row)
    ]
    LOG.info("%s: measuring the rate on %d further answers, as many as are written together", spec.where, len(prompts))
    started = time.monotonic()
    num_answers = sum(len(answers) for _, answers in backend.generate(backend.batches(prompts)))
    return (num_answers, time.monotonic() - started) if num_answers > num_shown else None


class _Memory(dict[bytes, Answer]):
    """Answers that are written nowhere."""

    def verdicts(self, key: bytes) -> dict[str, StoredVerdict]:
        """Return nothing: no answer was judged before."""
        return {}


def _rewritten(
    spec: "DistillationSpec", backend: Backend, originals: dict[int, dict[str, Any]], unchecked: UncheckedResults
) -> tuple[dict[int, dict[str, Any]], list[PreviewedAnswer]]:
    """Return the rows with their accepted answers in place, and what became of each answer."""
    row_format, rows, shown = spec.row_format, dict(originals), []
    answers = _Memory()
    judging = Judging.of(spec, answers)
    num_turns = {index: row_format.num_targets(row) for index, row in rows.items()}
    for turn in range(max(num_turns.values(), default=0)):
        targets = {index: row_format.target(row, turn) for index, row in rows.items() if num_turns[index] > turn}
        _generate(spec, backend, turn, rows, targets, judging, answers)
        for index, target in targets.items():
            settlement = spec.policy.select(judging.in_row(rows[index], turn), target)
            answer = settlement.answer or judging.answer(target, settlement.shown_attempt)
            doubt = unchecked.add(answer, settlement.target) if settlement.answer is not None else ""
            shown.append(PreviewedAnswer(index, turn, num_turns[index], settlement, answer, doubt))
            if settlement.answer is not None:
                rows[index] = row_format.with_answer(rows[index], turn, settlement.answer.text)
    return rows, shown


def _generate(
    spec: "DistillationSpec",
    backend: Backend,
    turn: int,
    rows: dict[int, dict[str, Any]],
    targets: dict[int, Target],
    judging: Judging,
    answers: _Memory,
) -> None:
    """Add as many attempts at one turn of the rows as the settings ask for."""
    for attempt in range(spec.policy.max_attempts):
        keys: dict[tuple[int, int], bytes] = {}
        prompts = []
        for index, target in targets.items():
            key = judging.key(target, attempt)
            if key in answers or key in keys.values():
                continue
            made = spec.policy.select(judging.in_row(rows[index], turn), target, attempt)
            if spec.policy.wants(made, attempt):
                keys[index, turn] = key
                prompts.append(judging.prompt((index, turn), target, attempt))
        if not prompts:
            continue
        for batch, given in backend.generate(backend.batches(prompts)):
            for prompt, answer in zip(batch, given, strict=True):
                key = keys.pop(prompt.key)
                answers[key] = StoredAnswer.of(key, answer).answer
        if keys:
            raise PluginError(
                f"backend {spec.config.generation.backend_name!r} ended without {len(keys)} of {len(prompts)} answers "
                "it was asked for; generate() must yield every batch that it draws"
            )


_NOT_COUNTED = "not counted: loading the model, or starting its server"
_LEAST_WIDTH = 100
_MOST_WIDTH = 200
_SHOWN_CHARS = 1200
_LABEL = 10


def answer_lines(shown: PreviewedAnswer, where: str, width: int | None) -> Iterator[str]:
    """Yield prompt, reference and rewritten answer with the verdict.

    Args:
        shown: The answer.
        where: What messages call its dataset.
        width: Columns of the terminal; None when the lines go into a file or a pipe, where nothing is wrapped.
    """
    turn = f", answer {shown.turn + 1} of {shown.num_turns}" if shown.num_turns > 1 else ""
    yield printable(f"--- {where}, row {shown.row}{turn}: {shown.verdict}".replace("\n", " "))
    texts = [_shown(text) for text in (shown.target.instruction, shown.target.reference, shown.answer.text)]
    labelled = list(zip(("prompt:", "reference:", "rewritten:"), texts, strict=True))
    if width is None or width < _LEAST_WIDTH:
        yield from fact_lines(labelled, width=width)
    else:
        yield from fact_lines(labelled[:1], label_width=_LABEL, width=width)
        left, right = ("\n".join(pair) for pair in labelled[1:])
        yield from side_by_side(left, right, min(width, _MOST_WIDTH))
    yield ""


def preview_lines(previewed: Preview, where: str, num_rows: int) -> Iterator[str]:
    """Yield acceptance, distribution gap and the time that the whole dataset would take.

    Args:
        previewed: The rows that were looked at.
        where: What messages call the dataset.
        num_rows: Rows of the whole dataset.
    """
    if not previewed.answers:
        reasons = previewed.left_alone.named()
        more = ". Show more rows to see whether others do" if previewed.num_rows < num_rows else ""
        yield printable(f"{where}: none of the {previewed.num_rows} rows holds an answer to rewrite: {reasons}{more}")
        return
    total = len(previewed.answers)
    rejected = ", ".join(f"{name} {count}" for name, count in previewed.rejections.most_common())
    yield (
        f"{where}: {previewed.num_accepted} of {total} answers accepted ({100 * previewed.num_accepted / total:.0f} %)"
        + (f", rejected: {rejected}" if rejected else "")
    )
    yield from (printable(sentence) for sentence in unchecked_sentences(previewed.unchecked_results))
    if previewed.left_alone.answers:
        yield printable(f"left alone: {previewed.left_alone.named()}")
    if previewed.gap is not None:
        yield f"distribution gap: {gap_text(*previewed.gap, previewed.is_pure_sample)}"
    if previewed.full_batch is None:
        measured = "at the rate of these rows"
    else:
        measured = f"at the rate of {previewed.full_batch[0]} answers that were written together"
    seconds = previewed.seconds_for(num_rows)
    yield f"time: about {duration(seconds)} for all {num_rows:,} rows, {measured} ({_NOT_COUNTED})"


def _shown(text: str) -> str:
    return printable(cut(text, _SHOWN_CHARS)).expandtabs(4)
