"""Compares what the layer metrics choose: the perplexity of held-out answers of a model less some of its layers.

``python tests/benchmarks/bench_pruning_quality.py MODEL_DIR --calibration rows.jsonl --held-out other.jsonl``, both
JSON lines with ``instruction`` and ``output`` (or ``question`` and ``answer``). Every metric chooses from the same
calibration text. The layers are then skipped in the loaded model, which gives the logits of the pruned checkpoint, and
the answer alone is counted, under the model's chat template. Scores and results are kept in ``--cache``, so that a run
that was stopped goes on.
"""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import fingerprint, read_json, write_json
from axolotl_sdft.inference.forwarding import patched_forward
from axolotl_sdft.integrations.axolotl.calibration_text import text_of
from axolotl_sdft.pruning.pipeline import PruningRun
from axolotl_sdft.pruning.planning.plan import PruningPlan
from axolotl_sdft.pruning.scoring.boundaries import decoder_layers
from axolotl_sdft.pruning.scoring.loading import encode_texts
from axolotl_sdft.pruning.scoring.running import evaluating
from axolotl_sdft.pruning.spec import PruningSpec

METRICS = (
    ("angular_distance", "all"),
    ("angular_distance", "last"),
    ("block_influence", "all"),
    ("perplexity", "all"),
    ("last", "all"),
)


def main() -> None:
    """Measure what is not in the cache yet, and print the table."""
    options = _options()
    cells = {}
    for metric, average in METRICS:
        for count in options.num_layers:
            plan = _task(options, metric, average, max(options.num_layers), count).plan()
            cells[metric, average, count] = (plan, held_out_perplexity(options, plan.drop_layers))
    seed = held_out_perplexity(options, ())
    print(f"Perplexity of held-out answers; without pruning {seed:.2f}.\n")
    print("\n".join(table(cells, options.num_layers)))


def table(cells: dict[tuple[str, str, int], tuple[PruningPlan, float]], counts: list[int]) -> Iterator[str]:
    """Yield the lines of a Markdown table: metrics by numbers of layers, with the removed layers."""
    yield "| metric | " + " | ".join(f"less {count}" for count in counts) + " |"
    yield "|---" * (len(counts) + 1) + "|"
    for metric, average in METRICS:
        shown = []
        for count in counts:
            plan, perplexity = cells[metric, average, count]
            shown.append(f"{perplexity:.2f} ({', '.join(map(str, plan.drop_layers))})")
        name = metric if average == "all" else f"{metric}, last token"
        yield f"| {name} | {' | '.join(shown)} |"


def held_out_perplexity(options: argparse.Namespace, dropped: tuple[int, ...]) -> float:
    """Return exp of the mean negative log-likelihood per token of the held-out answers, with layers skipped."""
    path = options.cache / "held-out.json"
    known = read_json(path) if path.is_file() else {}
    rows = _rows(options.held_out, options.held_out_rows)
    key = fingerprint([rows, sorted(dropped), options.dtype, str(options.model_dir), options.sequence_len])
    if key not in known:
        total, count = _answer_nll(options, rows, dropped)
        if count == 0:
            raise SystemExit(f"no answer of {options.held_out} begins within --sequence-len {options.sequence_len}")
        known[key] = math.exp(total / count)
        write_json(path, known)
    return known[key]


def _answer_nll(options: argparse.Namespace, rows: list[dict[str, Any]], dropped: tuple[int, ...]) -> tuple[float, int]:
    tokenizer = AutoTokenizer.from_pretrained(options.model_dir)
    model = AutoModelForCausalLM.from_pretrained(options.model_dir, dtype=getattr(torch, options.dtype))
    total, count = 0.0, 0
    with evaluating(model), _skipped(model, dropped):
        for row in rows:
            asked = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
            prompt = [{"role": "user", "content": asked}]
            before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            start = len(tokenizer(before)["input_ids"])
            ids = tokenizer(before + row["output"], return_tensors="pt")["input_ids"][:, : options.sequence_len]
            if ids.shape[1] <= start:
                continue
            logits = model(ids, use_cache=False, logits_to_keep=ids.shape[1] - start + 1).logits[0, :-1].float()
            total += F.cross_entropy(logits, ids[0, start:], reduction="sum").item()
            count += ids.shape[1] - start
    return total, count


@contextmanager
def _skipped(model: Any, dropped: tuple[int, ...]) -> Iterator[None]:
    layers = decoder_layers(model)
    with ExitStack() as patches:
        for layer in dropped:
            patches.enter_context(
                patched_forward(layers[layer], lambda hidden_states, *_args, **_kwargs: hidden_states)
            )
        yield


def _task(options: argparse.Namespace, metric: str, average: str, most: int, count: int) -> PruningRun:
    """Return a pruning that is only planned; its scores are kept in the cache.

    A greedy order is made for the most layers at once.
    """
    rows = _rows(options.calibration, options.calibration_rows)
    calibration = {"sequence_len": options.sequence_len, "num_samples": options.calibration_rows}
    settings = {"metric": metric, "token_reduction": average, "dtype": options.dtype, "calibration": calibration}

    def load_batches() -> Any:
        tokenizer = AutoTokenizer.from_pretrained(options.model_dir)
        texts = [text_of(row, {"type": "alpaca"}, "calibration", tokenizer) for row in rows]
        return encode_texts(texts, options.model_dir, largest.spec.config.calibration)

    def make(num_layers: int) -> PruningRun:
        config = LayerPruningConfig.model_validate(settings | {"num_layers": num_layers})
        return PruningRun(
            PruningSpec(
                options.model_dir, options.model_dir.name, config, fingerprint(rows), load_batches, options.cache
            )
        )

    largest = make(most)
    largest.scores()
    return make(count)


def _rows(path: Path, count: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    names = {"question": "instruction", "answer": "output"}
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--calibration-rows", type=int, default=64)
    parser.add_argument("--held-out-rows", type=int, default=64)
    parser.add_argument("--sequence-len", type=int, default=256)
    parser.add_argument("--num-layers", type=int, nargs="+", default=[3, 6, 9])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--cache", type=Path, default=Path("bench_cache"))
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
