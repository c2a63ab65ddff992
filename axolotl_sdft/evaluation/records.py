"""What the stages of a run left behind that a recovery report draws: losses of the training, removals that were tried.

Nothing is measured here, and what is not there, or can't be read, is an empty result.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import SdftError
from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.evaluation.figures import Curve, TriedRemoval

STATE_FILE = "trainer_state.json"
_DRAWN = ("loss", "eval_loss")

KL_MEASURE = "KL to the seed model (nats per token)"


def log_history(output_dir: Path) -> list[dict[str, Any]]:
    """Return what the trainer logged in the last training there; empty where there is no state file.

    A checkpoint of a training before may have more steps, so the newest file counts. Where files were copied their
    times tell little, so one that goes on from the newest is taken in its place.
    """
    paths = [*output_dir.glob(STATE_FILE), *output_dir.glob(f"checkpoint-*/{STATE_FILE}")]
    paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    states = [state for path in paths if isinstance(state := _read(path).get("log_history"), list) and state]
    return max((state for state in states if state[: len(states[0])] == states[0]), key=len, default=[])


def _step(entry: Mapping[str, Any]) -> int:
    step = entry.get("step")
    return step if isinstance(step, int) else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except SdftError:
        return {}


def training_curves(model: str, folder: Path) -> tuple[Curve, ...]:
    """Return the losses that were logged of a model, by steps; a curve has two points at least."""
    history = log_history(folder)
    curves = (_curve(model, key, history) for key in _DRAWN)
    return tuple(curve for curve in curves if len(curve.steps) > 1)


def _curve(model: str, key: str, history: Iterable[Mapping[str, Any]]) -> Curve:
    points = {_step(entry): float(entry[key]) for entry in history if isinstance(entry.get(key), int | float)}
    kept = sorted((step, value) for step, value in points.items() if math.isfinite(value))
    return Curve(model, key, tuple(step for step, _ in kept), tuple(value for _, value in kept))


def tried_removals(folder: Path) -> tuple[tuple[TriedRemoval, ...], str]:
    """Return what each number of removed layers costs, as far as a pruned checkpoint's provenance has tried them.

    Fewer than two numbers are no curve, and give nothing. The second value says what the costs are, with their unit.
    """
    scores = _read(folder / PROVENANCE_FILE).get("scores") or {}
    if blocks := scores.get("divergences"):
        removals, measure = _of_blocks(blocks), KL_MEASURE
    else:
        costs = enumerate(scores.get("removal_costs") or (), 1)
        removals = [TriedRemoval(count, float(cost)) for count, cost in costs if _is_finite(cost)]
        measure = f"cost by the metric {scores.get('metric')}"
    return (tuple(removals), measure) if len(removals) > 1 else ((), "")


def _of_blocks(blocks: Iterable[Mapping[str, Any]]) -> list[TriedRemoval]:
    """Return the best block of each length, by its patched cut where one was tried."""
    best: dict[int, TriedRemoval] = {}
    for block in blocks:
        length, bare, patched = block["end"] - block["start"], block["bare"], block.get("patched")
        if not _is_finite(bare):
            continue
        tried = TriedRemoval(length, bare, patched if _is_finite(patched) else None)
        if length not in best or _cost(tried) < _cost(best[length]):
            best[length] = tried
    return [best[length] for length in sorted(best)]


def _cost(removal: TriedRemoval) -> float:
    return removal.bare if removal.patched is None else min(removal.bare, removal.patched)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
