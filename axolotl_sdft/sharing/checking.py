"""Says whether a configuration would run for others."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from axolotl_sdft.errors import ConfigError, SdftError
from axolotl_sdft.sharing.catalogue import REQUIRED_KEYS, read_description
from axolotl_sdft.sharing.findings import Finding, advice, fault
from axolotl_sdft.sharing.places import place_findings
from axolotl_sdft.sharing.secrets import secret_findings

_PLUGIN = "axolotl_sdft.SDFTPlugin"


def check_file(path: Path) -> list[Finding]:
    """Return all that keeps a configuration from being of use to others, faults first.

    Nothing is loaded from the Hub, and no stage runs.

    Raises:
        ConfigError: The file is no YAML, or holds no keys.
    """
    text = path.read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"{path} is no YAML: {err}") from err
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no keys; see: axolotl sdft-configs list")
    findings = [
        *_description_findings(text),
        *secret_findings(raw, text),
        *place_findings(raw, path.parent),
        *_block_findings(raw),
        *_schema_findings(raw),
    ]
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.level != "fault")


def _description_findings(text: str) -> Iterator[Finding]:
    description = read_description(text)
    missing = [key for key in REQUIRED_KEYS if key not in description]
    if missing:
        yield fault(
            "description",
            f"the first lines do not say {', '.join(missing)}; write lines such as '# {missing[0]}: ...' at the top",
        )


def _block_findings(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the package's own rules refuse."""
    from axolotl_sdft.host.blocks import read_blocks
    from axolotl_sdft.host.overrides import check_overrides
    from axolotl_sdft.host.rules import check_rules

    if _PLUGIN not in (raw.get("plugins") or []):
        yield fault("plugins", f"{_PLUGIN} is not listed, so Axolotl would drop the blocks without a word; add it")
    try:
        blocks = read_blocks(raw)
        check_overrides(raw)
        check_rules(raw, blocks, other_trainers={})
    except SdftError as err:
        for line in str(err).splitlines():
            key, _, message = line.partition(" ")
            yield fault(key.rstrip(":"), message)


def _schema_findings(raw: Mapping[str, Any]) -> Iterator[Finding]:
    if find_spec("axolotl") is None:
        yield advice("Axolotl", "it is not installed, so its own keys were not checked")
        return
    from axolotl_sdft.sharing.axolotl_schema import schema_findings

    yield from schema_findings(raw)
