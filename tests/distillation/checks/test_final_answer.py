"""Which final numbers are equal, and where the final number of an answer is."""

import signal
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.errors import MissingExtraError
from axolotl_sdft.distillation.checks import numeric_answer, resolve_checks
from axolotl_sdft.distillation.checks.math_worker import Allowance, MathWorker
from tests.distillation.checks.samples import asked, written


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("She has 18 eggs.", "#### 18"),
        ("It costs $18.00", "The answer is 18."),
        ("That makes 36/2", "18"),
        ("The answer is 1,234 miles in 5 days.", "1234"),
        ("48 + 24 = 72 clips in April and May", "The answer is 72."),
        (r"So it is \boxed{\frac{1}{2}} of all 7.", "0.5"),
        (r"Therefore $x = \frac{36}{2}$.", "18"),
        (r"\(\sqrt{16}\)", "4"),
        ("10 - 15 = -5", "-5"),
        ("**Answer:** 50%", "50"),
        ("The answer is 5. They are 30/6 = 5 cups.", "5"),
        ("The answer is 5, since 2 + 3 = 5. Check: 2 + 2 = 4, one more is 5. The answer is 5.", "5"),
        ("The solution is 7.", "The answer is 7."),
    ],
)
def test_equal_numbers_are_equal_however_they_are_written(text: str, reference: str):
    assert numeric_answer(written(text), asked(reference=reference)) is None


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("总共需要36块砖。", "36"),
        ("合計は\uff11\uff0c\uff12\uff15\uff10\uff0e\uff15円です。", "1250.5"),
        ("ผลรวมคือ36", "36"),
        ("봉지마다 4개, 모두36개", "36"),
        ("一共5万元。", "50000"),
        ("総額は3億2千万円です。", "320000000"),
        ("모두 7만 원입니다.", "70000"),
        ("他走了3千米。", "3"),  # a unit, not thousands
        ("Cuesta 4 mil euros.", "4000"),
        ("Son 1,5 millones.", "1500000"),
        ("Es kostet 4 Mio. Euro.", "4000000"),
        ("Das sind 6 Milliarden.", "6e9"),
        ("Cela fait 6 milliards.", "6e9"),
        ("Это 9 тысяч.", "9000"),
        ("It costs 3 lakh rupees.", "300000"),
        ("It costs 1.5 crore.", "15000000"),
    ],
)
def test_numbers_are_read_in_other_languages_and_scripts(text: str, reference: str):
    assert numeric_answer(written(text), asked(reference=reference)) is None


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("一共5万元。", "5"),
        ("모두 7만 원입니다.", "7"),
        ("Cuesta 4 mil euros.", "4"),
        ("Son 2 millones.", "2"),
        ("Es kostet 4 Mio. Euro.", "4"),
        ("Это 9 млрд.", "9"),
        ("It costs 3 lakh rupees.", "3"),
        ("The side is 5.", "#### sqrt(5)"),
        ("The area is 9.", "#### 9*pi"),
        ("The area is 9 pi.", "9"),
        ("She lives in house B36", "36"),  # a letter of a script with spaces is a part of the word
    ],
)
def test_a_scale_a_root_or_pi_is_never_left_out(text: str, reference: str):
    assert numeric_answer(written(text), asked(reference=reference)) is not None


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("The answer is 17.", "The answer is 18.", "answer 17, reference 18"),
        ("18 eggs, so the answer is 9.", "18", "answer 9, reference 18"),
        ("The answer is -5.", "5", "answer -5, reference 5"),
        (r"\boxed{\sqrt{2}}", "2", r"answer \sqrt{2}, reference 2"),
        ("A lot of eggs.", "18", "no number, reference 18"),
        ("18", "A lot of eggs.", "the reference holds no number"),
        ("none", "none", "the reference holds no number"),
        ("The answer is 35. Check it. The solution is: 35 + 10 = 45.", "45", "answer 35 and 45, reference 45"),
        ("The answer is 35. Check it. The solution is: 35 + 10 = 45.", "35", "answer 45, reference 35"),
        ("The answer is 31. In the end, 22 + 17 = 38 people came.", "31", "answer 38, reference 31"),
        (r"\boxed{4} The answer is 5.", "5", "answer 4 and 5, reference 5"),
        (r"\boxed{9^{9^{9^9}}}", "9", "answer 9^{9^{9^9}}, reference 9"),
    ],
)
def test_another_number_or_none_is_rejected(text: str, reference: str, reason: str):
    assert numeric_answer(written(text), asked(reference=reference)) == reason


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("The answer is \N{MINUS SIGN}9.", "-9"),
        ("The answer is minus nine.", "-9"),
        ("The answer is \N{EN DASH} 9", "-9"),
        ("The answer is 2^6 cups.", "64"),
        ("The answer is 10\u2074.", "10000"),
        ("The answer is 6.5 \N{MULTIPLICATION SIGN} 10^3.", "6500"),
        ("The answer is 6.5e3", "6500"),
        ("The answer is 2 3/4 cups.", "2.75"),
        ("The answer is two and a quarter.", "2.25"),
        ("The answer is 4\u00bd.", "4.5"),
        ("The answer is two fifths.", "0.4"),
        ("The answer is sixty-three.", "63"),
        ("The answer is two thousand three hundred and four.", "2304"),
        ("The answer is half a dozen.", "6"),
        ("The answer is 2.4 million.", "2400000"),
        ("The answer is 3 400.", "3400"),
        ("The answer is 3.400,50", "3400.5"),
        ("The answer is 2,75", "2.75"),
        ("The answer is 40 per cent.", "40%"),
        ("The answer is 8 m^2.", "8"),
        ("The answer is 8 cm3.", "8"),
        ("The answer is 9:15 a.m.", "The answer is 9:15."),
        ("The answer is 21:05.", "The answer is 9:05 pm."),
        ("The answer is from 6 to 8.", "The answer is 6\N{EN DASH}8."),
        ("The answer is between 6 and 8.", "The answer is 6-8."),
        ("The answer is 2 : 5.", "The ratio is 2:5."),
        ("The answer is 7, 8 and 9.", "The answer is 9, 8, 7."),
        ("It is 5 ft 3 inches tall.", "The answer is 5 feet 3 inches."),
        ("y = 2 and x = 6", "The answer is x = 6, y = 2."),
        ("x = -3 or x = 3", "The answer is x = 3 or x = -3."),
        (r"\boxed{(1, 8)}", "The answer is (1, 8)."),
        (r"\boxed{\{8, 1\}}", r"\boxed{\{1, 8\}}"),
        ("The answer is C.", "The answer is C) 30"),
        ("The answer is 30.", "The answer is (C) 30."),
        ("It is not 6 but 9.", "9"),
        ("9, not 6", "9"),
        ("The answer is 9 (see table 4).", "9"),
        ("There are 9 of the 40 left after 2 weeks.", "9"),
        ("She has 9 left.\n\nNote: counted in 2021.", "9"),
        ("The answer is 9. Do you have 2 more questions?", "9"),
        ("The answer is 9 = 3 * 3.", "9"),
        ("The answer is one ninth, or 1/9.", "1/9"),
        (r"The answer is $4x+2$.", r"\boxed{2+4x}"),
        ("The answer is 3 May 1990.", "The answer is May 3."),
        (r"\boxed{\text{Friday}}", r"\boxed{\text{Friday}}"),
    ],
)
def test_a_result_is_the_same_in_any_notation(text: str, reference: str):
    assert numeric_answer(written(text), asked(reference=reference)) is None


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("The answer is minus 9.", "9"),
        ("The answer is 9.", "\N{MINUS SIGN}9"),
        ("The answer is 10^3.", "10"),
        ("The answer is 2 3/4.", "2"),
        ("The answer is 2.", "2 3/4"),
        ("The answer is 9 million.", "9 thousand"),
        ("The answer is 9 dozen.", "9"),
        ("The answer is 9:15.", "9"),
        ("The answer is 9:15 am.", "The answer is 9:15 pm."),
        ("The answer is 6-8.", "8"),
        ("The answer is 6 to 8.", "The answer is 6 to 9."),
        ("The answer is 2:5.", "The answer is 3:5."),
        ("The answer is 7 and 8.", "8"),
        ("The answer is 7 or 8.", "7"),
        ("The answer is 5 feet 4 inches.", "The answer is 5 feet 3 inches."),
        ("It takes 2 hours and 10 minutes.", "10"),
        ("x = 5, y = 2", "x = 6, y = 2"),
        ("x = 3", "x = 3 or x = -3"),
        ("The answer is (8, 1).", "The answer is (1, 8)."),
        ("The answer is (0, 1).", "The answer is [0, 1]."),
        ("The answer is D.", "The answer is C) 30"),
        ("The answer is C) 31", "The answer is C) 30"),
        ("She earns $9 an hour, that is $72 a day.", "9"),
        ("She earns $9 an hour, that is $72 a day.", "72"),
        ("The answer is 9. Wait, it is 8.", "9"),
        ("The answer is at least 9.", "9"),
        ("The answer is 9x.", "9"),
        (r"The answer is $9\pi$.", "9"),
        ("The answer is 4.2.9", "4.2"),
        ("The answer is 2024-03-04.", "The answer is 2024-03-05."),
        ("The answer is $x < 9$.", "The answer is $x > 9$."),
        (r"\boxed{9} or \boxed{8}", "9"),
        ("The answer is 5 hours.", "The answer is 5 minutes."),
        ("The answer is 9 = 4 * 2.", "9"),
    ],
)
def test_a_part_of_a_result_is_another_result(text: str, reference: str):
    assert numeric_answer(written(text), asked(reference=reference)) is not None


def test_the_question_tells_what_is_a_unit_and_whether_a_bound_was_asked_for():
    eggs, boxes = (
        asked("How many dozen eggs are left?", "#### 4"),
        asked("At least how many boxes are needed?", "#### 4"),
    )
    assert numeric_answer(written("He has 4 dozen eggs left."), eggs) is None
    assert numeric_answer(written("He needs at least 4 boxes."), boxes) is None


HANGS = r"\boxed{\left(x+\sqrt{x+\sqrt{2}}\right)^{900}}"


def test_an_expression_that_takes_too_long_is_rejected_in_any_thread():
    reasons: list[str | None] = []
    target = asked(reference=r"\boxed{\left(\sqrt{\sqrt{2}+x}+x\right)^{901}}")
    worker = threading.Thread(target=lambda: reasons.append(numeric_answer(written(HANGS), target)))
    worker.start()
    worker.join(600)
    assert len(reasons) == 1
    assert reasons != [None]


def test_the_worker_ends_a_comparison_when_its_time_is_up_and_answers_the_next():
    worker = MathWorker()
    assert worker.are_equal("2^{3}", "8", Allowance(20)) is True
    assert worker.are_equal("9^{9^{9^{9}}}", "9^{9^{9^{8}}}", Allowance(0.5)) is None
    assert worker.are_equal(r"\frac{1}{2}", "0.4", Allowance(20)) is False
    worker.close()


def test_the_comparisons_of_an_answer_share_one_allowance_of_computing():
    worker, allowance = MathWorker(), Allowance(20)
    assert worker.are_equal(r"\sqrt{8}", r"2\sqrt{2}", allowance) is True
    assert 15 < allowance.left_s < 20
    allowance.left_s = 0.3
    assert worker.are_equal("9^{9^{9^{9}}}", "9^{9^{9^{8}}}", allowance) is None
    assert allowance.left_s == 0
    assert worker.are_equal("2^{3}", "8", allowance) is None
    worker.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system can't halt a process")
def test_a_machine_that_is_busy_with_other_things_takes_nothing_from_the_allowance():
    worker = MathWorker()
    assert worker.are_equal("2^{3}", "8", Allowance(20)) is True
    process = worker._process
    process.send_signal(signal.SIGSTOP)
    halted = threading.Timer(1.5, process.send_signal, [signal.SIGCONT])
    halted.start()
    assert worker.are_equal(r"\sqrt{8}", r"2\sqrt{2}", Allowance(1.0)) is True
    halted.join()
    worker.close()


@given(
    st.integers(-999, 999), st.sampled_from(["So she has {} apples.", "#### {}", "**{}** km", "The answer is {} cups."])
)
def test_a_plain_number_with_its_unit_is_accepted_and_its_neighbour_is_not(number: int, sentence: str):
    target = asked(reference=f"#### {number}")
    assert numeric_answer(written(sentence.format(number)), target) is None
    assert numeric_answer(written(sentence.format(number + 1)), target) is not None


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_whole_numbers_agree_exactly_when_they_are_the_same(answer: int, reference: int):
    target = asked(reference=f"The answer is {reference:,}.")
    assert (numeric_answer(written(f"I get {answer}."), target) is None) == (answer == reference)
    assert numeric_answer(written(f"I get {reference}.0"), target) is None


def test_expressions_are_compared_outside_the_main_thread_as_well():
    reasons: list[str | None] = []
    target = asked(reference="18")
    worker = threading.Thread(target=lambda: reasons.append(numeric_answer(written(r"\boxed{\frac{36}{2}}"), target)))
    worker.start()
    worker.join()
    assert reasons == [None]


def test_a_missing_math_verify_shows_when_the_checks_are_resolved(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"numeric_answer, which needs math-verify.*pip install math-verify"):
        resolve_checks(["numeric_answer"])
