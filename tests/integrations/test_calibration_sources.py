"""A calibration that is a mixture."""

import json
import shutil

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from pydantic import ValidationError

from axolotl_sdft.config import CalibrationConfig, LayerPruningConfig
from axolotl_sdft.integrations.axolotl.calibration import calibration_sources, general_text, source_texts
from axolotl_sdft.integrations.axolotl.stages import pruning_spec
from axolotl_sdft.pruning.general_answers import GeneralText


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
    sources = calibration_sources(cfg, mixture({"share": 3}, other, num_samples=8), tiny_llama_dir)
    texts = source_texts(cfg, sources, tiny_llama_dir)
    assert [text.split()[0] for text in texts] == ["own"] * 6 + ["other"] * 2


def test_a_list_is_a_mixture():
    config = LayerPruningConfig(num_layers=2, calibration=[{"share": 0.5}, {"general_prompts": True, "share": 0.5}])
    assert [source.num_samples for source in config.calibration.sources] == [128, 128]
    assert config.calibration.parts[1].general_prompts


def test_general_prompts_are_left_out_of_what_is_read(cfg, tiny_llama_dir):
    sources = calibration_sources(
        cfg, mixture({"share": 1}, {"general_prompts": True, "share": 3}, num_samples=8), tiny_llama_dir
    )
    assert [text.split()[0] for text in source_texts(cfg, sources, tiny_llama_dir)] == ["own"] * 2
    assert calibration_sources(cfg, mixture({"general_prompts": True}), tiny_llama_dir) == []


def asked(cfg, tiny_llama_dir, **settings):
    return general_text(cfg, LayerPruningConfig(num_layers=2, **settings), tiny_llama_dir)


def test_by_default_the_seed_model_writes_half_of_what_a_patch_needs(cfg, tiny_llama_dir):
    assert asked(cfg, tiny_llama_dir) == GeneralText(share=0.5)
    assert asked(cfg, tiny_llama_dir, calibration={"general_share": 0.25, "num_samples": 9}) == GeneralText(share=0.25)


@pytest.mark.parametrize(
    "settings",
    [
        {"patch": "none"},
        {"calibration": {"general_share": 0}},
        {"calibration": {"path": "a.jsonl"}},
        {"calibration": [{"path": "a.jsonl"}, {"share": 1}]},
    ],
    ids=["no patch", "switched off", "a path", "parts"],
)
def test_nothing_is_written_without_a_patch_or_where_the_text_is_named(cfg, tiny_llama_dir, settings):
    assert asked(cfg, tiny_llama_dir, **settings) is None


def test_a_part_says_how_many_general_prompts_are_answered(cfg, tiny_llama_dir, caplog):
    caplog.set_level("INFO")
    parts = [{"share": 1}, {"general_prompts": True, "share": 1}]
    found = asked(cfg, tiny_llama_dir, calibration={"parts": parts, "num_samples": 40})
    assert found == GeneralText(num_prompts=20)
    asked(cfg, tiny_llama_dir, calibration={"parts": parts, "num_samples": 400})
    assert "layer_pruning.calibration asks for 200 general prompts; there are 128" in caplog.text


def test_a_part_with_general_prompts_is_without_effect_where_nothing_is_patched(cfg, tiny_llama_dir, caplog):
    assert asked(cfg, tiny_llama_dir, patch="none", calibration=[{"share": 1}, {"general_prompts": True}]) is None
    assert "patch is none, so the part of layer_pruning.calibration with general_prompts is without effect" in (
        caplog.text
    )


def identity_of(cfg, calibration, seed_dir):
    return [source.identity for source in calibration_sources(cfg, calibration, seed_dir)]


def test_the_identity_follows_the_rows(cfg, tmp_path, tiny_llama_dir):
    def identity(*parts):
        return identity_of(cfg, mixture(*parts, num_samples=4), tiny_llama_dir)

    own, other = {"share": 1}, {"path": rows(tmp_path / "other.jsonl", "other")}
    assert identity(own, other) == identity(own, other)
    assert identity(own, other) != identity(own)
    assert identity(own) == identity(own, {"general_prompts": True})


@pytest.mark.parametrize(
    ("choice", "counts"), [({"weight": 0.5}, True), ({"shards": 2}, True), ({"weight": 1.0}, False)]
)
def test_the_random_seed_counts_where_it_draws_the_rows(cfg, tiny_llama_dir, choice, counts):
    cfg.datasets = [{**cfg.datasets[0], **choice}]

    def identity(**seed):
        return identity_of(DictDefault({**cfg, **seed}), CalibrationConfig(), tiny_llama_dir)

    assert (identity(seed=1) != identity(seed=2)) == counts
    assert identity() == identity(seed=42)  # what rows are drawn with where no seed is set


@pytest.fixture
def bare_seed(tiny_llama_dir, tmp_path):
    """A copy of the seed model without a chat template."""
    folder = shutil.copytree(tiny_llama_dir, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"chat_template": "llama3"},
        {"datasets": [{"path": "own.jsonl", "type": "completion", "chat_template": "llama3"}]},
    ],
    ids=["of all", "of one dataset"],
)
def test_the_names_of_all_that_is_kept_follow_a_chat_template_that_the_seed_lacks(cfg, bare_seed, changes):
    def names(seed_dir, **more):
        asked = DictDefault({**cfg, "base_model": str(seed_dir), "chat_template": "chatml", **more})
        spec = pruning_spec(asked, LayerPruningConfig(num_layers=2))
        return spec.scores_dir.name, spec.output_dir.name, spec.answers_dir.name

    assert names(bare_seed) == names(bare_seed)
    is_everywhere = "datasets" not in changes  # general prompts belong to no dataset
    differ = [one != other for one, other in zip(names(bare_seed), names(bare_seed, **changes), strict=True)]
    assert differ == [True, True, is_everywhere]
    own = cfg.base_model  # which has a chat template
    assert names(own) == names(own, **{key: value for key, value in changes.items() if key != "datasets"})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"path": "a.jsonl", "parts": [{"share": 1}]}, "path is 'a.jsonl', but parts names what is read"),
        ([{"path": "a.jsonl", "general_prompts": True}], "general_prompts is true, but path .* is set too"),
        ([{"share": 0}], "greater than 0"),
        ({"path": "a.jsonl", "general_share": 0.5}, "general_share is 0.5, but path says what is read; remove"),
        ({"parts": [{"share": 1}], "general_share": 0.5}, "general_share is 0.5, but parts says what is read"),
        ({"general_share": 1.5}, "less than or equal to 1"),
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
