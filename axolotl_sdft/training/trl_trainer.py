"""DynSDPB and logit distillation for TRL: trainers, and their settings as flat fields that TRL's parsers read.

Needs the extra ``trl``; without it the import of this module says so.
"""

from dataclasses import Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError, MissingExtraError
from axolotl_sdft.training.logit_mixin import LogitDistillationMixin
from axolotl_sdft.training.mixin import DynSDPBMixin

try:
    from trl import SFTConfig, SFTTrainer
except ModuleNotFoundError as err:
    raise MissingExtraError(
        f"DynSDPBSFTTrainer needs the module {err.name!r}; pip install 'axolotl-sdft[trl]', or use DynSDPBTrainer"
    ) from err

_DYNSDPB, _LOGIT = "dynsdpb_", "logit_distillation_"


def _flat_fields(settings: type[BaseModel], prefix: str) -> list[tuple[str, Any, Field[Any]]]:
    """Return each setting as a dataclass field ``<prefix><name>`` with its own type, default and text."""
    return [
        (
            prefix + name,
            info.annotation,
            # In a help text argparse takes a percent sign for a place to fill in.
            field(default=info.default, metadata={"help": (info.description or "").replace("%", "%%")}),
        )
        for name, info in settings.model_fields.items()
    ]


if TYPE_CHECKING:

    class _FlatDynSDPB(SFTConfig):
        pass

    class _FlatLogit(SFTConfig):
        pass
else:
    # Made of the settings themselves, so that the two can't drift apart.
    _FlatDynSDPB = make_dataclass("_FlatDynSDPB", _flat_fields(DynSDPBConfig, _DYNSDPB), bases=(SFTConfig,))
    _FlatLogit = make_dataclass("_FlatLogit", _flat_fields(LogitDistillationConfig, _LOGIT), bases=(SFTConfig,))


@dataclass
class DynSDPBSFTConfig(_FlatDynSDPB):
    """``trl.SFTConfig`` with each setting of :class:`~axolotl_sdft.DynSDPBConfig` as a field ``dynsdpb_<name>``.

    Raises:
        ConfigError: A setting is out of its bounds.

    Example:
        >>> from axolotl_sdft import DynSDPBSFTConfig
        >>> DynSDPBSFTConfig("out", dynsdpb_alpha=0.5, report_to="none", use_cpu=True).dynsdpb_config.alpha
        0.5
    """

    def __post_init__(self) -> None:
        _ = self.dynsdpb_config
        super().__post_init__()

    @property
    def dynsdpb_config(self) -> DynSDPBConfig:
        """The settings, checked."""
        return _settings_of(self, DynSDPBConfig, _DYNSDPB)


@dataclass
class LogitDistillationSFTConfig(_FlatLogit):
    """``trl.SFTConfig`` with each setting of :class:`~axolotl_sdft.LogitDistillationConfig` as a field.

    Its name is that of the setting after ``logit_distillation_``.

    Raises:
        ConfigError: A setting is out of its bounds.

    Example:
        >>> from axolotl_sdft import LogitDistillationSFTConfig
        >>> args = LogitDistillationSFTConfig("out", logit_distillation_alpha=0.7, report_to="none", use_cpu=True)
        >>> args.logit_distillation_config.alpha
        0.7
    """

    def __post_init__(self) -> None:
        _ = self.logit_distillation_config
        super().__post_init__()

    @property
    def logit_distillation_config(self) -> LogitDistillationConfig:
        """The settings, checked."""
        return _settings_of(self, LogitDistillationConfig, _LOGIT)


class DynSDPBSFTTrainer(DynSDPBMixin, SFTTrainer):
    """``trl.SFTTrainer`` that distils each mini-batch from the logits of the iteration before.

    All that TRL makes of a dataset works: text, messages, prompt and completion, packing, padding-free batches; and
    its losses, also those without logits (``chunked_nll``, which is TRL's default, and Liger's). TRL's own figures
    (``entropy``, ``mean_token_accuracy``, ``num_tokens``) count the repeated samples too.

    Args:
        model: As in TRL.
        args: A :class:`DynSDPBSFTConfig`, which is also made when unset, or whatever TRL takes.
        dynsdpb: The settings, in place of those in ``args``. All other arguments are TRL's.

    Raises:
        ConfigError: ``args`` tells other settings than ``dynsdpb``.

    Example:
        >>> from axolotl_sdft import DynSDPBSFTConfig, DynSDPBSFTTrainer
        >>> trainer = DynSDPBSFTTrainer(
        ...     model="HuggingFaceTB/SmolLM2-135M-Instruct",
        ...     args=DynSDPBSFTConfig("out", dynsdpb_alpha=0.5, dynsdpb_temperature=3.0),
        ...     train_dataset=dataset,
        ... )
    """

    # From TRL 1.15 on it makes another pass for them, without gradients.
    _asks_for_outputs = False

    def __init__(
        self, model: Any, args: Any = None, *others: Any, dynsdpb: DynSDPBConfig | None = None, **kwargs: Any
    ) -> None:
        args = DynSDPBSFTConfig() if args is None else args
        _ = _settings_beside(dynsdpb, args, "dynsdpb_config", _DYNSDPB)
        super().__init__(model, args, *others, dynsdpb=dynsdpb, **kwargs)

    def _dynsdpb_settings(self) -> DynSDPBConfig:
        return _settings_beside(self._dynsdpb_given, self.args, "dynsdpb_config", _DYNSDPB) or DynSDPBConfig()

    @property
    def _dynsdpb_joins_end_to_end(self) -> bool:
        """Whether TRL packs; it counts the tokens of such a batch as those of its one row."""
        return bool(getattr(self, "padding_free", False))


class LogitDistillationSFTTrainer(LogitDistillationMixin, SFTTrainer):
    """``trl.SFTTrainer`` in which the unpruned seed model teaches the student.

    Its datasets, packing and losses, also those without logits, work as in TRL; so does ``peft_config``, with which the
    teacher shares the student's layers.

    Args:
        model: As in TRL.
        args: A :class:`LogitDistillationSFTConfig`, which is also made when unset, or whatever TRL takes.
        logit_distillation: The settings, in place of those in ``args``.
        seed_model: Where the seed model is; when unset, what the pruned checkpoint says. All other arguments are TRL's.

    Raises:
        ConfigError: ``args`` tells other settings than ``logit_distillation``.

    Example:
        >>> from axolotl_sdft import LogitDistillationSFTConfig, LogitDistillationSFTTrainer
        >>> trainer = LogitDistillationSFTTrainer(
        ...     model="sdft_prepared/SmolLM2-135M-Instruct-drop3-0123456789ab",
        ...     args=LogitDistillationSFTConfig("out", logit_distillation_alpha=0.5),
        ...     train_dataset=dataset,
        ...     peft_config=LoraConfig(target_modules="all-linear"),
        ... )
    """

    # From TRL 1.15 on it makes another pass for them, without gradients.
    _asks_for_outputs = False

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *others: Any,
        logit_distillation: LogitDistillationConfig | None = None,
        seed_model: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        args = LogitDistillationSFTConfig() if args is None else args
        _ = _settings_beside(logit_distillation, args, "logit_distillation_config", _LOGIT)
        super().__init__(model, args, *others, logit_distillation=logit_distillation, seed_model=seed_model, **kwargs)

    def _logit_settings(self) -> LogitDistillationConfig:
        found = _settings_beside(self._logit_given, self.args, "logit_distillation_config", _LOGIT)
        return found or LogitDistillationConfig()


_Settings = TypeVar("_Settings", bound=BaseModel)


def _settings_of(args: Any, kind: type[_Settings], prefix: str) -> _Settings:
    """Return the settings that flat fields tell.

    Raises:
        ConfigError: One is out of its bounds; the message has a line for each.
    """
    names = [item.name for item in fields(args) if item.name.startswith(prefix)]
    try:
        return kind(**{name.removeprefix(prefix): getattr(args, name) for name in names})
    except ValidationError as err:
        raise ConfigError("\n".join(_fault_line(error, prefix) for error in err.errors())) from err


def _settings_beside(given: _Settings | None, args: Any, name: str, prefix: str) -> _Settings | None:
    """Return the settings that the user has told, to the trainer or in ``args``, which a search may change later.

    Raises:
        ConfigError: They are told in both places, and differ.
    """
    in_args: _Settings | None = getattr(args, name, None)
    if in_args is None or given == in_args:
        return given
    if given is not None and in_args != type(in_args)():
        raise ConfigError(
            f"{prefix.removesuffix('_')} is {given!r}, but the fields {prefix}* of args say {in_args!r}; set only one "
            "of them"
        )
    return given or in_args


def _fault_line(error: Any, prefix: str) -> str:
    message = error["msg"].removeprefix("Value error, ")
    key = prefix + str(error["loc"][0]) if error["loc"] else prefix.removesuffix("_")
    return f"{key} is {error['input']!r}: {message}" if error["loc"] else f"{key}: {message}"
