"""Trains an encoder with DynSDPB on a task of GLUE, as arXiv 2411.16991 does with BERT, RoBERTa and DeBERTa.

    python example_configs/dynsdpb_glue.py --task rte
    python example_configs/dynsdpb_glue.py --task mrpc --model FacebookAI/roberta-base --alpha 0.5

Prints the share of validation rows that are told right. From the paper: the method, the kind of models, the tasks.
Ours: alpha, temperature, learning rate, batch, epochs. With --alpha 0 it trains on the same rows with cross-entropy
alone.
"""

import argparse
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
    set_seed,
)

from axolotl_sdft import DynSDPBConfig, DynSDPBTrainer

TEXTS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "wnli": ("sentence1", "sentence2"),
}
"""The columns with the texts of each task. STS-B is left out: it asks for a number, and DynSDPB distils classes."""


def main(arguments: list[str] | None = None) -> float:
    """Train as the command line says, print and return the share of validation rows that the model tells right."""
    options = parser().parse_args(arguments)
    set_seed(options.seed)
    train, validation = load(options.task, options.data)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(set(train["label"])))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    trainer = DynSDPBTrainer(
        model=model,
        args=TrainingArguments(
            options.output_dir,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            logging_steps=10,
            report_to="none",
            save_strategy="no",
            seed=options.seed,
        ),
        train_dataset=tokenized(train, options.task, tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        dynsdpb=DynSDPBConfig(alpha=options.alpha, temperature=options.temperature),
    )
    trainer.train()
    trainer.save_model(options.output_dir)
    prediction = trainer.predict(tokenized(validation, options.task, tokenizer))
    share = float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
    print(f"{options.task}: {share:.1%} of the {len(validation)} validation rows are told right")
    return share


def parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    found = argparse.ArgumentParser(description="Train an encoder with DynSDPB on a task of GLUE.")
    found.add_argument("--task", choices=sorted(TEXTS), required=True)
    found.add_argument("--model", default="google-bert/bert-base-uncased")
    found.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl; default: from the Hub")
    found.add_argument("--output_dir", default="out/dynsdpb_glue")
    found.add_argument("--alpha", type=float, default=1.0)
    found.add_argument("--temperature", type=float, default=2.0)
    found.add_argument("--epochs", type=float, default=3)
    found.add_argument("--batch_size", type=int, default=16)
    found.add_argument("--learning_rate", type=float, default=2e-5)
    found.add_argument("--seed", type=int, default=42)
    return found


def load(task: str, folder: Path | None) -> tuple[Dataset, Dataset]:
    """Return the training and the validation rows; of MNLI the validation rows of known genres."""
    if folder is not None:
        files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
        rows = load_dataset("json", data_files=files)
        return rows["train"], rows["validation"]
    rows = load_dataset("nyu-mll/glue", task)
    return rows["train"], rows["validation_matched" if task == "mnli" else "validation"]


def tokenized(rows: Dataset, task: str, tokenizer: Any) -> Dataset:
    """Return the rows as the model reads them: one text, or two as a pair."""
    return rows.map(
        lambda row: {**tokenizer(*(row[name] for name in TEXTS[task]), truncation=True), "labels": row["label"]},
        remove_columns=rows.column_names,
    )


if __name__ == "__main__":
    main()
