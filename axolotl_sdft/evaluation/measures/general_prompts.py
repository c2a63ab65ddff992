"""The prompts from outside the task that show what a model has forgotten. No torch here."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from axolotl_sdft.config import GeneralPromptsConfig
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.core.sampling import evenly_spaced

SHIPPED_FILE = "general_prompts.txt"
_KEY = "recovery_report.general_prompts.path"
_JSON_SUFFIXES = (".json", ".jsonl")


def general_prompts(config: GeneralPromptsConfig) -> list[str]:
    """Return the prompts of a file, up to ``num_samples`` of them, spread evenly.

    A file whose name ends in ``.jsonl`` or ``.json`` holds an object with a ``prompt`` on each line, any other file the
    prompt itself. Empty lines don't count.

    Raises:
        DatasetError: The file can't be read, holds no prompt, or a line is not what it should be.
    """
    if config.path is None:
        text, is_json = resources.files(__package__).joinpath(SHIPPED_FILE).read_text(encoding="utf-8"), False
    else:
        text, is_json = _read(config.path), config.path.endswith(_JSON_SUFFIXES)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    prompts = [_prompt(config.path, number, line) if is_json else line for number, line in lines]
    if not prompts:
        raise DatasetError(f"{_KEY} is {config.path!r}, which holds no prompt; write one on each line")
    return [prompts[place] for place in evenly_spaced(len(prompts), config.num_samples)]


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        raise DatasetError(
            f"{_KEY} is {path!r}, which can't be read ({err}); name a text file with a prompt on each line, or remove "
            "the key for those that come with the package"
        ) from err


def _prompt(path: str | None, number: int, line: str) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError:
        row = None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DatasetError(
            f'{_KEY} is {path!r}, whose line {number} is not an object with a prompt, such as {{"prompt": "Why is the '
            'sky blue?"}'
        )
    return prompt.strip()
