"""Measures what a linear patch brings back after a cut: on held-out answers of a task, and on the seed model's own
answers.

``python tests/benchmarks/bench_patch.py MODEL_DIR --task rows.jsonl --held-out other.jsonl --other a.jsonl b.jsonl``,
all JSON lines with ``instruction``, perhaps ``input``, and ``output``, or with ``question`` and ``answer``. Patches are
fitted on the task's rows, or on a mixture: half of it the task's, the rest shared by the other files. Each cut is then
run bare and patched. On the held-out rows the rows' own answers count, on the last rows of the other files those that
the seed model writes greedily. Answer tokens alone count, under the model's chat template.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft import LayerPatch, fit_patch
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.pruning.patching.cut_model import CutModel, opened
from axolotl_sdft.pruning.scoring.running import run

Row = dict[str, str]
Tokens = tuple[Tensor, int]
"""Token ids [1, T] of a prompt and its answer, and how many belong to the prompt."""


def main() -> None:
    """Fit, measure and print a table line by line."""
    options = _options()
    tokenizer = AutoTokenizer.from_pretrained(options.model_dir)
    model = AutoModelForCausalLM.from_pretrained(options.model_dir, dtype=torch.float32).eval()
    encode = functools.partial(encoded, tokenizer, max_length=options.max_length)
    held_out = [encode(row) for row in chosen(options.held_out, options.num_held_out)]
    prompts = [row for path in options.other for row in last(path, options.num_own // len(options.other))]
    own = [encode(row | {"output": answer}) for row, answer in own_answers(model, tokenizer, prompts)]
    texts = {"task": chosen(options.task, options.num_rows)}
    share = options.num_rows // 2 // len(options.other)
    texts["mixture"] = chosen(options.task, options.num_rows // 2)
    texts["mixture"] += [row for path in options.other for row in chosen(path, share)]
    with opened(model, {"input_ids": held_out[0][0]}) as cut_model:
        seeds = [measured(cut_model, rows, [], [()])[0] for rows in (held_out, own)]
    print(f"unpruned: task {seeds[0]['nats']:.3f} nats, own answers {seeds[1]['nats']:.3f}", flush=True)
    print("| layers removed | calibration (tokens) | " + " | ".join(_columns("task") + _columns("own")) + " | fit, s |")
    print("|---" * (3 + len(_columns("")) * 2) + "|", flush=True)
    for drop in options.drop:
        layers = list(range(drop[0], drop[1] + 1))
        patches = [fitted(model, [encode(row) for row in rows], layers) for rows in texts.values()]
        with opened(model, {"input_ids": held_out[0][0]}) as cut_model:
            states = [(), *(patch.cuts for patch, _ in patches)]
            of_task, of_own = (measured(cut_model, rows, layers, states) for rows in (held_out, own))
        names = [
            "none: bare cut",
            *(f"{name} ({patch.cuts[0].num_tokens:,})" for name, (patch, _) in zip(texts, patches, strict=True)),
        ]
        for place, name in enumerate(names):
            cells = [of_task[place], of_own[place]]
            bare = [of_task[0], of_own[0]]
            shown = [_cells(*figures) for figures in zip(cells, bare, seeds, strict=True)]
            seconds = f"{patches[place - 1][1]:.0f}" if place else ""
            print(f"| {drop[0]} to {drop[1]} | {name} | {' | '.join(shown[0] + shown[1])} | {seconds} |", flush=True)


def _columns(name: str) -> list[str]:
    return [f"{name} nats", f"{name} nats back", f"{name} KL", f"{name} agreement"]


def _cells(found: dict[str, float], bare: dict[str, float], seed: dict[str, float]) -> list[str]:
    back = 100 * (bare["nats"] - found["nats"]) / (bare["nats"] - seed["nats"])
    return [f"{found['nats']:.3f}", f"{back:.0f} %", f"{found['kl']:.3f}", f"{100 * found['agreement']:.1f} %"]


def fitted(model: Any, rows: Sequence[Tokens], layers: Sequence[int]) -> tuple[LayerPatch, float]:
    """Return the patch of a cut, and the seconds that it took."""
    started = time.perf_counter()
    ordered = sorted((ids for ids, _ in rows), key=lambda ids: ids.shape[1])
    patch = fit_patch(model, [{"input_ids": ids} for ids in ordered], layers)
    return patch, time.perf_counter() - started


def measured(
    cut_model: CutModel, rows: Sequence[Tokens], layers: Sequence[int], states: Sequence[Any]
) -> list[dict[str, float]]:
    """Return nats, KL(seed || model) and agreement of the most likely token, per answer token, of each state."""
    sums = [dict.fromkeys(("nats", "kl", "agreement"), 0.0) for _ in states]
    total = 0
    for ids_1T, prompt in rows:
        mask = torch.ones_like(ids_1T, dtype=torch.bool)
        places = slice(prompt - 1, ids_1T.shape[1] - 1)
        targets_N1 = ids_1T[0, prompt:, None]
        seed_NV = run(cut_model.model, ids_1T, mask).logits[0, places].log_softmax(-1)
        total += len(targets_N1)
        for found, cuts in zip(sums, states, strict=True):
            with cut_model.as_cut(layers, cuts):
                found_NV = run(cut_model.model, ids_1T, mask).logits[0, places].log_softmax(-1)
            found["nats"] -= float(found_NV.gather(1, targets_N1).sum())
            found["kl"] += float((seed_NV.exp() * (seed_NV - found_NV)).sum())
            found["agreement"] += int((seed_NV.argmax(-1) == found_NV.argmax(-1)).sum())
    return [{name: value / total for name, value in found.items()} for found in sums]


def own_answers(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Return rows with what the seed model answers greedily."""
    answers = []
    for row in rows:
        ids = _prompt_ids(tokenizer, row)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=96, do_sample=False)
        answers.append((row, tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
    return [(row, answer) for row, answer in answers if answer.strip()]


def encoded(tokenizer: Any, row: Row, max_length: int) -> Tokens:
    """Return a row under the chat template, cut to ``max_length`` tokens."""
    messages = [{"role": "user", "content": _question(row)}, {"role": "assistant", "content": row["output"]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :max_length]
    return ids, min(_prompt_ids(tokenizer, row).shape[1], ids.shape[1] - 1)


def _prompt_ids(tokenizer: Any, row: Row) -> Tensor:
    messages = [{"role": "user", "content": _question(row)}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return ids


def _question(row: Row) -> str:
    return "\n\n".join(filter(None, (row["instruction"], row.get("input"))))


def chosen(path: Path, count: int) -> list[Row]:
    """Return rows of a file, spread evenly."""
    rows = _rows(path)
    return [rows[place] for place in evenly_spaced(len(rows), count)]


def last(path: Path, count: int) -> list[Row]:
    """Return the last rows of a file."""
    return _rows(path)[-count:]


def _rows(path: Path) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row if "instruction" in row else {"instruction": row["question"], "output": row["answer"]} for row in rows]


def _span(text: str) -> tuple[int, int]:
    first, _, end = text.partition("-")
    return int(first), int(end or first)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--task", type=Path, required=True, help="rows that patches are fitted on")
    parser.add_argument("--held-out", type=Path, required=True, help="rows of the same task that are measured")
    parser.add_argument("--other", type=Path, nargs="+", required=True, help="rows of other tasks")
    parser.add_argument("--drop", type=_span, nargs="+", default=["13-15", "12-17", "13-18", "10-18"])
    parser.add_argument("--num-rows", type=int, default=128, help="rows of calibration")
    parser.add_argument("--num-held-out", type=int, default=40)
    parser.add_argument("--num-own", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=512)
    options = parser.parse_args()
    options.drop = [_span(drop) if isinstance(drop, str) else drop for drop in options.drop]
    return options


if __name__ == "__main__":
    with torch.no_grad():
        main()
