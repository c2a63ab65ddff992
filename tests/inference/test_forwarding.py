from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM
from transformers.utils import logging

from axolotl_sdft.inference.forwarding import Forward, attention_of_any_shape
from tests.inference.decoders import tiny_model


class Recorder(nn.Module):
    """A model that writes down what it is given; its logits count the columns."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(4, 2)
        self.given = {}

    def get_input_embeddings(self):
        return self.embeddings

    def noted(self, input_ids, given):
        self.given = given
        return SimpleNamespace(logits=torch.arange(input_ids.shape[1]).reshape(1, -1, 1))


class OfToday(Recorder):
    def forward(self, input_ids, cache=None, use_cache=False, **others):
        return self.noted(input_ids, {"cache": cache, **others})


class OfBefore(Recorder):
    def forward(self, input_ids, past_key_values=None, use_cache=False, logits_to_keep=0, position_ids=None):
        return self.noted(input_ids, {"past_key_values": past_key_values, "logits_to_keep": logits_to_keep})


@pytest.mark.parametrize(
    ("model", "given"),
    [(OfToday(), {"cache": "kept"}), (OfBefore(), {"past_key_values": "kept", "logits_to_keep": 1})],
    ids=["cache", "past_key_values"],
)
def test_the_cache_goes_in_under_the_name_that_the_model_takes(model, given):
    last = Forward(model)(cache="kept", input_ids=torch.tensor([[1, 2, 3]]), position_ids=torch.tensor([[0, 1, 2]]))
    assert model.given == given
    assert last.tolist() == [[2]]


@pytest.mark.filterwarnings("error:.*past_key_values:FutureWarning")
def test_the_installed_transformers_takes_the_cache_without_a_warning(monkeypatch):
    said = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(
            logging.get_logger("transformers.utils.generic"), name, lambda *text, **_: said.append(text)
        )
    model, cache = tiny_model("llama"), DynamicCache()
    assert isinstance(model, LlamaForCausalLM)
    with torch.no_grad():
        last = Forward(model)(cache=cache, input_ids=torch.tensor([[5, 6, 7]]))
        torch.testing.assert_close(last, model(input_ids=torch.tensor([[5, 6, 7]])).logits[:, -1])
    assert cache.get_seq_length() == 3
    assert not said


@pytest.mark.parametrize("chosen", [True, False])
def test_cudnn_attention_is_left_out_for_the_time_of_a_pass_only(chosen):
    seen = []

    class Noting(OfToday):
        def noted(self, input_ids, given):
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            return super().noted(input_ids, given)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(chosen)
    try:
        Forward(Noting())(input_ids=torch.tensor([[1]]), cache=None)
        assert seen == [False]
        assert torch.backends.cuda.cudnn_sdp_enabled() is chosen
        with pytest.raises(RuntimeError, match="lost"), attention_of_any_shape():
            raise RuntimeError("lost")
        assert torch.backends.cuda.cudnn_sdp_enabled() is chosen
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
