import pytest
import torch

from axolotl_sdft.inference import likelihood
from axolotl_sdft.inference.likelihood import ScoredIds, mean_nll
from tests.inference.decoders import tiny_model
from tests.pruning.architectures import VOCABULARY


def texts(*shapes):
    """Random texts of so many tokens, so many of which are the answer."""
    generator = torch.Generator().manual_seed(2)
    return [
        ScoredIds(torch.randint(5, 60, (length,), generator=generator).tolist(), num_answer)
        for length, num_answer in shapes
    ]


@torch.inference_mode()
def slowly(model, text):
    """The same for one text, from all of its logits."""
    log_probs = model(input_ids=torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
    places = range(len(text.ids) - text.num_answer, len(text.ids))
    return -sum(log_probs[place - 1, text.ids[place]].item() for place in places) / text.num_answer


# Gemma 2 caps its logits, Cohere scales them, GPT-2 has no rotary positions, LFM2 layers without attention.
@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "gpt2", "lfm2_moe", "qwen3"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 1000])
def test_values_are_those_of_all_logits_of_each_text_alone(model_type, chunk_tokens, monkeypatch):
    monkeypatch.setattr(likelihood, "_CHUNK_LOGITS", chunk_tokens * VOCABULARY)
    monkeypatch.setattr(likelihood, "_BATCH_TOKENS", 40)
    model = tiny_model(model_type)
    scored = texts((12, 5), (20, 1), (7, 6), (9, 2), (30, 11))

    assert mean_nll(model, scored) == pytest.approx([slowly(model, text) for text in scored], abs=1e-5)


def test_the_head_never_sees_more_tokens_than_a_chunk_and_no_token_of_a_prompt(monkeypatch):
    monkeypatch.setattr(likelihood, "_CHUNK_LOGITS", 4 * VOCABULARY)
    model = tiny_model("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1]))

    mean_nll(model, texts((30, 5), (30, 6)))

    assert seen == [4, 4, 3]


def test_where_memory_runs_out_halves_are_measured(monkeypatch):
    model = tiny_model("llama")
    scored = texts((12, 5), (14, 3), (9, 2))
    expected = mean_nll(model, scored)

    def check(_module, _args, kwargs):
        if kwargs["input_ids"].shape[0] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.model.register_forward_pre_hook(check, with_kwargs=True)

    assert mean_nll(model, scored) == pytest.approx(expected, abs=1e-5)


def test_a_text_that_does_not_fit_alone_is_reported():
    model = tiny_model("llama")

    def run_out(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(run_out)

    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        mean_nll(model, texts((12, 5)))
