"""What is shown and written about a run holds nothing that steers a terminal, and no secrets from the settings."""

import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from axolotl_sdft.core.texts import printable

MASK = "***"
"""Stands for a secret among the settings."""

_PACKAGE = "axolotl_sdft"
_SECRET_WORDS = (
    r"(?:account|access|api|openai|private|secret|storage|subscription|wandb)[_-]?keys?|secrets?|passwords?|"
    r"passwd|passphrase|pwd|credentials?|authorization|bearer|cookies?|jwt|sas"
)
_TOKEN_WORDS = (
    r"auth|access|api|bearer|client|github|gitlab|hf|hub|hugging[_-]?face|id|login|refresh|sas|security|session|"
    r"tracking|wandb|x"
)
_SECRET_NAME = re.compile(
    rf"(?:^|[_.\s-])(?:{_SECRET_WORDS}|(?:{_TOKEN_WORDS})[_-]?tokens?)"
    r"(?:$|[_.\s-](?:value|id|header)$)|^(?:token|keys?|auth)$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET_VALUE = re.compile(
    r"""
    \b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,} | \bhf_[A-Za-z0-9]{16,} | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_\w{20,}
    | \b(?:AKIA|ASIA)[0-9A-Z]{16} | \bAIza[\w-]{30,} | \bya29\.[\w-]{20,} | \bxox[abprs]-[\w-]{10,} | \bgsk_\w{20,}
    | \b(?:nvapi|glpat|xai|pplx|r8|dckr_pat|npm|fw)[-_][\w-]{16,}
    | \beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?            # a JSON web token
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    | \b(?:Account|SharedAccess)Key=[\w+/]{16,}         # a connection string of Azure
    | \bhooks\.slack\.com/services/[\w/]{20,} | \bdiscord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"\b(?:Bearer|Basic|Token)\s+([\w.~+/=-]{8,})", re.IGNORECASE)
_FEWEST_DIGITS = 3  # of what is authorized by: "basic COVID-19 facts" are none
_RANDOM = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{32,}={0,2}")
_ADDRESS = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s"'<>]+""")
_SIGNING_PARAMETER = re.compile(
    r"(?:^|[-_])(?:sig|signature|auth|key|apikey|token|secret|password|credential)$", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"\$\{?\w+\}?|<.*>|\{\{.*\}\}|\*+", re.IGNORECASE)
_LONGEST_USER = 15  # a longer one in an address is a token in the place of a name
_NAME_OF_DIGEST = re.compile(r"revision|commit|sha|hash|digest|fingerprint|checksum", re.IGNORECASE)


def masked(value: Any, name: str = "") -> Any:
    """Return settings with what looks like a secret replaced by ``***``, as it may be written and shown.

    A text is one by its form, such as ``sk-...`` or 32 letters and digits in a row, or by the name of its key, such as
    ``api_key``. Below such a name all texts and numbers are. What stands in tuples comes back in lists.

    Args:
        value: Settings as JSON values.
        name: The key under which they stand.
    """
    if isinstance(value, Mapping):
        inner = name if is_secret_name(name) else ""
        return {key: masked(item, inner or str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if is_secret_name(name) or (isinstance(value, str) and looks_secret(value, name)):
        return MASK
    return value


def is_secret_name(name: str) -> bool:
    """Say whether what stands under a key is a secret by the key's name, in whatever case it is written."""
    return bool(_SECRET_NAME.search(_CAMEL.sub("_", name)))


def looks_secret(text: str, name: str = "") -> bool:
    """Say whether a text holds a secret by its form; a name such as ``revision`` explains digits that seem random."""
    is_random = _RANDOM.fullmatch(text.strip()) and not _NAME_OF_DIGEST.search(name)
    if _SECRET_VALUE.search(text) or is_random:
        return True
    return any(map(_is_credential, _AUTHORIZATION.findall(text))) or any(
        map(_is_secret_address, _ADDRESS.findall(text))
    )


def _is_credential(text: str) -> bool:
    """Say whether what stands behind ``Bearer``, ``Basic`` or ``Token`` is made by a machine and no word."""
    num_digits, num_humps = sum(map(str.isdigit, text)), len(re.findall("[a-z][A-Z]", text))
    return num_digits >= _FEWEST_DIGITS or num_humps > 1 or text.endswith("=")


def _is_secret_address(url: str) -> bool:
    """Say whether an address holds a password, a token or a signature."""
    try:
        parts = urlsplit(url)
        password, user = parts.password, parts.username or ""
    except ValueError:
        return False
    signed = [value for name, value in parse_qsl(parts.query) if _SIGNING_PARAMETER.search(name)]
    given = [password or "", user if len(user) > _LONGEST_USER else "", *signed]
    return any(text and not _PLACEHOLDER.fullmatch(text) for text in given)


def keep_log_lines_printable() -> None:
    """From now on the package's own log lines hold nothing that steers a terminal, whatever names and texts they show.

    Handlers belong to the application, and a filter of a logger does not see what the loggers below it write; so it is
    done where records are made. Records of others stay as they are.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "makes_printable", False):
        return

    def make_printable(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.name == _PACKAGE or record.name.startswith(f"{_PACKAGE}."):
            text = record.getMessage()
            if (shown := printable(text)) != text:
                record.msg, record.args = shown, ()
        return record

    make_printable.makes_printable = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_printable)
