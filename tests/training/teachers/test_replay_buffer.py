import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.training.teachers.replay_buffer import PreviousMiniBatch


def fill(memory: PreviousMiniBatch, *names: str) -> None:
    for name in names:
        memory.remember({"name": name}, {"logits": torch.zeros(len(name), 3)})


def taken(memory: PreviousMiniBatch, places: int) -> list[str | None]:
    micro_batches = [memory.take() for _ in range(places)]
    return [None if micro_batch is None else micro_batch.inputs["name"] for micro_batch in micro_batches]


def test_the_first_window_repeats_nothing():
    memory = PreviousMiniBatch()
    assert memory.begin_window(2) == []
    assert taken(memory, 2) == [None, None]


def test_each_place_is_matched_with_the_same_place_of_the_window_before():
    memory = PreviousMiniBatch()
    memory.begin_window(2)
    fill(memory, "a", "bb")
    repeated = memory.begin_window(2)
    assert [micro_batch.num_tokens for micro_batch in repeated] == [1, 2]
    assert taken(memory, 2) == ["a", "bb"]


def test_nothing_is_repeated_within_one_window():
    memory = PreviousMiniBatch()
    memory.begin_window(2)
    fill(memory, "a")
    assert memory.take() is None


def test_a_shorter_window_leaves_the_surplus_unrepeated_and_uncounted():
    memory = PreviousMiniBatch()
    memory.begin_window(2)
    fill(memory, "a", "b")
    assert len(memory.begin_window(1)) == 1
    assert taken(memory, 2) == ["a", None]


def test_a_window_after_a_shorter_one_repeats_what_there_is():
    memory = PreviousMiniBatch()
    memory.begin_window(1)
    fill(memory, "a")
    assert len(memory.begin_window(2)) == 1
    assert taken(memory, 2) == ["a", None]


def test_a_window_without_micro_batches_changes_nothing():
    memory = PreviousMiniBatch()
    memory.begin_window(1)
    fill(memory, "a")
    assert memory.begin_window(0) == []
    assert len(memory.begin_window(1)) == 1


def test_what_is_remembered_is_a_constant_and_keeps_the_callers_dictionary_out():
    memory = PreviousMiniBatch()
    memory.begin_window(1)
    inputs = {"embeds": torch.ones(1, requires_grad=True), "flag": True}
    memory.remember(inputs, {"logits": torch.ones(1, 2, requires_grad=True)})
    inputs.clear()
    (kept,) = memory.begin_window(1)
    assert not kept.inputs["embeds"].requires_grad
    assert not kept.kept["logits"].requires_grad
    assert kept.inputs["flag"] is True


def test_clearing_forgets_everything_and_closes_the_window():
    memory = PreviousMiniBatch()
    memory.begin_window(1)
    fill(memory, "a")
    memory.clear()
    assert not memory.is_open
    assert memory.begin_window(1) == []


def test_a_restored_window_is_repeated_as_if_it_had_been_remembered():
    memory, resumed = PreviousMiniBatch(), PreviousMiniBatch()
    memory.begin_window(2)
    fill(memory, "a", "bb")
    resumed.restore(memory.window)
    assert [micro_batch.num_tokens for micro_batch in resumed.begin_window(2)] == [1, 2]
    assert taken(resumed, 2) == ["a", "bb"]


def test_what_is_offloaded_is_on_the_cpu_and_equal():
    memory, logits = PreviousMiniBatch(), torch.randn(2, 3)
    memory.begin_window(1)
    memory.remember({}, {"logits": logits}, cpu_offload=True)
    kept = memory.window[0].kept["logits"]
    assert (kept.device.type, kept.tolist()) == ("cpu", logits.tolist())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_any_row_of_window_sizes_repeats_the_common_places(sizes: list[int]):
    memory, previous_size = PreviousMiniBatch(), 0
    for window, size in enumerate(sizes):
        repeated = memory.begin_window(size)
        common = min(size, previous_size)
        expected = [f"{window - 1}/{place}" for place in range(common)]
        assert [micro_batch.inputs["name"] for micro_batch in repeated] == expected
        assert taken(memory, size) == expected + [None] * (size - common)
        fill(memory, *(f"{window}/{place}" for place in range(size)))
        previous_size = size
