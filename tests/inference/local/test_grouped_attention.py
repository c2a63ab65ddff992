import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from axolotl_sdft.inference.local import sequence_cache
from axolotl_sdft.inference.local.sequence_cache import row_blocks, use_grouped_attention
from tests.inference.decoders import tiny_model

LENGTHS = [40, 38, 30, 22, 22, 20, 9, 8, 8, 7, 5, 5, 3, 2, 2, 1, 1, 0, 30]


class Layer(nn.Module):
    num_key_value_groups = 3
    is_causal = True


def inputs(rows, queries, tokens, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(rows, heads, length, 8, generator=generator, dtype=dtype)
        for heads, length in ((6, queries), (2, tokens), (2, tokens))
    )
    return Layer(), query, key, value


@pytest.mark.parametrize("device", ["cpu", "meta"])  # only on a CPU by blocks of rows; the sums are made on one anyway
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_a_single_query_attends_as_with_expanded_keys(device, scaling):
    layer, query, key, value = inputs(len(LENGTHS), 1, 41)
    mask = torch.arange(41) >= 40 - torch.tensor(LENGTHS)[:, None]
    mask = mask[:, None, None]
    expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=scaling)

    with row_blocks(LENGTHS, torch.device(device)):
        attended, weights = sequence_cache._grouped_attention(layer, query, key, value, mask, scaling=scaling)

    assert weights is None
    torch.testing.assert_close(attended, expected)


def test_columns_that_no_row_of_a_block_uses_are_not_read():
    layer, query, key, value = inputs(16, 1, 41)
    lengths = [40] * 8 + [3] * 8
    mask = (torch.arange(41) >= 40 - torch.tensor(lengths)[:, None])[:, None, None]
    key[8:, :, :37] = float("nan")

    with row_blocks(lengths, torch.device("cpu")):
        attended, _ = sequence_cache._grouped_attention(layer, query, key, value, mask)

    assert not attended.isnan().any()


def test_several_queries_attend_as_transformers_has_them_attend():
    layer, query, key, value = inputs(2, 5, 5)

    attended, _ = sequence_cache._grouped_attention(layer, query, key, value, None)

    torch.testing.assert_close(attended, sdpa_attention_forward(layer, query, key, value, None)[0])


@pytest.mark.parametrize("model_type", ["gpt_oss", "bloom"])  # one has sinks, which SDPA lacks; one an older form
def test_a_model_that_attends_in_a_way_of_its_own_is_left_alone(model_type):
    model = tiny_model(model_type)
    before = model.config._attn_implementation

    assert not use_grouped_attention(model)
    assert model.config._attn_implementation == before
