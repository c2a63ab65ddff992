"""What a person is told of a patch, from its record in the provenance file. No torch, no files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def patch_lines(record: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield a line for each cut and one for the whole, with whether it tells of something that was patched.

    Args:
        record: What :meth:`~axolotl_sdft.pruning.patching.record.LayerPatch.to_json` gave.
    """
    for cut in record["cuts"]:
        if cut["applied"]:
            sinks = f", {cut['num_sinks']} attention sinks left as they are" if cut["num_sinks"] else ""
            yield (
                True,
                (
                    f"layer {cut['layer']} is patched for {span(cut['removed'])}: {cut['module']}, fitted on "
                    f"{cut['num_tokens']:,} tokens{sinks}"
                ),
            )
        else:
            yield False, f"{span(cut['removed'])} removed without a patch: {cut['reason']}"
    if any(cut["applied"] for cut in record["cuts"]) and record["divergence_bare"] is not None:
        yield True, f"KL to the seed model: {nearer(record)}"


def nearer(record: Mapping[str, Any]) -> str:
    """Return how much nearer to the seed model a patch brings the cut."""
    bare, patched = record["divergence_bare"], record["divergence_patched"]
    return (
        f"{bare:.3f} nats per token for the bare cut, {patched:.3f} patched ({100 * (1 - patched / bare):.0f} % less), "
        f"over {record['num_held_out_tokens']:,} held-out tokens"
    )


def card_cell(record: Mapping[str, Any] | None) -> str:
    """Return what a model card says of a patch in one cell of its table."""
    applied = [cut for cut in record["cuts"] if cut["applied"]] if record is not None else []
    if record is None or not applied:
        return "none: the weights that stay are the seed model's"
    tensors = ", ".join(f"`{cut['module']}` of layer {cut['layer']}" for cut in applied)
    measured = f"; KL to the seed model: {nearer(record)}" if record["divergence_bare"] is not None else ""
    return f"linear, in {tensors} (counted before the removal){measured}"


def span(layers: Sequence[int]) -> str:
    """Return neighbouring layers as text: ``layer 3``, ``layers 3 to 5``."""
    return f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
