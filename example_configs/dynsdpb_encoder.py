"""Trains an encoder with DynSDPB to tell what a message is about.

    python example_configs/dynsdpb_encoder.py
    python example_configs/dynsdpb_encoder.py --model microsoft/deberta-v3-small --alpha 0.5

Without --model it makes a small BERT from scratch, with a vocabulary of the words in the data, so that it runs without
a network in seconds. With --model it fine-tunes a pretrained encoder: BERT, RoBERTa, DeBERTa and others.
"""

import argparse
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from axolotl_sdft import DynSDPBConfig, DynSDPBTrainer

DATA = Path(__file__).parent / "data" / "messages_by_topic.jsonl"


def main(arguments: list[str] | None = None) -> float:
    """Train as the command line says, print and return the share of training messages that the model gets right."""
    parser = argparse.ArgumentParser(description="Train an encoder with DynSDPB to tell what a message is about.")
    parser.add_argument("--model", help="a pretrained encoder; default: a small BERT from scratch")
    parser.add_argument("--data", default=str(DATA), help="JSONL file with the columns text and topic")
    parser.add_argument("--output_dir", default="out/dynsdpb_encoder")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=None, help="default: 1e-3 from scratch, else 2e-5")
    options = parser.parse_args(arguments)
    rows = load_dataset("json", data_files=options.data, split="train")
    topics = sorted(set(rows["topic"]))
    model, tokenizer = pretrained(options.model, len(topics)) if options.model else from_scratch(rows, len(topics))
    samples = rows.map(
        lambda row: {**tokenizer(row["text"], truncation=True), "labels": topics.index(row["topic"])},
        remove_columns=rows.column_names,
    )
    trainer = DynSDPBTrainer(
        model=model,
        args=TrainingArguments(
            options.output_dir,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=8,
            learning_rate=options.learning_rate or (2e-5 if options.model else 1e-3),
            logging_steps=5,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=samples,
        data_collator=DataCollatorWithPadding(tokenizer),
        dynsdpb=DynSDPBConfig(alpha=options.alpha, temperature=options.temperature),
    )
    trainer.train()
    trainer.save_model(options.output_dir)
    prediction = trainer.predict(samples)
    share = float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
    print(f"{share:.0%} of the {len(samples)} messages are told right")
    return share


def pretrained(name: str, num_labels: int) -> tuple[Any, Any]:
    """Return an encoder with a new classifier, and its tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=num_labels)
    return model, AutoTokenizer.from_pretrained(name)


def from_scratch(rows: Dataset, num_labels: int) -> tuple[Any, Any]:
    """Return a random BERT with a quarter of a million parameters, and a tokenizer that knows the words of the data."""
    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for text in rows["text"] for word, _ in splitter.pre_tokenize_str(text.lower())})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), splitter
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=num_labels,
        pad_token_id=0,
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    return BertForSequenceClassification(config), fast


if __name__ == "__main__":
    main()
