"""The settings of backend ``openai``: servers that speak the OpenAI protocol, and what they are sent."""

import ipaddress
import re
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from axolotl_sdft.config.generation import TEMPLATE_ARGUMENTS, GenerationConfig, without
from axolotl_sdft.core.safe_output import masked

_REQUEST_FIELDS = {
    "max_completion_tokens": "which generation.max_new_tokens sets",
    "max_tokens": "which generation.max_new_tokens sets",
    "messages": "which the template makes",
    "model": "which generation.model sets",
    "n": "but one answer is asked for at a time",
    "seed": "which generation.seed sets",
    "stream": "but answers are read whole",
    "temperature": "which generation.temperature sets",
    "top_p": "which generation.top_p sets",
}
"""What a request to a server holds anyway, and where it comes from."""


class OpenAIGeneration(GenerationConfig):
    """How servers that speak the OpenAI protocol write the answers."""

    backend: Literal["openai"] = "openai"
    """Servers anywhere."""

    base_urls: tuple[str, ...] = Field((), validate_default=True)
    """Servers, such as ``http://gpu1:8000/v1``: anything that speaks the OpenAI protocol and serves the seed model. At
    least one. Requests go to the least busy one; the rows of one that dies go to the others."""

    model: str | None = None
    """Name under which the servers know the seed model. Unset: the served model whose name or path is the seed's."""

    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the servers' key; the key itself is never written anywhere. Not set there: no key
    is sent. All ``base_urls`` get the same key."""

    concurrency: int = Field(64, ge=1, le=4096)
    """Requests in flight per server, shared among ranks. A server that answers 429 (too many requests) gets fewer."""

    timeout_s: float = Field(600.0, gt=0.0, le=86400.0)
    """Seconds until a request that got no answer is sent again."""

    max_retries: int = Field(8, ge=0, le=100)
    """How often a row is asked again before it counts as failed, and a silent server before it counts as dead."""

    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request to a server, such as ``top_k: 20``. ``chat_template_kwargs`` in it are joined with
    the setting of that name."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset(
        {"base_urls", "api_key_env", "concurrency", "timeout_s", "max_retries"}
    )

    def shaping_answers(self) -> dict[str, Any]:
        """Return the settings that answers depend on. It doesn't matter which key names the template's arguments."""
        settings = super().shaping_answers()
        settings.pop("chat_template_kwargs", None)
        settings.pop("extra_body", None)
        return settings | ({"extra_body": self.request_fields} if self.request_fields else {})

    @property
    def request_fields(self) -> dict[str, Any]:
        """``extra_body`` with ``chat_template_kwargs``: what a request to a server holds beside its own fields."""
        if not self.chat_template_kwargs:
            return self.extra_body
        given = self.extra_body.get("chat_template_kwargs", {})
        return self.extra_body | {"chat_template_kwargs": {**given, **self.chat_template_kwargs}}

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the seed model's chat template is given beside the chat, whichever key names it."""
        arguments = self.request_fields.get("chat_template_kwargs")
        return arguments if isinstance(arguments, dict) else {}

    @field_validator("base_urls", mode="before")
    @classmethod
    def _one_url_is_a_list_of_one(cls, urls: Any) -> Any:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("base_urls")
    @classmethod
    def _base_urls_are_distinct_http_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if not urls:
            raise ValueError(
                "backend openai needs base_urls, the addresses of the servers, such as [http://localhost:8000/v1]"
            )
        cleaned = tuple(_base_url(url) for url in urls)
        if len(set(cleaned)) != len(cleaned):
            raise ValueError(f"base_urls names one server twice: {', '.join(cleaned)}")
        return cleaned

    @field_validator("api_key_env")
    @classmethod
    def _api_key_env_is_the_name_of_a_variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):  # never shown: somebody may have put the key itself here
            raise ValueError(
                "api_key_env is the name of an environment variable, in capitals, digits and underscores, such as "
                "OPENAI_API_KEY; put the key itself into that variable"
            )
        return name

    @field_validator("extra_body")
    @classmethod
    def _extra_body_leaves_alone_what_the_backend_sets(cls, body: dict[str, Any]) -> dict[str, Any]:
        return without("extra_body", body, _REQUEST_FIELDS)

    @model_validator(mode="after")
    def _both_ways_to_give_chat_template_kwargs_agree(self) -> "OpenAIGeneration":
        given = self.extra_body.get("chat_template_kwargs", {})
        if not isinstance(given, dict):
            if self.chat_template_kwargs:
                raise ValueError(
                    f"extra_body sets chat_template_kwargs to {masked(given)!r}, which can't be joined with "
                    "generation.chat_template_kwargs; keep one of the two"
                )
            return self
        without("extra_body.chat_template_kwargs", given, TEMPLATE_ARGUMENTS)
        for name in sorted(given.keys() & self.chat_template_kwargs.keys()):
            if given[name] != self.chat_template_kwargs[name]:
                ours, theirs = masked(self.chat_template_kwargs[name], name), masked(given[name], name)
                raise ValueError(
                    f"generation.chat_template_kwargs sets {name}: {ours!r}, but "
                    f"generation.extra_body.chat_template_kwargs sets {name}: {theirs!r}; remove one of the two"
                )
        return self


def _base_url(url: str) -> str:
    """Return a server's address without a slash at its end.

    Raises:
        ValueError: It is not an http(s) address, or holds more than host and path. No password or query is shown.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError as err:  # a port that is not a number, a bracket that is not closed
        raise ValueError(_not_an_address(url, f" ({err})" if "@" not in url and "?" not in url else "")) from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(_not_an_address(url))
    if "@" in parts.netloc:
        raise ValueError(f"base_urls holds a password for {host}; put it into the variable of api_key_env")
    if parts.query or parts.fragment:
        shown = parts._replace(query="", fragment="").geturl()
        raise ValueError(f"base_urls holds {shown!r} with a query or fragment; leave out what follows the path")
    if re.search(r"[\s\x00-\x1f\x7f-\x9f\\]", url):
        raise ValueError(f"base_urls holds {url!r}, with a space, a backslash or a control character; take it out")
    if not _is_host(host):
        raise ValueError(f"base_urls holds {url!r}, but {host!r} can't be the name of one server; correct it")
    return parts.geturl().rstrip("/")


def _not_an_address(url: str, why: str = "") -> str:
    shown = "an address" if "@" in url or "?" in url else repr(url)
    is_bare = re.fullmatch(r"(?:[\w.-]+|\[[\da-fA-F:]+\])(?::\d{1,5})?(?:/[\w./-]*)?", url)
    way_out = f"did you mean http://{url}?" if is_bare else "write it as http://localhost:8000/v1"
    return f"base_urls holds {shown}, which is not an http(s) address{why}; {way_out}"


def _is_host(host: str) -> bool:
    """Say whether a host can be looked up: an IP address, or a name of labels of up to 63 letters, digits, - and _."""
    if ":" in host:  # IPv6, perhaps with the name of an interface
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return False
    labels = name.removesuffix(".").split(".")
    return len(name) <= 253 and all(re.fullmatch(r"[A-Za-z0-9_](?:[\w-]{0,61}\w)?", label) for label in labels)
