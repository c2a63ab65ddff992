"""What a trained adapter is merged into once its data, its seed model and its place have changed."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import run_axolotl, write_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def merged(tmp_path_factory, base_config, tiny_llama_dir, alpaca_file):
    """A project that was trained, got other data, was moved, lost its seed model, and was merged then."""
    project = tmp_path_factory.mktemp("home") / "project"
    project.mkdir()
    shutil.copytree(tiny_llama_dir, project / "seed")
    shutil.copyfile(alpaca_file, project / "rows.jsonl")
    own = {"base_model": "seed", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}], "max_steps": 2}
    left_out = ("self_distillation", "dynsdpb")
    config = {key: value for key, value in base_config.items() if key not in left_out} | own
    run_axolotl(project, "train", write_config(project, config), "--launcher", "python")

    lines = (project / "rows.jsonl").read_text().splitlines(keepends=True)
    (project / "rows.jsonl").write_text("".join(lines[:9]))
    moved = project.rename(project.parent.parent / f"{project.parent.name}-moved")
    shutil.rmtree(moved / "seed")
    before = sorted(path.name for path in (moved / "sdft_prepared").iterdir())
    run_axolotl(moved, "merge-lora", moved / "config.yml")
    assert sorted(path.name for path in (moved / "sdft_prepared").iterdir()) == before
    return moved


def pruned_dir(project):
    (found,) = project.glob("sdft_prepared/[!.]*-drop2-*")
    return found


def test_the_adapter_is_added_to_the_weights_that_it_was_trained_on(merged):
    base = load_file(pruned_dir(merged) / "model.safetensors")
    adapter = load_file(merged / "out/adapter_model.safetensors")
    result = load_file(merged / "out/merged/model.safetensors")

    assert {name: tensor.shape for name, tensor in result.items()} == {name: t.shape for name, t in base.items()}
    for name, tensor in result.items():
        start = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        expected = base[name]
        if f"{start}A.weight" in adapter:
            scaling = 8 / 4  # lora_alpha / lora_r
            expected = expected + scaling * adapter[f"{start}B.weight"] @ adapter[f"{start}A.weight"]
            assert not torch.equal(tensor, base[name])
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=1e-2, atol=1e-3)
    assert len([name for name in adapter if name.endswith("lora_A.weight")]) == 4 * 2


def test_the_merged_folder_is_a_model_with_a_card_and_without_the_history_of_another(merged):
    folder = merged / "out/merged"
    names = {path.name for path in folder.rglob("*")}
    card = ModelCard.load(folder / "README.md")

    assert not names & {"layer_pruning.json", "scores.json", "provenance", "sdft_trained_on.json"}
    assert "seed without 2 of its 6 layers" in card.text
    assert str(merged.parent) not in card.content
    assert json.loads((folder / "config.json").read_text())["axolotl_sdft_pruning"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("Hello", return_tensors="pt")
    assert model.config.num_hidden_layers == 4
    assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 2
