"""Tokenizes rows as Axolotl does before training, to tell before a rewriting what it would drop or can't read."""

from functools import cached_property
from typing import Any

from axolotl_sdft.core.errors import ConfigError, first_line
from axolotl_sdft.core.runtime import local_world_size
from axolotl_sdft.distillation.interfaces import RowLimit
from axolotl_sdft.integrations.axolotl import compat

_DEMANDED = {"learning_rate": 1.0, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
"""Keys without which Axolotl takes no configuration, with values on which no token depends."""


def row_limit(cfg: Any, entry: Any) -> RowLimit:
    """Return how long the rows of a dataset entry may be. Nothing is loaded before the first one is counted."""
    max_tokens = cfg.get("sequence_len") or compat.default_sequence_len()
    num_processes = (cfg.get("dataset_num_proc") or 1) // local_world_size()  # every rank counts
    return RowLimit(max_tokens, _TokenCounter(cfg, entry), max(1, num_processes))


def tokenizing_strategy(cfg: Any, entry: Any) -> Any:
    """Return what tokenizes the rows of a dataset entry; None where nothing does before training."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset

    validated = compat.validated(_whole(cfg))
    # Axolotl fills these in later.
    validated.base_model_config = validated.base_model_config or validated.base_model
    validated.tokenizer_config = validated.tokenizer_config or validated.base_model_config
    kind = entry.get("type")
    base, _, style = kind.partition(":") if isinstance(kind, str) else (None, "", None)
    # Some strategies are made nowhere else than around a dataset; none of its rows is needed.
    wrapper, _ = get_dataset_wrapper(
        DictDefault(dict(entry)), load_tokenizer(validated), validated, base, Dataset.from_dict({}), style or None
    )
    return getattr(wrapper, "prompt_tokenizer", None)


def _whole(cfg: Any) -> Any:
    """Return a configuration with what Axolotl demands of a training; one for a stage alone may be without."""
    from axolotl.utils.dict import DictDefault

    unset = {key: value for key, value in _DEMANDED.items() if cfg.get(key) is None}
    if cfg.get("batch_size"):  # which goes with one of the two sizes alone
        unset.pop("gradient_accumulation_steps", None)
    return DictDefault({**cfg.to_dict(), **unset})


class _TokenCounter:
    """Counts the tokens of a row; where Axolotl splits a text into several sequences, those of the longest."""

    def __init__(self, cfg: Any, entry: Any) -> None:
        self._cfg, self._entry = cfg, entry

    @cached_property
    def _strategy(self) -> Any:
        if self._cfg.get("processor_type"):  # which makes tokens of pictures as well
            return None
        try:
            return tokenizing_strategy(self._cfg, self._entry)
        except Exception as err:  # whatever a tokenizer or a type raises
            raise ConfigError(
                f"Axolotl can't prepare the training of rows of type {self._entry.get('type')!r} "
                f"({type(err).__name__}: {first_line(err)}); correct the type, chat_template or the tokenizer's keys"
            ) from err

    def __call__(self, row: dict[str, Any]) -> int:
        if self._strategy is None:
            return 0
        if not self._strategy.supports_batched:
            return len(self._strategy.tokenize_prompt(dict(row)).get("input_ids", ()))
        sequences = self._strategy.tokenize_prompt({name: [value] for name, value in row.items()})
        return max(map(len, sequences.get("input_ids", ())), default=0)
