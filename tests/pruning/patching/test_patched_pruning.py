"""The stage patches what it cuts, and says so wherever it is looked for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from axolotl_sdft import LayerPruningConfig
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.pruning import general_answers
from axolotl_sdft.pruning.general_answers import GeneralText
from axolotl_sdft.pruning.pipeline import PruningRun
from axolotl_sdft.pruning.spec import PruningSpec
from tests.pruning.patching.models import llama, text


@pytest.fixture(scope="module")
def seed_dir(tmp_path_factory):
    """A model of which layer 3 adds little, so that its removal can be patched."""
    folder = tmp_path_factory.mktemp("seed")
    model = llama()
    with torch.no_grad():
        for parameter in model.model.layers[3].parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.3)
    model.save_pretrained(folder)
    return folder


def pruned(seed_dir, root, load_batches=text, general_text=None, **settings):
    run = PruningRun(
        PruningSpec(
            seed_dir=seed_dir,
            seed_name="org/seed",
            config=LayerPruningConfig(**settings),
            calibration_fingerprint="text",
            load_batches=load_batches,
            general_text=general_text,
            root=root,
        )
    )
    return run.run()


def record(folder):
    return json.loads((folder / "provenance" / "layer_pruning.json").read_text()).get("patch")


def changed(first_dir, second_dir):
    first, second = (load_file(folder / "model.safetensors") for folder in (first_dir, second_dir))
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def test_a_cut_is_patched_unless_told_otherwise(seed_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    patched = pruned(seed_dir, tmp_path, drop_layers=(3,))
    bare = pruned(seed_dir, tmp_path, drop_layers=(3,), patch="none")
    assert changed(bare, patched) == ["model.layers.2.mlp.down_proj.weight"]
    told = record(patched)
    assert told["divergence_patched"] < told["divergence_bare"]
    assert told["cuts"][0]["applied"]
    assert record(bare) is None
    assert "layer 2 is patched for layer 3: mlp.down_proj, fitted on" in caplog.text
    assert f"KL to the seed model: {told['divergence_bare']:.3f} nats per token for the bare cut" in caplog.text


def test_the_model_card_says_what_was_patched(seed_dir, tmp_path):
    card = (pruned(seed_dir, tmp_path, drop_layers=(3,)) / "README.md").read_text()
    assert "| Patch | linear, in `mlp.down_proj` of layer 2 (counted before the removal); KL to the seed model:" in card
    bare = (pruned(seed_dir, tmp_path, drop_layers=(3,), patch="none") / "README.md").read_text()
    assert "| Patch | none: the weights that stay are the seed model's |" in bare


def test_scored_layers_are_patched_from_the_text_that_was_read_once(seed_dir, tmp_path):
    reads = []
    folder = pruned(seed_dir, tmp_path, lambda: reads.append(1) or text(), num_layers=2, protect_first=1)
    assert reads == [1]
    assert record(folder)["num_held_out_tokens"] > 0


def no_text():
    raise DatasetError("the rows are pictures")


def test_without_text_named_layers_are_cut_bare_and_the_log_says_why(seed_dir, tmp_path, caplog):
    patched = pruned(seed_dir, tmp_path, no_text, drop_layers=(3,))
    assert "layer 3 removed without a patch: no calibration text to fit it on (the rows are pictures)" in caplog.text
    bare = pruned(seed_dir, tmp_path, no_text, drop_layers=(3,), patch="none")
    assert changed(bare, patched) == []


def test_a_patch_that_was_asked_for_needs_its_text(seed_dir, tmp_path):
    with pytest.raises(DatasetError, match="the rows are pictures"):
        pruned(seed_dir, tmp_path, no_text, drop_layers=(3,), patch="linear")


def test_a_model_that_cannot_be_loaded_is_cut_bare_and_the_record_says_why(tmp_path):
    llama().save_pretrained(tmp_path / "seed")
    config = json.loads((tmp_path / "seed" / "config.json").read_text())
    config |= {"model_type": "unheard-of", "architectures": ["Unheard"]}
    (tmp_path / "seed" / "config.json").write_text(json.dumps(config))
    folder = pruned(tmp_path / "seed", tmp_path, drop_layers=(3,))
    assert "can't be loaded" in record(folder)["cuts"][0]["reason"]


def test_a_quantized_projection_is_left_as_it_is(tmp_path):
    """The model is loaded from other weights than the checkpoint's, as with a quantized one."""
    from axolotl_sdft.pruning.checkpoint.cut import plan_checkpoint
    from axolotl_sdft.pruning.patching.fit import fitted_patch

    seed_dir = tmp_path / "seed"
    llama().save_pretrained(seed_dir)
    stored = load_file(seed_dir / "model.safetensors")
    name = "model.layers.2.mlp.down_proj"
    stored[f"{name}.qweight"] = stored.pop(f"{name}.weight").to(torch.int32)
    (tmp_path / "packed").mkdir()
    save_file(stored, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    (tmp_path / "packed" / "config.json").write_text((seed_dir / "config.json").read_text())
    cut = plan_checkpoint(tmp_path / "packed", [3])
    patch = fitted_patch(
        seed_dir, [3], (cut.tensors, cut.layer_prefix), LayerPruningConfig(drop_layers=(3,)), text(num_batches=3)
    )
    assert patch.cuts[0].reason == (
        "the checkpoint stores mlp.down_proj of layer 2 quantized (as mlp.down_proj.qweight), which can't hold the "
        "patched weight"
    )


@pytest.fixture
def short_answers(monkeypatch):
    """The model writes few tokens, and few are wanted."""
    monkeypatch.setattr(general_answers, "_MAX_NEW_TOKENS", 3)
    monkeypatch.setattr(general_answers, "WANTED_PER_UNIT", 1)


def words(count=12):
    ids = torch.randint(3, 100, (4, 16), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for _ in range(count)]


def test_the_patch_is_also_fitted_on_the_seed_model_s_own_answers(tiny_llama_dir, tmp_path, short_answers, caplog):
    caplog.set_level("INFO")
    settings = {"num_layers": 1, "protect_first": 1}
    alone = pruned(tiny_llama_dir, tmp_path, words, **settings)
    mixed = pruned(tiny_llama_dir, tmp_path, words, GeneralText(share=0.5), **settings)
    more = record(mixed)["num_held_out_tokens"] - record(alone)["num_held_out_tokens"]
    assert more > 0
    assert mixed != alone
    assert "beside 768 that were read, the seed model answers general prompts until that gives" in caplog.text
    assert "the seed model's answers to 16 general prompts (16 of them generated now" in caplog.text
    assert len(list(tmp_path.glob("org--seed-general-*/answers.json"))) == 1


def test_the_layers_are_scored_without_the_seed_model_s_answers(tiny_llama_dir, tmp_path, short_answers):
    settings = {"num_layers": 1, "protect_first": 1}
    pruned(tiny_llama_dir, tmp_path, words, GeneralText(share=0.5), **settings)
    pruned(tiny_llama_dir, tmp_path, words, **settings)
    assert len(list(tmp_path.glob("org--seed-scores-*"))) == 1


def test_nothing_is_asked_where_no_cut_can_be_patched(tiny_llama_dir, tmp_path, short_answers):
    folder = pruned(tiny_llama_dir, tmp_path, words, GeneralText(share=0.5), drop_layers=(0,))
    assert "the cut begins with layer 0" in record(folder)["cuts"][0]["reason"]
    assert not list(tmp_path.glob("*general*"))


def test_without_text_that_is_read_the_answers_alone_serve(tiny_llama_dir, tmp_path, short_answers, caplog):
    folder = pruned(tiny_llama_dir, tmp_path, no_text, GeneralText(share=0.5), drop_layers=(2,))
    assert record(folder)["num_held_out_tokens"] > 0
    assert "the patch is fitted without calibration text that was read: the rows are pictures" in caplog.text


def test_a_seed_model_that_cannot_be_asked_is_patched_with_what_was_read(seed_dir, tmp_path, caplog):
    """The seed model has no tokenizer."""
    from axolotl_sdft.core.errors import CheckpointError

    def refused(*_args, **_kwargs):
        raise CheckpointError("it has no chat template")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(general_answers, "general_texts", refused)
        folder = pruned(seed_dir, tmp_path, text, GeneralText(share=0.5), drop_layers=(3,))
        assert record(folder)["cuts"][0]["applied"]
        assert "no general prompts are answered for the patch, since it has no chat template" in caplog.text
        with pytest.raises(DatasetError, match="asks for general prompts, but it has no chat template"):
            pruned(seed_dir, tmp_path, text, GeneralText(num_prompts=2), drop_layers=(3,))


def test_a_seed_model_loaded_in_4_bits_gives_a_patch_for_the_checkpoint_on_disk(tiny_llama_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = {"drop_layers": (2,), "load_in_4bit": True, "dtype": "float32"}
    patched = pruned(tiny_llama_dir, tmp_path, words, **settings)
    bare = pruned(tiny_llama_dir, tmp_path, words, drop_layers=(2,), patch="none")
    assert record(patched)["cuts"][0]["applied"]
    assert changed(bare, patched) == ["model.layers.1.mlp.down_proj.weight"]
    weight = load_file(patched / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert (weight.dtype, tuple(weight.shape)) == (torch.float32, (64, 128))
