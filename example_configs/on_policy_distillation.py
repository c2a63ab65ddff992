"""Distils the unpruned seed model into a pruned one on what the pruned one writes, with TRL's DistillationTrainer.

    python example_configs/on_policy_distillation.py --model_name_or_path sdft_prepared/<pruned checkpoint>
    python example_configs/on_policy_distillation.py --model_name_or_path out/pruned --use_peft --beta 0.0

The student is a folder that axolotl prune-layers wrote, or a model trained from one; the teacher is the seed model that
its provenance names, unless --teacher_model_name_or_path names another place. In each step the student answers prompts,
and the teacher tells for each token of the answers what it would have said. Only the prompts of the data are used.

All options of TRL's DistillationConfig and ModelConfig work; --help lists them, and --config reads them from a YAML
file. beta is 0 for forward KL, 1 for reverse KL, between for a mixture (generalized Jensen-Shannon).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

try:
    from trl import DistillationConfig, DistillationTrainer
except ImportError:  # in the releases in which it was experimental
    from trl.experimental.distillation import DistillationConfig, DistillationTrainer

PROVENANCE = "provenance/layer_pruning.json"


@dataclass
class DataArguments:
    data: str = field(
        default="example_configs/data/quickstart.jsonl",
        metadata={"help": "JSONL file with a column messages, or prompt with messages in it."},
    )


def main(arguments: list[str] | None = None) -> DistillationTrainer:
    """Train as the command line says, save the model and return its trainer."""
    parser = TrlParser((DataArguments, DistillationConfig, ModelConfig))
    parser.set_defaults(
        output_dir="out/on_policy_distillation",
        report_to="none",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        learning_rate=1e-5,
        beta=1.0,
        temperature=1.0,
        max_completion_length=128,
        save_strategy="no",
    )
    data_args, training_args, model_args = parser.parse_args_and_config(arguments)
    training_args.model_init_kwargs = loading(model_args) | (training_args.model_init_kwargs or {})
    teacher = training_args.teacher_model_name_or_path or seed_model(model_args.model_name_or_path)
    training_args.teacher_model_name_or_path = teacher
    trainer = DistillationTrainer(
        model=model_args.model_name_or_path,
        teacher_model=teacher,
        args=training_args,
        train_dataset=prompts(load_dataset("json", data_files=data_args.data, split="train")),
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    return trainer


def loading(model_args: ModelConfig) -> dict[str, Any]:
    """Return how the options of ModelConfig want the model loaded."""
    settings = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "quantization_config": get_quantization_config(model_args),
        "trust_remote_code": getattr(model_args, "trust_remote_code", None),  # later an option of the trainer's own
    }
    return {name: value for name, value in settings.items() if value is not None}


def seed_model(pruned_dir: str | None) -> str:
    """Return the seed model that a checkpoint was pruned from, a folder or a Hub id."""
    record = Path(pruned_dir or "") / PROVENANCE
    if not pruned_dir or not record.is_file():
        raise SystemExit(
            f"--model_name_or_path is {pruned_dir!r}, which holds no {PROVENANCE}, so the teacher can't be told; name "
            "a folder that axolotl prune-layers wrote, or the seed model with --teacher_model_name_or_path"
        )
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return str(found.get("seed_dir") or found["seed_model"])


def prompts(rows: Dataset) -> Dataset:
    """Return the conversations up to the last answer as a column ``prompt``, and nothing else."""
    if "messages" in rows.column_names:
        rows = rows.map(lambda row: {"prompt": without_last_answer(row["messages"])})
    return rows.select_columns("prompt")


def without_last_answer(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return messages without the answer at their end."""
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


if __name__ == "__main__":
    main()
