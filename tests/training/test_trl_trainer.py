"""TRL's trainer with DynSDPB, on batches that TRL itself makes, held against TRL's plain trainer."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
import trl
from datasets import Dataset
from packaging.version import Version
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerFast, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_utils import HPSearchBackend
from trl import SFTConfig, SFTTrainer, TrlParser

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import label_mask
from axolotl_sdft.training.mixin import DynSDPBMixin
from axolotl_sdft.training.trl_trainer import DynSDPBSFTConfig, DynSDPBSFTTrainer
from tests.training.micro_batches import STATIC, Epochs, MicroBatches, make_llama, train_logs

TEXTS = [" ".join(f"w{(3 * row + 5 * place) % 60}" for place in range(4 + row % 4)) for row in range(9)]
DATASETS = {
    "text": {"text": TEXTS},
    "prompt and completion": {"prompt": TEXTS, "completion": [" " + text for text in TEXTS[::-1]]},
    "messages": {
        "messages": [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in TEXTS]
    },
}
TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
# TRL from 1.15 on has only losses without logits, except for one of the caller's own; it warns of what it will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.(loss_type|compute_loss_func|label_smoothing_factor):FutureWarning")
HAS_ONLY_LOSSES_WITHOUT_LOGITS = Version(trl.__version__) >= Version("1.15")
HAS_CHUNKED_LOSS = "chunked_nll" in str(SFTConfig.__dataclass_fields__["loss_type"].metadata)
# With 9 rows in batches of 2 the last batch of an epoch holds only one.
BATCHES = {"per_device_train_batch_size": 2}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for the words w0 to w59 and the two roles."""
    words = ["<pad>", "<eos>", "user", "assistant", *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = TEMPLATE
    return fast


def make_trainer(
    trainer_class: type[Any], tmp_path: Path, rows: str = "text", *, own: Any = None, **settings: Any
) -> Any:
    """A trainer on the same random Llama each time; ``own`` goes to the trainer, all else to its arguments."""
    if settings.get("loss_type") == "chunked_nll" and not HAS_CHUNKED_LOSS:
        pytest.skip("this TRL has no losses without logits of its own")
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    plain = {"disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": 0.01, "loss_type": "nll"}
    config_class = DynSDPBSFTConfig if trainer_class is DynSDPBSFTTrainer else SFTConfig
    return trainer_class(
        model=make_llama(attn_implementation="sdpa"),
        args=config_class(str(tmp_path), **{**quiet, **plain, **BATCHES, **settings}),
        train_dataset=Dataset.from_dict(DATASETS[rows]),
        processing_class=make_tokenizer(),
        **(own or {}),
    )


def batches_of(trainer: Any, num_epochs: int) -> list[MicroBatches]:
    return [[dict(batch) for batch in trainer.get_train_dataloader()] for _ in range(num_epochs)]


def trained(trainer: Any, epochs: list[MicroBatches]) -> Any:
    trainer.get_train_dataloader = lambda: Epochs(epochs)
    trainer.train()
    return trainer


def joined(previous: dict[str, Tensor], new: dict[str, Tensor], end_to_end: bool) -> dict[str, Tensor]:
    if end_to_end:
        ends = {name: torch.cat([previous[name], new[name]], dim=1) for name in ("input_ids", "labels", "position_ids")}
        offsets = [name for name in new if name.startswith("cu_seq_lens")]
        lengths = [name for name in new if name.startswith("max_length")]
        ends |= {name: torch.cat([previous[name], previous[name][-1] + new[name][1:]]) for name in offsets}
        return ends | {name: max(previous[name], new[name]) for name in lengths}
    length = max(previous["labels"].shape[1], new["labels"].shape[1])
    filling = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: torch.cat([pad(part[name], (0, length - part[name].shape[1]), value=filling[name]) for part in parts])
        for name, parts in ((name, (previous, new)) for name in new)
    }


def beside_the_previous(epochs: list[MicroBatches], size: int, end_to_end: bool) -> list[MicroBatches]:
    """The same epochs with each micro-batch joined to that at its place in the window before."""
    together, previous = [], []
    for epoch in epochs:
        for start in range(0, len(epoch), size):
            window = epoch[start : start + size]
            for place, new in enumerate(window):
                together.append(joined(previous[place], new, end_to_end) if place < len(previous) else new)
            previous = window
    return [together[start : start + len(epochs[0])] for start in range(0, len(together), len(epochs[0]))]


def assert_same_parameters(model: torch.nn.Module, expected: torch.nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()), **tolerance)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ("text", {}),
        ("text", {"loss_type": "dft"}),
        ("text", {"label_smoothing_factor": 0.1}),
        ("text", {"loss_type": "chunked_nll"}),
        ("prompt and completion", {"loss_type": "chunked_nll", "gradient_checkpointing": True}),
        ("prompt and completion", {}),
        ("prompt and completion", {"completion_only_loss": False}),
        ("messages", {"gradient_checkpointing": True}),
        ("text", {"padding_free": True, "max_length": None}),
        ("text", {"packing": True, "max_length": 8, "per_device_train_batch_size": 1}),
    ],
)
def test_without_influence_twenty_steps_are_plain_training_on_the_joined_micro_batches(
    tmp_path: Path, rows: str, settings: dict[str, Any], accumulation: int
):
    settings = {**settings, "gradient_accumulation_steps": accumulation, "max_steps": 20}
    plain = make_trainer(SFTTrainer, tmp_path, rows, **settings)
    trainer = make_trainer(DynSDPBSFTTrainer, tmp_path, rows, dynsdpb_alpha=0.0, **settings)
    epochs = batches_of(plain, 8)
    trained(plain, beside_the_previous(epochs, accumulation, "padding_free" in settings or "packing" in settings))
    trained(trainer, epochs)
    assert trainer.state.global_step == plain.state.global_step == 20
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)
    for name in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
        assert [entry[name] for entry in train_logs(trainer)] == [entry[name] for entry in train_logs(plain)]


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ("text", {}),
        ("text", {"loss_type": "chunked_nll"}),
        ("prompt and completion", {}),
        ("prompt and completion", {"loss_type": "chunked_nll"}),
        ("text", {"padding_free": True, "max_length": None}),
        ("text", {"padding_free": True, "max_length": None, "loss_type": "chunked_nll"}),
    ],
)
def test_the_second_step_adds_the_distillation_to_the_loss_of_both_batches(
    tmp_path: Path, rows: str, settings: dict[str, Any]
):
    settings = {**settings, "optim": "sgd", "lr_scheduler_type": "constant", "learning_rate": 0.3, "max_grad_norm": 0.0}
    trainer = make_trainer(DynSDPBSFTTrainer, tmp_path, rows, own={"dynsdpb": STATIC}, max_steps=2, **settings)
    [(first, second, *rest)] = batches_of(trainer, 1)
    for batch in (first, second):
        batch["labels"][:, 0] = -100  # predicted by nothing; some versions of transformers count it all the same
    model = make_llama(attn_implementation="sdpa")
    before = descend(model, model(**first, use_cache=False).loss, first)
    again = model(**first, use_cache=False).logits[label_mask(first)]
    present = model(**second, use_cache=False).logits[label_mask(second)]
    labels = torch.cat([batch["labels"][:, 1:][label_mask(batch)[:, :-1]] for batch in (first, second)])
    ce = torch.nn.functional.cross_entropy(torch.cat([again, present]), labels)
    previous, now = (before / 2).log_softmax(-1), (again / 2).log_softmax(-1)
    kl = (previous.exp() * (previous - now)).sum(-1).mean()
    descend(model, ce + 0.8 * 4 * kl, second)
    trained(trainer, [[first, second, *rest]])
    assert_same_parameters(trainer.model, model, rtol=1e-3, atol=2e-5)
    assert train_logs(trainer)[1]["dynsdpb/kl"] == pytest.approx(kl.item(), rel=1e-3)


def descend(model: Any, loss: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Take a step of plain gradient descent; return the logits of the labels from before it, as constants."""
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[label_mask(batch)]
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.3 * parameter.grad
    model.zero_grad()
    return logits


def test_it_trains_an_adapter_and_evaluates_with_trls_own_loss(tmp_path: Path):
    held_out = Dataset.from_dict({"text": TEXTS[:3]})
    trainer = make_trainer(
        DynSDPBSFTTrainer, tmp_path, own={**adapters(), "eval_dataset": held_out}, num_train_epochs=2
    )
    trainer.train()
    kl = [entry.get("dynsdpb/kl") for entry in train_logs(trainer)]
    assert kl[0] is None
    assert all(value > 0 for value in kl[1:])
    plain = make_trainer(SFTTrainer, tmp_path, own={"eval_dataset": held_out})
    plain.model = trainer.model
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


def test_each_setting_is_a_field_with_the_same_default_and_text():
    flat = {item.name: item for item in fields(DynSDPBSFTConfig) if item.name.startswith("dynsdpb_")}
    assert {name.removeprefix("dynsdpb_") for name in flat} == set(DynSDPBConfig.model_fields)
    for name, info in DynSDPBConfig.model_fields.items():
        assert flat[f"dynsdpb_{name}"].default == info.default
        assert flat[f"dynsdpb_{name}"].metadata["help"].replace("%%", "%") == info.description


def test_the_settings_are_read_from_a_command_line(tmp_path: Path):
    line = f"--output_dir {tmp_path} --dynsdpb_alpha 0.25 --no_dynsdpb_dynamic_alpha --dynsdpb_teacher_storage top_k"
    parser = TrlParser((DynSDPBSFTConfig,))
    [args] = parser.parse_args_and_config([*line.split(), "--use_cpu", "--report_to", "none", "--bf16", "False"])
    assert args.dynsdpb_config == DynSDPBConfig(alpha=0.25, dynamic_alpha=False, teacher_storage="top_k")
    assert "--dynsdpb_divergence {forward_kl,reverse_kl,jsd}" in parser.format_help()


def test_a_setting_out_of_bounds_is_refused_by_its_name(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"dynsdpb_alpha is -1.0: .*greater than or equal to 0"):
        DynSDPBSFTConfig(str(tmp_path), use_cpu=True, bf16=False, dynsdpb_alpha=-1.0)
    with pytest.raises(ConfigError, match=r"dynsdpb: temperature_min is 3.0, above temperature 2.0"):
        DynSDPBSFTConfig(str(tmp_path), use_cpu=True, bf16=False, dynsdpb_temperature_min=3.0)


def test_a_loss_that_is_left_unset_is_that_of_trl(tmp_path: Path):
    own, parents = (kind(str(tmp_path), use_cpu=True, bf16=False) for kind in (DynSDPBSFTConfig, SFTConfig))
    assert own.loss_type == parents.loss_type


def plain_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return ForCausalLMLoss(outputs["logits"], labels, 64, num_items_in_batch=num_items_in_batch)


def adapters() -> dict[str, Any]:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    return {"peft_config": peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}


@pytest.mark.parametrize("has_adapters", [False, True])
@pytest.mark.parametrize("memory", ["auto", "logits", "top_k"])
def test_a_loss_without_logits_trains_the_same_model_as_one_with_them(tmp_path: Path, has_adapters: bool, memory: str):
    settings = {
        "dynsdpb_teacher_storage": memory,
        "dynsdpb_top_k": 64,
        "dynsdpb_chunk_tokens": 3,
        "num_train_epochs": 2,
    }
    models = []
    for loss in ({"compute_loss_func": plain_loss}, {}):
        own = adapters() if has_adapters else {}
        loss_type = "nll" if loss or HAS_ONLY_LOSSES_WITHOUT_LOGITS else "chunked_nll"
        trainer = make_trainer(DynSDPBSFTTrainer, tmp_path, own=own | loss, loss_type=loss_type, **settings)
        trainer.train()
        assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])
        models.append(trainer.model)
    assert_same_parameters(models[1], models[0], rtol=1e-3, atol=2e-5)


class ByMixin(DynSDPBMixin, SFTTrainer):
    """As a user makes it who has a trainer of his own."""


LOSSES = {
    "nll": {},
    "dft": {"loss_type": "dft"},
    "chunked": {"loss_type": "chunked_nll"},
    "smoothed": {"label_smoothing_factor": 0.1},
}


@pytest.mark.parametrize("has_adapters", [False, True])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_whatever_the_loss_the_influence_changes_what_is_trained(
    tmp_path: Path, loss: dict[str, Any], has_adapters: bool
):
    models = []
    for alpha in (0.0, 50.0):
        own = adapters() if has_adapters else {}
        trainer = make_trainer(DynSDPBSFTTrainer, tmp_path, own=own, dynsdpb_alpha=alpha, max_steps=4, **loss)
        trainer.train()
        models.append({name: value for name, value in trainer.model.named_parameters() if value.requires_grad})
    differing = [not torch.equal(value, models[1][name]) for name, value in models[0].items()]
    # Values and the matrices that only they pass are moved by the loss of both runs, but by other amounts.
    assert differing
    assert all(differing)


@pytest.mark.filterwarnings("ignore:.return_outputs=True:FutureWarning")
def test_a_trainer_of_ones_own_on_trls_trains_the_same_model(tmp_path: Path):
    settings = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.3}
    runs = [make_trainer(kind, tmp_path, own={"dynsdpb": STATIC}, **settings) for kind in (ByMixin, DynSDPBSFTTrainer)]
    for run in runs:
        run.train()
    assert_same_parameters(runs[0].model, runs[1].model, rtol=1e-5, atol=1e-7)


def test_training_arguments_of_transformers_are_taken_as_trl_takes_them(tmp_path: Path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    rows, tokenizer = Dataset.from_dict(DATASETS["text"]), make_tokenizer()
    trainer = DynSDPBSFTTrainer(make_llama(), args, train_dataset=rows, processing_class=tokenizer, dynsdpb=STATIC)
    assert trainer.args.loss_type == SFTConfig(str(tmp_path), use_cpu=True, bf16=False).loss_type
    assert trainer.dynsdpb_config == STATIC


def test_settings_come_from_the_keyword_or_from_args_but_not_from_both(tmp_path: Path):
    by_args = make_trainer(DynSDPBSFTTrainer, tmp_path, dynsdpb_alpha=0.5)
    by_keyword = make_trainer(DynSDPBSFTTrainer, tmp_path, own={"dynsdpb": STATIC})
    assert (by_args.dynsdpb_config, by_keyword.dynsdpb_config) == (DynSDPBConfig(alpha=0.5), STATIC)
    with pytest.raises(ConfigError, match=r"dynsdpb is DynSDPBConfig\(alpha=0.8.*of args say .*alpha=0.5.*only one"):
        make_trainer(DynSDPBSFTTrainer, tmp_path, own={"dynsdpb": STATIC}, dynsdpb_alpha=0.5)


def alpha_that_is_trained_with(trainer: Any, **of_train: Any) -> float:
    trainer.train(**of_train)
    return train_logs(trainer)[-1]["dynsdpb/alpha"]


def as_in_a_search(trainer: Any) -> None:
    """Let a trainer take plain mappings for trials, as those of Weights & Biases are, without a run there."""
    pytest.importorskip("wandb")
    trainer.hp_search_backend = HPSearchBackend.WANDB
    trainer._get_output_dir = lambda trial: trainer.args.output_dir


def test_each_run_takes_the_settings_that_args_hold_as_it_begins(tmp_path: Path):
    fixed = {"dynsdpb_dynamic_alpha": False, "dynsdpb_dynamic_temperature": False, "max_steps": 2}
    trainer = make_trainer(DynSDPBSFTTrainer, tmp_path, dynsdpb_alpha=0.5, **fixed)
    assert alpha_that_is_trained_with(trainer) == 0.5
    trainer.args.dynsdpb_alpha = 0.25
    assert alpha_that_is_trained_with(trainer) == 0.25
    trainer.args.dynsdpb_alpha = -1.0
    with pytest.raises(ConfigError, match=r"dynsdpb_alpha is -1\.0"):
        trainer.train()


def test_a_trial_of_a_search_trains_with_what_it_proposes(tmp_path: Path):
    fixed = {"dynsdpb_dynamic_alpha": False, "dynsdpb_dynamic_temperature": False, "max_steps": 2}
    trainer = make_trainer(DynSDPBSFTTrainer, tmp_path, dynsdpb_alpha=0.5, **fixed)
    trainer.model_init = lambda: make_llama(attn_implementation="sdpa")
    as_in_a_search(trainer)
    assert alpha_that_is_trained_with(trainer, trial={"dynsdpb_alpha": 0.75}) == 0.75


def test_a_trial_can_not_override_settings_that_the_trainer_was_given(tmp_path: Path):
    trainer = make_trainer(DynSDPBSFTTrainer, tmp_path, own={"dynsdpb": STATIC}, max_steps=2)
    as_in_a_search(trainer)
    with pytest.raises(ConfigError, match=r"dynsdpb is DynSDPBConfig\(alpha=0.8.*set only one"):
        trainer.train(trial={"dynsdpb_alpha": 0.75})


def test_without_trl_the_extra_is_named():
    program = "import sys; sys.modules['trl'] = None\nfrom axolotl_sdft import DynSDPBSFTTrainer"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "MissingExtraError: DynSDPBSFTTrainer needs the module 'trl'; pip install 'axolotl-sdft[trl]'" in run.stderr
