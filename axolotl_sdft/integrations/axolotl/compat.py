"""Where Axolotl's versions differ, or where a hook is not told what it needs to know. Tried with 0.19 and 0.21."""

import copy
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

_MAKING = ("train", "preprocess")


def running_command() -> str | None:
    """Return the Axolotl command that this process runs, such as ``train`` or ``merge-lora``; None outside its CLI.

    The hooks are not told. A launcher starts ``python -m axolotl.cli.<command>``; without one, click knows the command.
    """
    import click

    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("axolotl.cli.") and not spec.name.endswith(".main"):
        return spec.name.rpartition(".")[2].replace("_", "-")
    context = click.get_current_context(silent=True)
    return context.info_name if context is not None else None


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


def _listed(cfg: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in cfg.get("plugins") or []]
