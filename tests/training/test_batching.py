from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import filled_places, join_batches, label_mask
from tests.training.micro_batches import make_llama


def batch(**rows: list[Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in rows.items()}


def tokens(num_rows: int, length: int, **others: Any) -> dict[str, Any]:
    """A batch of given size with its own token numbers, all of them trained."""
    input_ids = torch.arange(num_rows * length).reshape(num_rows, length) % 60 + 1
    return {"input_ids": input_ids, "labels": input_ids.clone(), **others}


def packed(*lengths: int) -> dict[str, torch.Tensor]:
    """One row of samples of these lengths, told apart by position ids that start again."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return tokens(1, sum(lengths), position_ids=positions)


def test_a_trained_label_is_predicted_one_position_before_it():
    mask = label_mask(batch(labels=[[5, 6, -100, 7], [-100, -100, 8, 9]]))
    assert mask.tolist() == [[True, False, True, False], [False, True, True, False]]


def test_labels_that_come_shifted_are_taken_as_they_are():
    mask = label_mask(batch(labels=[[1, 2, 3]], shift_labels=[[2, -100, 4]]))
    assert mask.tolist() == [[True, False, True]]


@pytest.mark.parametrize(("inputs", "found"), [({}, "missing"), ({"labels": torch.tensor([0, 1])}, r"of shape \(2,\)")])
def test_labels_that_are_no_rows_of_tokens_are_refused(inputs: dict[str, Any], found: str):
    with pytest.raises(ConfigError, match=f"dynsdpb: labels are {found}.*train this model without the dynsdpb block"):
        label_mask(inputs)


def test_previous_rows_come_first_and_shorter_rows_are_padded_on_the_right():
    previous = batch(
        input_ids=[[1, 2, 3]], labels=[[-100, 2, 3]], attention_mask=[[1, 1, 1]], token_type_ids=[[1, 1, 1]]
    )
    new = batch(input_ids=[[4, 5]], labels=[[4, 5]], attention_mask=[[1, 1]], token_type_ids=[[1, 1]])
    assert {name: value.tolist() for name, value in join_batches(previous, new, 9).items()} == {
        "input_ids": [[1, 2, 3], [4, 5, 9]],
        "labels": [[-100, 2, 3], [4, 5, -100]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "token_type_ids": [[1, 1, 1], [1, 1, 0]],
    }


def test_the_padding_of_packed_rows_is_a_packed_sample_of_its_own():
    joined = join_batches(packed(3, 2), packed(2), 9)
    assert joined["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert "attention_mask" not in joined


@pytest.mark.parametrize("one_row", [False, True])
def test_where_rows_were_filled_up_is_told(one_row: bool):
    previous, new = packed(3, 2), packed(2)
    filled = filled_places(previous, new, join_batches(previous, new, 9, one_row=one_row))
    assert filled.long().tolist() == ([[0] * 7] if one_row else [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])


def test_padding_where_there_was_none_brings_a_mask():
    joined = join_batches(tokens(1, 2), tokens(1, 3), 9)
    assert joined["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert "attention_mask" not in join_batches(tokens(1, 3), tokens(1, 3), 9)


def test_other_tensors_are_joined_row_by_row_and_equal_settings_kept():
    previous = tokens(2, 3, pixel_values=torch.zeros(2, 3, 4, 4), use_cache=False)
    joined = join_batches(previous, tokens(1, 5, pixel_values=torch.ones(1, 3, 4, 4), use_cache=False), 0)
    assert joined["pixel_values"].sum(dim=(1, 2, 3)).tolist() == [0.0, 0.0, 48.0]
    assert joined["use_cache"] is False


@pytest.mark.parametrize(
    ("previous", "new"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(1, 5, 5)),  # widths that differ
        (torch.zeros(3), torch.zeros(1)),  # not one entry per row
        (torch.tensor(1.0), torch.tensor(1.0)),
        (True, False),
        ("a", torch.zeros(1)),
        ([[1, 2]], [[1, 2]]),  # entries of each batch, though they are equal
    ],
)
def test_an_input_that_cannot_be_joined_is_named(previous: Any, new: Any):
    with pytest.raises(ConfigError, match=r"dynsdpb: input 'extra' \(.*can't be joined"):
        join_batches(tokens(2, 4, extra=previous), tokens(1, 5, extra=new), 0)


def test_flash_attention_offsets_are_never_joined_as_if_they_were_rows():
    offsets = torch.tensor([0, 3])
    with pytest.raises(ConfigError, match="input 'cu_seq_lens_q'"):
        join_batches(tokens(2, 3, cu_seq_lens_q=offsets), tokens(2, 3, cu_seq_lens_q=offsets), 0)


def test_an_input_of_only_one_batch_is_named():
    with pytest.raises(ConfigError, match="inputs attention_mask came with only one of two successive batches"):
        join_batches(tokens(1, 3, attention_mask=torch.ones(1, 3)), tokens(1, 3), 0)


def test_joining_changes_neither_batch():
    previous, new = tokens(1, 2), tokens(1, 3)
    join_batches(previous, new, 0)
    assert set(previous) == set(new) == {"input_ids", "labels"}
    assert (previous["input_ids"].shape, new["input_ids"].shape) == ((1, 2), (1, 3))


def test_packed_rows_can_be_joined_end_to_end():
    previous = packed(3, 2) | batch(cu_seq_lens_q=[0, 3, 5]) | {"max_length_q": 3}
    new = packed(4) | batch(cu_seq_lens_q=[0, 4]) | {"max_length_q": 4}
    joined = join_batches(previous, new, 0, one_row=True)
    assert joined["input_ids"].tolist() == [[1, 2, 3, 4, 5, 1, 2, 3, 4]]
    # The new row's first token was predicted by nothing, and still is.
    assert joined["labels"].tolist() == [[1, 2, 3, 4, 5, -100, 2, 3, 4]]
    assert joined["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert (joined["cu_seq_lens_q"].tolist(), joined["max_length_q"]) == ([0, 3, 5, 9], 4)


def test_packed_samples_of_two_batches_never_have_one_number():
    previous = packed(3, 2) | {"seq_idx": torch.tensor([[0, 0, 0, 1, 1]], dtype=torch.int32)}
    new = packed(1, 2) | {"seq_idx": torch.tensor([[0, 1, 1]], dtype=torch.int32)}
    joined = join_batches(previous, new, 0, one_row=True)
    assert joined["seq_idx"].tolist() == [[0, 0, 0, 1, 1, 2, 3, 3]]
    assert joined["seq_idx"].dtype == torch.int32  # kernels take no other


def test_end_to_end_drops_a_mask_that_masks_nothing_and_leaves_padded_rows_apart():
    full, cut = batch(attention_mask=[[1, 2, 2]]), batch(attention_mask=[[1, 1, 0]])
    assert "attention_mask" not in join_batches(packed(1, 2) | full, packed(1, 2) | full, 0, one_row=True)
    assert join_batches(packed(1, 2) | full, packed(1, 2) | cut, 0, one_row=True)["input_ids"].shape == (2, 3)


def label_logits(model: LlamaForCausalLM, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits[label_mask(inputs)]


row_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def padded(lengths: list[int]) -> dict[str, torch.Tensor]:
    rows = tokens(len(lengths), max(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": rows["input_ids"],
        "labels": rows["labels"].masked_fill(mask == 0, -100),
        "attention_mask": mask,
    }


@settings(max_examples=25)
@given(row_lengths, row_lengths)
def test_one_joined_pass_over_padded_rows_predicts_what_two_passes_do(
    previous_lengths: list[int], new_lengths: list[int]
):
    model, previous, new = make_llama(), padded(previous_lengths), padded(new_lengths)
    apart = torch.cat([label_logits(model, previous), label_logits(model, new)])
    torch.testing.assert_close(label_logits(model, join_batches(previous, new, 0)), apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("one_row", [False, True])
def test_one_joined_pass_over_packed_rows_predicts_what_each_sample_alone_does(attention: str, one_row: bool):
    # With a cache, transformers takes a row for one sample whatever its position ids say.
    model = make_llama(attn_implementation=attention, use_cache=False)
    previous, new = packed(3, 4, 2), packed(5, 1)
    joined = label_logits(model, join_batches(previous, new, 0, one_row=one_row))
    # Token numbers count up through a packed row: 1 2 3, 4 5 6 7, 8 9 and 1 2 3 4 5, 6.
    samples = [torch.arange(start, stop)[None] for start, stop in ((1, 4), (4, 8), (8, 10), (1, 6), (6, 7))]
    with torch.no_grad():
        alone = [model(sample).logits[0] for sample in samples]
    # In each row every position but the last predicts a label.
    expected = torch.cat([*alone[:2], alone[2][:-1], alone[3]])
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-5)
