from axolotl_sdft.distillation.generation.rounds import RoundStats
from axolotl_sdft.inference.interfaces import Answer


def test_the_share_that_passes_is_shown_beside_the_speed():
    meter = RoundStats()

    meter.figures([Answer("Yes", "stop", 10)] * 2, [None, None])
    figures = meter.figures([Answer("no", "stop", 10)] * 2, [("check", "why"), None])

    assert figures["pass"] == "75 %"
    assert int(figures["tokens/s"]) > 0


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
