import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.generation import journal_files
from axolotl_sdft.distillation.generation.journal_files import AnswerIndex, key_bytes, keys_array


def key(first, second=0):
    return first.to_bytes(8, "big") + second.to_bytes(8, "big")


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_keys_come_back_from_their_array_as_they_were(keys):
    assert list(key_bytes(keys_array(keys))) == keys


# Few numbers, so that keys share their first or their second half, or both.
places = st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 2**60), st.integers(0, 2**32 - 1))


@given(added=st.lists(places, max_size=60), merge_at=st.integers(1, 20))
def test_the_index_agrees_with_a_dictionary_of_lists(added, merge_at):
    expected, index = {}, AnswerIndex()
    journal_files._MIN_MERGE, usual = merge_at, journal_files._MIN_MERGE
    try:
        for first, second, place, length in added:
            expected.setdefault(key(first, second), []).append((place, length))
            index.add(key(first, second), place, length)
            assert index.find(key(first, second)) == expected[key(first, second)]
        asked = [key(first, second) for first in range(8) for second in range(5)]
        assert index.holds(keys_array(asked)).tolist() == [one in expected for one in asked]
        assert [index.find(one) for one in asked] == [expected.get(one, []) for one in asked]
        assert (list(index), len(index)) == (sorted(expected), len(added))
    finally:
        journal_files._MIN_MERGE = usual


def test_keys_that_share_their_first_half_are_not_confused():
    index = AnswerIndex()
    index.add(key(1, 2), 10, 1)
    index._merge()

    assert index.holds(keys_array([key(1, 2), key(1, 3), key(2, 2)])).tolist() == [True, False, False]
    assert np.array_equal(index.find(key(1, 3)), [])
