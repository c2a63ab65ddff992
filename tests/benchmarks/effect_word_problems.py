"""One run of the SmolLM2 study: LoRA on short word problems, and what it gained and forgot.

Only the upper layers get an adapter. What the layers below them give for a row never changes then, so it is computed
once and remembered, which makes a run more than twice as fast and changes nothing else.

Shapes: B rows, T tokens, N answer tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer

from axolotl_sdft.config import GeneralPromptsConfig
from axolotl_sdft.evaluation.measures.likelihood import answer_statistics, encode_targets, seed_answers
from axolotl_sdft.evaluation.spec import general_prompts
from axolotl_sdft.inference.forwarding import patched_forward
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.inference.likelihood import AnswerBatch, ScoredIds, answer_chunks
from tests.benchmarks.effect_runs import read_rows
from tests.benchmarks.effect_sentiment import calibration_error
from tests.benchmarks.effect_trainer import Recipe, trainer_for

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_EVALUATED_TOGETHER = 8


@dataclass(frozen=True, kw_only=True)
class WordProblemTraining(Recipe):
    """The settings of a run; its seed draws the adapter's first weights and the order of the rows."""

    num_rows: int = 300
    passes: int = 2
    learning_rate: float = 3e-4
    rank: int = 16
    """Of the adapter."""
    dropout: float = 0.0
    """Of what goes into the adapter."""
    bf16: bool = False
    """Whether matrices are multiplied in bfloat16 while it trains (autocast)."""
    seed: int = 0


class UpperLayers:
    """Lets models run from one layer on, from what the layers below gave for a row when it first came.

    Args:
        first_layer: The first that runs, counted from 0. All below are the same in every model that is opened.
        pad_id: Fills rows up on the right.
    """

    def __init__(self, first_layer: int, pad_id: int) -> None:
        self._first, self._pad_id = first_layer, pad_id
        self._known: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def opened(self, model: Any) -> Iterator[None]:
        """Let a decoder of the Llama kind skip the layers below while open."""
        body = model.model
        layers, lower = body.layers, self._lower(body)

        def states(input_ids: Tensor) -> Tensor:
            return self._states(input_ids, body.embed_tokens.weight, lower)

        body.layers = nn.ModuleList(layers[self._first :])
        try:
            with patched_forward(body.embed_tokens, states):
                yield
        finally:
            body.layers = layers

    def _lower(self, body: Any) -> Any:
        with torch.device("meta"):
            lower = type(body)(body.config)
        lower.layers = nn.ModuleList(body.layers[: self._first])
        lower.rotary_emb, lower.norm, lower.embed_tokens = body.rotary_emb, nn.Identity(), nn.Identity()
        return lower

    @torch.no_grad()
    def _states(self, ids_BT: Tensor, embeddings_VD: Tensor, lower: Any) -> Tensor:
        keys = [self._key(row) for row in ids_BT.tolist()]
        new = [place for place, key in enumerate(keys) if key not in self._known]
        if new:
            embedded = F.embedding(ids_BT[new], embeddings_VD)
            # Filled up on the right, where no token before sees it; so no mask is needed.
            computed = lower(inputs_embeds=embedded, use_cache=False).last_hidden_state
            self._known.update(zip([keys[place] for place in new], computed.clone(), strict=True))
        width = ids_BT.shape[1]
        return torch.stack(
            [F.pad(self._known[key][:width], (0, 0, 0, max(0, width - len(self._known[key])))) for key in keys]
        )

    def _key(self, ids: list[int]) -> tuple[int, ...]:
        """Return a row without what it is filled up with."""
        end = len(ids)
        while end and ids[end - 1] == self._pad_id:
            end -= 1
        return tuple(ids[:end])


@dataclass(frozen=True)
class WordProblemBench:
    """The data, the seed model and what is measured."""

    data: Path
    model_dir: Path
    num_layers: int = 8
    """Layers from the top that get an adapter."""
    most_tokens: int = 122
    """Of a training row with its prompt; longer ones play no part."""
    num_held_out: int = 60
    num_prompts: int = 24
    most_new_tokens: int = 48
    """Of the seed model's own answer to a general prompt."""

    @cached_property
    def tokenizer(self) -> Any:
        """That of the seed model."""
        return AutoTokenizer.from_pretrained(self.model_dir)

    @cached_property
    def seed(self) -> Any:
        """The seed model in float32, in evaluation mode. It is never trained."""
        return self._load()

    @cached_property
    def upper(self) -> UpperLayers:
        """Remembers what the layers without an adapter give."""
        return UpperLayers(self.seed.config.num_hidden_layers - self.num_layers, self.tokenizer.pad_token_id)

    @cached_property
    def held_out(self) -> list[ScoredIds]:
        """Problems that no run trains on."""
        return self._rows("test", self.num_held_out)

    @cached_property
    def own_answers(self) -> list[ScoredIds]:
        """The seed model's own greedy answers to general prompts."""
        prompts = general_prompts(GeneralPromptsConfig(num_samples=self.num_prompts))
        return seed_answers(self.seed, self.tokenizer, prompts, self.most_new_tokens)

    def _load(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.model_dir, dtype=torch.float32).eval()
        model.config.use_cache = False
        return model

    def _rows(self, split: str, count: int) -> list[ScoredIds]:
        # An empty system message keeps the template from writing one of its own, which would cost tokens.
        targets = [
            Target(({"role": "system", "content": ""}, {"role": "user", "content": row["question"]}), row["answer"])
            for row in read_rows(self.data / f"gsm8k_{split}.jsonl")
        ]
        encoded, _ = encode_targets(self.tokenizer, targets, 1024)
        return [text for text in encoded if len(text.ids) <= self.most_tokens][:count]

    def measure_seed(self) -> dict[str, Any]:
        """Return the figures of the seed model itself."""
        self.own_answers  # noqa: B018 - written by the whole model, before its lower layers are left out
        with self.upper.opened(self.seed):
            return self._figures(self.seed)

    def run(self, training: WordProblemTraining) -> dict[str, Any]:
        """Train, and return what came of it.

        ``nll`` (nats a token), ``right`` (share of tokens that were the most likely) and ``calibration_error`` are of
        the held-out answers, ``kl`` is that of the seed model from the model on the seed model's own answers to general
        prompts, in nats a token, and ``log`` holds the trainer's.
        """
        from peft import LoraConfig, get_peft_model

        self.own_answers  # noqa: B018 - written by the whole model, before its lower layers are left out
        torch.manual_seed(training.seed)
        inner = self._load()
        first = inner.config.num_hidden_layers - self.num_layers
        adapter = LoraConfig(
            r=training.rank,
            lora_alpha=2 * training.rank,
            lora_dropout=training.dropout,
            target_modules=_LINEAR,
            layers_to_transform=list(range(first, inner.config.num_hidden_layers)),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(inner, adapter)
        with ExitStack() as opened:
            for each in (inner, self.seed):
                opened.enter_context(self.upper.opened(each))
            trainer = self._trainer(model, training)
            trainer.train()
            return {**self._figures(inner.eval()), "log": trainer.state.log_history}

    def _trainer(self, model: Any, training: WordProblemTraining) -> Trainer:
        rows = [_sample(text) for text in self._rows("train", training.num_rows)]
        collator = DataCollatorForSeq2Seq(self.tokenizer)
        further = {"logging_steps": 1, "train_sampling_strategy": "group_by_length", "bf16": training.bf16}
        return trainer_for(model, rows, training, collator, **further)

    def _figures(self, model: Any) -> dict[str, Any]:
        log_probs_N, confidence_N, right_N = (torch.cat(parts) for parts in zip(*self._seen(model), strict=True))
        rows = answer_statistics(model, self.seed, self.own_answers)
        return {
            "nll": -float(log_probs_N.mean()),
            "right": float(right_N.float().mean()),
            "calibration_error": calibration_error(confidence_N, right_N),
            "kl": sum(row.kl for row in rows) / sum(row.tokens for row in rows),
        }

    @torch.inference_mode()
    def _seen(self, model: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield of held-out answer tokens the log-probability, the largest probability, and whether that is theirs."""
        for start in range(0, len(self.held_out), _EVALUATED_TOGETHER):
            batch = AnswerBatch.of(self.held_out[start : start + _EVALUATED_TOGETHER])
            for (logits_NV,), answers_N in answer_chunks([model], batch):
                log_probs_NV = logits_NV.float().log_softmax(-1)
                largest_N, guess_N = log_probs_NV.max(-1)
                yield log_probs_NV.gather(1, answers_N[:, None])[:, 0], largest_N.exp(), guess_N == answers_N


def _sample(text: ScoredIds) -> dict[str, Sequence[int]]:
    start = len(text.ids) - text.num_answer
    labels = [-100] * start + text.ids[start:]
    return {"input_ids": text.ids, "labels": labels, "attention_mask": [1] * len(text.ids)}
