"""Calibration text that the seed model writes itself: its answers to general prompts that come with the package.

A patch that is fitted on the task's rows alone brings back little of what the model says to other prompts. No prompt is
one of those that the recovery report measures on, which would flatter it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.core.artifacts import ensure_writable, fingerprint, read_json, replace_json
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.locks import only_one
from axolotl_sdft.core.terminal import Progress, progress
from axolotl_sdft.inference.chat_templates import apply_template, shows_questions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG = logging.getLogger(__name__)

TOKENS_PER_UNIT = 8
"""Tokens that a patch should be fitted on for each unit of the hidden size; fewer are warned of."""
LONGEST_TEXT = 256
"""Tokens of a prompt and its answer in a chat template. Hardly any has more."""
PROMPTS_FILE = "calibration_prompts.txt"
ANSWERS_FILE = "answers.json"

WANTED_PER_UNIT = 10
"""Tokens that are asked for, for each unit of the hidden size: a tenth of the rows is held out, perhaps the longest."""
_MAX_NEW_TOKENS = 128
_ROUND = 16  # after so many prompts it is known whether the text is enough


def calibration_prompts() -> tuple[str, ...]:
    """Return the prompts that come with the package, in an order in which any first few are of many kinds."""
    text = resources.files(__package__).joinpath(PROMPTS_FILE).read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def surely_wanted(num_tokens: int) -> int:
    """Return how many prompts so many tokens take, however long the answers get: whole rounds, one at least.

    They are answered together. A GPU writes the answers to a hundred in little more time than those to sixteen.
    """
    return max(1, num_tokens // (LONGEST_TEXT * _ROUND)) * _ROUND


@dataclass(frozen=True)
class GeneralText:
    """How much of the calibration text the seed model writes itself."""

    share: float | None = None
    """Share of the tokens that a patch needs; more where the other text is too little. None: ``num_prompts`` alone
    counts."""
    num_prompts: int | None = None
    """Most prompts that are answered; None for all."""
    chat_template: str | None = None
    """Jinja text of the chat template of a seed model without one."""

    @property
    def identity(self) -> dict[str, Any]:
        """What changes with the text, beside the seed model."""
        prompts = calibration_prompts()[: self.num_prompts]
        own = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return own | {"prompts": fingerprint(prompts), "max_new_tokens": _MAX_NEW_TOKENS, "share": self.share}

    def num_tokens(self, hidden_size: int, num_others: int) -> int | None:
        """Return how many tokens are wanted beside those of other text; None for as many as the prompts give."""
        if self.share is None:
            return None
        needed = WANTED_PER_UNIT * hidden_size
        return max(round(self.share * needed), needed - num_others)

    def planned(self, seed_config: Mapping[str, Any]) -> str:
        """Return what is said of it before any text is read."""
        if self.share is None:
            return f"the seed model's answers to {self.num_prompts} general prompts, which it writes then"
        size = seed_config.get("hidden_size") or (seed_config.get("text_config") or {}).get("hidden_size")
        count = f"{self.num_tokens(size, WANTED_PER_UNIT * size):,}" if isinstance(size, int) else "some"
        return (
            f"{count} tokens or more of the seed model's answers to general prompts, which it writes then "
            "(layer_pruning.calibration.general_share: 0 for none)"
        )

    def described(self, hidden_size: int, num_others: int) -> str:
        """Return what the log says before anything is generated."""
        wanted = self.num_tokens(hidden_size, num_others)
        if wanted is None:
            return f"the patch is also fitted on the seed model's answers to {self.num_prompts} general prompts"
        return (
            f"for a hidden size of {hidden_size:,} a patch needs {WANTED_PER_UNIT * hidden_size:,} tokens; beside "
            f"{num_others:,} that were read, the seed model answers general prompts until that gives {wanted:,} more "
            "(layer_pruning.calibration.general_share: 0 switches this off)"
        )


def general_texts(
    model: "PreTrainedModel",
    seed_dir: str | Path,
    num_tokens: int | None = None,
    *,
    num_prompts: int | None = None,
    folder: str | Path | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> list[str]:
    """Return conversations of general prompts and a model's own greedy answers, as texts in its chat template.

    Together with rows of the task they are what a patch is best fitted on. The model comes back as it was.

    Args:
        model: The unpruned model.
        seed_dir: Its folder, for the tokenizer.
        num_tokens: Prompts are answered, in rounds of sixteen, until the texts have so many tokens. Unset: half of what
            a patch needs, which is ten tokens for each unit of the hidden size, a tenth of them held out.
        num_prompts: Most prompts that are answered; by default all 128.
        folder: Keeps the answers and finds them again. Its name has to tell models apart.
        chat_template: Jinja text of a chat template for a model that has none.
        trust_remote_code: Run code that comes with the tokenizer.

    Raises:
        CheckpointError: The model can't be asked: it writes no text, or has no tokenizer or no chat template.

    Example:
        >>> texts += general_texts(model, "models/SmolLM2-135M-Instruct")
    """
    if num_tokens is None and num_prompts is None:
        num_tokens = WANTED_PER_UNIT * model.config.get_text_config().hidden_size // 2
    prompts = calibration_prompts()[:num_prompts]
    asked = _Asked(model, Path(seed_dir), chat_template, trust_remote_code)
    if folder is None:
        return asked.texts(prompts, num_tokens, {}, lambda answers: None)
    folder = Path(folder)
    ensure_writable(folder.parent, "layer_pruning.calibration (answers to general prompts)")
    with only_one(folder.parent / f".{folder.name}.lock", str(folder)):
        path = folder / ANSWERS_FILE
        answers = read_json(path) if path.is_file() else {}
        return asked.texts(prompts, num_tokens, answers, lambda answers: _keep(folder, answers))


class _Asked:
    """A loaded model that answers prompts."""

    def __init__(self, model: "PreTrainedModel", seed_dir: Path, chat_template: str | None, trusts: bool) -> None:
        self._model, self._seed_dir = model, seed_dir
        self._config = TransformersGeneration(
            max_new_tokens=_MAX_NEW_TOKENS,
            temperature=0.0,
            chat_template=chat_template,
            trust_remote_code=trusts,
        )
        self._tokenizer = self._checked_tokenizer()
        self._failures: dict[str, str] = {}  # why prompts got no answer

    def _checked_tokenizer(self) -> Any:
        from axolotl_sdft.inference.prompts import load_tokenizer

        can_write = getattr(self._model, "can_generate", lambda: False)()
        if not can_write or getattr(self._model.config, "is_encoder_decoder", False):
            raise CheckpointError(f"{type(self._model).__name__} does not answer prompts")
        config = self._config
        tokenizer = load_tokenizer(
            self._seed_dir, trust_remote_code=bool(config.trust_remote_code), chat_template=config.chat_template
        )
        if not getattr(tokenizer, "chat_template", None):
            raise CheckpointError(f"{self._seed_dir} has no chat template to ask prompts in")
        if not shows_questions(tokenizer):
            raise CheckpointError(f"the chat template of {self._seed_dir} shows nothing of what is asked")
        return tokenizer

    def texts(
        self,
        prompts: Sequence[str],
        num_tokens: int | None,
        answers: dict[str, str],
        keep: Callable[[Mapping[str, str]], None],
    ) -> list[str]:
        """Return conversations until they are long enough; what is not among the answers is generated and kept."""
        from axolotl_sdft.pruning.scoring.running import evaluating

        texts: list[str] = []
        count = num_shown = num_new = 0
        started = time.monotonic()
        sizes: dict[str, int] = {}
        bar = progress("answering general prompts", num_tokens or len(prompts), _unit(num_tokens), LOG)
        with bar as shown, evaluating(self._model):
            for start in range(0, len(prompts), _ROUND):
                part = prompts[start : start + _ROUND]
                if not answers.keys() >= set(part):
                    ahead = len(prompts) if num_tokens is None else surely_wanted(num_tokens - count)
                    missing = [prompt for prompt in prompts[start : start + ahead] if prompt not in answers]
                    for found in self._generated(missing):
                        answers |= found
                        keep(answers)
                        num_new += len(found)
                        sizes |= {prompt: self._size(prompt, answer) for prompt, answer in found.items()}
                        num_shown = _advanced(shown, num_shown, sizes, num_tokens)
                given = {prompt: answers.get(prompt, "") for prompt in part}
                sizes |= {prompt: self._size(prompt, answer) for prompt, answer in given.items() if prompt not in sizes}
                num_shown = _advanced(shown, num_shown, sizes, num_tokens)
                texts += [self._conversation(prompt, answer) for prompt, answer in given.items() if answer.strip()]
                count += sum(sizes[prompt] for prompt in part)
                if num_tokens is not None and count >= num_tokens:
                    break
        LOG.info(
            "the seed model's answers to %d general prompts (%d of them generated now, in %.1f s): %d tokens",
            *(len(texts), num_new, time.monotonic() - started, count),
        )
        reasons = [reason for prompt, reason in self._failures.items() if not answers.get(prompt)]
        if reasons:
            LOG.warning(
                "%d general prompts got no answer and are left out, such as for this reason: %s",
                *(len(reasons), reasons[0]),
            )
        return texts

    def _size(self, prompt: str, answer: str) -> int:
        """Return the tokens that a text gives; none without an answer."""
        if not answer.strip():
            return 0
        return len(self._tokenizer(self._conversation(prompt, answer), add_special_tokens=False)["input_ids"])

    def _conversation(self, prompt: str, answer: str) -> str:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return apply_template(self._tokenizer, messages)

    def _generated(self, prompts: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield greedy answers by prompt, some at a time; empty where a prompt can never be answered.

        One that could not be answered now, such as for want of memory, is left out, and asked again another time.
        """
        from axolotl_sdft.inference.interfaces import Prompt
        from axolotl_sdft.inference.local.backend import TransformersBackend

        backend = TransformersBackend(self._seed_dir, self._config, self._model)
        asked = [Prompt((number, 0), ({"role": "user", "content": text},)) for number, text in enumerate(prompts)]
        try:
            for batch, written in backend.generate(backend.batches(asked)):
                given = {prompts[prompt.key[0]]: answer for prompt, answer in zip(batch, written, strict=True)}
                self._failures |= {text: answer.error for text, answer in given.items() if answer.error is not None}
                yield {text: answer.text for text, answer in given.items() if answer.error is None or answer.is_final}
        finally:
            backend.close()


def _advanced(shown: Progress, num_shown: int, sizes: Mapping[str, int], num_tokens: int | None) -> int:
    """Move the bar to where the answers are, and return what it shows; the last round may give more than was wanted,
    and a bar beyond its end would be taken for a fault."""
    reached = len(sizes) if num_tokens is None else min(sum(sizes.values()), num_tokens)
    if reached > num_shown:
        shown.advance(reached - num_shown)
    return reached


def _unit(num_tokens: int | None) -> str:
    return "prompts" if num_tokens is None else "tokens"


def _keep(folder: Path, answers: Mapping[str, str]) -> None:
    replace_json(folder / ANSWERS_FILE, dict(answers))
