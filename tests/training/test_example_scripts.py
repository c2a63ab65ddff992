"""The scripts under example_configs/ that train run as they are, on less."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent.parent / "example_configs"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def distilling_script() -> ModuleType:
    """Return the script that distils on the student's own answers; skip where TRL has no trainer for it yet."""
    trl = pytest.importorskip("trl")
    if not hasattr(trl, "DistillationConfig"):
        pytest.importorskip("trl.experimental.distillation")
    return load("on_policy_distillation")


def test_the_encoder_learns_what_messages_are_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(1)
    share = load("dynsdpb_encoder").main(["--output_dir", str(tmp_path), "--alpha", "0.5", "--epochs", "14"])
    assert share > 0.8
    assert f"{share:.0%} of the 36 messages are told right" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()


def test_the_encoder_example_takes_a_pretrained_model(tmp_path: Path):
    script = load("dynsdpb_encoder")
    script.main(["--output_dir", str(tmp_path / "first"), "--epochs", "1"])
    share = script.main(["--model", str(tmp_path / "first"), "--output_dir", str(tmp_path / "again"), "--epochs", "1"])
    assert 0.0 <= share <= 1.0
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_the_messages_are_evenly_spread_over_their_topics():
    rows = [json.loads(line) for line in (SCRIPTS / "data" / "messages_by_topic.jsonl").read_text().splitlines()]
    topics = [row["topic"] for row in rows]
    assert {topic: topics.count(topic) for topic in topics} == {"billing": 12, "delivery": 12, "technical": 12}
    assert len({row["text"] for row in rows}) == 36


@pytest.mark.parametrize("adapter", [[], ["--use_peft", "--lora_r", "2"]])
def test_the_trl_script_trains_and_saves_the_model(tmp_path: Path, tiny_llama_dir: Path, adapter: list[str]):
    pytest.importorskip("peft")
    short = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--max_length", "48"]
    here = ["--model_name_or_path", str(tiny_llama_dir), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False"]
    data = ["--data", str(SCRIPTS / "data" / "quickstart.jsonl"), "--dynsdpb_alpha", "0.5"]
    trainer = load("dynsdpb_trl").main([*short, *here, *data, *adapter])
    assert trainer.dynsdpb_config.alpha == 0.5
    assert trainer.state.log_history[1]["dynsdpb/kl"] > 0
    assert (tmp_path / ("adapter_model.safetensors" if adapter else "model.safetensors")).is_file()


LOADING = ["--dtype", "bfloat16", "--attn_implementation", "eager"]


@pytest.mark.parametrize("bits", [[], ["--load_in_4bit"]])
def test_the_trl_script_loads_the_model_as_its_options_say(tmp_path: Path, tiny_llama_dir: Path, bits: list[str]):
    pytest.importorskip("peft")
    if bits:
        pytest.importorskip("bitsandbytes")
    here = ["--model_name_or_path", str(tiny_llama_dir), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False"]
    data = ["--data", str(SCRIPTS / "data" / "quickstart.jsonl"), "--max_steps", "1", "--max_length", "16"]
    trainer = load("dynsdpb_trl").main([*here, *data, *LOADING, *bits, "--use_peft", "--lora_r", "2"])
    model = trainer.model.get_base_model()
    assert model.config.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert bool(getattr(model, "is_loaded_in_4bit", False)) == bool(bits)


@pytest.fixture
def pruned_dir(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    from axolotl_sdft import cut_layers

    return cut_layers(tiny_llama_dir, [2, 3], tmp_path / "pruned")


@pytest.mark.parametrize("adapter", [[], ["--use_peft", "--lora_r", "2"]])
def test_the_pruned_model_learns_from_the_seed_model_on_its_own_answers(
    tmp_path: Path, pruned_dir: Path, tiny_llama_dir: Path, adapter: list[str]
):
    pytest.importorskip("peft")
    short = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    brief = ["--max_completion_length", "6", "--logging_steps", "1", "--use_cpu", "--bf16", "False"]
    here = ["--model_name_or_path", str(pruned_dir), "--output_dir", str(tmp_path / "out"), "--learning_rate", "1e-3"]
    data = ["--data", str(SCRIPTS / "data" / "quickstart.jsonl")]
    trainer = distilling_script().main([*short, *brief, *here, *data, *LOADING, *adapter])
    assert trainer.model.config._attn_implementation == "eager"
    assert "bfloat16" in str(trainer.model.config.dtype)
    assert trainer.teacher_model.config.num_hidden_layers == 6
    assert trainer.args.teacher_model_name_or_path == str(tiny_llama_dir)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)  # the divergence of a model that lacks two layers
    assert (tmp_path / "out" / ("adapter_model.safetensors" if adapter else "model.safetensors")).is_file()


def test_a_model_that_was_not_pruned_needs_its_teacher_named(tiny_llama_dir: Path):
    script = distilling_script()
    with pytest.raises(SystemExit, match=r"holds no provenance/layer_pruning\.json, so the teacher can't be told"):
        script.seed_model(str(tiny_llama_dir))


def test_the_student_gets_the_prompt_alone():
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    script = distilling_script()
    assert script.without_last_answer([question, answer]) == [question]
    assert script.without_last_answer([question, answer, question]) == [question, answer, question]


def test_the_commands_in_a_scripts_docstring_name_the_script_itself():
    for name in ("dynsdpb_trl", "dynsdpb_encoder", "on_policy_distillation"):
        text = ast.get_docstring(ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8")), clean=False)
        commands = re.findall(r"^    python (\S+)", text or "", flags=re.MULTILINE)
        assert commands == [f"example_configs/{name}.py"] * 2
