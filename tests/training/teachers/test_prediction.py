"""Which form the memory takes, and that all exact forms train the same model."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, Trainer

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import label_mask
from axolotl_sdft.training.teachers.prediction import Predictions
from axolotl_sdft.training.teachers.previous_prediction import TeacherLogits
from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.training.micro_batches import EPOCH, make_llama, train, train_logs

peft = pytest.importorskip("peft")


def lora(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def frozen_head(**settings: Any) -> nn.Module:
    model = make_llama(**settings)
    model.lm_head.requires_grad_(False)
    return model


def capped() -> nn.Module:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3, "pad_token_id": 0}
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(Gemma2Config(**sizes, **heads, final_logit_softcapping=1.5))


def read(predictions: Predictions, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
    mask = label_mask(inputs)
    rows = mask.flatten().nonzero().squeeze(1)
    with predictions.watched() as seen:
        logits = model(**inputs).logits
    return predictions.read(seen, logits, mask), rows, logits.flatten(0, 1)[rows]


FORMS = {
    "a trained head": (make_llama, "auto", "logits"),
    "a frozen head": (frozen_head, "auto", "hidden_states"),
    "adapters": (lambda: lora(make_llama()), "auto", "hidden_states"),
    "adapters, tied": (lambda: lora(make_llama(tie_word_embeddings=True)), "auto", "hidden_states"),
    "a capped head": (lambda: lora(capped()), "auto", "hidden_states"),
    "logits on request": (frozen_head, "logits", "logits"),
    "top k on request": (frozen_head, "top_k", "top_k"),
}


@pytest.mark.parametrize(("make", "memory", "form"), FORMS.values(), ids=FORMS)
def test_the_cheapest_exact_form_is_kept_and_read_back(make: Any, memory: str, form: str):
    model, config = make(), DynSDPBConfig(teacher_storage=memory, top_k=64, chunk_tokens=3)
    predictions = Predictions(model, config)
    seen, rows, logits = read(predictions, model, EPOCH[0])
    kept = predictions.keep(seen, rows)
    chunk = predictions.recall(kept).chunk(slice(0, 4), config, torch.device("cpu"), torch.float32)
    exact = TeacherLogits(logits.detach()).chunk(slice(0, 4), config, torch.device("cpu"), torch.float32)
    assert predictions.form == form
    assert not any(value.requires_grad for value in kept.values())
    order = exact.log_probs.argsort(descending=True) if form == "top_k" else torch.arange(64).expand(4, -1)
    torch.testing.assert_close(chunk.log_probs[:, :64], exact.log_probs.gather(1, order), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((chunk.temperature, chunk.uncertainty), (exact.temperature, exact.uncertainty))
    assert torch.equal(chunk.top, exact.top)


def test_hidden_states_of_a_trained_head_are_refused():
    with pytest.raises(
        ConfigError, match=r"teacher_storage is hidden_states, but the output head is trained.*teacher_storage: logits"
    ):
        Predictions(make_llama(), DynSDPBConfig(teacher_storage="hidden_states"))


def test_a_head_that_cannot_be_run_apart_leaves_logits(caplog: pytest.LogCaptureFixture):
    model = frozen_head()
    with caplog.at_level(logging.WARNING):
        predictions = Predictions(model, DynSDPBConfig(teacher_storage="hidden_states"), can_watch=False)
    seen, rows, logits = read(predictions, model, EPOCH[0])
    assert "sharded or compiled" in caplog.text
    assert torch.equal(predictions.keep(seen, rows)["logits"], logits)


class Shifted(nn.Module):
    """A model that does to its logits what no configuration tells."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = frozen_head()
        self.config = self.inner.config
        self.get_output_embeddings = self.inner.get_output_embeddings

    def forward(self, **inputs: Any) -> Any:
        outputs = self.inner(**inputs)
        outputs.logits = outputs.logits + torch.arange(64) / 64
        return outputs


def test_logits_that_cannot_be_made_again_are_kept_with_one_warning(caplog: pytest.LogCaptureFixture):
    model = Shifted()
    predictions = Predictions(model, DynSDPBConfig())
    with caplog.at_level(logging.WARNING):
        for batch in EPOCH[:2]:
            seen, rows, logits = read(predictions, model, batch)
            assert torch.equal(predictions.keep(seen, rows)["logits"], logits)
    assert (len(caplog.records), predictions.form) == (1, "logits")
    assert "could not be made again" in caplog.text


def test_a_loss_that_writes_over_the_logits_is_refused():
    model = make_llama()
    predictions = Predictions(model, DynSDPBConfig())
    with predictions.watched() as seen:
        logits = model(**EPOCH[0]).logits
    logits.detach().mul_(0.1)  # as a fused kernel does that leaves its gradient there
    with pytest.raises(ConfigError, match=r"writes over the logits.*liger_cross_entropy.*float32.*bf16"):
        predictions.read(seen, logits, label_mask(EPOCH[0]))


def test_what_another_way_of_reading_has_kept_is_not_misread():
    model = frozen_head()
    watching, blind = Predictions(model, DynSDPBConfig()), Predictions(model, DynSDPBConfig(), can_watch=False)
    kept = [predictions.keep(*read(predictions, model, EPOCH[0])[:2]) for predictions in (watching, blind)]
    assert blind.recall(kept[0]) is None
    assert watching.recall(kept[1]).num_tokens == len(kept[1]["logits"])


RUNS = {
    "adapters": lambda: lora(make_llama()),
    "all parameters": make_llama,
    "a capped head": lambda: lora(capped()),
    "a frozen head": frozen_head,
}


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(
    "settings",
    [{"label_smoothing_factor": 0.1}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}],
    ids=["smoothing", "accumulation"],
)
def test_however_the_previous_prediction_is_kept_the_same_model_is_trained(
    tmp_path: Path, make: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    configs = [DynSDPBConfig(alpha=0.8, teacher_storage=memory, top_k=64) for memory in ("auto", "logits", "top_k")]
    runs = [train(DynSDPBTrainer, make(), [EPOCH], tmp_path, dynsdpb=config, **settings) for config in configs]
    # The slow way: the gradient of the distillation term is a second one of full size, beside that of the loss.
    monkeypatch.setattr("axolotl_sdft.training.teachers.prediction.find_head", lambda model: None)
    runs.append(train(DynSDPBTrainer, make(), [EPOCH], tmp_path, dynsdpb=configs[0], **settings))
    first, *others = (dict(run.model.named_parameters()) for run in runs)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-6)
    assert all(entry["dynsdpb/kl"] > 0 for run in runs for entry in train_logs(run)[1:])


def test_mixed_precision_trains_the_same_model_from_hidden_states_and_from_logits(tmp_path: Path):
    settings = {"bf16": True, "learning_rate": 0.05}
    hidden, logits = (
        train(
            DynSDPBTrainer,
            lora(make_llama()),
            [EPOCH],
            tmp_path,
            dynsdpb=DynSDPBConfig(teacher_storage=memory),
            **settings,
        )
        for memory in ("hidden_states", "logits")
    )
    torch.testing.assert_close(
        dict(hidden.model.named_parameters()), dict(logits.model.named_parameters()), rtol=1e-2, atol=2e-4
    )


def test_only_tokens_that_were_right_before_are_distilled_in_training(tmp_path: Path):
    batch = EPOCH[0]
    model = make_llama()
    with torch.no_grad():
        right = model(**batch).logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]
    config = DynSDPBConfig(alpha=2.0, dynamic_alpha=False, teacher_correct_only=True)
    trainer = train(DynSDPBTrainer, model, [[batch, EPOCH[1]]], tmp_path, dynsdpb=config)
    share = right.sum().item() / label_mask(batch).sum().item()
    assert train_logs(trainer)[1]["dynsdpb/alpha"] == pytest.approx(2.0 * share)


def test_without_influence_adapters_are_trained_as_the_parent_trains_them_for_twenty_steps(tmp_path: Path):
    epochs = [EPOCH[:4]] * 5
    joined: list[dict[str, Tensor]] = []

    class Recording(DynSDPBTrainer):
        def _dynsdpb_join(self, *args: Any) -> dict[str, Any]:
            joined.append(super()._dynsdpb_join(*args))
            return dict(joined[-1])

    model = lora(make_llama())
    settings = {"optim": "adamw_torch", "learning_rate": 0.01, "max_grad_norm": 1.0}
    trainer = train(Recording, copy.deepcopy(model), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0), **settings)
    plain = train(Trainer, model, [joined], tmp_path, **settings)
    assert trainer.state.global_step == plain.state.global_step == 20
    torch.testing.assert_close(
        dict(trainer.model.named_parameters()), dict(plain.model.named_parameters()), rtol=0.0, atol=0.0
    )
