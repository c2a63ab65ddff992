import math
import re

import numpy as np
import pytest
from datasets import Dataset

from axolotl_sdft.core.errors import PluginError
from axolotl_sdft.distillation.output.gap import measure_answers, measure_gap
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Target
from tests.distillation.echo_backend import EchoBackend
from tests.distillation.test_pipeline import echo_config


class Likelihoods(EchoBackend):
    """Tells the number that an answer ends in, and remembers what it was asked."""

    def __init__(self):
        super().__init__(None, None)
        self.asked = []

    def answer_nll(self, targets):
        self.asked.append([text for _, text in targets])
        return [float(text.split()[-1]) for _, text in targets]


def target(text, question="How much?"):
    return Target(({"role": "user", "content": question},), text)


def alpaca(answers, reasons=None):
    rows = [{"instruction": "How much?", "input": "", "output": answer} for answer in answers]
    if reasons is not None:
        rows = [{**row, "sdft_reasons": [reason]} for row, reason in zip(rows, reasons, strict=True)]
    return Dataset.from_list(rows)


def task_of(tmp_path, seed_dir, rows, **settings):
    return DistillationSpec(rows, echo_config(tmp_path, **settings), seed_dir, {"type": "alpaca"}, "seed")


def test_an_answer_that_stays_is_measured_once():
    backend = Likelihoods()

    told = measure_answers(backend, [(target("a 3"), target("a 3")), (target("b 4"), target("c 1"))])

    assert told == [(3.0, 3.0), (4.0, 1.0)]
    assert backend.asked == [["a 3", "b 4", "c 1"]]


def test_an_answer_that_stays_after_another_context_is_measured_again():
    backend = Likelihoods()
    measure_answers(backend, [(target("a 3"), target("a 3", "Is it 5?"))])
    assert backend.asked == [["a 3", "a 3"]]


@pytest.mark.usefixtures("echo_plugin")
def test_the_gap_is_a_mean_per_answer_with_the_share_that_came_closer(tmp_path, seed_dir):
    spec = task_of(tmp_path, seed_dir, alpaca(["a 4", "b 2", "c 3", "d 7"]))
    distilled = alpaca(["x 1", "b 2", "y 5", "z 6"], ["", "leak: says so", "", ""])

    gap = measure_gap(spec, Likelihoods(), distilled, np.arange(4))

    assert gap.to_json() == {
        "answers": 4,
        "nats_per_token_before": 4.0,
        "nats_per_token_after": 3.5,
        "closed_share": 0.5,
        "rows": [
            {"row": 0, "turn": 0, "before": 4.0, "after": 1.0},
            {"row": 1, "turn": 0, "before": 2.0, "after": 2.0},
            {"row": 2, "turn": 0, "before": 3.0, "after": 5.0},
            {"row": 3, "turn": 0, "before": 7.0, "after": 6.0},
        ],
    }
    assert [(answer.row, pair.answer, pair.verdict) for answer, pair in gap.widest] == [
        (3, "z 6", "rewritten"),
        (2, "y 5", "rewritten"),
        (1, None, "original kept: leak: says so"),
        (0, "x 1", "rewritten"),
    ]


@pytest.mark.usefixtures("echo_plugin")
def test_rows_keep_the_numbers_that_they_had_before_others_were_dropped(tmp_path, seed_dir):
    spec = task_of(tmp_path, seed_dir, alpaca(["a 4", "b 2", "c 3"]))

    gap = measure_gap(spec, Likelihoods(), alpaca(["x 1", "y 9"], ["", ""]), np.array([0, 2]))

    assert [(answer.row, answer.before, answer.after) for answer in gap.answers] == [(0, 4.0, 1.0), (2, 3.0, 9.0)]


@pytest.mark.usefixtures("echo_plugin")
def test_many_rows_are_measured_in_parts_and_the_widest_of_all_are_kept(tmp_path, seed_dir):
    before, after = [f"a {n}" for n in range(600)], [f"b {n * 7 % 600}" for n in range(600)]
    backend = Likelihoods()

    gap = measure_gap(
        task_of(tmp_path, seed_dir, alpaca(before), gap_samples=600), backend, alpaca(after, [""] * 600), np.arange(600)
    )

    assert [len(asked) for asked in backend.asked] == [512, 512, 176]
    assert [answer.after for answer, _ in gap.widest] == [599.0 - place for place in range(10)]


@pytest.mark.usefixtures("echo_plugin")
@pytest.mark.parametrize(
    ("told", "settings", "why"),
    [
        (lambda count: None, {}, "backend echo can't tell how likely a given answer is"),
        (lambda count: [math.nan] * count, {}, "none of the sampled rows holds .* a finite likelihood"),
        (lambda count: [1.0] * count, {"gap_samples": 0}, "self_distillation.gap_samples is 0"),
    ],
)
def test_a_gap_that_is_not_known_says_why(tmp_path, seed_dir, told, settings, why, monkeypatch):
    monkeypatch.setattr(EchoBackend, "answer_nll", lambda self, targets: told(len(targets)))
    spec = task_of(tmp_path, seed_dir, alpaca(["a 4"]), **settings)

    gap = measure_gap(spec, EchoBackend(None, None), alpaca(["x 1"], [""]), np.arange(1))

    assert gap.to_json() is None
    assert re.fullmatch(why, gap.why_unknown)


def test_a_backend_that_tells_of_too_few_answers_is_refused(monkeypatch):
    monkeypatch.setattr(EchoBackend, "answer_nll", lambda self, targets: [1.0])
    with pytest.raises(PluginError, match="EchoBackend was asked about 2 answers and told of 1; it must return one"):
        measure_answers(EchoBackend(None, None), [(target("a"), target("b"))])
