"""Where Axolotl's versions differ, where a hook is not told what it needs to know, and how rows become tokens.

Tried with 0.19 and 0.21.
"""

import copy
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from axolotl_sdft.core.errors import ConfigError, first_line
from axolotl_sdft.core.runtime import local_world_size
from axolotl_sdft.distillation.interfaces import RowLimit

_MAKING = ("train", "preprocess")
_INTERRUPTED = 130  # what a shell says of a program that Ctrl-C has ended

_DEMANDED = {"learning_rate": 1.0, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
"""Keys without which Axolotl takes no configuration, with values on which no token depends."""


def running_command() -> str | None:
    """Return the Axolotl command that this process runs, such as ``train`` or ``merge-lora``; None outside its CLI.

    The hooks are not told. A launcher starts ``python -m axolotl.cli.<command>``; without one, click knows the command.
    """
    import click

    launched = _launched_command()
    if launched is not None:
        return launched
    context = click.get_current_context(silent=True)
    return context.info_name if context is not None else None


def _launched_command() -> str | None:
    """Return the command that a launcher started this process for; None where click or nobody did."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("axolotl.cli.") and not spec.name.endswith(".main"):
        return str(spec.name).rpartition(".")[2].replace("_", "-")
    return None


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Let Ctrl-C end a process that a launcher started without a traceback, as click does for any other command.

    What was said to be kept would be lost above a traceback through layers of the model.
    """
    try:
        yield
    except KeyboardInterrupt:
        if _launched_command() is None:
            raise
        raise SystemExit(_INTERRUPTED) from None


def option(name: str) -> Any:
    """Return the value of an option on the command line that never reaches the configuration; None without one."""
    import click

    context = click.get_current_context(silent=True)
    return None if context is None else context.params.get(name)


def swallowed_options(blocks: Collection[str]) -> list[str]:
    """Return options on the command line that set keys of our blocks, and that ``--launcher python`` leaves unread.

    Axolotl knows no options for a plugin's keys: other launchers refuse them, this one takes them for its own.
    """
    import click

    context = click.get_current_context(silent=True)
    words = [word for word in (context.args if context is not None else ()) if word.startswith("--")]
    names = [word.partition("=")[0] for word in words]
    return [name for name in names if name[2:].removeprefix("no-").replace("-", "_").partition(".")[0] in blocks]


def makes_artifacts(cfg: Mapping[str, Any]) -> bool:
    """Tell whether this process may prune or rewrite: it trains or prepares training.

    Outside Axolotl's command line, such as in a notebook or a Ray worker, it may unless the configuration itself says
    that it is for inference or for merging.
    """
    command = running_command()
    if command is None:
        return not (cfg.get("inference") or cfg.get("merge_lora"))
    return command in _MAKING


def show_log_lines() -> None:
    """Let the package's log lines through at the level that Axolotl shows its own at.

    Its handlers pass every logger whose name begins with its own, but the root logger's level stops ours on the way.
    They are there once its command line is imported, which a command of ours that Axolotl did not start has not done.
    """
    importlib.import_module("axolotl.cli")
    logging.getLogger("axolotl_sdft").setLevel(os.environ.get("AXOLOTL_LOG_LEVEL", "INFO").upper())


def validate_early(cfg: Any) -> None:
    """Let Axolotl validate a copy of a raw configuration.

    Axolotl validates after ``register``; where that is about to do hours of work, a fault should not wait for its end.

    Raises:
        pydantic.ValidationError: As Axolotl itself raises it.
    """
    validated(cfg)


def validated(cfg: Any) -> Any:
    """Return a copy of a configuration as Axolotl validates it, with its defaults.

    Raises:
        pydantic.ValidationError: As Axolotl itself raises it.
    """
    from axolotl.cli.config import gpu_capabilities
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    # Axolotl refuses both from a user, and fills in one of them once it has validated: it would not do so again.
    if cfg.get("batch_size") and cfg.get("gradient_accumulation_steps"):
        return DictDefault(copy.deepcopy(cfg.to_dict()))
    # On a Ray driver there is no GPU to ask; Axolotl itself leaves the capabilities out there.
    capabilities, env_capabilities = (None, None) if cfg.get("use_ray") else gpu_capabilities()
    return validate_config(DictDefault(copy.deepcopy(cfg.to_dict())), capabilities, env_capabilities)


def reads_field_tools() -> bool:
    """Tell whether ``chat_template`` reads functions from ``field_tools``; 0.19 takes the column ``tools``."""
    from axolotl.prompt_strategies.chat_template import StrategyLoader

    return "field_tools" in inspect.getsource(StrategyLoader)


def default_sequence_len() -> int:
    """Return how long rows may be where the configuration does not say so, in tokens."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    return int(AxolotlInputConfig.model_fields["sequence_len"].default)


def other_trainers(cfg: Any, own_plugin: object) -> dict[str, str]:
    """Return the trainer classes that other plugins of this configuration bring, by plugin name.

    Axolotl takes the first one it finds and says nothing of the others.
    """
    from axolotl.integrations.base import BasePlugin, PluginManager

    found = {}
    for name, plugin in PluginManager.get_instance().plugins.items():
        is_other = type(plugin) is not type(own_plugin)
        if not is_other or type(plugin).get_trainer_cls is BasePlugin.get_trainer_cls or name not in _listed(cfg):
            continue
        trainer = plugin.get_trainer_cls(cfg)
        if trainer is not None:
            found[name] = trainer.__name__
    return found


def fsdp_name(name: str) -> str:
    """Return the name under which Axolotl reads a key of ``fsdp_config``: the prefix ``fsdp_`` is an older spelling."""
    return name if name == "fsdp_version" else name.removeprefix("fsdp_")


def _listed(cfg: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in cfg.get("plugins") or []]


def row_limit(cfg: Any, entry: Any) -> RowLimit:
    """Return how long the rows of a dataset entry may be. Nothing is loaded before the first one is counted."""
    max_tokens = int(cfg.get("sequence_len") or default_sequence_len())
    num_processes = int(cfg.get("dataset_num_proc") or 1) // local_world_size()  # every rank counts
    return RowLimit(max_tokens, _TokenCounter(cfg, entry), max(1, num_processes))


def tokenizing_strategy(cfg: Any, entry: Any) -> Any:
    """Return what tokenizes the rows of a dataset entry; None where nothing does before training."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset

    whole = validated(_whole(cfg))
    # Axolotl fills these in later.
    whole.base_model_config = whole.base_model_config or whole.base_model
    whole.tokenizer_config = whole.tokenizer_config or whole.base_model_config
    kind = entry.get("type")
    base, _, style = kind.partition(":") if isinstance(kind, str) else (None, "", None)
    # Some strategies are made nowhere else than around a dataset; none of its rows is needed.
    wrapper, _ = get_dataset_wrapper(
        DictDefault(dict(entry)), load_tokenizer(whole), whole, base, Dataset.from_dict({}), style or None
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
