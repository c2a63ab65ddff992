"""Writes the rows of LIMA as messages, which Axolotl reads with ``type: chat_template``.

    hf auth login                                   # GAIR/lima is gated: accept its terms on the Hub first
    python example_configs/prepare_lima.py         # writes data/lima.jsonl

A row of GAIR/lima is a list of texts, in turn by the user and by the assistant.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DEFAULT_OUTPUT = Path("data/lima.jsonl")
_ROLES = ("user", "assistant")


def main(arguments: list[str] | None = None) -> None:
    """Write the file that the command line names, and print how many rows it has."""
    parser = argparse.ArgumentParser(description="Write the rows of LIMA as messages.")
    parser.add_argument("output", nargs="?", type=Path, default=DEFAULT_OUTPUT, help=f"default: {DEFAULT_OUTPUT}")
    parser.add_argument("--source", type=Path, help="train.jsonl of GAIR/lima; default: downloaded from the Hub")
    options = parser.parse_args(arguments)
    source = options.source or downloaded()
    with source.open(encoding="utf-8") as lines:
        rows = list(as_messages(json.loads(line) for line in lines))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    print(f"{options.output}: {len(rows)} rows")


def downloaded() -> Path:
    """Return the training rows as a file in the Hub's cache."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download("GAIR/lima", "train.jsonl", repo_type="dataset"))


def as_messages(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each row with its texts as messages. A last question without an answer is left out."""
    for row in rows:
        texts = row["conversations"]
        texts = texts[: len(texts) // 2 * 2]
        if texts:
            turns = [{"role": _ROLES[place % 2], "content": text} for place, text in enumerate(texts)]
            yield {"messages": turns, "source": row.get("source")}


if __name__ == "__main__":
    main()
