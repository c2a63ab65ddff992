"""The servers' key: read from the environment when a request leaves, kept nowhere, and cut out of what servers say."""

import os
import re
from collections.abc import Iterator

import httpx

from axolotl_sdft.errors import ConfigError


class ApiKey(httpx.Auth):
    """Sends the key of an environment variable along; without the variable, nothing."""

    def __init__(self, variable: str) -> None:
        self.variable = variable

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        """Add the key to a request."""
        key = self._value()
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        yield request

    def check(self) -> None:
        """Return when the key can be sent, or there is none.

        Raises:
            ConfigError: It holds a character that no header can; the message names the variable, not the key.
        """
        # An HTTP library would show the whole key in its own error.
        if not re.fullmatch(r"[\x21-\x7e]*", self._value()):
            raise ConfigError(
                f"self_distillation.generation.api_key_env: the environment variable {self.variable} holds a space, a "
                "line break or a letter that is not ASCII, so it can't be a key; set it to the key alone"
            )

    def is_set(self) -> bool:
        """Say whether there is a key to send."""
        return bool(self._value())

    def redacted(self, text: str) -> str:
        """Return a text of a server without the key in it: some quote it when they refuse it."""
        key = self._value()
        return text.replace(key, "***") if key else text

    def _value(self) -> str:
        return os.environ.get(self.variable, "").strip()
