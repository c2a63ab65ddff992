"""Which parts each stage of a configuration has, on a model small enough to count by hand."""

from dataclasses import replace

import pytest
from transformers import LlamaConfig

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.configs.memory_plan import (
    MemoryPlan,
    StatedGpus,
    compute_dtype,
    local_model_config,
    memory_needs,
    removed_layers,
    stated_gpus,
)
from axolotl_sdft.configs.training_memory import TrainingNeed
from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.pruning.planning.model_shape import Matrix, ModelShape, read_model_shape
from axolotl_sdft.pruning.planning.token_costs import TokenCosts
from tests.benchmarks.random_models import SHAPES
from tests.pruning.without_content import runs_without_content

LAYERS = 4
MATRICES = tuple(
    Matrix(f"model.layers.{layer}.mlp.{name}", layer, 8, 8) for layer in range(LAYERS) for name in ("up", "down")
)
# 4 layers of two matrices of 64 and 2 more numbers; 70 outside; hidden size 8, 30 words;
# 200 bytes a token and layer, 150 where frozen.
COSTS = TokenCosts(16, 0, 1)
SHAPE = ModelShape("bfloat16", (130,) * LAYERS, 70, MATRICES, 8, 30, 200, COSTS, frozen_activation_bytes=150)
LORA = {"adapter": "lora", "lora_r": 2, "lora_target_modules": ["up"]}
LORA_PARAMETERS = LAYERS * 2 * (8 + 8)
STEP = {"micro_batch_size": 3, "sequence_len": 10, "bf16": "auto", "optimizer": "adamw_torch"}


def training(shape=SHAPE, student=SHAPE, num_gpus=1, **settings):
    raw = {**STEP, **settings}
    return TrainingNeed(raw, read_blocks(raw), shape, student, num_gpus).need()


def stages(**settings):
    raw = {**STEP, **settings}
    return {need.stage: need for need in memory_needs(raw, read_blocks(raw), SHAPE, 2)}


def test_full_fine_tuning_holds_gradients_and_two_states_of_every_weight():
    parts = training().parts
    assert parts == {
        "weights": 2 * 590,
        "gradients": 2 * 590,
        "optimizer": 2 * 2 * 590,
        "activations": 30 * LAYERS * 200,
        "logits": 30 * 30 * 12,
    }


def test_lora_trains_its_own_weights_alone_in_float32():
    parts = training(**LORA).parts
    assert parts["weights"] == 2 * 590
    assert parts["LoRA"] == parts["gradients"] == 4 * LORA_PARAMETERS
    assert parts["optimizer"] == 2 * 4 * LORA_PARAMETERS


@pytest.mark.parametrize(
    ("targets", "count"),
    [(["up", "down"], 2), (["mlp.up"], 1), (r"model\.layers\.[0]\.mlp\.(up|down)", 0.5), ("all-linear", 2), (None, 2)],
)
def test_lora_adapts_what_peft_would_adapt(targets, count):
    parts = training(adapter="lora", lora_r=2, lora_target_modules=targets).parts
    assert parts["LoRA"] == 4 * LORA_PARAMETERS * count


@pytest.mark.parametrize(("settings", "number_bytes"), [({}, 2), ({"bf16": "full"}, 4), ({"lora_dropout": 0.1}, 2 + 1)])
def test_lora_keeps_a_copy_of_what_goes_into_each_matrix_that_it_adapts(settings, number_bytes):
    # Autocast makes it of the dtype, without autocast it is in float32; dropout keeps its mask of bytes as well.
    parts = training(**LORA, **settings).parts
    assert parts["activations"] == 30 * LAYERS * (150 + number_bytes * 8)
    again = training(**LORA, **settings, gradient_checkpointing=True, cut_cross_entropy=True).parts
    assert again["one layer computed again"] == 30 * (150 + number_bytes * 8)


def test_qlora_packs_the_matrices_with_doubly_quantized_scales():
    packed = LAYERS * 2 * 64
    assert training(**LORA, load_in_4bit=True).parts["weights"] == round(
        2 * (590 - packed) + packed * (0.5 + (1 + 4 / 256) / 64)
    )


def test_gradient_checkpointing_holds_the_inputs_and_the_larger_of_logits_and_one_layer():
    parts = training(gradient_checkpointing=True).parts
    assert parts["activations"] == 30 * LAYERS * 8 * 2
    assert parts["logits"] == 30 * 30 * 12
    fused = training(gradient_checkpointing=True, cut_cross_entropy=True).parts
    assert "logits" not in fused
    assert fused["one layer computed again"] == 30 * 200


def test_dynsdpb_trains_on_two_mini_batches_and_keeps_the_predictions_of_a_whole_step():
    parts = training(**LORA, dynsdpb={"chunk_tokens": 5}, gradient_accumulation_steps=4).parts
    assert parts["logits"] == 2 * 30 * 30 * 12
    assert parts["previous predictions"] == 4 * 30 * 8 * 2  # hidden states, since the head is frozen
    assert parts["divergence"] == 3 * 5 * 30 * 4 + 30 * 30 * 2
    whole = training(dynsdpb={}, gradient_accumulation_steps=4).parts
    assert whole["previous predictions"] == 4 * 30 * 30 * 2  # logits, since the head is trained
    assert "previous predictions" not in training(dynsdpb={"cpu_offload": True}).parts


def test_a_shared_teacher_holds_the_removed_layers_and_one_of_its_own_the_whole_seed_model():
    student = stages(layer_pruning={"num_layers": 1}, **LORA, logit_distillation={})["training"]
    assert student.parts["weights"] == 2 * (590 - 130)
    assert student.parts["teacher's removed layers"] == 2 * 130
    own = training(**LORA, logit_distillation={"teacher": "own"}).parts
    assert own["teacher"] == 2 * 590
    packed = training(logit_distillation={"load_in_4bit": True}).parts
    assert packed["teacher"] == 2 * (590 - 512) + 512 * (0.5 + 4 / 64)
    assert "teacher" not in training(logit_distillation={"alpha": 0}).parts


@pytest.mark.parametrize("key", ["activation_checkpointing", "fsdp_activation_checkpointing"])
def test_sharded_training_divides_weights_gradients_and_states_in_float32(key):
    parts = training(num_gpus=2, fsdp_config={key: True}).parts
    assert parts["weights"] == parts["gradients"] == 4 * 590 // 2
    assert parts["optimizer"] == 2 * 4 * 590 // 2
    assert parts["layers gathered for the pass"] == 2 * (2 * 130 + 70)
    assert parts["activations"] == 30 * LAYERS * 8 * 2
    second = training(num_gpus=2, deepspeed="deepspeed_configs/zero2.json").parts
    assert (second["weights"], second["gradients"]) == (2 * 590, 590)


def test_rewriting_holds_the_cache_of_its_token_budget():
    need = stages(self_distillation={"generation": {"max_batch_tokens": 100, "max_batch_size": 3}})["self_distillation"]
    assert need.parts == {"weights": 2 * 590, "KV cache": 100 * 16, "logits": 2 * 3 * 30 * 4}


def test_servers_of_others_take_nothing_here():
    generation = {"backend": "openai", "base_urls": ["http://localhost:8000/v1"]}
    need = stages(self_distillation={"generation": generation})["self_distillation"]
    assert (need.total, need.notes) == (0, ("backend openai: nothing is loaded here",))


def test_vllm_holds_the_weights_and_fills_the_rest():
    need = stages(self_distillation={"generation": {"backend": "vllm", "vllm_args": {"tensor_parallel_size": 2}}})
    assert need["self_distillation"].parts == {"weights": 590}
    assert "gpu_memory_utilization (0.9)" in need["self_distillation"].notes[0]


@pytest.mark.parametrize(("hidden_size", "rows"), [(8, 16), (819, 16), (820, 32), (100_000, 64)])
def test_a_patch_holds_the_cache_of_general_answers_that_are_written_together(hidden_size, rows):
    # Ten tokens for each unit of the hidden size, in rounds of 16 texts of 256 tokens at most, and never more than 64.
    raw = {**STEP, "layer_pruning": {"num_layers": 1}}
    needs = memory_needs(raw, read_blocks(raw), replace(SHAPE, hidden_size=hidden_size))
    assert needs[0].parts["KV cache"] == rows * 256 * 16


def test_scoring_and_the_report_can_be_quantized_or_spread_over_gpus():
    assert stages(layer_pruning={"num_layers": 1, "device_map": "auto"})["layer_pruning"].parts["weights"] == 590
    quantized = 2 * (590 - 512) + 512 * (0.5 + 4 / 64)
    assert stages(layer_pruning={"num_layers": 1, "load_in_4bit": True})["layer_pruning"].parts["weights"] == quantized
    report = stages(recovery_report={})["recovery_report"]
    assert report.parts == {"weights of seed model and one other": 2 * 2 * 590}
    spread = stages(recovery_report={"device_map": "auto"})["recovery_report"]
    assert spread.total == 2 * 590
    assert stages(recovery_report={"load_in_4bit": True})["recovery_report"].total == 2 * quantized


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"num_layers": 3}, (6, 7, 8)),
        ({"num_layers": 0.25}, (6, 7, 8)),  # 2.5 of 10, rounded up
        ({"drop_layers": [1, 4]}, (1, 4)),
        ({"target": {"parameters": 0.8}}, ()),
    ],
)
def test_as_many_layers_are_taken_away_as_pruning_removes(block, expected):
    assert removed_layers(LayerPruningConfig(**block), 10) == expected


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ("1 GPU of 24 GB; 25 GB of disk", StatedGpus(1, 24)),
        ("8 GPUs of 80 GB and 2 servers", StatedGpus(8, 80)),
        ("no GPU; 2 CPU cores", None),
        ("", None),
    ],
)
def test_the_gpus_are_read_from_the_description(needs, expected):
    assert stated_gpus(needs) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        *((keys, "bfloat16") for keys in ({"bf16": "auto"}, {"bf16": True}, {"bf16": "full", "fp16": True}, {})),
        *((keys, "float16") for keys in ({"fp16": True}, {"bf16": "auto", "fp16": True})),
        ({"bf16": False, "load_in_8bit": True}, "float16"),
        ({"bf16": False}, "float32"),
    ],
)
def test_the_dtype_is_the_one_that_axolotl_trains_in(raw, expected):
    assert compute_dtype(raw) == expected


def test_a_stage_that_does_not_fit_the_named_gpu_is_a_finding():
    need = training()
    assert list(MemoryPlan((need,), StatedGpus(1, 24)).findings()) == []
    assert list(MemoryPlan((need,), None).findings()) == []
    (finding,) = MemoryPlan((need,), StatedGpus(1, 0)).findings()
    assert finding.line().startswith("advice: training: needs 0.000 GB by calculation, but the description names GPUs")


def test_the_lines_name_the_parts_and_what_is_left_out():
    lines = list(MemoryPlan((training(),), StatedGpus(1, 24)).lines())
    assert lines[0].startswith("memory at the peak on each GPU of 24 GB, computed from config.json")
    assert lines[1].startswith("  training: 0.000 GB (weights 0.000, gradients")
    assert lines[-1].startswith("  left out: the driver's own context")


def test_a_model_that_is_not_on_this_machine_has_no_config(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert local_model_config("nobody/nothing-of-this-name") is None
    assert local_model_config(str(tmp_path)) is None


# What torch allocated at its peak on an H200, in MiB, in steps of the benchmarks at an 8B shape: 4 rows of 1,024 tokens
# with LoRA on two matrices of a layer, or 2 with LoRA on all of 24 of the 32 layers.
_TWO = {"lora_target_modules": ["q_proj", "v_proj"], "micro_batch_size": 2}
_ALL = {"lora_target_linear": True, "micro_batch_size": 2}
_PACKED = {"adapter": "qlora", "load_in_4bit": True}
_LESS = {"layer_pruning": {"drop_layers": list(range(20, 28)), "patch": "none"}}
ON_AN_H200 = {
    "plain training": (42_961, _TWO | {"micro_batch_size": 4}),
    "DynSDPB": (43_478, _TWO | {"dynsdpb": {}}),
    "plain training in 4 bits": (33_426, _TWO | _PACKED | {"micro_batch_size": 4}),
    "DynSDPB in 4 bits": (33_942, _TWO | _PACKED | {"dynsdpb": {}}),
    "plain training of a pruned model": (29_080, _ALL | _LESS),
    "a teacher that shares layers": (32_909, _ALL | _LESS | {"logit_distillation": {}}),
    "a teacher of its own": (44_897, _ALL | _LESS | {"logit_distillation": {"teacher": "own"}}),
    "plain training of a pruned model in 4 bits": (21_929, _ALL | _LESS | _PACKED),
    "a teacher that shares layers in 4 bits": (23_373, _ALL | _LESS | _PACKED | {"logit_distillation": {}}),
}


@pytest.fixture(scope="module")
def shape_of_8b():
    return read_model_shape(LlamaConfig(**SHAPES["8b"]).to_dict(), "bfloat16")


@pytest.mark.parametrize("name", ON_AN_H200)
@runs_without_content
def test_a_training_step_at_an_8b_shape_takes_what_a_gpu_was_seen_to_allocate(name, shape_of_8b):
    measured, settings = ON_AN_H200[name]
    # The benchmarks hold the model in bfloat16 and train without autocast.
    step = {"adapter": "lora", "lora_r": 8, "sequence_len": 1024, "optimizer": "adamw_torch", "bf16": "full"}
    raw = step | settings
    needs = memory_needs(raw, read_blocks(raw), shape_of_8b)
    assert needs[-1].stage == "training"
    assert needs[-1].total / 2**20 == pytest.approx(measured, rel=0.02)
