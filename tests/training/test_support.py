"""What can't be distilled is refused, above all a term without a gradient: nothing else would show it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import label_mask
from axolotl_sdft.training.mixin import DynSDPBMixin
from axolotl_sdft.training.trainers import DynSDPBTrainer, LogitDistillationTrainer
from tests.training.losses.test_loss_without_logits import without_logits
from tests.training.micro_batches import EPOCH, STATIC, make_llama, train, train_logs
from tests.training.teachers.test_prediction import lora
from tests.training.test_trainers import assert_same_parameters

peft = pytest.importorskip("peft")

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
    parent = kind.__bases__[1].__name__
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


class LossOfItsOwn(LossPerMicroBatch):
    """As the documentation of transformers shows it: the parent's loss is not asked for."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**{name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL})
        loss = loss_of(outputs.logits, inputs)
        return (loss, outputs) if return_outputs else loss


LossBeforeDynSDPB = type("LossBeforeDynSDPB", (DynSDPBTrainer,), {"compute_loss": LossOfItsOwn.compute_loss})
LossBeforeTeacher = type("LossBeforeTeacher", (LogitDistillationTrainer,), {"compute_loss": LossOfItsOwn.compute_loss})
DISTILLING = [
    (LossBeforeDynSDPB, "dynsdpb", STATIC, "DynSDPBMixin"),
    (LossBeforeTeacher, "logit_distillation", LogitDistillationConfig(alpha=0.5), "LogitDistillationMixin"),
]


@pytest.mark.parametrize(("kind", "block", "settings", "mixin"), DISTILLING)
def test_a_loss_that_leaves_out_the_distillation_stops_the_first_step(
    tmp_path: Path, kind: type[Trainer], block: str, settings: Any, mixin: str
):
    pattern = rf"{block}: compute_loss of {kind.__name__} does not call super\(\).compute_loss.*MyTrainer\({mixin}, "
    model = lora(make_llama())
    with pytest.raises(ConfigError, match=pattern):
        train(kind, model, [EPOCH], tmp_path, **{block: settings})
    assert_same_parameters(model, lora(make_llama()), rtol=0.0, atol=0.0)


def test_a_model_that_stays_in_evaluation_mode_stops_the_first_step(tmp_path: Path):
    model = make_llama().eval()
    model.train = lambda mode=True: model
    with pytest.raises(ConfigError, match=r"dynsdpb: the model stayed in evaluation mode.*set dropout to 0"):
        train(DynSDPBTrainer, model, [EPOCH], tmp_path, dynsdpb=STATIC)


def test_a_loss_of_ones_own_is_distilled_from_behind_the_mixin(tmp_path: Path):
    kind = type("ThroughItsLoss", (DynSDPBMixin, LossOfItsOwn), {})
    trainer = train(kind, make_llama(), [EPOCH], tmp_path, dynsdpb=STATIC)
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])


def test_where_nothing_is_distilled_a_loss_of_ones_own_may_stand_in_front(tmp_path: Path):
    off = LogitDistillationConfig(alpha=0.0)
    trainer = train(LossBeforeTeacher, make_llama(), [EPOCH], tmp_path, logit_distillation=off)
    assert trainer.state.global_step == len(EPOCH)


PROMPT_TUNING = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "P_TUNING": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
}


def prefixed() -> Any:
    torch.manual_seed(4)
    return peft.get_peft_model(make_llama(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


@pytest.mark.parametrize("make", [lambda model: model, without_logits], ids=["logits", "none"])
@pytest.mark.parametrize(("kind", "adapter"), PROMPT_TUNING.items())
def test_virtual_tokens_in_the_rows_are_refused_before_the_first_step(
    tmp_path: Path, kind: str, adapter: Any, make: Any
):
    model = make(peft.get_peft_model(make_llama(), adapter()))
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match=rf"peft_type is {kind}, which puts virtual tokens before each row.*LoRA"):
        DynSDPBTrainer(model=model, args=args, train_dataset=EPOCH, dynsdpb=STATIC)


@pytest.mark.parametrize("make", [lambda model: model, without_logits], ids=["logits", "none"])
def test_virtual_tokens_in_the_cache_are_distilled(tmp_path: Path, make: Any):
    expected = prefixed()
    first, second = EPOCH[:2]
    trained = [parameter for parameter in expected.parameters() if parameter.requires_grad]

    def predicted(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        places = label_mask(batch)
        return expected(**{**batch, "labels": None}).logits[places], batch["labels"].roll(-1, 1)[places]

    def step(loss: Tensor) -> None:
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.data -= 0.3 * gradient

    before, labels = predicted(first)
    step(nn.functional.cross_entropy(before, labels))
    (again, labels), (new, others) = predicted(first), predicted(second)
    teacher, student = (before.detach() / 2).log_softmax(-1), (again / 2).log_softmax(-1)
    kl = (teacher.exp() * (teacher - student)).sum(-1).mean()
    step(nn.functional.cross_entropy(torch.cat([again, new]), torch.cat([labels, others])) + 0.8 * 4 * kl)
    trainer = train(DynSDPBTrainer, make(prefixed()), [[first, second]], tmp_path, dynsdpb=STATIC)
    assert train_logs(trainer)[1]["dynsdpb/kl"] == pytest.approx(kl.item(), rel=1e-3)
    assert_same_parameters(trainer.model, expected, rtol=1e-3, atol=2e-5)
