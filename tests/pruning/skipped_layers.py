"""What a cut must equal: the original model, run with those layers skipped."""

import inspect
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from axolotl_sdft import LayerPatch, cut_layers, fit_patch
from axolotl_sdft.pruning.checkpoint.architecture import first_number_prefix, is_text_path, layer_count
from axolotl_sdft.pruning.checkpoint.cut import plan_checkpoint
from axolotl_sdft.pruning.checkpoint.verify import verify_cut
from axolotl_sdft.pruning.patching.apply import why_not_stored
from tests.pruning.architectures import VOCABULARY

_TOLERANCE = 1e-4  # of what skipping the layers changes; most types are bit-equal, some sum in another order


def layer_lists(model: PreTrainedModel, num_layers: int) -> list[torch.nn.ModuleList]:
    """Return the module lists as long as the text decoder, less those inside layers and of other modalities."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == num_layers
        and first_number_prefix(f"{name}.") is None
        and is_text_path(name)
    ]


@contextmanager
def skipped(model: PreTrainedModel, drop_layers: Collection[int], num_layers: int) -> Iterator[PreTrainedModel]:
    """While open, these layers hand on the hidden states that they receive, whatever else they return."""
    (layers,) = layer_lists(model, num_layers)
    hooks = [layers[layer].register_forward_hook(hand_on, with_kwargs=True) for layer in drop_layers]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def hand_on(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Give, as a forward hook, what a layer received in place of what it made of it."""
    received = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    received |= received.pop("kwargs", {})
    states = [args[0] if args else kwargs["hidden_states"]]
    if "prev_attn_output" in received:  # a reversible layer names its two streams
        return output._replace(attn_output=received["prev_attn_output"], hidden_states=received["hidden_states"])
    states += [received[name] for name in ("output_g", "prev_router_hidden_states") if name in received]
    return type(output)((*states, *output[len(states) :])) if isinstance(output, tuple | list) else states[0]


def token_ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    """Return random tokens [rows, length], the same each time; none of them has a special meaning."""
    return torch.randint(5, VOCABULARY - 5, (rows, length), generator=torch.Generator().manual_seed(3))


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of all tokens, computed without a cache."""
    with torch.no_grad():
        return model(input_ids=token_ids(), use_cache=False).logits


def generated(model: PreTrainedModel, use_cache: bool) -> torch.Tensor:
    """Return what the model writes greedily."""
    ids = token_ids(rows=1, length=5)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **settings)


def loaded(model_class: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """Load a checkpoint in float32 and require that it holds exactly the model's tensors."""
    model, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    faults = {kind: names for kind, names in info.items() if names}
    assert not faults, f"{folder.name} does not fit its model: {faults}"
    return model.eval()


def check_cut(seed: PreTrainedModel, seed_dir: Path, drop_layers: Collection[int], pruned_dir: Path) -> PreTrainedModel:
    """Require that a cut equals ``seed``, loaded from ``seed_dir``, with those layers skipped; return the cut model.

    Raises:
        CheckpointError: The cut is refused.
        AssertionError: It differs.
    """
    cut_layers(seed_dir, drop_layers, pruned_dir)
    pruned = loaded(type(seed), pruned_dir)
    with skipped(seed, drop_layers, num_layers_of(seed_dir)):
        expected = logits(seed)
    effect = (expected - logits(seed)).abs().max()
    difference = (expected - logits(pruned)).abs().max()
    assert effect > 0, f"skipping {drop_layers} changes nothing"
    assert difference <= _TOLERANCE * effect, f"without {drop_layers} the logits differ by {difference} of {effect}"
    return pruned


def check_patch(
    seed: PreTrainedModel, seed_dir: Path, drop_layers: Collection[int], bare_dir: Path, reason: str | None
) -> None:
    """Require that a patch changes one tensor of the bare cut for each cut, and acts as its map does.

    Args:
        seed: The unpruned model, loaded from ``seed_dir``.
        seed_dir: Its checkpoint.
        drop_layers: The removed layers.
        bare_dir: The checkpoint of the bare cut.
        reason: Part of why a layer of this type takes no patch; None: all do.
    """
    batches = [{"input_ids": ids} for ids in token_ids(rows=6).split(2)]
    plan = plan_checkpoint(seed_dir, drop_layers)
    patch = fit_patch(
        seed,
        batches,
        drop_layers,
        ridge=0.1,
        hold_out=False,
        refuse=partial(why_not_stored, (plan.tensors, plan.layer_prefix)),
    )
    for cut in patch.cuts:
        assert cut.is_applied or (reason is not None and reason in str(cut.reason)), cut.reason
    assert reason is None or len(patch.applied) < len(patch.cuts), f"{patch.applied} are patched nevertheless"
    if not patch.applied:
        return
    patched_dir = bare_dir.with_name("patched")
    cut_layers(seed_dir, drop_layers, patched_dir, patch=patch)
    bare, patched = (_tensors(folder) for folder in (bare_dir, patched_dir))
    assert bare.keys() == patched.keys()
    assert sum(not torch.equal(bare[name], patched[name]) for name in bare) == len(patch.applied)
    with skipped(seed, drop_layers, num_layers_of(seed_dir)):
        unpatched = logits(seed)
        with _mapped(seed, patch, num_layers_of(seed_dir)):
            expected = logits(seed)
    effect = (expected - unpatched).abs().max()
    difference = (expected - logits(loaded(type(seed), patched_dir))).abs().max()
    assert difference <= 1e-3 * effect, f"with a patch the logits differ by {difference} of {effect}"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@contextmanager
def _mapped(model: PreTrainedModel, patch: LayerPatch, num_layers: int) -> Iterator[None]:
    """While open, each patched projection's output M + bias is M T + bias."""
    (layers,) = layer_lists(model, num_layers)
    hooks = []
    for cut in patch.applied:
        module = layers[cut.projection.layer].get_submodule(cut.projection.path)
        bias = 0 if getattr(module, "bias", None) is None else module.bias.detach()
        hooks.append(module.register_forward_hook(partial(_followed_by, cut.correction.float(), bias)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _followed_by(correction: torch.Tensor, bias: Any, _module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output + (output - bias) @ correction


def check_config(seed_dir: Path, drop_layers: Collection[int], pruned_dir: Path) -> None:
    """Require that a cut is sound by what can be seen without weights."""
    kept = [layer for layer in range(num_layers_of(seed_dir)) if layer not in drop_layers]
    verify_cut(*(config_of(folder) for folder in (seed_dir, pruned_dir)), kept)


def check_generation(
    seed: PreTrainedModel, pruned: PreTrainedModel, seed_dir: Path, drop_layers: Collection[int], caches_agree: bool
) -> None:
    """Require that a cut model writes what ``seed`` does with those layers skipped, with a cache as without."""
    texts = [generated(pruned, use_cache) for use_cache in (True, False)]
    assert torch.equal(*texts) or not caches_agree, f"without {drop_layers}, {texts[0]} with a cache, else {texts[1]}"
    with skipped(seed, drop_layers, num_layers_of(seed_dir)):
        expected = [generated(seed, use_cache) for use_cache in (True, False)]
    assert all(map(torch.equal, texts, expected)), f"without {drop_layers}, {texts} instead of {expected}"


def config_of(folder: Path) -> dict[str, Any]:
    """Return the content of a ``config.json``."""
    return json.loads((folder / "config.json").read_text())


def num_layers_of(folder: Path) -> int:
    """Return how many layers a checkpoint has."""
    return layer_count(config_of(folder))
