"""What a check of a configuration finds: secrets, which are never shown, and keys that Axolotl does not know."""

import copy
import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from axolotl_sdft.config import BLOCKS
from axolotl_sdft.config.block import models_in
from axolotl_sdft.core.errors import first_line
from axolotl_sdft.core.safe_output import is_secret_name, looks_secret
from axolotl_sdft.core.texts import leaves_with_keys
from axolotl_sdft.integrations.axolotl.compat import fsdp_name, other_trainers
from axolotl_sdft.integrations.axolotl.datasets import OVERRIDE

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One thing that keeps a configuration from being of use to others."""

    level: Literal["fault", "advice"]
    """``fault``: it fails for others, does something else there, or gives a secret away. ``advice``: it runs, but could
    serve them better."""

    key: str
    """Dotted key in the YAML, such as ``datasets[0].path``, or ``description``."""

    message: str

    def line(self) -> str:
        """Return the finding as one line of text."""
        return f"{self.level}: {self.key}: {self.message}"


def fault(key: str, message: str) -> Finding:
    """Return a finding that must be mended before sharing."""
    return Finding("fault", key, message)


def advice(key: str, message: str) -> Finding:
    """Return a finding that may stay."""
    return Finding("advice", key, message)


_PLACEHOLDER = re.compile(
    r"\$\{?\w+\}?|<.*>|\{\{.*\}\}|\*+|\.+|x+|(your|my)\W?.*|(env|environ|os\.environ)\b.*|none|null|true|false|"
    r"required|optional|unset|auto|empty|redacted|changeme",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(r"""(?<![\w-])([A-Za-z][\w.-]*)["']?(?:\s*[:=]|\s+is)\s*["']?([^\s"',;]{6,})""")
_OPTION = re.compile(r"""(?<!\S)--?([A-Za-z][\w-]*)(?:=|\s+)["']?([^\s"',;]{6,})""")
_LOGIN = re.compile(
    r"""\b(?:wandb\s+login\s+(?:--\S+\s+)*(?=[0-9a-f]{32})|curl\s(?:.*\s)?(?:-u|--user)[\s=]*["']?[^\s:"']+:|"""
    r"""sshpass\s+-p\s*["']?)([^\s"']+)"""
)
_SMALLEST_PIN = 1000
_PASSWORD = re.compile(r"passw(or)?d$|pwd$|passphrase$", re.IGNORECASE)
_OUT = "take it out, and let it come from an environment variable"


def secret_findings(raw: Mapping[str, Any], text: str) -> Iterator[Finding]:
    """Yield the keys whose values are secrets by their name or their form, and secrets in comments."""
    for key, value in leaves_with_keys(raw):
        if _is_secret(key.rpartition(".")[2].partition("[")[0], value):
            yield fault(key, f"holds what looks like a key or a password; {_OUT}")
    for line in text.splitlines():
        comment = line if line.lstrip().startswith("#") else line.partition(" #")[2]
        if _holds_secret(comment):
            yield fault("comments", f"one holds what looks like a key or a password; {_OUT}")
            return


def _is_secret(name: str, value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return is_secret_name(name) and abs(value) >= _SMALLEST_PIN
    if not isinstance(value, str) or not value.strip() or _PLACEHOLDER.fullmatch(value.strip()):
        return False
    return is_secret_name(name) or _holds_secret(value, name)


def _holds_secret(text: str, name: str = "") -> bool:
    """Say whether a sentence or a command holds a key or a password: by its form, or behind a name that says so."""
    if any(not _PLACEHOLDER.fullmatch(given) for given in _LOGIN.findall(text)):
        return True
    assigned = [*_ASSIGNED.findall(text), *_OPTION.findall(text)]
    return looks_secret(text, name) or any(_is_assigned(word, value) for word, value in assigned)


def _is_assigned(name: str, value: str) -> bool:
    """Say whether ``name: value`` gives a secret away; a plain word behind ``token:`` is part of a sentence."""
    if not is_secret_name(name) or _PLACEHOLDER.fullmatch(value):
        return False
    is_plain_word = value.rstrip(".)").isalpha() and (value.islower() or value.istitle())
    return not is_plain_word or bool(_PASSWORD.search(name))


def schema_findings(raw: Mapping[str, Any]) -> list[Finding]:
    """Return the keys that Axolotl does not know, which it would drop without a word, and what it refuses.

    The plugins that the configuration lists are imported, since they bring keys of their own; none of their hooks runs.
    """
    from axolotl.utils.config import merge_input_args, validate_config
    from axolotl.utils.dict import DictDefault

    for name, reason in load_plugins(raw).items():
        return [fault("plugins", f"{name} can't be loaded here ({reason}), so Axolotl's keys were not checked")]
    schema = merge_input_args()[1]
    findings = list(_unknown_keys(raw, (schema,), ""))
    try:
        validate_config(DictDefault(copy.deepcopy(dict(raw))))
    except ValidationError as err:
        # Our blocks' faults are told by the blocks themselves.
        findings += [_refusal(error) for error in err.errors() if not {*error["loc"][:1]} & BLOCKS.keys()]
    except ImportError as err:  # a rule imports what the configuration needs; others may have it
        findings.append(advice("Axolotl", f"not all its rules were checked, for want of a package: {first_line(err)}"))
    except Exception as err:  # whatever a rule of Axolotl's or of another plugin raises
        findings.append(fault("Axolotl", first_line(err)))
    return findings


def load_plugins(raw: Mapping[str, Any]) -> dict[str, str]:
    """Import the plugins that a configuration lists, and return why, by the names of those that can't be."""
    from axolotl.integrations.base import PluginManager

    manager, plugins = PluginManager.get_instance(), raw.get("plugins")
    reasons = {}
    for name in map(str, plugins if isinstance(plugins, list) else []):
        if name in manager.plugins:
            continue
        reason = "see above"
        try:
            manager.register(name)
        except Exception as err:  # whatever importing a plugin raises
            reason = first_line(err)
        if name not in manager.plugins:  # Axolotl 0.19 logs that a plugin is missing, and goes on
            reasons[name] = reason
    return reasons


def trainers_of_plugins(raw: Mapping[str, Any], own_plugin: str) -> dict[str, str]:
    """Return the trainer classes that the other plugins of a configuration bring, by plugin, as far as they tell.

    Args:
        raw: The configuration.
        own_plugin: The name of the package's own plugin.
    """
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.dict import DictDefault

    load_plugins(raw)
    own = PluginManager.get_instance().plugins.get(own_plugin)
    try:
        return other_trainers(DictDefault(copy.deepcopy(dict(raw))), own)
    except Exception as err:  # whatever a plugin raises, where its own keys are wrong for one
        LOG.warning("which trainers other plugins bring can't be told (%s: %s)", type(err).__name__, first_line(err))
        return {}


def _refusal(error: Any) -> Finding:
    """Return what the schema says against a value; a rule over several keys names none by itself."""
    key = ".".join(str(part) for part in error["loc"] if not str(part)[:1].isupper())
    return fault(key or "Axolotl", error["msg"].removeprefix("Value error, "))


def _unknown_keys(value: Mapping[str, Any], schemas: tuple[type[BaseModel], ...], where: str) -> Iterator[Finding]:
    """Yield the keys that none of the schemas knows, at any depth."""
    if any(schema.model_config.get("extra") == "allow" for schema in schemas):
        return
    known = _fields(schemas)
    for name, item in value.items():
        key = f"{where}.{name}" if where else str(name)
        read_as = fsdp_name(str(name)) if where == "fsdp_config" else str(name)
        if read_as in known:
            nested = tuple(model for annotation in known[read_as] for model in models_in(annotation))
            yield from _nested(item, nested, key)
        elif name not in BLOCKS and name != OVERRIDE:
            yield _unknown(key, str(name), known)


def _nested(value: Any, schemas: tuple[type[BaseModel], ...], key: str) -> Iterator[Finding]:
    if not schemas or key in BLOCKS:  # our blocks say themselves what they do not know
        return
    if isinstance(value, Mapping):
        yield from _unknown_keys(value, schemas, key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nested(item, schemas, f"{key}[{index}]")


def _fields(schemas: tuple[type[BaseModel], ...]) -> dict[str, list[Any]]:
    """Return the annotations of all fields by name and by alias."""
    found: dict[str, list[Any]] = {}
    for schema in schemas:
        for name, field in schema.model_fields.items():
            for known in {name, field.alias or name, str(field.validation_alias or name)}:
                found.setdefault(known, []).append(field.annotation)
    return found


def _unknown(key: str, name: str, known: Mapping[str, Any]) -> Finding:
    near = difflib.get_close_matches(name, known, 1, 0.8)
    if near:
        return fault(key, f"Axolotl does not know this key and would drop it; did you mean {near[0]!r}?")
    return advice(key, f"Axolotl {version('axolotl')} does not know this key and drops it")
