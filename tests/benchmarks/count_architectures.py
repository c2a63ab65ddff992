"""Counts the model types of transformers' causal-LM mapping that a cut serves, and says why it refuses the others.

Run from the repository root: python -m tests.benchmarks.count_architectures [--types llama qwen3] [--drop 1 --drop 2 4]
"""

import argparse
import logging
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from axolotl_sdft.core.errors import CheckpointError
from tests.pruning.architectures import build, tiny_config
from tests.pruning.checkpoint.test_every_architecture import (
    CACHE_DIFFERS,
    CANNOT_GENERATE,
    DROP_SETS,
    OTHER_DROP_SETS,
)
from tests.pruning.skipped_layers import check_config, check_cut, check_generation, loaded

OUTCOMES = ("exactly right", "right for some drop sets", "refused", "wrong", "not built")


def outcome(model_type: str, drop_sets: tuple[tuple[int, ...], ...], folder: Path) -> tuple[str, str]:
    """Return how cutting a type goes, with the reason where it is not right for every drop set."""
    try:
        seed = build(tiny_config(model_type))
    except Exception as err:  # a constructor may raise anything
        return "not built", _short(err)
    seed.save_pretrained(folder / "seed")
    seed = loaded(type(seed), folder / "seed")
    reasons: list[str] = []
    for number, drop_layers in enumerate(drop_sets):
        pruned_dir = folder / str(number)
        try:
            pruned = check_cut(seed, folder / "seed", drop_layers, pruned_dir)
            check_config(folder / "seed", drop_layers, pruned_dir)
            if model_type not in CANNOT_GENERATE:
                check_generation(seed, pruned, folder / "seed", drop_layers, model_type not in CACHE_DIFFERS)
        except CheckpointError as err:
            reasons.append(f"without {drop_layers}: {_short(err)}")
        except Exception as err:
            return "wrong", f"without {drop_layers}: {_short(err)}"
    if not reasons:
        return "exactly right", ""
    return "refused" if len(reasons) == len(drop_sets) else "right for some drop sets", reasons[0]


def _short(err: Exception) -> str:
    return " ".join(str(err).split())[:200]


def main() -> None:
    """Print a table of outcomes, then the types of each that is not exactly right, with reasons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--drop", nargs="+", type=int, action="append", help="layers to drop; may be repeated")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for model_type in arguments.types:
        given = tuple(map(tuple, arguments.drop)) if arguments.drop else OTHER_DROP_SETS.get(model_type, DROP_SETS)
        with tempfile.TemporaryDirectory() as folder:
            kind, reason = outcome(model_type, given, Path(folder))
        found[kind][model_type] = reason
    print(
        f"transformers {transformers.__version__}, {len(arguments.types)} types, {time.monotonic() - started:.0f} s\n"
    )
    print("| outcome | types |\n|---|---|")
    print("\n".join(f"| {kind} | {len(found[kind])} |" for kind in OUTCOMES))
    for kind in OUTCOMES[1:]:
        if found[kind]:
            print(f"\n{kind}:\n" + "\n".join(f"- {name}: {reason}" for name, reason in found[kind].items()))


if __name__ == "__main__":
    main()
