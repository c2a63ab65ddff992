"""Every model type that transformers has a causal language model for is cut, or refused with a reason."""

import pytest
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from axolotl_sdft import cut_layers
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.architecture import prune_config
from tests.pruning.architectures import build, tiny_config
from tests.pruning.skipped_layers import check_config, check_cut, check_generation, check_patch, logits

NOT_BUILT = {
    "gemma3n": "the vision tower needs the package timm",
    "musicgen": "the causal model takes the decoder's config, which has no model type of its own",
    "musicgen_melody": "the causal model takes the decoder's config, which has no model type of its own",
}
"""Types without a tiny checkpoint; all are refused by their config.json alone."""

REFUSED = {
    "dory": "no group of tensor names counts 0 to 11",
    "gemma3n": "layers share a matrix",
    "gemma3n_text": "layers share a matrix",
    "gemma4": "layers share a matrix",
    "gemma4_assistant": "layers use keys and values of others",
    "gemma4_text": "layers share a matrix",
    "gemma4_unified_assistant": "layers use keys and values of others",
    "hrm_text": "its layers form two stacks",
    "minimax": "each layer's decay is computed from its number",
    "musicgen": "it has an encoder and a decoder",
    "musicgen_melody": "it has an encoder and a decoder",
    "xlm": "several groups of tensor names",
}
"""Types of which no layer can be removed."""

PARTLY_REFUSED = {
    "kimi_linear": ((2, 4), "no layer with attention would be left; keep one of 4"),
    "lfm3": ((2, 4), "no layer with attention would be left; keep one of 2, 4"),
    "diffllama": ((1,), "each layer's lambda is computed from its number; drop the last layers only"),
    "gemma4_unified_text": ((5,), "its config class computes layer_types"),
    "gpt_neox_japanese": ((5,), "the last layer alone has a bias"),
    "jamba": ((1,), r"expert_layer_period is 2, .* drop runs of 2 layers"),
    "modernbert-decoder": ((0,), "layer 0 is built differently"),
    "nemotron_h": ((1, 4), "no layer with attention would be left; keep one of 1, 4"),
    "qwen3_next": ((3,), "no layer with attention would be left; keep one of 3"),
    "rwkv": ((0,), "layer 0 alone normalizes what it receives"),
    "zamba": ((1,), "its hybrid layers share weights"),
    "zamba2": ((1,), "its hybrid layers share weights"),
    "zaya": ((0,), "layer 0 alone routes without the layer before"),
}
"""Types of which these layers can't be removed, though others can."""

DROP_SETS = ((1,), (2, 4))
OTHER_DROP_SETS = {
    "beam": ((5,), (4, 5)),
    "diffllama": ((5,), (4, 5)),
    "hy_v4": ((2,), (3, 5)),
    "jamba": ((0,), (4, 5)),
    "kimi_linear": ((1,), (2, 3)),
    "lfm3": ((1,), (3, 5)),
    "zamba": ((0,), (2, 4)),
    "zamba2": ((0,), (2, 4)),
}

CANNOT_GENERATE = {
    "blt": "generate asks its config for a layer count that is not there",
    "reformer": "its cache does not take random rotations of one token",
    "xlstm": "its cache has the shape of values for queries too",
}
"""Types whose original can't generate with a cache in this transformers."""

CACHE_DIFFERS = {
    "axk2": "it chooses between tokens of equal score",
    "big_bird": "each token sees those after it",
    "cpmant": "each token sees those after it",
    "deepseek_v32": "it chooses between tokens of equal score",
    "git": "the first tokens see those after them",
    "glm_moe_dsa": "it chooses between tokens of equal score",
    "megatron-bert": "each token sees those after it",
    "moshi": "the cache is of another length than the text",
    "prophetnet": "with a cache it predicts one token at a time instead of several",
    "rembert": "each token sees those after it",
}
"""Types whose original writes something else with a cache; the cut model has to write the same both times."""


CANNOT_BE_SAVED = {("5.20.1", "bitnet"), ("5.20.1", "mamba")}
"""Versions of transformers whose save_pretrained stumbles over a type's list of tied weights."""

CANNOT_RUN = {("5.24.0", "gemma4_text")}
"""Versions of transformers whose text decoder stumbles over layers that share keys without inputs of their own."""

NOT_TRIED = {
    "dots3_note": "its vision tower has a setting for each of 42 layers",
    "dots3_note_text": "its low-rank attention has a width for each kind of layer",
    "inkling2_loop_text": "its head is saved with more rows than it has",
    "inkling2_text": "its head is saved with more rows than it has",
}
"""Types that no tiny model has been written for yet."""


_EXPERTS = """
    afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4
    dots1 ernie4_5_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss granitemoe granitemoe_swa
    granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling_text jamba jetmoe kimi_linear kolibri1 laguna
    lara_mini lfm2_moe llama4 llama4_text longcat_flash mellum mimo_v2_flash minimax_m2 minimax_m3_vl_text mixtral
    olmoe phimoe qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next qwen4_exp qwen4_exp_text sarvam_mla
    sarvam_moe solar_open zaya
"""
_NOT_A_SUM = """
    bart bert bert-generation big_bird blenderbot-small camembert data2vec-text electra ernie exaone4 gemma2 gemma3
    gemma3_text gemma4_unified gemma4_unified_text git glm4 hyperclovax lfm3 marian mvp olmo2 olmo3 olmo_hybrid plbart
    prophetnet rembert roberta roc_bert roformer rwkv trocr xlm-roberta xlnet xmod
"""
WITHOUT_PATCH = {
    **dict.fromkeys(_EXPERTS.split(), "is a mixture of experts"),
    **dict.fromkeys(_NOT_A_SUM.split(), "is more than a sum of its input and a projection"),
    "exaone": "under that name",  # transformers' own class renames what the checkpoints of this type store
    "cpmant": "run on more or fewer places than there are tokens",
    "mllama": "does not run once on hidden states",
    "openai-gpt": "can't be run layer by layer",
    "reformer": "can't be run layer by layer",
}
"""Types of which some layer before a cut takes no patch, with the reason; dense layers among experts take one."""


@pytest.fixture
def seed(request, tmp_path):
    """A tiny random model of a type, whose checkpoint is in ``seed``."""
    if (transformers.__version__, request.param) in CANNOT_BE_SAVED:
        pytest.skip("this transformers can't save the type")
    if request.param not in CONFIG_MAPPING:
        pytest.skip("this transformers lacks the type")
    model = build(tiny_config(request.param))
    model.save_pretrained(tmp_path / "seed")
    return model


def skip_if_kernels_need_a_gpu(model):
    """Some types run Triton kernels wherever the package fla is installed together with Triton."""
    try:
        logits(model)
    except RuntimeError as err:
        if "active drivers" not in str(err):
            raise
        pytest.skip("the kernels installed here need a GPU")


@pytest.mark.parametrize(
    ("seed", "model_type"),
    [(name, name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in REFUSED.keys() | NOT_TRIED.keys()],
    indirect=["seed"],
    ids=lambda name: name,
)
def test_a_cut_model_equals_the_original_with_those_layers_skipped_or_patched(seed, model_type, tmp_path):
    skip_if_kernels_need_a_gpu(seed)
    for drop_layers in OTHER_DROP_SETS.get(model_type, DROP_SETS):
        pruned_dir = tmp_path / f"without {drop_layers}"
        pruned = check_cut(seed, tmp_path / "seed", drop_layers, pruned_dir)
        check_config(tmp_path / "seed", drop_layers, pruned_dir)
    check_patch(seed, tmp_path / "seed", drop_layers, pruned_dir, WITHOUT_PATCH.get(model_type))
    if model_type not in CANNOT_GENERATE:
        check_generation(seed, pruned, tmp_path / "seed", drop_layers, model_type not in CACHE_DIFFERS)


TWO_BLOCKS = ["linear_attention", "linear_attention", "hybrid"] * 2
SHARED_KEYS = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}


@pytest.mark.parametrize(
    ("model_type", "changes", "drop_layers"),
    [
        ("qwen3_moe", {"decoder_sparse_step": 2}, (1,)),
        ("qwen2_moe", {"mlp_only_layers": [1, 3]}, (0, 1)),
        ("llama4_text", {"interleave_moe_layer_step": 2}, (0, 3)),
        ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_layer_end_index": 4}, (0, 3)),
        ("ernie4_5_moe", {"moe_layer_start_index": 0, "moe_layer_interval": 2}, (2, 3)),
        ("deepseek_v2", {"first_k_dense_replace": 3}, (1, 4)),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3}, (0, 4)),
        ("rwkv", {"rescale_every": 4}, (5,)),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, (4, 5)),
        ("glm_moe_dsa", {"indexer_types": ["full", "shared"] * 3}, (1, 4, 5)),
        ("gemma4_text", SHARED_KEYS, (0, 4)),
        ("zamba2", {"num_mem_blocks": 2, "layers_block_type": TWO_BLOCKS}, (0, 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_by_layer_number_follow_the_layers_left(model_type, changes, drop_layers, tmp_path):
    if (transformers.__version__, model_type) in CANNOT_RUN:
        pytest.skip("this transformers can't run the type with these settings")
    model = build(tiny_config(model_type, **changes))
    model.save_pretrained(tmp_path / "seed")
    check_cut(model, tmp_path / "seed", drop_layers, tmp_path / "pruned")
    check_config(tmp_path / "seed", drop_layers, tmp_path / "pruned")


@pytest.mark.parametrize(
    ("seed", "reason"),
    [(name, reason) for name, reason in REFUSED.items() if name not in NOT_BUILT],
    indirect=["seed"],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(seed, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        cut_layers(tmp_path / "seed", (1,), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("model_type", NOT_BUILT)
def test_what_cannot_be_built_tiny_is_refused_by_its_config_alone(model_type):
    with pytest.raises(CheckpointError, match=REFUSED[model_type]):
        prune_config(tiny_config(model_type).to_dict(), (1,))


@pytest.mark.parametrize(("seed", "refusal"), PARTLY_REFUSED.items(), indirect=["seed"], ids=list(PARTLY_REFUSED))
def test_layers_that_others_cannot_stand_in_for_are_refused_with_the_reason(seed, refusal, tmp_path):
    drop_layers, reason = refusal
    with pytest.raises(CheckpointError, match=reason):
        cut_layers(tmp_path / "seed", drop_layers, tmp_path / "pruned")


def test_the_tables_do_not_contradict_each_other():
    """Types that this transformers lacks may stand in them: other versions have them."""
    assert NOT_BUILT.keys() <= REFUSED.keys()
    assert REFUSED.keys().isdisjoint(PARTLY_REFUSED.keys() | OTHER_DROP_SETS.keys())
    assert REFUSED.keys().isdisjoint(CANNOT_GENERATE.keys() | CACHE_DIFFERS.keys())


def test_most_types_are_cut():
    assert len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - REFUSED.keys()) >= 160
