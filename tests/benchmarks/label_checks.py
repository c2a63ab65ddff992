"""Measures the answer checks against the truth: rewritten answers that were labelled by hand.

First ``generate`` lets the seed model rewrite rows of each task, then ``measure`` compares what the checks say with
the labels. Labels name a row and a digest of its answer, so that no text of a dataset is kept here; an answer that
comes out differently on another machine has no label, and is counted as such::

    python tests/benchmarks/label_checks.py generate --data DATA --model MODEL --answers answers.jsonl
    python tests/benchmarks/label_checks.py measure --data DATA --answers answers.jsonl
"""

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.config.block import check_name
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.distillation.checks import resolve_checks
from axolotl_sdft.distillation.templates import resolve_template
from axolotl_sdft.inference.interfaces import Answer, Prompt, Target

LABELS = Path(__file__).parent.parent / "distillation" / "labels.json"
GOOD = "good"


@dataclass(frozen=True)
class Task:
    """Rows of one dataset, and how they are rewritten and checked."""

    file: str
    question: str
    answer: str
    num_rows: int
    template: str
    max_new_tokens: int
    checks: tuple[str | dict[str, dict[str, Any]], ...]

    def targets(self, data_dir: Path) -> dict[int, Target]:
        """Return the targets of the task's rows, spread evenly over its file, by row number."""
        rows = [json.loads(line) for line in (data_dir / self.file).read_text(encoding="utf-8").splitlines()]
        return {number: self._target(rows[number]) for number in evenly_spaced(len(rows), self.num_rows)}

    def _target(self, row: dict[str, str]) -> Target:
        question = "\n\n".join(filter(None, (row[self.question], row.get("input"))))
        return Target(({"role": "user", "content": question},), row[self.answer])


_CALL = {"function_call": {"allow_text": True}}  # answers were labelled by their calls, whatever is said beside them
COMMON = ("empty", "truncated", "leak", "repetition", "refusal", "language", "length_ratio")
TASKS = {
    "gsm8k": Task(
        "gsm8k_train.jsonl", "question", "answer", 40, "mathematics", 160, (*COMMON, "numeric_answer", "arithmetic")
    ),
    "dolly": Task("dolly_train.jsonl", "instruction", "output", 40, "reference", 128, COMMON),
    "openfunctions": Task(
        "openfunctions_train.jsonl", "instruction", "output", 20, "function_calls", 96, (*COMMON, _CALL)
    ),
}


def generate(data_dir: Path, model_dir: Path, answers_file: Path, names: list[str]) -> None:
    """Append the rewritten answers of each task to a JSON lines file."""
    from axolotl_sdft.inference.local.backend import TransformersBackend

    for name in names:
        task = TASKS[name]
        template = resolve_template(task.template)
        prompts = [Prompt((n, 0), tuple(template(target))) for n, target in task.targets(data_dir).items()]
        # Greedy and in float32, so that the same answers come out again as far as hardware allows.
        settings = TransformersGeneration(
            max_new_tokens=task.max_new_tokens, temperature=0.0, max_batch_size=8, dtype="float32"
        )
        backend = TransformersBackend(model_dir, settings)
        for batch, answers in backend.generate(backend.batches(prompts)):
            with answers_file.open("a", encoding="utf-8") as lines:
                for prompt, answer in zip(batch, answers, strict=True):
                    lines.write(json.dumps(_line(name, prompt.key[0], answer), ensure_ascii=False) + "\n")


def _line(task: str, row: int, answer: Answer) -> dict[str, Any]:
    return {
        "task": task,
        "row": row,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "num_tokens": answer.num_tokens,
    }


def digest(text: str) -> str:
    """Return 12 hex digits of an answer."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Judged:
    """A labelled answer, and all checks that reject it."""

    task: str
    label: str
    """``good``, or what is first wrong with it."""

    rejected_by: tuple[str, ...]


def measure(data_dir: Path, answers_file: Path, names: list[str]) -> str:
    """Return a Markdown table of what each check rejects, and what all of them miss or wrongly reject."""
    judged, unlabelled = _judged(data_dir, answers_file, names)
    lines = [f"{len(judged)} labelled answers; {unlabelled} without a label (this machine wrote another answer).", ""]
    lines += ["| task | check | rejects | of them bad (precision) | of the bad (recall) |", "|---|---|---|---|---|"]
    for name in names:
        rows = [row for row in judged if row.task == name]
        for check in map(check_name, TASKS[name].checks):
            lines.append(_figures(name, check, rows, [row for row in rows if check in row.rejected_by]))
        lines.append(_figures(name, "all", rows, [row for row in rows if row.rejected_by]))
    lines.append(_figures("all", "all", judged, [row for row in judged if row.rejected_by]))
    missed = Counter(row.label for row in judged if row.label != GOOD and not row.rejected_by)
    wrongly = Counter(check for row in judged if row.label == GOOD for check in row.rejected_by)
    return "\n".join([*lines, "", f"Missed: {dict(missed)}. Good answers rejected by: {dict(wrongly)}."])


def _judged(data_dir: Path, answers_file: Path, names: list[str]) -> tuple[list[Judged], int]:
    labels = {tuple(key): label for *key, label in json.loads(LABELS.read_text(encoding="utf-8"))["labels"]}
    answers = [json.loads(line) for line in answers_file.read_text(encoding="utf-8").splitlines()]
    judged, unlabelled = [], 0
    for name in names:
        task, targets = TASKS[name], TASKS[name].targets(data_dir)
        checks = resolve_checks(task.checks, [resolve_template(task.template)])
        for line in (line for line in answers if line["task"] == name):
            label = labels.get((name, line["row"], digest(line["text"])))
            if label is None:
                unlabelled += 1
                continue
            answer = Answer(line["text"], line["finish_reason"], line["num_tokens"])
            rejected_by = tuple(check for check, reject in checks if reject(answer, targets[line["row"]]) is not None)
            judged.append(Judged(name, label, rejected_by))
    return judged, unlabelled


def _figures(task: str, check: str, rows: list[Judged], rejected: list[Judged]) -> str:
    num_bad = sum(row.label != GOOD for row in rows)
    num_right = sum(row.label != GOOD for row in rejected)
    precision = f"{num_right} ({num_right / len(rejected):.0%})" if rejected else "-"
    return f"| {task} | {check} | {len(rejected)} of {len(rows)} | {precision} | {num_right} of {num_bad} |"


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("generate", "measure"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    if arguments.step == "measure":
        print(measure(arguments.data, arguments.answers, arguments.tasks))
    elif arguments.model is None:
        parser.error("generate needs --model")
    else:
        generate(arguments.data, arguments.model, arguments.answers, arguments.tasks)


if __name__ == "__main__":
    main()
