"""The ways of writing answers that ``bench_rewriting`` compares. Each takes prompts and gives texts and tokens written.

Padded ``generate`` and continuous batching hold as many rows at once as the ``transformers`` backend: its
``max_batch_size``, and its ``max_batch_tokens`` for rows times the length that they may grow to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.inference.interfaces import Backend, Prompt
from axolotl_sdft.inference.prompts import end_ids, load_tokenizer, prompt_ids, read_answer

Key = tuple[int, int]
_BLOCK_TOKENS = 256  # of a block of the cache, in transformers' continuous batching


class WayMissingError(Exception):
    """Says why a way can't be measured here."""


@dataclass
class Written:
    """What a way wrote."""

    texts: dict[Key, str] = field(default_factory=dict)
    tokens: int = 0
    """Real new ones, the end of a turn among them; no padding."""


@dataclass(frozen=True)
class Way:
    """A way of writing answers."""

    write: Callable[[list[Prompt]], Written]
    release: Callable[[], None] = lambda: None
    """Frees what a first call prepared for those that follow."""


class _Reader:
    """Turns prompts into ids and new ids into texts, as the backends do."""

    def __init__(self, model_dir: Path, model: Any) -> None:
        self.tokenizer = load_tokenizer(model_dir)
        self.ends = end_ids(model.generation_config.eos_token_id, self.tokenizer)

    def ids(self, prompt: Prompt) -> list[int]:
        return prompt_ids(self.tokenizer, prompt.messages)

    def add(self, written: Written, prompt: Prompt, new_ids: Sequence[int]) -> None:
        text, reason, num_tokens = read_answer(self.tokenizer, new_ids, self.ends)
        written.texts[prompt.key] = text
        written.tokens += num_tokens + (reason == "stop")


def one_by_one(model_dir: Path, config: TransformersGeneration) -> Way:
    """One row at a time through ``generate``, with a model of its own in float32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    reader = _Reader(model_dir, model)

    def write(prompts: list[Prompt]) -> Written:
        written = Written()
        for prompt in prompts:
            _generate(model, reader, [prompt], config.max_new_tokens, written)
        return written

    return Way(write)


def padded(model_dir: Path, model: Any, config: TransformersGeneration) -> Way:
    """Batches through ``generate``, padded on the left; each lasts until its longest answer is done."""
    reader, attention = _Reader(model_dir, model), model.config._attn_implementation

    def write(prompts: list[Prompt]) -> Written:
        written = Written()
        with _attending(model, attention):
            for batch in padded_batches(prompts, lambda prompt: len(reader.ids(prompt)), config):
                _generate(model, reader, batch, config.max_new_tokens, written)
        return written

    return Way(write)


def padded_batches(
    prompts: Sequence[Prompt], length: Callable[[Prompt], int], config: TransformersGeneration
) -> list[list[Prompt]]:
    """Return prompts in batches, longest first, each as large as the settings allow."""
    waiting = sorted(prompts, key=length, reverse=True)
    batches = []
    while waiting:
        count = rows_at_once(length(waiting[0]), config)
        batches.append(waiting[:count])
        waiting = waiting[count:]
    return batches


def rows_at_once(longest: int, config: TransformersGeneration) -> int:
    """Return how many rows the settings allow at once, the longest prompt having so many tokens."""
    fitting = config.max_batch_tokens // (longest + config.max_new_tokens)
    return max(1, min(config.max_batch_size, fitting))


@torch.inference_mode()
def _generate(model: Any, reader: _Reader, batch: list[Prompt], max_new_tokens: int, written: Written) -> None:
    rows = [reader.ids(prompt) for prompt in batch]
    width, pad = max(map(len, rows)), reader.tokenizer.pad_token_id
    ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    stop = {"eos_token_id": reader.ends, "pad_token_id": pad}
    greedy = {"max_new_tokens": max_new_tokens, "do_sample": False}
    output_BT = model.generate(ids_BT, attention_mask=mask_BT, **greedy, **stop)
    for prompt, new_ids in zip(batch, output_BT[:, width:].tolist(), strict=True):
        reader.add(written, prompt, new_ids)


@contextmanager
def _attending(model: Any, implementation: str) -> Iterator[None]:
    """Let a model attend another way while open: the backend may have given it its own."""
    former = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(former)


def continuous(model_dir: Path, model: Any, config: TransformersGeneration, prompts: Sequence[Prompt]) -> Way:
    """transformers' continuous batching, ``generate_batch``, with room for the longest of all prompts.

    What it prepares in its first call, such as CUDA graphs, is kept until it is released.

    Raises:
        WayMissingError: On making it or on writing: the installed transformers lacks it, or it fails here.
    """
    if not hasattr(model, "generate_batch"):
        raise WayMissingError("the installed transformers has no generate_batch for this model")
    reader, attention = _Reader(model_dir, model), model.config._attn_implementation
    longest = max(len(reader.ids(prompt)) for prompt in prompts)

    def write(prompts: list[Prompt]) -> Written:
        rows = [reader.ids(prompt) for prompt in prompts]
        with _attending(model, attention):
            outputs = _generate_batch(model, rows, longest, reader, config)
        written = Written()
        for prompt, output in zip(prompts, outputs, strict=True):
            reader.add(written, prompt, output.generated_tokens)
        return written

    return Way(write, getattr(model, "destroy_cached_continuous_batching_manager", lambda: None))


def _generate_batch(
    model: Any, rows: list[list[int]], longest: int, reader: _Reader, config: TransformersGeneration
) -> list[Any]:
    stop = {"eos_token_id": reader.ends, "pad_token_id": reader.tokenizer.pad_token_id}
    generation = GenerationConfig(max_new_tokens=config.max_new_tokens, do_sample=False, **stop)
    try:
        outputs = model.generate_batch(
            rows,
            generation_config=generation,
            continuous_batching_config=_batching(longest, model.device.type, config),
            progress_bar=False,
            persistent_manager=True,
        )
    except Exception as err:  # it may fail in many ways where it was never tried
        raise WayMissingError(f"generate_batch fails here: {type(err).__name__}: {err}") from err
    faults = [str(output.error) for output in outputs.values() if output.error]
    if faults or len(outputs) < len(rows):
        fault = faults[0] if faults else "its log says why"
        raise WayMissingError(f"generate_batch left {len(rows) - len(outputs) + len(faults)} rows unwritten: {fault}")
    return list(outputs.values())


def _batching(longest: int, device: str, config: TransformersGeneration) -> Any:
    """Return settings under which it holds as many rows at once as the backend does."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    count = rows_at_once(longest, config)
    blocks = -(-(longest + config.max_new_tokens) // _BLOCK_TOKENS)
    return ContinuousBatchingConfig(
        block_size=_BLOCK_TOKENS,
        num_blocks=count * blocks + 1,
        max_blocks_per_request=blocks,
        max_requests_per_batch=count,
        max_batch_tokens=1024 if device == "cpu" else 4096,  # as many go through the model at once as in the backend
    )


def through(backend: Backend, *, counts_ends: bool = False) -> Way:
    """A backend of this package; ``counts_ends`` says that its counts hold the ends of turns already."""

    def write(prompts: list[Prompt]) -> Written:
        written = Written()
        for batch, answers in backend.generate(backend.batches(prompts)):
            for prompt, answer in zip(batch, answers, strict=True):
                if answer.error:
                    raise SystemExit(f"row {prompt.key} failed: {answer.error}")
                written.texts[prompt.key] = answer.text
                # The end of a turn is a token that was written.
                written.tokens += answer.num_tokens + (answer.finish_reason == "stop" and not counts_ends)
        return written

    return Way(write)
