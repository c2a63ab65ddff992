"""A calibration that is a mixture."""

import json

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from pydantic import ValidationError

from axolotl_sdft.config import CalibrationConfig, LayerPruningConfig
from axolotl_sdft.integrations.axolotl import calibration_sources as module
from axolotl_sdft.integrations.axolotl.calibration_sources import calibration_sources, source_texts


def rows(path, name, count=8):
    path.write_text("".join(json.dumps({"text": f"{name} {number}"}) + "\n" for number in range(count)))
    return str(path)


@pytest.fixture
def cfg(tmp_path, tiny_llama_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets = [{"path": rows(tmp_path / "own.jsonl", "own"), "type": "completion"}]
    return DictDefault({"base_model": str(tiny_llama_dir), "datasets": datasets})


def mixture(*parts, **settings):
    return CalibrationConfig(parts=parts, **settings)


def test_shares_say_how_many_rows_each_part_gives(cfg, tmp_path, tiny_llama_dir):
    other = {"path": rows(tmp_path / "other.jsonl", "other"), "share": 1}
    sources = calibration_sources(cfg, mixture({"share": 3}, other, num_samples=8))
    texts = source_texts(cfg, sources, tiny_llama_dir)
    assert [text.split()[0] for text in texts] == ["own"] * 6 + ["other"] * 2


def test_a_list_is_a_mixture():
    config = LayerPruningConfig(num_layers=2, calibration=[{"share": 0.5}, {"general_prompts": True, "share": 0.5}])
    assert [source.num_samples for source in config.calibration.sources] == [128, 128]
    assert config.calibration.parts[1].general_prompts


def test_general_prompts_are_answered_once_by_the_seed_model(cfg, tiny_llama_dir, monkeypatch):
    asked = []

    def answers(prompts, _seed_dir):
        asked.append(prompts)
        return [f"answer {number}" for number in range(len(prompts))]

    monkeypatch.setattr(module, "_generated", answers)
    sources = calibration_sources(cfg, mixture({"general_prompts": True}, num_samples=3))
    first, second = (source_texts(cfg, sources, tiny_llama_dir) for _ in range(2))
    assert first == second
    assert len(asked) == 1
    assert len(first) == len(asked[0]) == 3
    assert f"<|im_start|>user\n{asked[0][1]}<|im_end|>\n<|im_start|>assistant\nanswer 1<|im_end|>" in first[1]


def test_the_seed_model_answers_without_chance(cfg, tiny_llama_dir, monkeypatch):
    monkeypatch.setattr(module, "_MAX_NEW_TOKENS", 3)
    sources = calibration_sources(cfg, mixture({"general_prompts": True}, num_samples=2))
    assert module._generated(sources[0].prompts, tiny_llama_dir) == module._generated(
        sources[0].prompts, tiny_llama_dir
    )


def test_the_identity_follows_the_prompts_and_the_rows(cfg):
    def identity(*parts):
        return [source.identity for source in calibration_sources(cfg, mixture(*parts, num_samples=4))]

    both = {"share": 1}, {"general_prompts": True}
    assert identity(*both) == identity(*both)
    assert identity(*both) != identity(both[0])
    assert identity(both[1]) != identity({"general_prompts": True}, {"general_prompts": True})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"path": "a.jsonl", "parts": [{"share": 1}]}, "path is 'a.jsonl', but parts names what is read"),
        ([{"path": "a.jsonl", "general_prompts": True}], "general_prompts is true, but path .* is set too"),
        ([{"share": 0}], "greater than 0"),
    ],
)
def test_what_contradicts_itself_is_refused(block, message):
    with pytest.raises(ValidationError, match=message):
        LayerPruningConfig(num_layers=2, calibration=block)


def test_a_mixture_without_the_training_set_needs_none():
    assert not mixture({"path": "a.jsonl"}, {"general_prompts": True}).reads_training_set
    assert mixture({"path": "a.jsonl"}, {"share": 2}).reads_training_set
    assert CalibrationConfig().reads_training_set
    assert not CalibrationConfig(path="a.jsonl").reads_training_set
