"""Makes tiny checkpoints as a user's are made: random seed model, cut and patched, trained with LoRA, merged."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft import LayerPruningConfig
from axolotl_sdft.pruning.pipeline import run_pruning
from axolotl_sdft.pruning.spec import PruningSpec

NUM_TOKENS = 24
# llama.cpp takes the scale of attention from the width of a head, as Gemma 3's own models but the largest have it.
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
_EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}


@dataclass(frozen=True)
class Case:
    """A family of models, and which of its layers are removed."""

    family: str
    drop_layers: tuple[int, ...] = (2, 3)
    num_layers: int = 8
    settings: dict[str, Any] = field(default_factory=dict)
    is_regular: bool = True
    """Whether kinds of layers still alternate as in the family's own models: not every program reads their list."""


# Windows shorter than the prompts, so that a layer of the wrong kind shows.
CASES = {
    "llama": Case("Llama"),
    "qwen3": Case("Qwen3", settings={"head_dim": 32}),
    "gemma3": Case("Gemma3Text", settings=_GEMMA, is_regular=False),
    "gemma3-whole-period": Case("Gemma3Text", tuple(range(1, 7)), 12, _GEMMA),
    "smollm3": Case("SmolLM3", settings={"no_rope_layer_interval": 4}, is_regular=False),
    "smollm3-whole-period": Case("SmolLM3", (2, 3, 4, 5), settings={"no_rope_layer_interval": 4}),
    "qwen3-moe": Case("Qwen3Moe", settings={"head_dim": 32, "initializer_range": 0.15, **_EXPERTS}),
    "mixtral": Case("Mixtral", settings={"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def prompts(vocabulary: int) -> list[list[int]]:
    """Return token ids of four prompts of different lengths, all longer than the windows."""
    made = torch.Generator().manual_seed(3)
    return [torch.randint(20, vocabulary - 20, (length,), generator=made).tolist() for length in (24, 33, 40, 57)]


def make_seed(case: Case, tokenizer_dir: Path, folder: Path) -> Path:
    """Save a random model with large weights, so that every layer matters."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, f"{case.family}Config")(
        vocab_size=len(tokenizer),
        num_hidden_layers=case.num_layers,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **(shape | ends | {"initializer_range": 0.08} | case.settings),
    )
    torch.manual_seed(5)
    model = getattr(transformers, f"{case.family.removesuffix('Text')}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if "post_" in name and case.family == "Gemma3Text":  # else the embedding outweighs what such layers add
            torch.nn.init.constant_(weight, 2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_merged(case: Case, tokenizer_dir: Path, root: Path) -> Path:
    """Return the folder of a merged model: the seed model cut and patched, with a LoRA adapter folded in."""
    seed_dir = make_seed(case, tokenizer_dir, root / "seed")
    pruned_dir = run_pruning(
        PruningSpec(
            seed_dir=seed_dir,
            seed_name="seed",
            config=LayerPruningConfig(drop_layers=list(case.drop_layers), patch="linear"),
            calibration_fingerprint="random",
            load_batches=_batches,
            root=root,
        )
    )
    torch.manual_seed(9)
    model = AutoModelForCausalLM.from_pretrained(pruned_dir, dtype=torch.float32)
    lora = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    merged = peft.get_peft_model(model, lora).merge_and_unload()
    merged.save_pretrained(root / "merged")
    AutoTokenizer.from_pretrained(pruned_dir).save_pretrained(root / "merged")
    return root / "merged"


def _batches() -> list[dict[str, torch.Tensor]]:
    made = torch.Generator().manual_seed(4)
    ids = torch.randint(20, 2000, (40, 48), generator=made)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(8)]


def greedy_tokens(folder: Path) -> list[list[int]]:
    """Return what transformers writes after each prompt, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    written = []
    for prompt in prompts(model.config.vocab_size):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            answer = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False
            )
        written.append(answer[0, len(prompt) :].tolist())
    return written
