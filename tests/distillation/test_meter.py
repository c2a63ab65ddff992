from axolotl_sdft.distillation.interfaces import Answer, Prompt, Target
from axolotl_sdft.distillation.meter import Meter
from axolotl_sdft.distillation.verdicts import Policy

QUESTION = ({"role": "user", "content": "What?"},)


def meter_after(*texts):
    """A meter that has seen these answers; the check passes those that start with a capital."""
    meter = Meter(Policy([("capital", lambda answer, target: None if answer.text[:1].isupper() else "small")]))
    batch = [Prompt((row, 0), QUESTION) for row in range(len(texts))]
    meter.expect((prompt.key, Target(QUESTION, "x")) for prompt in batch)
    return meter, meter.figures(batch, [Answer(text, "stop", 10) for text in texts])


def test_the_share_that_passes_is_shown_beside_the_speed():
    _, figures = meter_after("Yes", "no", "Yes", "Yes")

    assert figures["pass"] == "75 %"
    assert int(figures["tokens/s"]) > 0


def test_of_many_answers_a_sample_is_judged():
    # All of the first 256 pass; of the 160 after them, every sixteenth is judged: 10 of 266 fail.
    _, figures = meter_after(*["Yes"] * 256, *["no"] * 160)

    assert figures["pass"] == f"{100 * 256 / 266:.0f} %"


def test_what_is_still_to_come_is_known():
    meter, _ = meter_after("Yes")
    assert meter.num_expected == 0
    meter.expect([((5, 0), Target(QUESTION, "x"))])
    assert meter.num_expected == 1


def test_answers_that_need_no_further_attempt_are_counted_once():
    meter, _ = meter_after("Yes")
    meter.skip()
    meter.skip()
    assert (meter.newly_settled(), meter.newly_settled()) == (2, 0)
