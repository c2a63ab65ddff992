from contextlib import contextmanager
from functools import partial

import pytest

from axolotl_sdft.distillation.generation import rounds
from axolotl_sdft.distillation.generation.rounds import RoundStats
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer
from tests.distillation.echo_backend import EchoBackend
from tests.distillation.test_pipeline import alpaca_rows, echo_config


def test_the_share_that_passes_is_shown_beside_the_speed():
    meter = RoundStats()

    meter.figures([Answer("Yes", "stop", 10)] * 2, [None, None])
    figures = meter.figures([Answer("no", "stop", 10)] * 2, [("check", "why"), None])

    assert figures["pass"] == "75 %"
    assert int(figures["tokens/s"]) > 0
    assert figures["asked"] == "4"


def test_answers_that_need_not_be_asked_for_are_counted_once():
    meter = RoundStats()
    meter.skip()
    meter.skip()
    assert (meter.newly_settled(), meter.newly_settled()) == (2, 0)


def test_likelihoods_are_noticed():
    meter = RoundStats()
    meter.figures([Answer("a", "stop", 1)], [None])
    assert not meter.has_likelihoods
    meter.figures([Answer("a", "stop", 1, mean_logprob=-0.5)], [None])
    assert meter.has_likelihoods


@pytest.mark.usefixtures("echo_plugin")
def test_the_model_is_loaded_before_the_time_of_the_answers_counts_and_not_where_all_are_there(
    tmp_path, seed_dir, monkeypatch
):
    happened = []
    progress = rounds.progress

    @contextmanager
    def watched(*args):
        happened.append("clock")
        with progress(*args) as shown:
            yield shown

    monkeypatch.setattr(rounds, "progress", watched)
    monkeypatch.setattr(EchoBackend, "load", lambda self: happened.append("load"), raising=False)
    spec = partial(
        DistillationSpec, alpaca_rows(3), seed_dir=seed_dir, dataset_config={"type": "alpaca"}, seed_name="s"
    )
    run_distillation(spec(config=echo_config(tmp_path)))
    assert happened == ["load", "clock"]

    run_distillation(spec(config=echo_config(tmp_path, on_reject="drop")))  # the same answers, another dataset
    assert happened == ["load", "clock"]
