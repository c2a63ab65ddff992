"""Encoders, which read a text at once instead of writing it, are cut like decoders."""

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from axolotl_sdft import cut_layers
from axolotl_sdft.core.errors import CheckpointError
from tests.pruning.architectures import NUM_LAYERS, build, tiny_config
from tests.pruning.skipped_layers import check_config, check_cut, config_of, loaded

ENCODERS = ("bert", "roberta", "deberta", "deberta-v2", "distilbert", "electra", "modernbert")
HEADS = {"masked words": AutoModelForMaskedLM, "classes": AutoModelForSequenceClassification}


def tiny_encoder(model_type, head, folder):
    """Save a tiny random encoder and return it as loaded from there."""
    special = {"num_labels": 3, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "is_decoder": False}
    known = tiny_config(model_type).to_dict()
    config = tiny_config(model_type, **{key: value for key, value in special.items() if key in known})
    config.num_labels = 3
    model = build(config, HEADS[head])
    model.save_pretrained(folder)
    return loaded(type(model), folder)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_a_cut_encoder_equals_the_original_with_those_layers_skipped(model_type, head, tmp_path):
    seed = tiny_encoder(model_type, head, tmp_path / "seed")
    for drop_layers in ((1,), (2, 4, 5)):
        pruned_dir = tmp_path / f"without {drop_layers}"
        if hasattr(seed.config, "global_attn_every_n_layers"):
            # This transformers takes the windows from a layer's number, so that pruning refuses the cut.
            cut_layers(tmp_path / "seed", drop_layers, pruned_dir)
            with pytest.raises(CheckpointError, match="can't be cut soundly"):
                check_config(tmp_path / "seed", drop_layers, pruned_dir)
            continue
        pruned = check_cut(seed, tmp_path / "seed", drop_layers, pruned_dir)
        check_config(tmp_path / "seed", drop_layers, pruned_dir)
        assert pruned.config.num_hidden_layers == NUM_LAYERS - len(drop_layers)


def test_tokens_of_a_cut_encoder_still_see_those_after_them(tmp_path):
    seed = tiny_encoder("bert", "masked words", tmp_path / "seed")
    pruned = check_cut(seed, tmp_path / "seed", (3,), tmp_path / "pruned")
    ids = torch.tensor([[7, 8, 9], [7, 8, 10]])
    with torch.no_grad():
        first, second = pruned(input_ids=ids).logits[:, 0]
    assert not torch.equal(first, second)


def test_the_first_layer_of_modernbert_stays_since_it_is_built_differently(tmp_path):
    tiny_encoder("modernbert", "masked words", tmp_path / "seed")
    with pytest.raises(CheckpointError, match=r"'modernbert' can't be cut soundly: layer 0 is built differently"):
        cut_layers(tmp_path / "seed", (0, 2), tmp_path / "pruned")


def test_the_classes_of_a_classifier_come_along(tmp_path):
    tiny_encoder("roberta", "classes", tmp_path / "seed")
    pruned = config_of(cut_layers(tmp_path / "seed", (1, 2, 3), tmp_path / "pruned"))
    assert len(pruned["id2label"]) == NUM_LAYERS - 3  # as many as the layers left, which changes nothing
    assert pruned["id2label"] == config_of(tmp_path / "seed")["id2label"]


@pytest.mark.parametrize("model_type", ["t5", "bart", "marian"])
def test_a_model_with_encoder_and_decoder_is_refused(model_type, tmp_path):
    build(tiny_config(model_type, is_decoder=False), transformers.AutoModelForSeq2SeqLM).save_pretrained(
        tmp_path / "seed"
    )
    with pytest.raises(CheckpointError, match=rf"'{model_type}' can't be cut soundly: it has an encoder and a decoder"):
        cut_layers(tmp_path / "seed", (1,), tmp_path / "pruned")
