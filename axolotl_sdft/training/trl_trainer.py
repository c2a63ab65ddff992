"""DynSDPB (arXiv 2411.16991) for TRL: a trainer, and its settings as flat fields that TRL's parsers read.

Needs the extra ``trl``; without it the import of this module says so.
"""

from dataclasses import Field, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError, MissingExtraError
from axolotl_sdft.training.mixin import DynSDPBMixin

try:
    from trl import SFTConfig, SFTTrainer
except ModuleNotFoundError as err:
    raise MissingExtraError(
        f"DynSDPBSFTTrainer needs the module {err.name!r}; pip install 'axolotl-sdft[trl]', or use DynSDPBTrainer"
    ) from err

_PREFIX = "dynsdpb_"


def _flat_fields() -> list[tuple[str, Any, Field[Any]]]:
    """Return each setting as a dataclass field ``dynsdpb_<name>`` with its own type, default and text."""
    return [
        (
            _PREFIX + name,
            info.annotation,
            # In a help text argparse takes a percent sign for a place to fill in.
            field(default=info.default, metadata={"help": (info.description or "").replace("%", "%%")}),
        )
        for name, info in DynSDPBConfig.model_fields.items()
    ]


if TYPE_CHECKING:

    class _FlatConfig(SFTConfig):
        pass
else:
    # Made of the settings themselves, so that the two can't drift apart.
    _FlatConfig = make_dataclass("_FlatConfig", _flat_fields(), bases=(SFTConfig,))


@dataclass
class DynSDPBSFTConfig(_FlatConfig):
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
        names = [item.name for item in fields(self) if item.name.startswith(_PREFIX)]
        try:
            return DynSDPBConfig(**{name.removeprefix(_PREFIX): getattr(self, name) for name in names})
        except ValidationError as err:
            raise ConfigError("\n".join(_fault_line(error) for error in err.errors())) from err


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
        super().__init__(model, args, *others, dynsdpb=_one_of(dynsdpb, args), **kwargs)

    @property
    def _dynsdpb_joins_end_to_end(self) -> bool:
        """Whether TRL packs; it counts the tokens of such a batch as those of its one row."""
        return bool(getattr(self, "padding_free", False))


def _one_of(given: DynSDPBConfig | None, args: Any) -> DynSDPBConfig | None:
    """Return the settings that the user has told in either place."""
    if not isinstance(args, DynSDPBSFTConfig) or given == args.dynsdpb_config:
        return given
    if given is not None and args.dynsdpb_config != DynSDPBConfig():
        raise ConfigError(
            f"dynsdpb is {given!r}, but the fields dynsdpb_* of args say {args.dynsdpb_config!r}; set only one of them"
        )
    return given or args.dynsdpb_config


def _fault_line(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    key = _PREFIX + str(error["loc"][0]) if error["loc"] else "dynsdpb"
    return f"{key} is {error['input']!r}: {message}" if error["loc"] else f"{key}: {message}"
