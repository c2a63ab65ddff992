"""A student that the seed model can't teach ends a run before anything is pruned or rewritten."""

import json

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft import SDFTPlugin
from axolotl_sdft.config import LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl import compat, stages, student_rules
from axolotl_sdft.integrations.axolotl.student_rules import check_student

SHARED = {"teacher": "shared"}


def checked(seed_dir, block=None, **cfg):
    base = {"base_model": str(seed_dir), "adapter": "lora", **cfg}
    check_student(DictDefault(base), LogitDistillationConfig(**block or {}), seed_dir)


@pytest.fixture(scope="module")
def num_rows(tiny_llama_dir):
    return json.loads((tiny_llama_dir / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize(
    ("block", "cfg", "message"),
    [
        (SHARED, {"peft_init_lora_weights": "pissa_niter_4"}, "peft_init_lora_weights is 'pissa_niter_4', which takes"),
        (SHARED, {"peft": {"loftq_config": {"loftq_bits": 4}}}, r"peft\.loftq_config\.loftq_bits is 4, which takes"),
        (SHARED, {"unfrozen_parameters": ["lm_head"]}, r"unfrozen_parameters trains .*lm_head.* \(shared\) needs"),
        (SHARED, {"device_map": {"model": 0, "lm_head": 1}}, "device_map is .*, which spreads the student"),
        ({}, {"type_of_model": "AutoModelForSequenceClassification"}, "type_of_model is 'AutoModelForSequenceClass"),
        ({}, {"tokens": ["<new>", "<other>"]}, r"^tokens \('<new>', '<other>'\) would resize .* to {more}"),
        ({}, {"special_tokens": {"pad_token": "<own>"}}, r"special_tokens\.pad_token \('<own>'\) would resize"),
    ],
)
def test_it_is_refused_with_key_value_and_way_out(tiny_llama_dir, num_rows, block, cfg, message):
    with pytest.raises(ConfigError, match=message.replace("{more}", str(num_rows + 2))):
        checked(tiny_llama_dir, block, **cfg)


def test_rows_that_are_rounded_up_are_refused_where_that_adds_some(tiny_llama_dir, num_rows, tmp_path):
    import shutil

    assert num_rows % 32 == 0
    checked(tiny_llama_dir, resize_token_embeddings_to_32x=True)
    odd = shutil.copytree(tiny_llama_dir, tmp_path / "odd")
    settings = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(settings | {"vocab_size": num_rows - 1}))
    with pytest.raises(ConfigError, match=f"resize_token_embeddings_to_32x would resize .* to {num_rows} tokens"):
        checked(odd, resize_token_embeddings_to_32x=True)


@pytest.mark.parametrize(
    ("block", "cfg"),
    [
        ({}, {"peft_init_lora_weights": "pissa"}),
        (SHARED, {"peft_init_lora_weights": "gaussian", "device_map": {"": 0}}),
        ({"teacher": "own"}, {"unfrozen_parameters": ["lm_head"]}),
        ({}, {"tokens": ["<|im_start|>"], "special_tokens": {"pad_token": "<|im_end|>", "eos_token": None}}),
        ({"alpha": 0.0}, {"tokens": ["<new>"]}),
    ],
)
def test_what_the_seed_model_can_teach_passes(tiny_llama_dir, block, cfg):
    checked(tiny_llama_dir, block, **cfg)


def test_a_model_with_more_rows_than_tokens_may_get_new_tokens(tiny_llama_dir, num_rows, tmp_path):
    import shutil

    wide = shutil.copytree(tiny_llama_dir, tmp_path / "wide")
    settings = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(settings | {"vocab_size": num_rows + 2}))
    checked(wide, tokens=["<new>", "<other>"])


def test_a_quantized_teacher_needs_bitsandbytes(tiny_llama_dir, monkeypatch):
    monkeypatch.setattr(student_rules.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"load_in_4bit is true, but bitsandbytes is not installed; pip install"):
        checked(tiny_llama_dir, {"load_in_4bit": True})


def test_it_is_refused_before_anything_is_pruned(tiny_llama_dir, monkeypatch):
    monkeypatch.setattr(compat, "running_command", lambda: "train")
    monkeypatch.setattr(stages, "prune_base_model", lambda *_args: pytest.fail("the model was pruned"))
    cfg = {
        **{"plugins": ["axolotl_sdft.SDFTPlugin"], "output_dir": "out", "base_model": str(tiny_llama_dir)},
        **{"adapter": "lora", "datasets": [{"path": "rows.jsonl"}], "tokens": ["<new>"]},
        **{"layer_pruning": {"num_layers": 2}, "logit_distillation": {}},
    }
    with pytest.raises(ConfigError, match="would resize the student's vocabulary"):
        stages.prepare(DictDefault(cfg), own_plugin=SDFTPlugin())
