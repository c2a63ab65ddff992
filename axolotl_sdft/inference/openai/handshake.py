"""Gets to know a server before it is sent rows: it must accept the key, serve the seed model and answer a chat."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from axolotl_sdft.config import OpenAIGeneration
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.inference.openai.chat_protocol import (
    CANARY,
    chat_request,
    optional_fields,
    read_answer,
    refused_fields,
)
from axolotl_sdft.inference.openai.faults import (
    AuthError,
    EndpointError,
    RefusedError,
    RequestError,
    TransientError,
    message_in,
)
from axolotl_sdft.inference.openai.servers import Server

_WHERE = "self_distillation.generation"
_SHOWN = 10  # models of a server
_SHOWN_CHARACTERS = 100  # of the name of each

# What tokenizers differ in: case, accents, digits, runs of spaces, code, emoji, scripts without spaces.
_TELLING_TEXT = "Crème brûlée, 12,345.67 %:\n\n    def f(x):\n\treturn x ** 2   # naïve 🙂\n零一二三 — Ωμέγα, don't!"


class Handshake:
    """Finds out how to talk to a server about the seed model, and refuses one that serves something else."""

    def __init__(self, model_dir: Path, config: OpenAIGeneration, tokenizer: Callable[[], Any]) -> None:
        self._seed_names = seed_names(model_dir)
        self._config, self._tokenizer = config, tokenizer

    async def __call__(self, server: Server, max_retries: int) -> None:
        """Set a server's ``model``, ``names``, ``max_tokens`` and ``refused_fields``.

        Raises:
            ConfigError: It refuses the key, serves other models, splits text into other tokens than the seed model, or
                can't chat.
            RequestError: It can't be asked now; this may pass.
        """
        server.key.check()
        try:
            listed = _listed(await server.probe("/models", None, max_retries))
            entry = self._served(server, listed)
            server.model, server.names = self._names(entry)
            server.max_tokens = _length(entry)
            await self._compare_tokens(server)
            await self._chat(server, max_retries)
        except EndpointError as err:
            raise ConfigError(_advice(server, err)) from err

    def _names(self, entry: dict[str, Any]) -> tuple[str, set[str]]:
        """Return the name by which a model of a server is asked for, and all under which it may sign."""
        asked = self._config.model or entry["id"]
        return asked, {form for name in (*_listed_names(entry), asked) for form in (name.lower(), _last_part(name))}

    def _served(self, server: Server, listed: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a server says of the seed model."""
        for entry in listed:
            names = _listed_names(entry)
            is_meant = self._config.model in names if self._config.model else _share_a_name(names, self._seed_names)
            if is_meant and isinstance(entry.get("id"), str):
                return entry
        served = _few([entry.get("id") for entry in listed])
        if self._config.model:
            raise ConfigError(f"{_WHERE}.model is {self._config.model!r}, but {server.base_url} serves {served}")
        raise ConfigError(
            f"{_WHERE}.base_urls: {server.base_url} serves {served}, which is not the seed model "
            f"{' or '.join(sorted(map(repr, self._seed_names)))}; if it is right, set {_WHERE}.model to the name served"
        )

    async def _chat(self, server: Server, max_retries: int) -> None:
        """Have a one-word chat, leaving out what the server does not want to be told."""
        without: frozenset[str] = frozenset()
        while True:
            request = chat_request(self._config, server.model, CANARY, without) | {"max_tokens": 1}
            try:
                body = await server.probe("/chat/completions", request, max_retries)
                break
            except EndpointError:
                raise
            except RefusedError as err:
                optional = optional_fields(request, self._config)
                if not optional:
                    raise ConfigError(f"{_WHERE}: {server.base_url} refuses a plain chat: {err}") from err
                without |= refused_fields(str(err), optional)
        server.refused_fields = without
        if self._config.model and isinstance(body, dict) and isinstance(body.get("model"), str):
            server.names.add(body["model"].lower())  # a name that the user vouches for may stand for another
        read_answer(body, server.accepts_model, len)

    async def _compare_tokens(self, server: Server) -> None:
        """Compare how server and seed model split a text, where the server tells it (vLLM, SGLang and llama.cpp do)."""
        url = server.base_url.removesuffix("/v1") + "/tokenize"
        vllm = {"model": server.model, "prompt": _TELLING_TEXT, "add_special_tokens": False}
        try:
            both = vllm | {"content": _TELLING_TEXT, "add_special": False}
            body = await server.probe(url, both, max_retries=0, timeout_s=10.0)
        except RequestError:  # most servers have no such thing
            return
        ids = body.get("tokens") if isinstance(body, dict) else None
        if not isinstance(ids, list) or not ids or not all(isinstance(token, int) for token in ids):
            return
        if ids != self._tokenizer()(_TELLING_TEXT, add_special_tokens=False)["input_ids"]:
            raise ConfigError(
                f"{_WHERE}.base_urls: {server.base_url} splits text into other tokens than the seed model, so "
                f"{server.model!r} is another model; serve the seed model itself"
            )


def seed_names(model_dir: Path) -> set[str]:
    """Return the names that a seed model goes by: its folder's, or its Hub id where that folder is the Hub's cache."""
    for folder in model_dir.parents:
        if folder.name.startswith("models--"):
            return {folder.name.removeprefix("models--").replace("--", "/")}
    return {model_dir.name or model_dir.absolute().name}


def _listed(body: Any) -> list[dict[str, Any]]:
    """Return what a server says of each of its models.

    Raises:
        TransientError: It says something else in the place of a list.
    """
    entries = body.get("data") if isinstance(body, dict) else body
    if isinstance(entries, list):
        return [entry for entry in entries if isinstance(entry, dict)]
    said = message_in(body)
    if said is not None:
        raise TransientError(f"no list of models in the response, but {said}")
    return []


def _listed_names(entry: dict[str, Any]) -> set[str]:
    return {name for name in (entry.get("id"), entry.get("root")) if isinstance(name, str) and name}


def _length(entry: dict[str, Any]) -> int:
    """Return the longest prompt and answer together that a server takes, as vLLM and SGLang tell it; 0: unknown."""
    length = entry.get("max_model_len")
    return length if type(length) is int and length > 0 else 0


def _few(names: Sequence[Any]) -> str:
    """Return the first names of a list, which may be long, as hosted servers' are, and whatever a server makes it."""
    shown = ", ".join(repr(shortened(str(name), _SHOWN_CHARACTERS)) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return (shown or "nothing") + (f" and {more} more" if more > 0 else "")


def _share_a_name(served: set[str], wanted: set[str]) -> bool:
    return bool({_last_part(name) for name in served} & {_last_part(name) for name in wanted})


def _last_part(name: str) -> str:
    """Return what stays of a Hub id or path without the folders before it, in lower case."""
    return name.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].lower()


def _advice(server: Server, fault: EndpointError) -> str:
    """Return what to do about a refusal that is not about a row."""
    message = f"{_WHERE}.base_urls: {server.base_url} answers {fault}"
    variable = server.key.variable
    if isinstance(fault, AuthError):
        if server.key.is_set():
            return f"{message}; it does not accept the key in the environment variable {variable}"
        return (
            f"{message}; it wants a key: put it into the environment variable {variable}, or name another one in "
            f"{_WHERE}.api_key_env"
        )
    if str(fault).startswith("HTTP 3"):
        return f"{message}; name the address that it points to"
    return f"{message}; check the address, which often ends in /v1"
