"""Generates in this process with transformers, in batches of similar length under a token budget.

Shapes: B rows, T tokens, V vocabulary.
"""

import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.config import GenerationConfig
from axolotl_sdft.distillation.interfaces import Answer, Message, Prompt, Target
from axolotl_sdft.errors import ConfigError, MissingExtraError
from axolotl_sdft.runtime import compute_dtype, local_device

LOG = logging.getLogger(__name__)

_NLL_BATCH_TOKENS = 2048  # bounds the [B, T, V] logits, the largest tensor of the measurement


class TransformersBackend:
    """The embedded default: needs nothing but the seed model itself."""

    def __init__(self, model_dir: Path, config: GenerationConfig) -> None:
        self._model_dir = model_dir
        self._config = config
        self._loaded_model: Any = None

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(self._model_dir)
        tokenizer.padding_side = "left"  # so that every row's first new token stands in the same column
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def _model(self) -> Any:
        if self._loaded_model is None:
            device = local_device()
            dtype = compute_dtype(self._config.dtype, device)
            LOG.info("loading %s in %s on %s", self._model_dir, dtype, device)
            self._loaded_model = _load(self._model_dir, dtype).to(device).eval()
        return self._loaded_model

    def check(self) -> None:
        """Raise ConfigError when the seed model has no chat template."""
        if not self._tokenizer.chat_template:
            raise ConfigError(
                f"self_distillation: the seed model {self._model_dir} has no chat template, so it can't be asked to "
                "rewrite; name an instruction-tuned base_model, or add a chat_template to its tokenizer"
            )

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Split prompts, longest first, so that rows times (prompt + new tokens) stays within ``batch_tokens``."""
        lengths = {prompt.key: len(self._prompt_ids(prompt.messages)) for prompt in prompts}
        ordered = sorted(prompts, key=lambda prompt: (-lengths[prompt.key], prompt.key))
        batches: list[list[Prompt]] = []
        capacity = 0
        for prompt in ordered:
            if not batches or len(batches[-1]) >= capacity:
                row_tokens = lengths[prompt.key] + self._config.max_new_tokens
                capacity = min(self._config.batch_rows, max(1, self._config.batch_tokens // row_tokens))
                batches.append([])
            batches[-1].append(prompt)
        return batches

    def generate(self, batches: Iterable[list[Prompt]]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Yield each batch with its answers.

        Sampling is seeded by the settings and by the batch itself, so a batch made after a restart comes out the same.
        """
        for batch in batches:
            # Only this process's own device: by default the state of every GPU of the machine would be touched.
            devices = [] if self._model.device.type == "cpu" else [self._model.device]
            with torch.random.fork_rng(devices, device_type=self._model.device.type), torch.inference_mode():
                torch.manual_seed(hash((self._config.seed, *batch[0].key)) % 2**63)
                answers = self._answers(batch)
            yield batch, answers

    def _answers(self, batch: list[Prompt]) -> list[Answer]:
        encoded = self._tokenizer.pad({"input_ids": [self._prompt_ids(p.messages) for p in batch]}, return_tensors="pt")
        encoded = encoded.to(self._model.device)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self._config.temperature > 0:
            sampling |= {
                "do_sample": True,
                "temperature": self._config.temperature,
                "top_p": self._config.top_p,
                "top_k": 0,
            }
        output_BT = self._model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=self._config.max_new_tokens,
            max_length=None,
            eos_token_id=self._end_ids,
            pad_token_id=self._tokenizer.pad_token_id,
            **sampling,
        )
        return [self._answer(row_T) for row_T in output_BT[:, encoded["input_ids"].shape[1] :]]

    def _answer(self, new_T: Tensor) -> Answer:
        ids = new_T.tolist()
        end = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        kept = ids if end is None else ids[:end]
        text = self._tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Answer(text, "length" if end is None else "stop", len(kept))

    @cached_property
    def _end_ids(self) -> list[int]:
        configured = self._model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({token for token in (*ids, self._tokenizer.eos_token_id) if token is not None})

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def answer_nll(self, targets: Sequence[tuple[Target, str]]) -> list[float]:
        """Return the mean negative log-likelihood per token of each text as the answer to its target's context."""
        encoded = []
        for target, text in targets:
            prompt = self._prompt_ids(target.context)
            answer = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            encoded.append((prompt, [*answer, self._tokenizer.eos_token_id]))
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index][0]) + len(encoded[index][1]))
        nll = [0.0] * len(encoded)
        for batch in _within_token_budget(order, [len(p) + len(a) for p, a in encoded]):
            for index, value in zip(batch, self._batch_nll([encoded[index] for index in batch]), strict=True):
                nll[index] = value
        return nll

    def _batch_nll(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids_BT = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        mask_BT = torch.zeros_like(ids_BT)
        for row, (prompt, answer) in enumerate(rows):
            ids_BT[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            mask_BT[row, : len(prompt) + len(answer)] = 1
        device = self._model.device
        logits_BTV = self._model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits
        values = []
        for row, (prompt, answer) in enumerate(rows):
            predicted_TV = logits_BTV[row, len(prompt) - 1 : len(prompt) + len(answer) - 1].float()
            values.append(torch.nn.functional.cross_entropy(predicted_TV, torch.tensor(answer, device=device)).item())
        return values

    def close(self) -> None:
        """Free the model's memory."""
        self._loaded_model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _load(model_dir: Path, dtype: torch.dtype) -> Any:
    """Load a model; a LoRA adapter loads on top of the base model that it names."""
    if not (model_dir / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    try:
        from peft import AutoPeftModelForCausalLM
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"{model_dir} holds an adapter; install peft: pip install 'axolotl-sdft[lora]'"
        ) from err
    return AutoPeftModelForCausalLM.from_pretrained(model_dir, dtype=dtype)


def _within_token_budget(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of indices, ascending in length, whose padded size stays within the budget."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > _NLL_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
