from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.seeds import attempt_temperature, sampling_seed

numbers = st.integers(0, 2**40)


def test_the_seed_of_an_answer_is_the_same_in_every_process():
    # sha256("42 3 1 0") starts with e0fbc6b95cce2219; half of that number.
    assert sampling_seed(42, (3, 1)) == 0xE0FBC6B95CCE2219 // 2


@given(st.tuples(numbers, numbers, numbers, numbers), st.tuples(numbers, numbers, numbers, numbers))
def test_seeds_differ_where_setting_row_turn_or_attempt_do(one, other):
    seeds = [sampling_seed(seed, (row, turn), attempt) for seed, row, turn, attempt in (one, other)]
    assert (seeds[0] == seeds[1]) == (one == other)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_attempts_after_the_first_are_sampled_even_where_the_first_is_not():
    assert [attempt_temperature(0.0, attempt) for attempt in range(3)] == [0.0, 0.7, 0.7]
    assert [attempt_temperature(0.3, attempt) for attempt in range(3)] == [0.3, 0.3, 0.3]
