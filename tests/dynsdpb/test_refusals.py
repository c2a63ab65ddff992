"""What can't be distilled is refused, above all a term without a gradient: nothing else would show it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_batches import EPOCH, STATIC, make_llama, train, train_logs
from test_prediction import lora
from test_trainers import assert_same_parameters
from torch import Tensor, nn
from transformers import Trainer

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.dynsdpb.mixin import DynSDPBMixin
from axolotl_sdft.dynsdpb.trainers import DynSDPBTrainer
from axolotl_sdft.errors import ConfigError

NOT_FOR_THE_MODEL = ("labels", "num_items_in_batch")


def loss_of(logits: Tensor, inputs: dict[str, Any]) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())


class LossPerMicroBatch(Trainer):
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class SecondPass(LossPerMicroBatch):
    """Makes the outputs that it is asked for in a pass without gradients, after the one that it trains."""

    num_passes = 0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        features = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        loss = loss_of(model(**features).logits, inputs)
        self.num_passes += 1
        if not return_outputs:
            return loss
        with torch.no_grad():
            self.num_passes += 1
            return loss, model(**features)


class PartsOfTheModel(LossPerMicroBatch):
    """Trains through the parts of the model, and shows the outputs of the whole without gradients."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        features = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        loss = loss_of(model.model(**features).last_hidden_state @ model.lm_head.weight.T, inputs)
        with torch.no_grad():
            return (loss, model(**features)) if return_outputs else loss


class AnotherModel(LossPerMicroBatch):
    """Shows what a copy of the model predicts, with gradients that pass to the copy alone."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        features = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        loss = loss_of(model.model(**features).last_hidden_state @ model.lm_head.weight.T, inputs)
        return (loss, copy.deepcopy(model)(**features)) if return_outputs else loss


class ThroughSecondPass(DynSDPBMixin, SecondPass):
    pass


class ThroughFirstPass(DynSDPBMixin, LossPerMicroBatch):
    pass


class ThroughParts(DynSDPBMixin, PartsOfTheModel):
    pass


class ThroughAnotherModel(DynSDPBMixin, AnotherModel):
    pass


@pytest.mark.parametrize("make", [make_llama, lambda: lora(make_llama())], ids=["all parameters", "adapters"])
def test_a_second_pass_for_the_outputs_is_seen_through_and_no_longer_asked_for(tmp_path: Path, make: Any):
    trainer = train(ThroughSecondPass, make(), [EPOCH], tmp_path, dynsdpb=STATIC)
    reference = train(ThroughFirstPass, make(), [EPOCH], tmp_path, dynsdpb=STATIC)
    assert_same_parameters(trainer.model, reference.model, rtol=1e-4, atol=1e-6)
    assert trainer.num_passes == len(EPOCH) + 1


@pytest.mark.parametrize("kind", [ThroughParts, ThroughAnotherModel])
def test_a_term_without_a_gradient_stops_the_first_step(tmp_path: Path, kind: type[Trainer]):
    parent = kind.__mro__[2].__name__
    pattern = (
        rf"alpha is 0\.8, but the distillation would have no gradient: {kind.__name__} \(compute_loss of .*{parent}; "
        r"transformers \d.*, torch \d.*\) shows predictions of another pass.*alpha: 0"
    )
    model = make_llama()
    with pytest.raises(ConfigError, match=pattern):
        train(kind, model, [EPOCH], tmp_path, dynsdpb=STATIC)
    assert_same_parameters(model, make_llama(), rtol=0.0, atol=0.0)


def test_without_influence_no_gradient_is_needed(tmp_path: Path):
    trainer = train(ThroughParts, make_llama(), [EPOCH], tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0))
    assert trainer.state.global_step == len(EPOCH)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_does_not_hide_the_gradient(tmp_path: Path, reentrant: bool):
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    trainer = train(DynSDPBTrainer, lora(make_llama()), [EPOCH], tmp_path, dynsdpb=STATIC, **settings)
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])
