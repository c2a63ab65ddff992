"""One run of the encoder study: telling good from bad film reviews, a few hundred sentences with clean or noisy labels.

The rows are those that twenty people rated on average at least one point above or below neutral; the sign is the label.

Shapes: R rows, C classes.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
)

from tests.benchmarks.effect_trainer import Recipe, trainer_for

_MOST_TOKENS = 32  # of a sentence; longer ones play no part
_CLEAR_RATING = 1.0
_NUM_BINS = 10  # of the calibration error


@dataclass(frozen=True)
class Reviews:
    """Sentences and which of two classes each belongs to."""

    texts: list[str]
    labels: list[int]


@dataclass(frozen=True, kw_only=True)
class SentimentTraining(Recipe):
    """The settings of a run; its seed draws the rows, which labels are turned, the new classifier and the order."""

    noise: float = 0.0
    """Share of the training labels that are turned round."""
    num_rows: int = 200
    passes: int = 6
    learning_rate: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class SentimentBench:
    """The data and the pretrained encoder."""

    ratings: Path
    encoder: Path
    num_held_out: int = 500

    @cached_property
    def tokenizer(self) -> Any:
        """That of the encoder."""
        return AutoTokenizer.from_pretrained(self.encoder)

    @cached_property
    def _all(self) -> list[tuple[str, int]]:
        """Clear rows in an order of their own, always the same."""
        lines = self.ratings.read_text(encoding="utf-8", errors="replace").splitlines()
        rated = [(text, float(rating)) for _, rating, text in (line.split("\t") for line in lines)]
        clear = [(text, int(rating > 0)) for text, rating in rated if abs(rating) >= _CLEAR_RATING]
        lengths = map(len, self.tokenizer([text for text, _ in clear])["input_ids"])
        short = [row for row, length in zip(clear, lengths, strict=True) if length <= _MOST_TOKENS]
        random.Random(0).shuffle(short)
        return short

    @cached_property
    def held_out(self) -> Reviews:
        """Rows that no run trains on; their labels are never turned round."""
        return _reviews(self._all[: self.num_held_out])

    def train_rows(self, training: SentimentTraining) -> tuple[Reviews, list[bool]]:
        """Return the rows of a run, and of which of them the label is turned round."""
        draw = random.Random(training.seed)
        rows = draw.sample(self._all[self.num_held_out :], training.num_rows)
        turned = set(draw.sample(range(len(rows)), round(training.noise * len(rows))))
        noisy = [(text, 1 - label if place in turned else label) for place, (text, label) in enumerate(rows)]
        return _reviews(noisy), [place in turned for place in range(len(rows))]

    def run(self, training: SentimentTraining) -> dict[str, Any]:
        """Train, and return what came of it.

        ``accuracy``, ``nll`` (nats a row) and ``calibration_error`` are of the held-out rows, ``turned_learnt`` is the
        share of the flipped labels that the model has taken over (left out without noise), ``steps`` counts optimizer
        steps, and ``log`` holds the trainer's.
        """
        rows, is_turned = self.train_rows(training)
        torch.manual_seed(training.seed)
        model = AutoModelForSequenceClassification.from_pretrained(self.encoder, num_labels=2)
        # Most of the encoder's numbers are embeddings, which so few rows can't improve.
        model.base_model.embeddings.requires_grad_(False)
        trainer = self._trainer(model, rows, training)
        trainer.train()
        model.eval()
        held_out_RC, labels_R = self._log_probs(model, self.held_out), torch.tensor(self.held_out.labels)
        largest_R, guess_R = held_out_RC.max(-1)
        figures: dict[str, Any] = {
            "accuracy": float((guess_R == labels_R).float().mean()),
            "nll": float(-held_out_RC.gather(1, labels_R[:, None]).mean()),
            "calibration_error": calibration_error(largest_R.exp(), guess_R == labels_R),
            "steps": trainer.state.global_step,
            "log": trainer.state.log_history,
        }
        if any(is_turned):
            learnt_R = self._log_probs(model, rows).argmax(-1) == torch.tensor(rows.labels)
            figures["turned_learnt"] = float(learnt_R[torch.tensor(is_turned)].float().mean())
        return figures

    def _trainer(self, model: Any, rows: Reviews, training: SentimentTraining) -> Trainer:
        encoded = self.tokenizer(rows.texts)["input_ids"]
        samples = [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, rows.labels, strict=True)]
        return trainer_for(model, samples, training, DataCollatorWithPadding(self.tokenizer))

    @torch.inference_mode()
    def _log_probs(self, model: Any, reviews: Reviews) -> Tensor:
        """Return the log-probabilities of the classes, [R, C]."""
        by_length = sorted(range(len(reviews.texts)), key=lambda place: len(reviews.texts[place]))
        found_RC = torch.empty(len(by_length), 2)
        for start in range(0, len(by_length), 64):
            places = by_length[start : start + 64]
            batch = self.tokenizer([reviews.texts[place] for place in places], padding=True, return_tensors="pt")
            found_RC[places] = model(**batch.to(model.device)).logits.float().log_softmax(-1).cpu()
        return found_RC


def calibration_error(confidence_R: Tensor, is_right_R: Tensor) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart, over ten bins of confidence."""
    bins_R = (confidence_R * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
    gap_R = is_right_R.float() - confidence_R
    return float(torch.zeros(_NUM_BINS).index_add(0, bins_R, gap_R).abs().sum() / len(gap_R))


def _reviews(rows: list[tuple[str, int]]) -> Reviews:
    return Reviews([text for text, _ in rows], [label for _, label in rows])
