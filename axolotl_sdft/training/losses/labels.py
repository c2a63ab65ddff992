"""Where a model's labels meet its logits. Each label that is trained counts as one token of the distillation.

=====================  =================  ===========================================================
layout                 labels             predicted by
=====================  =================  ===========================================================
:class:`NextToken`     [B, T]             the logits one position before, over the vocabulary
:class:`SamePosition`  [B, T]             the logits at the same position, over the classes
:class:`PerRow`        [B]                the row's only logits, over the classes
:class:`PerLabel`      [B, C], 0 or 1     the row's C logits, each over two outcomes: ``softmax([0, z])``
=====================  =================  ===========================================================

Shapes: B rows, T positions, N trained labels, C classes, V what one prediction is over.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import IGNORED_LABEL, join_batches, label_mask, predicted_labels
from axolotl_sdft.training.losses.head import logits_of


class LabelLayout(ABC):
    """How labels lie in a batch."""

    has_own_mean: ClassVar[bool] = False
    """The models of transformers divide their loss by the labels of the micro-batch, whatever count they are given."""

    @abstractmethod
    def mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return where a prediction is trained, [B, T].

        Raises:
            ConfigError: The labels have another shape, or are missing.
        """

    @abstractmethod
    def trained(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the labels at :meth:`mask`, [N], in row-major order."""

    def logits(self, logits: Tensor) -> Tensor:
        """Return what the model returned as logits at the places of :meth:`mask`, [B, T, V]."""
        return logits

    def join(
        self, previous: Mapping[str, Any], new: Mapping[str, Any], pad_token_id: int, *, one_row: bool
    ) -> dict[str, Any]:
        """Return one batch, as :func:`~axolotl_sdft.training.batching.join_batches` does."""
        return join_batches(previous, new, pad_token_id, one_row=one_row)


class NextToken(LabelLayout):
    """Causal language models."""

    def mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the positions whose next token is trained."""
        return label_mask(inputs)

    def trained(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the next tokens."""
        return predicted_labels(inputs)


class SamePosition(LabelLayout):
    """Token classification."""

    has_own_mean: ClassVar[bool] = True

    def mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the positions that have a class."""
        return _labels(inputs, 2, "[rows, tokens]") != IGNORED_LABEL

    def trained(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the classes."""
        return inputs["labels"][self.mask(inputs)]

    def join(
        self, previous: Mapping[str, Any], new: Mapping[str, Any], pad_token_id: int, *, one_row: bool
    ) -> dict[str, Any]:
        """Return one batch; end to end, the first label of the new row stays trained, as its own logits predict it."""
        joined = super().join(previous, new, pad_token_id, one_row=one_row)
        if len(joined["labels"]) < len(previous["labels"]) + len(new["labels"]):
            joined["labels"] = torch.cat([previous["labels"], new["labels"]], dim=1)
        return joined


class PerRow(LabelLayout):
    """Sequence classification with one class for each row."""

    has_own_mean: ClassVar[bool] = True

    def mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the rows that have a class, [B, 1]."""
        return self._classes(inputs) != IGNORED_LABEL

    def trained(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the classes."""
        classes_B1 = self._classes(inputs)
        return classes_B1[classes_B1 != IGNORED_LABEL]

    def logits(self, logits: Tensor) -> Tensor:
        """Return the row's logits, [B, 1, C]."""
        return logits[:, None] if logits.dim() == 2 else logits

    def join(
        self, previous: Mapping[str, Any], new: Mapping[str, Any], pad_token_id: int, *, one_row: bool
    ) -> dict[str, Any]:
        """Return one batch; rows stay rows, since each has one label."""
        without = [{name: value for name, value in part.items() if name != "labels"} for part in (previous, new)]
        joined = join_batches(without[0], without[1], pad_token_id)
        return {**joined, "labels": torch.cat([previous["labels"], new["labels"]])}

    def _classes(self, inputs: Mapping[str, Any]) -> Tensor:
        labels = inputs.get("labels")
        if torch.is_tensor(labels) and labels.dim() == 2 and labels.shape[1] == 1:
            return labels
        return _labels(inputs, 1, "[rows]")[:, None]


class PerLabel(PerRow):
    """Sequence classification where each class applies or doesn't, whatever the others do."""

    def mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return that all are trained, [B, C]."""
        return torch.ones_like(_labels(inputs, 2, "[rows, classes]"), dtype=torch.bool)

    def trained(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return for each row and class 1 where it applies, else 0."""
        return (inputs["labels"].flatten() > 0.5).long()

    def logits(self, logits: Tensor) -> Tensor:
        """Return each class's logits of not applying and of applying, [B, C, 2]; the first is always 0."""
        return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def label_layout(model: Any, inputs: Mapping[str, Any]) -> LabelLayout:
    """Return how the model's labels lie, from the loss that transformers computes for its class.

    A model without one counts as a causal language model.

    Args:
        model: With or without an adapter.
        inputs: A micro-batch; of classes that exclude each other or don't, the labels tell.

    Raises:
        ConfigError: The model predicts numbers or spans, or its labels can't be told.
    """
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    loss_type, config = getattr(model, "loss_type", None), getattr(model, "config", None)
    if loss_type == "ForTokenClassification":
        return SamePosition()
    if loss_type == "ForSequenceClassification":
        return _sequence_layout(config, inputs.get("labels"))
    is_causal = loss_type is None or LOSS_MAPPING.get(loss_type) is ForCausalLMLoss
    if is_causal and not getattr(config, "is_encoder_decoder", False):
        return NextToken()
    kind = f"the loss of {loss_type}" if not is_causal else "an encoder and a decoder"
    raise ConfigError(
        f"dynsdpb: {type(model).__name__} has {kind}, but distilled are causal language models, token classification "
        "and sequence classification; train it without dynsdpb, or say how its labels lie in distillation_label_layout"
    )


def returned_logits(outputs: Any, mask_BT: Tensor, layout: LabelLayout) -> Tensor | None:
    """Return the logits of all positions, [B, T, V], from what the model returned; None where there are none.

    Raises:
        ConfigError: They don't belong to the labels.
    """
    logits = logits_of(outputs)
    if logits is None:
        return None
    logits = layout.logits(logits)
    if logits.dim() != 3 or logits.shape[:2] != mask_BT.shape:
        raise ConfigError(
            f"dynsdpb: the model returned logits of shape {tuple(logits.shape)} for labels of shape "
            f"{tuple(mask_BT.shape)}, but each prediction is matched with its label; switch off what lengthens the "
            "input, such as prompt tuning"
        )
    return logits


def _sequence_layout(config: Any, labels: Any) -> LabelLayout:
    problem, num_labels = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
    if problem == "regression" or (problem is None and num_labels == 1):
        raise ConfigError(
            f"dynsdpb: the model predicts a number (problem_type {problem!r}, num_labels {num_labels}), which is no "
            "distribution over classes, so there is nothing to distil; train it without dynsdpb, or split the range "
            "of the number into classes"
        )
    _require_joinable_rows(config)
    if problem == "multi_label_classification":
        return PerLabel()
    if problem is None and torch.is_tensor(labels) and labels.is_floating_point():
        raise ConfigError(
            f"dynsdpb: labels of shape {tuple(labels.shape)} are fractions, but the model's configuration leaves "
            "problem_type unset; set it to multi_label_classification where several classes can apply, or give whole "
            "numbers as labels"
        )
    return PerRow()


def _require_joinable_rows(config: Any) -> None:
    """Refuse a model that reads a row's class off its last token, but could not find that in joined rows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    is_decoder = getattr(text, "model_type", None) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if is_decoder and getattr(text, "pad_token_id", None) is None:
        raise ConfigError(
            f"dynsdpb: pad_token_id of the {text.model_type} is None, so it can give a class to single rows only, but "
            "dynsdpb joins the rows of two batches; set model.config.pad_token_id to the tokenizer's"
        )
    if getattr(text, "summary_type", None) == "last":
        raise ConfigError(
            f"dynsdpb: summary_type of the {text.model_type} is 'last', so it reads a class off the last place, where "
            "padding is once a shorter batch is joined with a longer one; train it without dynsdpb"
        )


def _labels(inputs: Mapping[str, Any], num_dims: int, wanted: str) -> Tensor:
    labels = inputs.get("labels")
    if torch.is_tensor(labels) and labels.dim() == num_dims:
        return labels
    found = f"of shape {tuple(labels.shape)}" if torch.is_tensor(labels) else "missing"
    raise ConfigError(
        f"dynsdpb: labels are {found}, but those of this model are {wanted}; correct the data collator or the column"
    )
