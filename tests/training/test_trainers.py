"""Each run here trains on micro-batches that are written down, epoch by epoch, and is held against plain training."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import label_mask
from axolotl_sdft.training.losses.dynsdpb import dynsdpb_loss
from axolotl_sdft.training.student import has_own_mean
from axolotl_sdft.training.trainers import DynSDPBTrainer, axolotl_trainer_class
from tests.pruning.architectures import build, tiny_config
from tests.training.micro_batches import (
    EPOCH,
    STATIC,
    DynSDPBMeanTrainer,
    Epochs,
    MeanPerMicroBatch,
    MicroBatches,
    make_llama,
    rows,
    train,
    train_logs,
)


def windows(epochs: list[MicroBatches], size: int) -> list[MicroBatches]:
    return [epoch[start : start + size] for epoch in epochs for start in range(0, len(epoch), size)]


def stacked(previous: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    length = max(previous["labels"].shape[1], new["labels"].shape[1])
    filling = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: torch.cat([pad(part[name], (0, length - part[name].shape[1]), value=value) for part in (previous, new)])
        for name, value in filling.items()
    }


def joined_by_hand(epochs: list[MicroBatches], size: int) -> list[MicroBatches]:
    """The same epochs with each micro-batch beside that at its place in the window before."""
    joined: list[dict[str, Tensor]] = []
    previous: MicroBatches = []
    for window in windows(epochs, size):
        joined += [stacked(previous[place], new) if place < len(previous) else new for place, new in enumerate(window)]
        previous = window
    length = len(epochs[0])
    return [joined[start : start + length] for start in range(0, len(joined), length)]


def assert_same_parameters(model: torch.nn.Module, expected: torch.nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()), **tolerance)


class PlainMeanTrainer(MeanPerMicroBatch, Trainer):
    pass


TRAINERS = [(Trainer, DynSDPBTrainer), (PlainMeanTrainer, DynSDPBMeanTrainer)]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("plain_class", "dynsdpb_class"), TRAINERS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_influence_it_is_plain_training_on_the_joined_micro_batches(
    tmp_path: Path,
    accumulation: int,
    plain_class: type[Trainer],
    dynsdpb_class: type[Trainer],
    smoothing: float,
):
    epochs, settings = [EPOCH, EPOCH[::-1][:4] + EPOCH[4:]], {"gradient_accumulation_steps": accumulation}
    settings |= {"label_smoothing_factor": smoothing, "optim": "adamw_torch", "learning_rate": 0.01}
    plain = train(plain_class, make_llama(), joined_by_hand(epochs, accumulation), tmp_path, **settings)
    trainer = train(dynsdpb_class, make_llama(), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0), **settings)
    assert trainer.state.global_step == plain.state.global_step == len(windows(epochs, accumulation))
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)
    assert [entry["loss"] for entry in train_logs(trainer)] == [entry["loss"] for entry in train_logs(plain)]


def slow_training(
    model: LlamaForCausalLM, epochs: list[MicroBatches], size: int, config: DynSDPBConfig, over_window: bool
) -> None:
    """The method written out: each micro-batch in a pass of its own, terms as formulas, plain gradient descent."""
    previous: list[tuple[dict[str, Tensor], Tensor]] = []
    for window in windows(epochs, size):
        remembered, ce, kl = [], [], []
        for place, new in enumerate(window):
            batches = [new]
            if place < len(previous):
                batches.append(previous[place][0])
            logits = [model(**{**batch, "labels": None}).logits[label_mask(batch)] for batch in batches]
            labels = [batch["labels"][:, 1:][label_mask(batch)[:, :-1]] for batch in batches]
            ce.append(cross_entropy(torch.cat(logits), torch.cat(labels), reduction="none"))
            kl.append(tempered_kl(logits[1], previous[place][1], config) if place < len(previous) else torch.zeros(0))
            remembered.append((new, logits[0].detach()))
        groups = [torch.cat(ce), torch.cat(kl)] if over_window else ce + kl
        means = sum(terms.mean() for terms in groups if len(terms))
        loss = means if over_window else means / len(window)
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.3 * parameter.grad
        model.zero_grad()
        previous = remembered


def tempered_kl(student: Tensor, teacher: Tensor, config: DynSDPBConfig) -> Tensor:
    student, teacher = ((logits.double() / config.temperature).softmax(-1) for logits in (student, teacher))
    return config.alpha * config.temperature**2 * (teacher * (teacher / student).log()).sum(-1)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("trainer_class", "over_window"), [(DynSDPBTrainer, True), (DynSDPBMeanTrainer, False)])
def test_each_step_is_distilled_from_the_step_before(
    tmp_path: Path, accumulation: int, trainer_class: type[Trainer], over_window: bool
):
    epochs, expected = [EPOCH, EPOCH], make_llama()
    slow_training(expected, epochs, accumulation, STATIC, over_window)
    settings = {"gradient_accumulation_steps": accumulation, "dynsdpb": STATIC}
    trainer = train(trainer_class, make_llama(), epochs, tmp_path, **settings)
    assert_same_parameters(trainer.model, expected, rtol=1e-3, atol=2e-5)


def test_the_first_step_is_plain_training(tmp_path: Path):
    plain = train(Trainer, make_llama(), [EPOCH[:1]], tmp_path)
    trainer = train(DynSDPBTrainer, make_llama(), [EPOCH[:1]], tmp_path, dynsdpb=DynSDPBConfig(alpha=5.0))
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)


def test_the_log_holds_means_per_token_of_cross_entropy_kl_alpha_and_temperature(tmp_path: Path):
    model, config = make_llama(), DynSDPBConfig(alpha=1.5, temperature=3.0)
    expected = copy.deepcopy(model)
    first, second = EPOCH[:2]
    trainer = train(DynSDPBTrainer, model, [[first, second]], tmp_path, dynsdpb=config)
    before = expected(**first)
    before.loss.backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.3 * parameter.grad
        places = label_mask(first)
        terms = dynsdpb_loss(expected(**first).logits[places], before.logits[places], config)
        joined_ce = expected(**stacked(first, second)).loss.item()
    initial, logged = train_logs(trainer)
    count = terms.num_tokens
    assert {name for name in initial if name.startswith("dynsdpb/")} == {"dynsdpb/ce"}
    assert logged["dynsdpb/ce"] == pytest.approx(joined_ce, rel=1e-4)
    assert logged["dynsdpb/kl"] == pytest.approx(terms.divergence_sum.item() / count, rel=1e-3)
    assert logged["dynsdpb/alpha"] == pytest.approx(terms.alpha_sum.item() / count, rel=1e-4)
    assert logged["dynsdpb/temperature"] == pytest.approx(terms.temperature_sum.item() / count, rel=1e-4)
    assert logged["loss"] == pytest.approx(joined_ce + terms.kl_sum.item() / count, rel=1e-3)


@pytest.mark.parametrize("trainer_class", [DynSDPBTrainer, DynSDPBMeanTrainer])
def test_the_logged_cross_entropy_does_not_depend_on_accumulation(tmp_path: Path, trainer_class: type[Trainer]):
    batch, config = rows(6, 3, seed=1), DynSDPBConfig(alpha=0.0)
    halves = [{name: value[row : row + 1] for name, value in batch.items()} for row in (0, 1)]
    one = train(trainer_class, make_llama(), [[batch]], tmp_path, dynsdpb=config)
    two = train(trainer_class, make_llama(), [halves], tmp_path, dynsdpb=config, gradient_accumulation_steps=2)
    assert train_logs(two)[0]["dynsdpb/ce"] == pytest.approx(train_logs(one)[0]["dynsdpb/ce"], rel=1e-5)


ASKED_OF_TRANSFORMERS = None
"""Of families whose losses some versions of transformers divide by themselves, and others do not."""


class OwnMean(LlamaForCausalLM):
    """Takes the mean of each micro-batch, as some models do, though it accepts the count of the whole step."""

    def forward(self, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def with_own_mean() -> OwnMean:
    model = make_llama()
    own = OwnMean(model.config)
    own.load_state_dict(model.state_dict())
    return own


def test_a_model_that_averages_by_itself_is_distilled_as_it_averages(tmp_path: Path):
    # The parent takes each mean for a share of the step's and adds up both, so half the rate makes the same steps.
    epochs, settings = [EPOCH[:4]] * 2, {"gradient_accumulation_steps": 2, "dynsdpb": STATIC}
    mean = train(DynSDPBMeanTrainer, make_llama(), epochs, tmp_path, learning_rate=0.3, **settings)
    own = train(DynSDPBTrainer, with_own_mean(), epochs, tmp_path, learning_rate=0.15, **settings)
    assert_same_parameters(own.model, mean.model, rtol=1e-4, atol=1e-6)
    logged = [[entry["dynsdpb/ce"] for entry in train_logs(trainer)] for trainer in (own, mean)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("llama", {}, False),
        ("mixtral", {"output_router_logits": True, "router_aux_loss_coef": 100.0}, False),
        ("mamba", {}, ASKED_OF_TRANSFORMERS),
        ("modernbert-decoder", {}, ASKED_OF_TRANSFORMERS),
    ],
)
def test_how_a_model_divides_its_loss_is_read_off_the_loss(
    family: str, settings: dict[str, Any], expected: bool | None
):
    model = build(tiny_config(family, **settings)).train()
    if expected is ASKED_OF_TRANSFORMERS:
        ids = torch.arange(3, 40)[None]
        few, many = (float(model(ids, labels=ids, num_items_in_batch=torch.tensor(n)).loss.detach()) for n in (8, 16))
        expected = few == pytest.approx(many)
    assert has_own_mean(model, {}, torch.arange(3, 40)) is expected
    assert has_own_mean(model, {}, torch.arange(3, 4)) is None


def test_a_mean_of_its_own_is_read_off_the_loss():
    assert has_own_mean(with_own_mean(), {}, torch.arange(3, 40)) is True


def test_micro_batches_of_one_step_are_not_distilled_from_each_other(tmp_path: Path):
    trainer = train(DynSDPBTrainer, make_llama(), [EPOCH[:2]], tmp_path, dynsdpb=STATIC, gradient_accumulation_steps=2)
    assert "dynsdpb/kl" not in train_logs(trainer)[0]


def test_samples_without_trained_tokens_are_neither_distilled_nor_counted(tmp_path: Path):
    emptied = rows(5, 5, seed=9)
    emptied["labels"] = torch.full_like(emptied["labels"], -100)
    epochs, expected = [[EPOCH[0], emptied, EPOCH[1]]], make_llama()
    half_empty = {name: torch.cat([EPOCH[2][name], emptied[name]]) for name in emptied}
    epochs[0].append(half_empty)
    trainer = train(DynSDPBTrainer, make_llama(), epochs, tmp_path, dynsdpb=STATIC)
    slow_training(expected, epochs, 1, STATIC, over_window=True)
    assert_same_parameters(trainer.model, expected, rtol=1e-3, atol=2e-5)
    # Step 2 repeats the first batch, step 3 the emptied one, step 4 the one before.
    assert ["dynsdpb/kl" in entry for entry in train_logs(trainer)] == [False, True, False, True]


def test_evaluation_between_steps_disturbs_nothing(tmp_path: Path):
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
    samples = [{name: value[0] for name, value in rows(6, seed=11).items()}] * 3
    settings = {"dynsdpb": STATIC, "gradient_accumulation_steps": 2}
    plain = train(DynSDPBTrainer, make_llama(), [EPOCH, EPOCH], tmp_path, **settings)
    trainer = train(
        DynSDPBTrainer, make_llama(), [EPOCH, EPOCH], tmp_path, eval_dataset=samples, **settings, **evaluated
    )
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)
    with torch.no_grad():
        expected = trainer.model.eval()(**rows(6, seed=11)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_second_run_of_the_same_trainer_starts_without_memory(tmp_path: Path):
    trainer = train(DynSDPBTrainer, make_llama(), [EPOCH[:2]], tmp_path, dynsdpb=STATIC)
    trainer.get_train_dataloader = lambda: Epochs([EPOCH[:2]])
    trainer.train()
    assert ["dynsdpb/kl" in entry for entry in train_logs(trainer)] == [False, True]


def test_outside_a_training_loop_it_is_the_parents_loss(tmp_path: Path):
    trainer = train(DynSDPBTrainer, make_llama(), [EPOCH[:1]], tmp_path)
    trainer.model.train()
    for inputs in EPOCH[:2]:
        loss, outputs = trainer.compute_loss(trainer.model, dict(inputs), return_outputs=True)
        assert loss.item() == trainer.model(**inputs).loss.item()
        assert outputs.logits.shape[:2] == inputs["input_ids"].shape


def test_packed_rows_train_with_each_sample_on_its_own(tmp_path: Path):
    def packed(seed: int, *lengths: int) -> dict[str, Tensor]:
        batch = rows(sum(lengths), seed=seed, prompt=0)
        starts = [sum(lengths[:place]) for place in range(len(lengths))]
        batch["labels"][:, starts] = -100
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        return {"input_ids": batch["input_ids"], "labels": batch["labels"], "position_ids": positions}

    def unpacked(batch: dict[str, Tensor], *lengths: int) -> dict[str, Tensor]:
        first, second = (
            {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(labels)}
            for input_ids, labels in zip(
                *(batch[name].split(lengths, dim=1) for name in ("input_ids", "labels")), strict=True
            )
        )
        return stacked(first, second)

    model = make_llama(attn_implementation="sdpa")
    epoch = [packed(1, 4, 6), packed(2, 3, 4), packed(3, 5, 5)]
    trainer = train(DynSDPBTrainer, copy.deepcopy(model), [epoch], tmp_path, dynsdpb=STATIC)
    apart = [unpacked(epoch[0], 4, 6), unpacked(epoch[1], 3, 4), unpacked(epoch[2], 5, 5)]
    expected = train(DynSDPBTrainer, copy.deepcopy(model), [apart], tmp_path, dynsdpb=STATIC)
    assert_same_parameters(trainer.model, expected.model, rtol=1e-3, atol=2e-5)


def test_adapters_train_with_dropout_and_gradient_checkpointing(tmp_path: Path):
    peft = pytest.importorskip("peft")
    model = make_llama(attention_dropout=0.1)
    frozen = copy.deepcopy(model.model.embed_tokens.weight)
    lora = peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = train(
        DynSDPBTrainer,
        peft.get_peft_model(model, lora),
        [EPOCH, EPOCH],
        tmp_path,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
    )
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])
    assert torch.equal(model.get_input_embeddings().weight, frozen)
    assert any(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (None, "computes its loss without logits, and what its body gives can't be turned into them"),
        (torch.zeros(2, 9, 64), r"returned logits of shape \(2, 9, 64\) for labels of shape \(2, 7\)"),
    ],
)
def test_a_model_whose_logits_can_not_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logits: Tensor | None, message: str
):
    model = make_llama()
    forward = model.forward

    def forward_without_logits(**inputs: Any) -> dict[str, Any]:
        return {"loss": forward(**inputs).loss, "logits": logits}

    monkeypatch.setattr(model, "forward", forward_without_logits)
    with pytest.raises(ConfigError, match=f"dynsdpb: the model {message}.*switch off"):
        train(DynSDPBTrainer, model, [EPOCH[:1]], tmp_path)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    trainer = DynSDPBTrainer(model=make_llama(), args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    with pytest.raises(ConfigError, match=r"one process drives 2 GPUs.*torchrun or accelerate launch; .* notebook"):
        trainer.get_batch_samples(iter([]), 1, torch.device("cpu"))


def test_a_sequence_split_over_ranks_is_refused(tmp_path: Path):
    trainer = DynSDPBTrainer(model=make_llama(), args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    trainer.accelerator = SimpleNamespace(parallelism_config=SimpleNamespace(cp_size=2, sp_size=1))
    with pytest.raises(ConfigError, match=r"cp_size is 2.*set it to 1"):
        trainer.get_batch_samples(iter([]), 1, torch.device("cpu"))


def test_axolotls_trainer_takes_its_settings_from_the_block():
    pytest.importorskip("axolotl")
    trainer_class = axolotl_trainer_class()
    trainer = trainer_class.__new__(trainer_class)
    trainer._dynsdpb_given = None
    with pytest.raises(ConfigError, match=r"before trainer.axolotl_cfg was set"):
        trainer.dynsdpb_config  # noqa: B018
    trainer.axolotl_cfg = {"dynsdpb": {"alpha": 0.25}}
    assert trainer.dynsdpb_config == DynSDPBConfig(alpha=0.25)
    assert axolotl_trainer_class() is trainer_class
