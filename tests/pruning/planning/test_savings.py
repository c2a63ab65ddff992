import pytest
import transformers

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.pruning.checkpoint.tensor_files import StoredTensor, read_checkpoint
from axolotl_sdft.pruning.planning.savings import Footprint, active_parameters, number_format, read_savings
from axolotl_sdft.pruning.planning.token_costs import _measured_once
from tests.pruning.conftest import edit_config
from tests.pruning.without_content import runs_without_content

# The tiny Llama: 6 layers, 16 wide, 24 inside, 2 heads of 8 and 1 key-value head, 61 words, float32.
LAYER = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16
OUTSIDE = 2 * 61 * 16 + 16


def llama_flops(num_layers):
    """Of all matrices and of a token's attention to itself; without and with the 4 products of the rotary angles."""
    norms = 2 * 16
    attention_to_itself = 2 * 16
    multiply_adds = num_layers * (LAYER - norms + attention_to_itself) + 61 * 16
    return 2 * multiply_adds, 2 * (multiply_adds + 4)


def tensor(name, *shape, dtype="BF16"):
    return StoredTensor(name, dtype, shape, None, 0, 2 * StoredTensor(name, dtype, shape, None, 0, 0).num_parameters)


@runs_without_content
def test_a_llama_before_and_after_is_as_worked_out_by_hand(checkpoint):
    savings = read_savings(checkpoint(), [1, 4])
    for footprint, layers in ((savings.before, 6), (savings.after, 4)):
        parameters = layers * LAYER + OUTSIDE
        assert footprint.flops in llama_flops(layers)
        figures = (layers, parameters, 4 * parameters, layers * 2 * 8 * 4, 0)
        assert footprint == Footprint(*figures, flops=footprint.flops)
    assert savings.layer_parameters == (LAYER,) * 6
    assert savings.notes == ()


def test_layers_that_are_not_there_are_refused(checkpoint):
    with pytest.raises(ConfigError, match="drop_layers holds 6, but the model has 6 layers"):
        read_savings(checkpoint(), [6])


def test_a_model_that_cannot_run_without_weights_is_estimated_from_its_matrices(own_checkpoint, monkeypatch):
    def forward(*_args, **_kwargs):
        raise RuntimeError("needs content")

    _measured_once.cache_clear()
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    savings = read_savings(own_checkpoint, [0])
    assert savings.before.flops == 2 * (6 * (LAYER - 32) + 61 * 16)  # all matrices, embedding and head counted once
    assert savings.after.flops == 2 * (5 * (LAYER - 32) + 61 * 16)
    assert (savings.before.cache_bytes, savings.before.state_bytes) == (None, None)
    assert savings.notes == (
        "FLOPs are twice the active parameters: the model can't be run without its weights (needs content)",
    )


def test_only_the_chosen_share_of_the_experts_is_active():
    config = {"vocab_size": 10, "num_local_experts": 8, "num_experts_per_tok": 2}
    tensors = [
        tensor("model.embed_tokens.weight", 10, 4),
        tensor("lm_head.weight", 10, 4),
        *(tensor(f"model.layers.0.mlp.experts.{expert}.up_proj.weight", 6, 4) for expert in range(8)),
        tensor("model.layers.0.mlp.shared_experts.up_proj.weight", 6, 4),
        tensor("model.layers.0.mlp.gate.weight", 8, 4),
        tensor("model.norm.weight", 4),
    ]
    assert active_parameters(config, tensors) == 10 * 4 + 2 * 6 * 4 + 6 * 4 + 8 * 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"text_config": {"dtype": "float32"}}, "float32"),
        ({"dtype": "auto"}, "float16"),
        ({}, "float16"),
    ],
)
def test_the_number_format_is_the_named_one_or_that_of_most_bytes(config, expected):
    tensors = [tensor("a", 4, 4, dtype="F16"), tensor("b", 4, dtype="F32"), tensor("c", 100, dtype="I32")]
    assert number_format(config, tensors) == expected


@runs_without_content
def test_weight_bytes_are_those_of_the_files(own_checkpoint):
    edit_config(own_checkpoint, dtype="bfloat16")  # says one thing, while the files hold float32
    savings = read_savings(own_checkpoint, [2])
    assert savings.before.weight_bytes == sum(stored.num_bytes for stored in read_checkpoint(own_checkpoint)[0])
    assert savings.before.cache_bytes == 6 * 2 * 8 * 2
