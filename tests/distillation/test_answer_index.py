import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation import answer_index
from axolotl_sdft.distillation.answer_index import AnswerIndex, pack, pack_rows, unpack

keys = st.tuples(st.integers(0, 2**39 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**8 - 1))


@given(keys)
def test_a_packed_key_is_unpacked_to_itself(key):
    assert unpack(pack(*key)) == key


@given(keys, keys)
def test_packed_keys_are_ordered_by_row_then_turn_then_attempt(one, other):
    assert (pack(*one) < pack(*other)) == (one < other)


def test_many_rows_are_packed_like_single_ones():
    assert pack_rows(np.array([0, 3, 2**30]), 2, 1).tolist() == [pack(0, 2, 1), pack(3, 2, 1), pack(2**30, 2, 1)]


@given(
    added=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**60), st.integers(0, 2**32 - 1)), max_size=60),
    merge_at=st.integers(1, 20),
)
def test_the_index_agrees_with_a_dictionary_that_keeps_the_first_place(added, merge_at):
    expected, index = {}, AnswerIndex()
    answer_index._LEAST_MERGE, usual = merge_at, answer_index._LEAST_MERGE
    try:
        for key, place, length in added:
            expected.setdefault(key, (place, length))
            index.add(key, place, length)
            assert index.find(key) == expected[key]
        asked = np.arange(45)
        assert index.holds(asked).tolist() == [key in expected for key in range(45)]
        assert [index.find(key) for key in range(45)] == [expected.get(key) for key in range(45)]
        assert (list(index), len(index)) == (sorted(expected), len(expected))
    finally:
        answer_index._LEAST_MERGE = usual
