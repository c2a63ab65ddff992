"""Training with the seed model as teacher, held against plain training and against a slow reference by hand."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import BertConfig, BertForSequenceClassification, Trainer

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.training.logit_mixin import LogitDistillationMixin, all_tokens
from axolotl_sdft.training.mixin import DynSDPBMixin
from axolotl_sdft.training.trainers import LogitDistillationTrainer
from tests.training.losses.test_loss_without_logits import without_logits
from tests.training.micro_batches import EPOCH, MeanPerMicroBatch, rows, train, train_logs
from tests.training.teachers.students import adapted, load, prune
from tests.training.test_trainers import assert_same_parameters, joined_by_hand

pytest.importorskip("peft")

HALF = LogitDistillationConfig(alpha=0.5, chunk_tokens=5)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned Llama, its seed model beside it."""
    return prune(tmp_path_factory.mktemp("models"))


def student(pruned: Path, **settings: Any) -> Any:
    return adapted(load(pruned), init_lora_weights=True, **settings)


class ByHand(Trainer):
    """Computes the loss from all logits of both models, in float32, without any of the code of the package."""

    alpha, temperature, is_whole = 0.5, 1.0, False
    seed: Any = None
    window_tokens = 0

    def get_batch_samples(self, *args: Any) -> Any:
        batches, num_items = super().get_batch_samples(*args)
        self.window_tokens = sum(int(batch["attention_mask"][:, 1:].sum()) for batch in batches)
        return batches, num_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels_BT = inputs.pop("labels")
        student_BTV = model(**inputs).logits[:, :-1].float()
        with torch.no_grad():
            seed_BTV = self.seed(**inputs).logits[:, :-1].float()
        is_label = labels_BT[:, 1:] != -100
        is_distilled = inputs["attention_mask"][:, 1:] > 0 if self.is_whole else is_label
        ce = cross_entropy(student_BTV[is_label], labels_BT[:, 1:][is_label], reduction="sum")
        log_student, log_seed = (
            (values[is_distilled] / self.temperature).log_softmax(-1) for values in (student_BTV, seed_BTV)
        )
        kl = kl_div(log_student, log_seed, reduction="sum", log_target=True) * self.temperature**2
        counts = (num_items_in_batch, self.window_tokens if self.is_whole else num_items_in_batch)
        if not self.model_accepts_loss_kwargs:
            counts = (is_label.sum(), is_distilled.sum())
        return (1 - self.alpha) * ce / counts[0] + self.alpha * kl / counts[1]


class ByHandMean(MeanPerMicroBatch, ByHand):
    pass


class LogitDistillationMeanTrainer(MeanPerMicroBatch, LogitDistillationTrainer):
    pass


def by_hand(pruned: Path, kind: type[ByHand] = ByHand, **settings: Any) -> type[ByHand]:
    seed = load(pruned.parent / "seed").eval()
    return type(kind.__name__, (kind,), {"seed": seed, **settings})


@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_alpha_it_is_plain_training_to_the_bit(pruned: Path, tmp_path: Path, accumulation: int):
    settings = {"optim": "adamw_torch", "learning_rate": 0.01, "gradient_accumulation_steps": accumulation}
    plain = train(Trainer, student(pruned), [EPOCH] * 3, tmp_path, **settings)
    off = LogitDistillationConfig(alpha=0.0)
    trainer = train(
        LogitDistillationTrainer, student(pruned), [EPOCH] * 3, tmp_path, logit_distillation=off, **settings
    )
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("own", "hand"), [(LogitDistillationTrainer, ByHand), (LogitDistillationMeanTrainer, ByHandMean)]
)
@pytest.mark.parametrize("tokens", ["answers", "all"])
def test_both_terms_are_averaged_as_by_hand(
    pruned: Path, tmp_path: Path, accumulation: int, own: type[Trainer], hand: type[ByHand], tokens: Any
):
    settings = {"gradient_accumulation_steps": accumulation}
    epochs = [EPOCH, EPOCH[::-1][:4] + EPOCH[4:]]
    expected = by_hand(pruned, hand, alpha=0.7, temperature=2.0, is_whole=tokens == "all")
    reference = train(expected, student(pruned), epochs, tmp_path, **settings)
    config = LogitDistillationConfig(alpha=0.7, temperature=2.0, tokens=tokens, chunk_tokens=5)
    trainer = train(own, student(pruned), epochs, tmp_path, logit_distillation=config, **settings)
    assert_same_parameters(trainer.model, reference.model, rtol=1e-4, atol=1e-6)
    plain = train(Trainer, student(pruned), epochs, tmp_path, **settings)
    moved = dict(plain.model.named_parameters())
    assert any((moved[name] - weight).abs().max() > 1e-3 for name, weight in trainer.model.named_parameters())


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_whole_model_learns_from_a_teacher_of_its_own(pruned: Path, tmp_path: Path, alpha: float):
    reference = train(by_hand(pruned, alpha=alpha), load(pruned).train(), [EPOCH] * 2, tmp_path, learning_rate=0.05)
    config = LogitDistillationConfig(alpha=alpha)
    trainer = train(
        LogitDistillationTrainer,
        load(pruned).train(),
        [EPOCH] * 2,
        tmp_path,
        logit_distillation=config,
        learning_rate=0.05,
    )
    assert_same_parameters(trainer.model, reference.model, rtol=1e-3, atol=1e-5)


def test_the_figures_are_means_over_tokens(pruned: Path, tmp_path: Path):
    config = LogitDistillationConfig(alpha=0.25, temperature=1.0)
    trainer = train(
        LogitDistillationTrainer, student(pruned), [EPOCH[:1]], tmp_path, logit_distillation=config, learning_rate=0.0
    )
    (logs,) = train_logs(trainer)
    batch = {name: value for name, value in EPOCH[0].items() if name != "labels"}
    is_label = EPOCH[0]["labels"][:, 1:] != -100
    with torch.no_grad():
        models = (load(pruned).eval(), load(pruned.parent / "seed").eval())
        student_NV, seed_NV = (model(**batch).logits[:, :-1][is_label].log_softmax(-1) for model in models)
    ce = cross_entropy(student_NV, EPOCH[0]["labels"][:, 1:][is_label])
    kl = (seed_NV.exp() * (seed_NV - student_NV)).sum(-1).mean()
    assert logs["logit_distillation/ce"] == pytest.approx(float(ce), rel=1e-4)
    assert logs["logit_distillation/kl"] == pytest.approx(float(kl), rel=1e-4)
    assert logs["loss"] == pytest.approx(0.75 * float(ce) + 0.25 * float(kl), rel=1e-3)
    agreement = (student_NV.argmax(-1) == seed_NV.argmax(-1)).float().mean()
    assert logs["logit_distillation/agreement"] == pytest.approx(float(agreement))


def test_a_student_that_equals_the_seed_model_has_nothing_to_learn_from_it(pruned: Path, tmp_path: Path):
    seed = pruned.parent / "seed"
    config = LogitDistillationConfig(alpha=1.0)
    trainer = train(LogitDistillationTrainer, student(seed), [EPOCH], tmp_path, logit_distillation=config)
    assert [entry["logit_distillation/kl"] for entry in train_logs(trainer)] == pytest.approx([0.0] * 5, abs=1e-6)
    assert [entry["logit_distillation/agreement"] for entry in train_logs(trainer)] == [1.0] * 5


def test_a_student_with_nothing_to_learn_is_warned_of(pruned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def warnings_of(model: Any, alpha: float) -> list[str]:
        caplog.clear()
        config = LogitDistillationConfig(alpha=alpha)
        train(LogitDistillationTrainer, model, [EPOCH[:1]], tmp_path, logit_distillation=config)
        return [record.message for record in caplog.records if "what its teacher says" in record.message]

    seed = pruned.parent / "seed"
    assert len(warnings_of(student(seed), 1.0)) == 1
    assert not warnings_of(student(seed), 0.9)
    assert not warnings_of(student(pruned), 1.0)
    assert not warnings_of(adapted(load(seed)), 1.0)  # its adapter has been trained before


def test_without_pruning_the_model_is_held_near_itself(pruned: Path, tmp_path: Path):
    seed = pruned.parent / "seed"
    figures = {}
    for alpha in (0.01, 0.9):
        config = LogitDistillationConfig(alpha=alpha)
        trainer = train(LogitDistillationTrainer, student(seed), [EPOCH] * 4, tmp_path, logit_distillation=config)
        figures[alpha] = train_logs(trainer)[-1]["logit_distillation/kl"]
    assert 0 < figures[0.9] < 0.5 * figures[0.01]


def test_the_loss_in_evaluation_is_plain_cross_entropy(pruned: Path, tmp_path: Path):
    settings = {"eval_strategy": "epoch", "learning_rate": 0.0, "eval_dataset": [{"labels": [1]}]}
    losses = []
    for kind, own in ((Trainer, {}), (LogitDistillationTrainer, {"logit_distillation": HALF})):

        class Evaluating(kind):  # type: ignore[valid-type,misc]
            def get_eval_dataloader(self, *_: Any) -> Any:
                return [EPOCH[0]]

        trainer = train(Evaluating, student(pruned), [EPOCH], tmp_path, **settings, **own)
        losses += [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[0] == losses[1]


SAME = {
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@pytest.mark.parametrize("way", SAME)
@pytest.mark.filterwarnings("ignore:.*")
def test_a_setting_that_changes_no_result_changes_none_here(pruned: Path, tmp_path: Path, way: str):
    own = {"logit_distillation": HALF}
    reference = train(LogitDistillationTrainer, student(pruned), [EPOCH], tmp_path, **own)
    trainer = train(LogitDistillationTrainer, student(pruned), [EPOCH], tmp_path, **own, **SAME[way])
    model = getattr(trainer.model, "_orig_mod", trainer.model)
    assert_same_parameters(model, reference.model, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"bf16": True}, {"neftune_noise_alpha": 5.0}, {"label_smoothing_factor": 0.1}, {"max_grad_norm": 0.1}],
    ids=lambda settings: " ".join(map(str, settings)),
)
def test_a_setting_of_the_trainer_is_kept(pruned: Path, tmp_path: Path, settings: dict[str, Any]):
    own = {"logit_distillation": LogitDistillationConfig(alpha=0.0)}
    torch.manual_seed(1)
    plain = train(Trainer, student(pruned), [EPOCH], tmp_path, **settings)
    torch.manual_seed(1)
    without = train(LogitDistillationTrainer, student(pruned), [EPOCH], tmp_path, **own, **settings)
    assert_same_parameters(without.model, plain.model, rtol=0.0, atol=0.0)
    trainer = train(LogitDistillationTrainer, student(pruned), [EPOCH], tmp_path, logit_distillation=HALF, **settings)
    assert all(entry["logit_distillation/kl"] > 0.01 for entry in train_logs(trainer))
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def test_a_resumed_run_ends_as_an_uninterrupted_one(pruned: Path, tmp_path: Path):
    own = {"logit_distillation": HALF, "optim": "adamw_torch", "learning_rate": 0.01}
    epochs = [EPOCH, EPOCH[::-1][:4] + EPOCH[4:]]
    whole = train(LogitDistillationTrainer, student(pruned), epochs, tmp_path / "a", save_strategy="epoch", **own)
    checkpoint = {"resume_from_checkpoint": str(tmp_path / "a" / "checkpoint-5"), "num_train_epochs": 2}
    resumed = train(LogitDistillationTrainer, student(pruned), epochs[1:], tmp_path / "b", **checkpoint, **own)
    assert resumed.state.global_step == whole.state.global_step == 10
    assert_same_parameters(resumed.model, whole.model, rtol=0.0, atol=0.0)
    assert resumed._logit_teacher is None  # its memory is given back


@pytest.mark.parametrize("tokens", ["answers", "all"])
def test_a_loss_without_logits_trains_the_same_student(pruned: Path, tmp_path: Path, tokens: Any):
    config = LogitDistillationConfig(alpha=0.5, tokens=tokens, chunk_tokens=3)
    runs = [
        train(LogitDistillationTrainer, model, [EPOCH] * 2, tmp_path, logit_distillation=config)
        for model in (student(pruned), without_logits(student(pruned)))
    ]
    assert_same_parameters(runs[1].model, runs[0].model, rtol=1e-3, atol=1e-5)


def test_the_seed_model_teaches_through_kinds_of_heads_that_cap_or_scale(tmp_path: Path):
    pruned = prune(tmp_path, "gemma2")
    reference = train(by_hand(pruned), student(pruned), [EPOCH], tmp_path)
    trainer = train(LogitDistillationTrainer, student(pruned), [EPOCH], tmp_path, logit_distillation=HALF)
    assert_same_parameters(trainer.model, reference.model, rtol=1e-3, atol=1e-5)


class ByHandWithRouters(ByHand):
    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        router_loss = model(**{name: value for name, value in inputs.items() if name != "labels"}).aux_loss
        return super().compute_loss(model, inputs, *args, **kwargs) + 2.0 * router_loss


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_loss_of_routers_keeps_its_weight(tmp_path: Path, alpha: float):
    pruned = prune(tmp_path, "mixtral", output_router_logits=True, router_aux_loss_coef=2.0)
    settings = {"learning_rate": 0.05, "gradient_accumulation_steps": 2}
    expected = by_hand(pruned, ByHandWithRouters, alpha=alpha)
    reference = train(expected, load(pruned).train(), [EPOCH], tmp_path, **settings)
    config = LogitDistillationConfig(alpha=alpha)
    own = {"logit_distillation": config, **settings}
    trainer = train(LogitDistillationTrainer, load(pruned).train(), [EPOCH], tmp_path, **own)
    assert_same_parameters(trainer.model, reference.model, rtol=1e-3, atol=1e-5)
    (first, *_), plain = train_logs(trainer), load(pruned, output_router_logits=False)
    sums = [float(plain(**batch).loss) * int((batch["labels"][:, 1:] != -100).sum()) for batch in EPOCH[:2]]
    num_labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in EPOCH[:2])
    assert first["logit_distillation/ce"] == pytest.approx(sum(sums) / num_labels, rel=1e-4)


def test_packed_rows_are_taught_sample_by_sample(pruned: Path, tmp_path: Path):
    pairs = [rows(7, 7, seed=seed) for seed in (1, 2, 3)]
    packed = []
    for pair in pairs:
        labels = pair["labels"].reshape(1, -1).clone()
        positions = torch.arange(7).repeat(2)[None]
        packed.append({"input_ids": pair["input_ids"].reshape(1, -1), "labels": labels, "position_ids": positions})
    for tokens in ("answers", "all"):
        config = LogitDistillationConfig(alpha=0.5, tokens=tokens)
        runs = [
            train(LogitDistillationTrainer, student(pruned), [epoch], tmp_path, logit_distillation=config)
            for epoch in (pairs, packed)
        ]
        assert_same_parameters(runs[1].model, runs[0].model, rtol=1e-3, atol=1e-5)


class Both(DynSDPBMixin, LogitDistillationMixin, Trainer):
    pass


def test_beside_dynsdpb_the_seed_model_teaches_the_joined_batches(pruned: Path, tmp_path: Path):
    epochs = [EPOCH] * 2
    for accumulation in (1, 2):
        for tokens in ("answers", "all"):
            config = LogitDistillationConfig(alpha=0.6, tokens=tokens)
            own = {"logit_distillation": config, "gradient_accumulation_steps": accumulation}
            reference = train(
                LogitDistillationTrainer, student(pruned), joined_by_hand(epochs, accumulation), tmp_path, **own
            )
            both = train(Both, student(pruned), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0), **own)
            assert_same_parameters(both.model, reference.model, rtol=0.0, atol=0.0)
    trainer = train(Both, student(pruned), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=4.0), **own)
    assert {"dynsdpb/kl", "logit_distillation/kl"} <= set(train_logs(trainer)[-1])
    weights = dict(both.model.named_parameters())
    assert any((weights[name] - weight).abs().max() > 0 for name, weight in trainer.model.named_parameters())


def test_what_fills_up_joined_rows_is_not_distilled(pruned: Path, tmp_path: Path):
    # Nothing names a padding token, and packed rows come without a mask.
    texts = [rows(length, seed=length) for length in (9, 4, 6)]
    packed = [
        {"input_ids": text["input_ids"], "labels": text["labels"], "position_ids": torch.arange(length)[None]}
        for text, length in zip(texts, (9, 4, 6), strict=True)
    ]
    config = LogitDistillationConfig(alpha=0.6, tokens="all")
    own = {"logit_distillation": config, "dynsdpb": DynSDPBConfig(alpha=0.0)}
    runs = [train(Both, student(pruned), [epoch], tmp_path, **own) for epoch in (texts, packed)]
    assert_same_parameters(runs[1].model, runs[0].model, rtol=1e-3, atol=1e-5)


def test_the_other_order_is_refused(pruned: Path, tmp_path: Path):
    class Swapped(LogitDistillationMixin, DynSDPBMixin, Trainer):
        pass

    with pytest.raises(ConfigError, match=r"Swapped has LogitDistillationMixin before DynSDPBMixin.*swap the two"):
        train(Swapped, student(pruned), [EPOCH], tmp_path)


def test_qlora_learns_from_four_bits(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    import peft
    from transformers import BitsAndBytesConfig

    pruned = prune(tmp_path, hidden_size=64, intermediate_size=64, head_dim=16)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)

    def quantized() -> Any:
        model = peft.prepare_model_for_kbit_training(load(pruned, quantization_config=four_bits))
        return adapted(model, init_lora_weights=True)

    plain = train(Trainer, quantized(), [EPOCH], tmp_path)
    off = LogitDistillationConfig(alpha=0.0)
    without = train(LogitDistillationTrainer, quantized(), [EPOCH], tmp_path, logit_distillation=off)
    assert_same_parameters(without.model, plain.model, rtol=0.0, atol=0.0)
    trainer = train(LogitDistillationTrainer, quantized(), [EPOCH], tmp_path, logit_distillation=HALF)
    assert trainer._logit_plan.is_shared
    assert all(entry["logit_distillation/kl"] > 0 for entry in train_logs(trainer))


def gone(pruned: Path) -> None:
    shutil.rmtree(pruned.parent / "seed")


def without_record(pruned: Path) -> None:
    shutil.rmtree(pruned / "provenance")
    text = (pruned / "config.json").read_text()
    (pruned / "config.json").write_text(text.replace("{", '{"axolotl_sdft_pruning": "0123456789ab",', 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (gone, "needs the seed model that .*pruned was pruned from, .*seed, which is gone or was moved"),
        (without_record, "which was pruned, lacks provenance/layer_pruning.json"),
    ],
)
def test_a_seed_model_that_is_gone_is_refused_before_training(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
):
    pruned = prune(tmp_path)
    spoil(pruned)
    with pytest.raises(CheckpointError, match=message):
        LogitDistillationTrainer(model=student(pruned), logit_distillation=HALF)
    trainer = train(
        LogitDistillationTrainer,
        student(pruned),
        [EPOCH[:1]],
        tmp_path,
        logit_distillation=LogitDistillationConfig(alpha=0.0),
    )
    assert trainer.state.global_step == 1


def test_a_seed_model_that_was_moved_can_be_named(tmp_path: Path):
    pruned = prune(tmp_path)
    reference = train(LogitDistillationTrainer, student(pruned), [EPOCH], tmp_path, logit_distillation=HALF)
    moved = (tmp_path / "seed").rename(tmp_path / "elsewhere")
    in_settings = HALF.model_copy(update={"seed_model": str(moved)})
    for named in ({"logit_distillation": HALF, "seed_model": moved}, {"logit_distillation": in_settings}):
        trainer = train(LogitDistillationTrainer, student(pruned), [EPOCH], tmp_path, **named)
        assert_same_parameters(trainer.model, reference.model, rtol=0.0, atol=0.0)


def test_a_shared_teacher_is_refused_where_the_student_is_trained_whole(pruned: Path, tmp_path: Path):
    config = LogitDistillationConfig(teacher="shared")
    with pytest.raises(ConfigError, match=r"teacher is shared, but .* own weights are trained.*; set it to own"):
        train(LogitDistillationTrainer, load(pruned), [EPOCH], tmp_path, logit_distillation=config)


def test_a_classifier_has_no_teacher(tmp_path: Path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "bert")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "bert")
    batch = {"input_ids": EPOCH[0]["input_ids"], "labels": torch.tensor([0, 1])}
    with pytest.raises(ConfigError, match="BertForSequenceClassification is not a causal language model"):
        train(LogitDistillationTrainer, model, [[batch]], tmp_path, logit_distillation=HALF)


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed ZeRO stage 3"])
def test_sharded_layers_are_refused(pruned: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    trainer = LogitDistillationTrainer(model=student(pruned), logit_distillation=HALF)
    if name == "FSDP":
        trainer.is_fsdp_enabled = True
    else:
        monkeypatch.setattr("axolotl_sdft.training.logit_mixin._zero_stage", lambda _: 3)
    with pytest.raises(ConfigError, match=f"needs whole layers on each rank, but {name} spreads them"):
        trainer._logit_refuse_sharding()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"input_ids": [[5, 6, 7, 0]], "attention_mask": [[1, 1, 1, 0]]}, [[-100, 6, 7, -100]]),
        ({"input_ids": [[0, 0, 6, 7]], "attention_mask": [[0, 0, 1, 1]]}, [[-100, -100, -100, 7]]),
        ({"input_ids": [[0, 5, 0, 0]]}, [[-100, 5, -100, -100]]),
        ({"input_ids": [[5, 6, 0, 0]], "labels": [[-100, 6, 0, -100]]}, [[-100, 6, 0, -100]]),
        ({"input_ids": [[5, 6, 7, 8]], "position_ids": [[0, 1, 0, 1]]}, [[-100, 6, -100, 8]]),
    ],
    ids=["mask", "mask on the left", "padding without a mask", "an end that is trained", "two samples in a row"],
)
def test_all_tokens_leaves_out_padding_and_beginnings(inputs: dict[str, Any], expected: list[list[int]]):
    tensors: dict[str, Tensor] = {name: torch.tensor(value) for name, value in inputs.items()}
    assert all_tokens(tensors, pad_token_id=0).tolist() == expected
