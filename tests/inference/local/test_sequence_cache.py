import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from axolotl_sdft.inference.local.sequence_cache import RowCache

HEADS, SIZE = 2, 3


class SlowCache:
    """The same with a list of tokens per row."""

    def __init__(self):
        self.rows = []

    def admit(self, rows):
        self.rows.extend(rows)

    def decode(self, states):
        self.rows = [torch.cat([row, state], dim=1) for row, state in zip(self.rows, states, strict=True)]

    def remove(self, place):
        self.rows[place] = self.rows[-1]
        self.rows.pop()


def admit(cache, rows):
    """Bring rows [H, T, D] into a cache, padded on the right with what must not be seen."""
    width = max(row.shape[1] for row in rows)
    padded = torch.full((len(rows), HEADS, width, SIZE), float("nan"))
    for place, row in enumerate(rows):
        padded[place, :, : row.shape[1]] = row
    prefilled = DynamicCache()
    prefilled.update(padded, -padded, 0)
    cache.admit(prefilled, [row.shape[1] for row in rows])


@settings(max_examples=60)
@given(st.data())
def test_each_row_holds_its_own_tokens_whatever_joins_leaves_and_is_decoded(data):
    cache, slow = RowCache(), SlowCache()
    for _ in range(data.draw(st.integers(1, 6), "rounds")):
        lengths = data.draw(st.lists(st.integers(0, 90), min_size=0 if slow.rows else 1, max_size=3), "joining")
        if lengths:
            rows = [torch.randn(HEADS, length, SIZE) for length in lengths]
            admit(cache, rows)
            slow.admit(rows)
        for _ in range(data.draw(st.integers(0, 70), "steps")):
            states = torch.randn(len(slow.rows), HEADS, 1, SIZE)
            cache.make_room()
            keys, values = cache.update(states, -states, 0)
            mask = cache.attention_mask().bool()
            cache.advance()
            slow.decode(states)
            assert cache.get_mask_sizes(1, 0) == (keys.shape[2] + 1, 0)
            for place, expected in enumerate(slow.rows):
                assert torch.equal(keys[place, :, mask[place]], expected)
                assert torch.equal(values[place, :, mask[place]], -expected)
            assert not keys.isnan().any(), "even a masked NaN would spoil its row"
        for place in sorted(data.draw(st.sets(st.integers(0, len(slow.rows) - 1)), "leaving"), reverse=True):
            cache.remove(place)
            slow.remove(place)
        assert cache.lengths == [row.shape[1] for row in slow.rows]


def test_columns_of_a_long_row_are_no_longer_read_when_it_has_left():
    cache = RowCache()
    admit(cache, [torch.randn(HEADS, 50, SIZE), torch.randn(HEADS, 4, SIZE)])

    cache.remove(0)

    states = torch.randn(1, HEADS, 1, SIZE)
    assert cache.update(states, states, 0)[0].shape == (1, HEADS, 5, SIZE)
    assert cache.attention_mask().tolist() == [[1, 1, 1, 1, 1]]


def test_room_is_made_for_64_tokens_at_a_time():
    cache = RowCache()
    admit(cache, [torch.randn(HEADS, 4, SIZE)])
    rooms = set()
    for _ in range(129):
        cache.make_room()
        states = torch.randn(1, HEADS, 1, SIZE)
        cache.update(states, states, 0)
        cache.advance()
        rooms.add(cache.num_columns)

    assert rooms == {68, 132, 196}
