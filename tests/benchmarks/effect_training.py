"""What the studies of forgetting and of recovery share: their data, their training runs and their measures.

Each of three sets of rows is an instruction with an answer. Rows are those that come first in their file and fit a
length, so that a study of minutes has short rows. The seed model rewrites the answers with the template and the checks
that fit the set; a row whose answer is rejected keeps the original one, as in the paper (SDFT, arXiv 2402.13669).
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from axolotl_sdft import (
    DynSDPBConfig,
    DynSDPBTrainer,
    SelfDistillationConfig,
    distill_dataset,
)
from axolotl_sdft.core.artifacts import fingerprint, write_json
from axolotl_sdft.core.runtime import local_device
from axolotl_sdft.distillation.output.dataset import read_summary
from axolotl_sdft.evaluation.measures.likelihood import RowSums, answer_statistics, encode_targets, seed_answers
from axolotl_sdft.inference.forwarding import patched_forward
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.inference.likelihood import ScoredIds
from tests.benchmarks.effect_runs import read_rows

DEFAULT_CHECKS = ("empty", "truncated", "leak", "repetition")


@dataclass(frozen=True)
class TaskSet:
    """A set of rows, and how its answers are rewritten."""

    name: str
    template: str | tuple[str, ...]
    checks: tuple[str, ...]
    most_tokens: int
    """Rows whose prompt and answer are longer play no part."""
    most_new_tokens: int
    """Longest rewritten answer; a longer one is rejected."""
    columns: tuple[str, str] = ("instruction", "output")
    max_attempts: int = 1
    temperature: float = 0.0
    """At 0 the seed model takes the most likely token each time."""
    top_p: float = 1.0
    top_k: int | None = None


SETS = {
    each.name: each
    for each in (
        TaskSet("dolly", "reference", DEFAULT_CHECKS, 112, 80),
        TaskSet("gsm8k", "mathematics", (*DEFAULT_CHECKS, "numeric_answer"), 144, 128, ("question", "answer")),
        TaskSet("openfunctions", "function_calls", (*DEFAULT_CHECKS, "function_call"), 192, 64),
    )
}
TITLES = {"dolly": "Dolly", "gsm8k": "GSM8K", "openfunctions": "OpenFunctions"}


@dataclass(frozen=True)
class Rows:
    """Rows as they are, and as the seed model rewrote them; both in the same order."""

    original: list[Target]
    distilled: list[Target]
    is_distilled: list[bool]
    """Whether the rewritten answer of a row was taken."""
    summary: dict[str, Any]
    """Counts of the distilled dataset, and its distribution gap."""

    @property
    def taken(self) -> list[Target]:
        """The rows whose rewritten answer was taken, with that answer."""
        return [row for row, is_taken in zip(self.distilled, self.is_distilled, strict=True) if is_taken]


@dataclass(frozen=True)
class Bench:
    """Where everything is. What is generated is kept in ``workdir`` and found there again."""

    model_dir: Path
    data: Path
    workdir: Path

    @cached_property
    def tokenizer(self) -> Any:
        """That of the seed model."""
        return AutoTokenizer.from_pretrained(self.model_dir)

    @cached_property
    def seed(self) -> Any:
        """The seed model in float32, in evaluation mode. It is never trained."""
        return self.load(self.model_dir)

    def load(self, folder: Path) -> Any:
        """Return a model in float32, in evaluation mode, on the device where there is one."""
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(local_device())

    def targets(self, name: str, split: str, count: int, most_tokens: int | None = None) -> list[Target]:
        """Return the first rows of a set that are short enough: up to ``most_tokens``, or as the set says."""
        most = most_tokens or SETS[name].most_tokens
        found = list(islice(self._short_rows(name, split, most), count))
        if len(found) < count:
            raise SystemExit(f"{name}_{split}.jsonl: {len(found)} rows of up to {most} tokens, {count} wanted")
        return found

    def count(self, name: str, split: str) -> int:
        """Return how many rows of a set are short enough."""
        return sum(1 for _ in self._short_rows(name, split, SETS[name].most_tokens))

    def _short_rows(self, name: str, split: str, most_tokens: int) -> Iterator[Target]:
        task = SETS[name]
        for row in read_rows(self.data / f"{name}_{split}.jsonl"):
            asked = "\n\n".join(filter(None, (row[task.columns[0]], row.get("input"))))
            target = Target(({"role": "user", "content": asked},), row[task.columns[1]])
            encoded, _ = encode_targets(self.tokenizer, [target], most_tokens + 1)
            if encoded and len(encoded[0].ids) <= most_tokens:
                yield target

    def rows(self, name: str, split: str, count: int, **changes: Any) -> Rows:
        """Return the first short rows of a set, with the answers that the seed model gave them.

        Args:
            name: Of the set.
            split: ``train`` or ``test``.
            count: How many.
            changes: Fields of the set in which the rewriting differs.
        """
        task, original = replace(SETS[name], **changes), self.targets(name, split, count)
        config = SelfDistillationConfig(
            template=task.template,
            checks=task.checks,
            max_attempts=task.max_attempts,
            generation={
                "max_new_tokens": task.most_new_tokens,
                "temperature": task.temperature,
                "top_p": task.top_p,
                "top_k": task.top_k,
                "dtype": "bfloat16",
            },
            output_dir=str(self.workdir / "distilled"),
        )
        columns = {"instruction": [row.instruction for row in original], "output": [row.reference for row in original]}
        distilled = distill_dataset(Dataset.from_dict(columns), config, seed_model=self.model_dir)
        return Rows(
            original,
            [Target(row.context, text) for row, text in zip(original, distilled["output"], strict=True)],
            [source == "distilled" for source in distilled["sdft_source"]],
            read_summary(Path(distilled.cache_files[0]["filename"]).parent),
        )

    def unaided(self, name: str, count: int, temperature: float = 0.0) -> list[Target]:
        """Return rows with answers that the seed model gave without seeing the original one.

        The first whose answer is accepted: the prompts are not all those of :meth:`rows`, but as many.
        """
        asked = {"template": "unaided", "most_new_tokens": 128, "temperature": temperature}
        return self.rows(name, "train", 5 * count // 2, **asked).taken[:count]

    def own_answers(self, names: Sequence[str], count: int, most_new_tokens: int = 64) -> list[ScoredIds]:
        """Return the seed model's own greedy answers to the first held-out prompts of some sets."""
        return [answer for name in names for answer in self._own_answers(name, count, most_new_tokens)]

    def _own_answers(self, name: str, count: int, most_new_tokens: int) -> list[ScoredIds]:
        prompts = [target.instruction for target in self.targets(name, "test", count)]
        return self.answered(name, prompts, most_new_tokens)

    def answered(self, name: str, prompts: Sequence[str], most_new_tokens: int) -> list[ScoredIds]:
        """Return the seed model's own greedy answers to prompts, kept under a name."""
        path = self.workdir / "own" / f"{name}-{fingerprint([prompts, most_new_tokens, self.model_dir.name])}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            answers = seed_answers(self.seed, self.tokenizer, prompts, most_new_tokens)
            write_json(path, [asdict(answer) for answer in answers])
        return [ScoredIds(**answer) for answer in json.loads(path.read_text())]

    def encoded(self, targets: Sequence[Target]) -> list[ScoredIds]:
        """Return rows as token ids under the seed model's chat template."""
        return encode_targets(self.tokenizer, targets, 512)[0]


@dataclass(frozen=True)
class Training:
    """The settings of a training run with LoRA on all linear layers."""

    rank: int
    learning_rate: float
    epochs: int
    batch_rows: int = 8
    bf16: bool = False
    """Whether matrices are multiplied in bfloat16 (autocast), which is faster where the processor can."""
    dynsdpb: bool = False
    """Each row goes through the model twice, in two successive steps: half the epochs are equal compute."""


def train(
    bench: Bench,
    model: Any,
    targets: Sequence[Target],
    training: Training,
    seed: int,
    at_share: Callable[[float, Any], None] | None = None,
    shares: Sequence[float] = (),
    dynsdpb: DynSDPBConfig | None = None,
) -> Any:
    """Return the model with a trained LoRA adapter, in evaluation mode.

    The learning rate warms up over the first tenth and then stays, so that a run that ends early is a part of a longer
    one.

    Args:
        bench: Knows the tokenizer.
        model: Is changed.
        targets: The rows.
        training: How.
        seed: Draws the adapter's first weights and the order of the rows.
        at_share: Called with each of ``shares`` and the model once this share of the steps is done.
        shares: Shares of the run, above 0 and up to 1.
        dynsdpb: Settings of DynSDPB, where that is how; the defaults when unset.
    """
    torch.manual_seed(seed)
    kind, extra = (DynSDPBTrainer, {"dynsdpb": dynsdpb}) if training.dynsdpb else (Trainer, {})
    model = with_adapter(model, training.rank)
    along = {"at_share": at_share, "shares": shares}
    return fit(bench, model, bench.encoded(targets), training, seed, kind, extra, **along, bf16=training.bf16)


def with_adapter(model: Any, rank: int, **changes: Any) -> Any:
    """Return the model with a fresh LoRA adapter on all linear layers; ``changes`` are further fields of its config."""
    from peft import LoraConfig, get_peft_model

    fields = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**fields | changes))


def fit(
    bench: Bench,
    model: Any,
    texts: Sequence[ScoredIds],
    training: Training,
    seed: int,
    kind: type[Trainer] = Trainer,
    extra: Mapping[str, Any] | None = None,
    *,
    at_share: Callable[[float, Any], None] | None = None,
    shares: Sequence[float] = (),
    **changes: Any,
) -> Any:
    """Return the model in evaluation mode, whatever of it asks for a gradient trained on encoded rows.

    Args:
        bench: Knows the tokenizer.
        model: Is changed.
        texts: The rows; their answers are trained.
        training: How.
        seed: Draws the order of the rows.
        kind: The trainer, and what it is given besides in ``extra``.
        extra: See ``kind``.
        at_share: See :func:`train`.
        shares: See :func:`train`.
        changes: Further ``TrainingArguments``, or other ones.
    """
    steps = -(-len(texts) // training.batch_rows) * training.epochs
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": training.batch_rows,
        "num_train_epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": max(1, steps // 10),
        "train_sampling_strategy": "group_by_length",
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": max(1, steps // 8),
    }
    kind(
        model=model,
        args=TrainingArguments(str(bench.workdir / "trainer"), **arguments | changes),
        train_dataset=[_sample(text) for text in texts],
        data_collator=DataCollatorForSeq2Seq(bench.tokenizer),
        callbacks=[_at_steps({max(1, round(share * steps)): share for share in shares}, at_share)],
        **extra or {},
    ).train()
    return model.eval()


def _sample(text: ScoredIds) -> dict[str, list[int]]:
    start = len(text.ids) - text.num_answer
    labels = [-100] * start + text.ids[start:]
    return {"input_ids": text.ids, "labels": labels, "attention_mask": [1] * len(text.ids)}


def _at_steps(steps: dict[int, float], at_share: Callable[[float, Any], None] | None) -> Any:
    from transformers import TrainerCallback

    class AtSteps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if at_share is not None and state.global_step in steps:
                model.eval()
                at_share(steps[state.global_step], model)
                model.train()

    return AtSteps()


@contextmanager
def remembering(model: Any) -> Iterator[None]:
    """Let a model that does not change run once for each batch of answers: the seed model, which all others are beside.

    What its body gave is kept, [rows, tokens, hidden size] for each batch. Passes of another kind go on as ever.
    """
    body = model.base_model
    forward, known = body.forward, {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        if args or kwargs.keys() != {"input_ids", "use_cache"} or kwargs["use_cache"]:
            return forward(*args, **kwargs)
        ids_BT: Tensor = kwargs["input_ids"]
        key = (tuple(ids_BT.shape), ids_BT.cpu().numpy().tobytes())
        if key not in known:
            known[key] = forward(**kwargs)
        return known[key]

    with patched_forward(body, remembered):
        yield


def measured(model: Any, seed: Any, answers: Sequence[ScoredIds]) -> dict[str, float]:
    """Return means per answer token: ``nll``, ``kl`` (of the seed model from the model, in nats) and ``agreement``."""
    rows = answer_statistics(model, seed, answers)
    return {key: per_token(rows, key) for key in ("nll", "kl", "agreement")}


def per_token(rows: Sequence[RowSums], key: str) -> float:
    """Return a mean over the tokens of all rows."""
    return sum(getattr(row, key) for row in rows) / sum(row.tokens for row in rows)


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that both studies take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, required=True, help="folder with dolly_train.jsonl, dolly_test.jsonl, ...")
    parser.add_argument("--workdir", type=Path, required=True, help="keeps generated answers and finished runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--finished-only", action="store_true", help="make no run; show those that are finished")
    parser.add_argument("--picture", type=Path, help="SVG file to draw")
    return parser
