"""Patches fitted on tiny models and written into their checkpoints."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from axolotl_sdft import cut_layers, fit_patch
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.pruning.patching.fit import _decided
from axolotl_sdft.pruning.patching.record import CutPatch, neighbours
from tests.pruning.patching.models import WIDTH, llama, logits, make_linear, reloaded, text


@pytest.fixture
def seed(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "seed")
    return model


def linear_seed(tmp_path):
    """A model whose layers 2 and 3 add linear maps of what the projection of layer 1 gives."""
    model = llama()
    model.save_pretrained(tmp_path / "seed")
    maps = [torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(n)) * 0.3 for n in (1, 2)]
    for layer, map_DD in zip((2, 3), maps, strict=True):
        make_linear(model.model.layers[layer], map_DD, model.model.layers[1])
    return model, maps


def changed_tensors(first_dir, second_dir):
    first, second = (load_file(folder / "model.safetensors") for folder in (first_dir, second_dir))
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def test_layers_that_a_linear_map_can_stand_in_for_are_replaced_exactly(tmp_path):
    model, maps = linear_seed(tmp_path)
    patch = fit_patch(model, text(), [2, 3], ridge=1e-10)
    torch.testing.assert_close(patch.cuts[0].correction, (maps[0] + maps[1]).double(), rtol=1e-3, atol=1e-4)
    assert patch.divergence_patched < 1e-5 < patch.divergence_bare
    cut_layers(tmp_path / "seed", [2, 3], tmp_path / "patched", patch=patch)
    ids = text(seed=9)[0]["input_ids"]
    torch.testing.assert_close(logits(reloaded(tmp_path / "patched"), ids), logits(model, ids), rtol=1e-3, atol=1e-3)


def test_one_tensor_per_cut_differs_from_the_bare_cut(seed, tmp_path):
    patch = fit_patch(seed, text(), [1, 3, 4], hold_out=False)
    cut_layers(tmp_path / "seed", [1, 3, 4], tmp_path / "bare")
    cut_layers(tmp_path / "seed", [1, 3, 4], tmp_path / "patched", patch=patch)
    changed = changed_tensors(tmp_path / "bare", tmp_path / "patched")
    assert sorted(changed) == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]  # layers 0 and 2


def test_the_weight_is_the_old_one_times_the_map(seed, tmp_path):
    patch = fit_patch(seed, text(), [3], hold_out=False)
    cut_layers(tmp_path / "seed", [3], tmp_path / "patched", patch=patch)
    old = load_file(tmp_path / "seed" / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
    new = load_file(tmp_path / "patched" / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
    map_DD = torch.eye(WIDTH, dtype=torch.float64) + patch.cuts[0].correction
    torch.testing.assert_close(new, (map_DD.T @ old.double()).float())


def test_a_patched_checkpoint_keeps_its_dtype(tmp_path):
    model = llama()
    model.bfloat16().save_pretrained(tmp_path / "seed")
    patch = fit_patch(model.float(), text(), [3], hold_out=False)
    cut_layers(tmp_path / "seed", [3], tmp_path / "patched", patch=patch)
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "patched" / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16}


def test_a_second_cut_is_fitted_to_lead_from_the_patched_model_to_the_seed(tmp_path):
    """Layer 2 and 3 are linear in the projection of layer 1; removing 1 and 3 needs the states after the first cut."""
    model = llama()
    both = fit_patch(model, text(), [1, 3], hold_out=False)
    first = fit_patch(model, text(), [1], hold_out=False)
    torch.testing.assert_close(both.cuts[0].correction, first.cuts[0].correction)
    alone = fit_patch(model, text(), [3], hold_out=False)
    assert not torch.allclose(both.cuts[1].correction, alone.cuts[0].correction, rtol=1e-2, atol=1e-3)


def test_each_cut_is_kept_only_if_it_brings_the_model_nearer(seed):
    patch = fit_patch(seed, text(num_batches=2, rows=2, length=4), [1, 3, 4])
    assert len(patch.cuts) == 2
    for cut in patch.cuts:
        assert not cut.is_applied or cut.divergence_with < cut.divergence_without


def test_a_cut_is_judged_before_the_later_ones_are_made(seed):
    alone = fit_patch(seed, text(), [1]).cuts[0]
    first, _ = fit_patch(seed, text(), [1, 3, 4]).cuts
    assert (first.divergence_without, first.divergence_with) == (alone.divergence_without, alone.divergence_with)


def test_maps_that_are_no_help_together_are_all_dropped():
    cuts = [
        CutPatch((layer,), correction=torch.zeros(2, 2), divergence_without=2.0, divergence_with=1.0)
        for layer in (1, 3)
    ]
    cuts.append(CutPatch((0,), reason="its own"))
    patch = _decided(cuts, bare=1.5, patched=1.6, num_held_out=9)
    assert not patch.applied
    assert (patch.divergence_bare, patch.divergence_patched) == (1.5, 1.5)
    assert "KL 1.6 nats per token, 1.5 without" in patch.cuts[0].reason
    assert patch.cuts[2].reason == "its own"
    assert len(_decided(cuts, bare=1.6, patched=1.5, num_held_out=9).applied) == 2


def test_a_map_that_leads_away_from_the_seed_is_dropped_with_both_figures(seed):
    """Few tokens and no ridge: the map fits them by chance, and other text suffers."""
    patch = fit_patch(seed, text(num_batches=1, rows=2, length=12), [3], ridge=1e-12)
    (cut,) = patch.cuts
    assert not cut.is_applied
    assert "is not nearer to the seed model on held-out text" in cut.reason
    assert cut.divergence_with >= cut.divergence_without == patch.divergence_patched


def test_a_cut_from_layer_0_on_has_no_layer_before_it(seed):
    patch = fit_patch(seed, text(), [0, 3], hold_out=False)
    assert patch.cuts[0].reason == "the cut begins with layer 0, so there is no layer before it"
    assert patch.cuts[1].is_applied


def test_a_single_row_can_not_be_fitted_on_and_held_out(seed):
    patch = fit_patch(seed, text(num_batches=1, rows=1), [3])
    assert "a single row" in patch.cuts[0].reason


def test_batches_that_can_be_read_only_once_are_fitted_on_as_a_list_is(seed):
    of_list, of_generator = fit_patch(seed, text(), [3]), fit_patch(seed, iter(text()), [3])
    assert torch.equal(of_generator.cuts[0].correction, of_list.cuts[0].correction)


def test_the_model_comes_back_as_it_was(seed):
    ids = text()[0]["input_ids"]
    before, mode = logits(seed, ids), seed.training
    fit_patch(seed.train(), text(), [2, 4])
    assert seed.training
    assert torch.equal(logits(seed.train(mode), ids), before)
    assert not any(module._forward_hooks for module in seed.modules())


def test_padding_plays_no_part_in_the_fit(seed):
    batches = text()
    changed = [batch | {"input_ids": batch["input_ids"].clone()} for batch in batches]
    for batch in changed:
        batch["input_ids"][-1, -3:] = 42
    first, second = (fit_patch(seed, some, [3], hold_out=False).cuts[0].correction for some in (batches, changed))
    torch.testing.assert_close(first, second)


def test_too_little_text_is_warned_of(seed, caplog):
    fit_patch(seed, text(num_batches=2), [3])
    assert f"fewer than 8 times the hidden size of {WIDTH}" in caplog.text
    caplog.clear()
    fit_patch(seed, text(num_batches=12), [3])
    assert "fewer than" not in caplog.text


def test_a_patch_for_other_layers_is_refused(seed, tmp_path):
    patch = fit_patch(seed, text(), [3], hold_out=False)
    with pytest.raises(ConfigError, match="fitted for the removal of layers 3, but layers 2, 3 are to go"):
        cut_layers(tmp_path / "seed", [2, 3], tmp_path / "patched", patch=patch)
    assert not (tmp_path / "patched").exists()


def test_the_provenance_says_what_was_patched_and_how_much_nearer_it_is(seed, tmp_path):
    patch = fit_patch(seed, text(), [0, 3], ridge=1.0)
    cut_layers(tmp_path / "seed", [0, 3], tmp_path / "patched", patch=patch)
    told = json.loads((tmp_path / "patched" / "provenance" / "layer_pruning.json").read_text())["patch"]
    assert told["divergence_bare"] == patch.divergence_bare
    assert told["divergence_patched"] == patch.divergence_patched
    assert [cut["removed"] for cut in told["cuts"]] == [[0], [3]]
    assert told["cuts"][0]["reason"] == "the cut begins with layer 0, so there is no layer before it"
    assert told["cuts"][1]["module"] == "mlp.down_proj"


def test_writing_a_cut_says_what_was_patched_and_warns_of_what_stays_bare(seed, tmp_path, caplog):
    caplog.set_level("INFO")
    cut_layers(tmp_path / "seed", [0, 3], tmp_path / "cut", patch=fit_patch(seed, text(), [0, 3], hold_out=False))
    told = [(level, message) for name, level, message in caplog.record_tuples if name.endswith("checkpoint.cut")]
    reason = "the cut begins with layer 0, so there is no layer before it"
    assert told == [
        (logging.WARNING, f"layer 0 removed without a patch: {reason}"),
        (logging.INFO, "layer 2 is patched for layer 3: mlp.down_proj, fitted on 732 tokens"),
    ]


@pytest.mark.parametrize("drop_layers", [[2, 2, 3], torch.tensor([3, 2])])
def test_a_layer_that_is_named_twice_or_by_a_tensor_is_one_layer(seed, drop_layers):
    assert [cut.removed for cut in fit_patch(seed, text(), drop_layers).cuts] == [(2, 3)]


def test_neighbours_are_one_cut():
    assert list(neighbours([7, 2, 3, 1, 9])) == [(1, 2, 3), (7,), (9,)]
