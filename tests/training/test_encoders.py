"""Encoders that give rows or tokens a class, held against plain training and against the method written out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, pad
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    XLNetConfig,
)

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.losses.labels import NextToken, PerLabel, PerRow, SamePosition, label_layout
from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.training.micro_batches import STATIC, MicroBatches, make_llama, train, train_logs

SEQUENCE = [
    (BertForSequenceClassification, BertConfig),
    (RobertaForSequenceClassification, RobertaConfig),
    (DebertaV2ForSequenceClassification, DebertaV2Config),
    (LlamaForSequenceClassification, LlamaConfig),
]
TOKEN = [
    (BertForTokenClassification, BertConfig),
    (RobertaForTokenClassification, RobertaConfig),
    (DebertaV2ForTokenClassification, DebertaV2Config),
]
MULTI_LABEL = {"problem_type": "multi_label_classification"}


def make_model(classes: tuple[type[Any], type[Any]], *, dropout: float = 0.0, **settings: Any) -> Any:
    """A random model of 1 layer with 5 classes, the same one each time."""
    model_class, config_class = classes
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 40, "num_labels": 5, "initializer_range": 0.3}
    if config_class is not LlamaConfig:
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "type_vocab_size": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return model_class(config_class(**sizes, pad_token_id=1, **settings))


def texts(*lengths: int, seed: int, labels: str = "rows") -> dict[str, Tensor]:
    """A padded micro-batch with a class for each row, a class for most tokens, or 5 yes-or-no labels for each row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    input_ids = torch.randint(2, 64, mask.shape, generator=generator).masked_fill(~mask, 1)
    kinds = {
        "rows": lambda: torch.randint(0, 5, (len(lengths),), generator=generator),
        "tokens": lambda: torch.randint(0, 5, mask.shape, generator=generator).masked_fill(~mask, -100),
        "many": lambda: torch.randint(0, 2, (len(lengths), 5), generator=generator).float(),
    }
    batch = {"input_ids": input_ids, "attention_mask": mask.long(), "labels": kinds[labels]()}
    if labels == "tokens":
        batch["labels"][:, 0] = -100
    return batch


def an_epoch(labels: str) -> MicroBatches:
    """Four micro-batches of 3 rows and an uneven last one of 1."""
    lengths = [(7, 4, 2), (3, 8, 5), (5, 5, 5), (9, 6, 2), (4,)]
    return [texts(*parts, seed=place, labels=labels) for place, parts in enumerate(lengths)]


def beside_the_previous(epochs: list[MicroBatches], size: int) -> list[MicroBatches]:
    """The same epochs with each micro-batch joined to that at its place in the window before."""
    joined, previous = [], []
    for epoch in epochs:
        for start in range(0, len(epoch), size):
            window = epoch[start : start + size]
            joined += [
                stacked(previous[place], new) if place < len(previous) else new for place, new in enumerate(window)
            ]
            previous = window
    return [joined[start : start + len(epochs[0])] for start in range(0, len(joined), len(epochs[0]))]


def stacked(previous: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    length = max(previous["input_ids"].shape[1], new["input_ids"].shape[1])
    filling = {"input_ids": 1, "attention_mask": 0, "labels": -100}

    def padded(name: str, batch: dict[str, Tensor]) -> Tensor:
        value = batch[name]
        is_per_token = value.shape == batch["input_ids"].shape
        return pad(value, (0, length - value.shape[1]), value=filling[name]) if is_per_token else value

    return {name: torch.cat([padded(name, previous), padded(name, new)]) for name in previous}


def assert_same_parameters(model: torch.nn.Module, expected: torch.nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()), **tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("classes", "labels"), [(classes, "rows") for classes in SEQUENCE] + [(classes, "tokens") for classes in TOKEN]
)
def test_without_influence_twenty_steps_are_plain_training_on_the_joined_micro_batches(
    tmp_path: Path, classes: Any, labels: str, accumulation: int, smoothing: float
):
    num_epochs = 4 if accumulation == 1 else 7  # five steps an epoch, or three
    epochs = [an_epoch(labels)] * num_epochs
    settings = {"gradient_accumulation_steps": accumulation, "optim": "adamw_torch", "learning_rate": 0.01}
    settings |= {"label_smoothing_factor": smoothing}
    plain_model, model = (make_model(classes, dropout=0.1) for _ in range(2))
    plain = train(Trainer, plain_model, beside_the_previous(epochs, accumulation), tmp_path, **settings)
    trainer = train(DynSDPBTrainer, model, epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0), **settings)
    assert trainer.state.global_step == plain.state.global_step >= 20
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)


def slow_training(model: Any, epochs: list[MicroBatches], size: int, labels: str) -> None:
    """The method written out, one pass for each micro-batch; transformers adds up the means of a step here."""
    previous: list[tuple[dict[str, Tensor], Tensor]] = []
    for epoch in epochs:
        for start in range(0, len(epoch), size):
            remembered = []
            for place, new in enumerate(epoch[start : start + size]):
                logits, ce = trained_logits(model, new, labels)
                remembered.append((new, logits.detach()))
                loss = ce.mean()
                if place < len(previous):
                    again, ce_again = trained_logits(model, previous[place][0], labels)
                    loss = torch.cat([ce, ce_again]).mean() + tempered_kl(again, previous[place][1], labels).mean()
                loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.0 if parameter.grad is None else 0.05 * parameter.grad
            model.zero_grad()
            previous = remembered


def trained_logits(model: Any, batch: dict[str, Tensor], labels: str) -> tuple[Tensor, Tensor]:
    """Return the logits of what is trained, and the cross-entropy of each."""
    logits, targets = model(**{**batch, "labels": None}).logits, batch["labels"]
    if labels == "many":
        return logits, binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten()
    if labels == "tokens":
        logits, targets = logits[targets != -100], targets[targets != -100]
    return logits, cross_entropy(logits, targets, reduction="none")


def tempered_kl(present: Tensor, previous: Tensor, labels: str) -> Tensor:
    """Return ``0.8 * 2^2 * KL`` of each trained label, at temperature 2."""
    present, previous = present.double() / 2, previous.double() / 2
    if labels == "many":
        yes, no = (previous.sigmoid() * (logsigmoid(previous) - logsigmoid(present))), -previous
        kl = yes + no.sigmoid() * (logsigmoid(no) - logsigmoid(-present))
    else:
        kl = (previous.softmax(-1) * (previous.log_softmax(-1) - present.log_softmax(-1))).sum(-1)
    return 3.2 * kl.float()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("classes", "labels"),
    [*((classes, "rows") for classes in SEQUENCE), *((classes, "tokens") for classes in TOKEN), (SEQUENCE[0], "many")],
)
def test_each_step_is_distilled_from_the_step_before(tmp_path: Path, classes: Any, labels: str, accumulation: int):
    epochs, settings = [an_epoch(labels)] * 2, MULTI_LABEL if labels == "many" else {}
    plain, expected, model = (make_model(classes, **settings) for _ in range(3))
    train(Trainer, plain, epochs, tmp_path, learning_rate=0.05, gradient_accumulation_steps=accumulation)
    slow_training(expected, epochs, accumulation, labels)
    trainer = train(
        DynSDPBTrainer,
        model,
        epochs,
        tmp_path,
        dynsdpb=STATIC,
        learning_rate=0.05,
        gradient_accumulation_steps=accumulation,
    )
    assert_same_parameters(trainer.model, expected, rtol=1e-3, atol=2e-5)
    assert not torch.allclose(next(trainer.model.parameters()), next(plain.parameters()), atol=1e-3)


def test_only_correct_distils_the_rows_whose_class_the_previous_prediction_had_right(tmp_path: Path):
    batch, model = texts(5, 4, 3, 6, seed=1), make_model(SEQUENCE[0])
    with torch.no_grad():
        share = (model(**batch).logits.argmax(-1) == batch["labels"]).float().mean().item()
    config = STATIC.model_copy(update={"teacher_correct_only": True})
    trainer = train(DynSDPBTrainer, model, [[batch, texts(4, seed=2)]], tmp_path, dynsdpb=config)
    assert 0 < share < 1
    assert train_logs(trainer)[1]["dynsdpb/alpha"] == pytest.approx(0.8 * share, rel=1e-5)


@pytest.mark.parametrize("labels", ["rows", "tokens"])
def test_the_logged_cross_entropy_is_the_mean_over_what_is_trained(tmp_path: Path, labels: str):
    batch, model = texts(5, 4, 3, seed=1, labels=labels), make_model((SEQUENCE if labels == "rows" else TOKEN)[0])
    expected = trained_logits(model, batch, labels)[1].mean().item()
    trainer = train(DynSDPBTrainer, model, [[batch, batch]], tmp_path, gradient_accumulation_steps=2)
    assert train_logs(trainer)[0]["dynsdpb/ce"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("classes", [*SEQUENCE, *TOKEN])
def test_the_padding_of_joined_rows_changes_no_prediction(classes: Any):
    labels = "tokens" if classes in TOKEN else "rows"
    model, previous, new = (
        make_model(classes).eval(),
        texts(3, 2, seed=1, labels=labels),
        texts(8, seed=2, labels=labels),
    )
    layout = label_layout(model, new)
    joined = layout.join(previous, new, 1, one_row=False)
    with torch.no_grad():
        parts = [layout.logits(model(**batch).logits)[layout.mask(batch)] for batch in (previous, new)]
        together = layout.logits(model(**joined).logits)[layout.mask(joined)]
    torch.testing.assert_close(together, torch.cat(parts), rtol=1e-4, atol=1e-5)
    assert layout.trained(joined).tolist() == [*layout.trained(previous).tolist(), *layout.trained(new).tolist()]


def test_as_many_labels_as_positions_are_not_taken_for_tokens():
    previous, new = texts(5, 2, seed=1, labels="many"), texts(7, seed=2, labels="many")
    joined = PerLabel().join(previous, new, 1, one_row=False)
    assert joined["labels"].tolist() == [*previous["labels"].tolist(), *new["labels"].tolist()]


def test_packed_tokens_joined_end_to_end_keep_all_their_classes():
    def packed(classes: list[int]) -> dict[str, Tensor]:
        ids = torch.arange(len(classes))[None]
        return {"input_ids": ids, "position_ids": ids, "labels": torch.tensor([classes])}

    joined = SamePosition().join(packed([2, -100]), packed([3, 4, 0]), 1, one_row=True)
    assert joined["labels"].tolist() == [[2, -100, 3, 4, 0]]
    assert joined["position_ids"].tolist() == [[0, 1, 0, 1, 2]]


def test_a_column_of_classes_is_one_class_for_each_row():
    assert PerRow().mask({"labels": torch.tensor([[3], [-100]])}).tolist() == [[True], [False]]
    assert PerRow().trained({"labels": torch.tensor([[3], [-100]])}).tolist() == [3]


@pytest.mark.parametrize(
    ("model", "labels", "layout"),
    [
        (make_llama(), torch.ones(1, 1), NextToken),
        (torch.nn.Linear(1, 1), torch.ones(1, 1), NextToken),
        (make_model(TOKEN[0]), torch.ones(1, 1), SamePosition),
        (make_model(SEQUENCE[0]), torch.tensor([1]), PerRow),
        (make_model(SEQUENCE[0], **MULTI_LABEL), torch.ones(1, 5), PerLabel),
    ],
)
def test_the_layout_follows_from_the_class_of_the_model(model: Any, labels: Tensor, layout: type):
    assert type(label_layout(model, {"labels": labels})) is layout


@pytest.mark.parametrize(
    ("model_class", "config", "labels", "message"),
    [
        (BertForSequenceClassification, {"num_labels": 1}, [0.5], "predicts a number .*num_labels 1.*split the range"),
        (BertForSequenceClassification, {"problem_type": "regression"}, [0.5], "problem_type 'regression'"),
        (BertForSequenceClassification, {}, [[0.0, 1.0]], r"shape \(1, 2\) are fractions.*multi_label_classification"),
        (BertForMaskedLM, {}, [[3]], "BertForMaskedLM has the loss of ForMaskedLM.*distillation_label_layout"),
    ],
)
def test_what_is_no_distribution_over_classes_is_refused(
    model_class: Any, config: dict[str, Any], labels: list[Any], message: str
):
    sizes = {"vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = model_class(BertConfig(**sizes, intermediate_size=4, **config))
    with pytest.raises(ConfigError, match=f"dynsdpb: .*{message}"):
        label_layout(model, {"labels": torch.tensor(labels)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LlamaConfig(), "pad_token_id of the llama is None.*set model.config.pad_token_id to the tokenizer's"),
        (XLNetConfig(pad_token_id=0), "summary_type of the xlnet is 'last'.*train it without dynsdpb"),
    ],
)
def test_a_class_that_can_not_be_read_off_joined_rows_is_refused(config: Any, message: str):
    model = SimpleNamespace(loss_type="ForSequenceClassification", config=config)
    with pytest.raises(ConfigError, match=f"dynsdpb: {message}"):
        label_layout(model, {"labels": torch.tensor([0])})


def test_an_encoder_with_a_decoder_is_refused():
    sizes = {"vocab_size": 8, "d_model": 4, "d_kv": 4, "d_ff": 4, "num_layers": 1, "num_heads": 1}
    with pytest.raises(ConfigError, match=r"T5ForConditionalGeneration has an encoder and a decoder.*without dynsdpb"):
        label_layout(T5ForConditionalGeneration(T5Config(**sizes)), {})


@pytest.mark.parametrize(
    ("layout", "inputs", "found"),
    [
        (SamePosition(), {"labels": torch.tensor([1])}, r"of shape \(1,\), but those of this model are \[rows, tokens"),
        (PerRow(), {"labels": torch.ones(2, 3)}, r"of shape \(2, 3\), but those of this model are \[rows\]"),
        (PerLabel(), {}, r"missing, but those of this model are \[rows, classes\]"),
    ],
)
def test_labels_of_another_shape_are_refused(layout: Any, inputs: dict[str, Tensor], found: str):
    with pytest.raises(ConfigError, match=f"dynsdpb: labels are {found}.*correct the data collator"):
        layout.mask(inputs)


def test_a_trainer_may_say_itself_how_labels_lie(tmp_path: Path):
    class MaskedTokensTrainer(DynSDPBTrainer):
        distillation_label_layout = SamePosition()

    model = make_model((BertForMaskedLM, BertConfig))
    trainer = train(MaskedTokensTrainer, model, [an_epoch("tokens")], tmp_path, dynsdpb=STATIC)
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])


def test_ranks_multiply_the_distillation_as_the_parent_multiplies_its_loss():
    trainer = DynSDPBTrainer.__new__(DynSDPBTrainer)
    trainer.args = SimpleNamespace(average_tokens_across_devices=True)
    trainer.accelerator = SimpleNamespace(num_processes=3, parallelism_config=None)
    trainer.label_smoother = trainer.compute_loss_func = None
    trainer.model_accepts_loss_kwargs, trainer._found_layout = True, PerRow()
    assert (trainer._mean_scale(torch.tensor(8)), trainer._mean_scale(None)) == (3, 1)
    trainer.model_accepts_loss_kwargs = False
    assert trainer._mean_scale(torch.tensor(8)) == 1


def test_an_adapter_on_an_encoder_is_distilled_with_its_new_classifier(tmp_path: Path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = peft.get_peft_model(make_model(SEQUENCE[0]), lora)
    assert type(label_layout(model, texts(3, seed=1))) is PerRow
    trainer = train(DynSDPBTrainer, model, [an_epoch("rows")] * 2, tmp_path, dynsdpb=STATIC)
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])
