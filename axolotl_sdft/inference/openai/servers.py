"""Servers: how many requests each gets at once, which one is next, and which are left out until they are well again."""

import asyncio
import inspect
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, Literal, cast

import anyio

from axolotl_sdft.core.errors import ConfigError, SdftError, ServerError
from axolotl_sdft.inference.openai.api_key import ApiKey
from axolotl_sdft.inference.openai.client import Client
from axolotl_sdft.inference.openai.faults import (
    AuthError,
    RefusedError,
    RequestError,
    RequestTimeoutError,
    backoff_seconds,
)

LOG = logging.getLogger(__name__)

PROBE_S = 60.0
"""A server that needs longer than this for one word is as good as dead."""

PROBE_INTERVAL_S = 30.0
"""A dead server is asked this often whether it is back."""

QUICK_RETRIES = 2
"""A server that just stumbled deserves a second look, one that is down must be told of soon."""

_LONG_PAUSE_S = 30.0  # worth a line in the log


class Server:
    """One server: what it is called, how many requests it gets at once, and how the last ones went."""

    def __init__(
        self, base_url: str, key: ApiKey, concurrency: int, timeout_s: float, max_retries: int, trust_env: bool = True
    ) -> None:
        self.base_url, self.key, self.concurrency, self._timeout_s = base_url, key, concurrency, timeout_s
        self._client = Client(base_url, key, timeout_s, max_retries, trust_env)
        self.state: Literal["live", "unhealthy", "dead"] = "live"
        self.fault: RequestError | SdftError | None = None
        """Why it is unhealthy or dead."""
        self.model = ""
        """The name under which it knows the seed model, once hands have been shaken."""
        self.names: set[str] = set()
        """All names, in lower case, under which it may sign the answers of that model."""
        self.refused_fields: frozenset[str] = frozenset()
        self.max_tokens = 0
        """Longest prompt and answer together, where that is known."""
        self.in_flight = self.answered = 0
        self.limit = float(concurrency)
        self.paused_until = self._last_cut = 0.0
        self._cuts = 0

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Return what comes back about a row; the faults are those of :meth:`Client.request`."""
        return await self._client.request(path, body)

    async def probe(self, path: str, body: dict[str, Any] | None, max_retries: int, timeout_s: float = PROBE_S) -> Any:
        """Return what comes back about the server itself."""
        return await self._client.request(path, body, max_retries=max_retries, timeout=min(timeout_s, self._timeout_s))

    def can_take(self, now: float) -> bool:
        """Say whether another request may be sent."""
        return self.state == "live" and self.in_flight < int(self.limit) and now >= self.paused_until

    def has_answered(self) -> None:
        """Note a success: the server may get a little more to do, up to its full share."""
        self.answered += 1
        self._cuts = 0
        self.limit = min(self.concurrency, self.limit + 1.0 / self.limit)

    def has_too_much(self, sent_at: float, pause_s: float | None = None) -> bool:
        """Note that the server can't cope with what it has: it gets half as much, after a pause.

        Returns:
            True when it can't get less, since this was the only request it had.
        """
        was_alone = self.limit < 2
        if sent_at > self._last_cut:  # all that were in flight together are one sign, not many
            self.limit = max(1.0, self.limit / 2)
            self._last_cut = time.monotonic()
            self._cuts += 1
        pause_s = backoff_seconds(self._cuts) if pause_s is None else pause_s
        self.paused_until = max(self.paused_until, time.monotonic() + pause_s)
        if pause_s >= _LONG_PAUSE_S:
            LOG.info("%s asks for a pause of %.0f s", self.base_url, pause_s)
        return was_alone

    def is_back(self) -> None:
        """Note that the server is well."""
        self.state, self.fault = "live", None

    def accepts_model(self, name: str) -> bool:
        """Say whether an answer signed with this name comes from the model that was asked for.

        Hosted servers sign with a date behind the name.
        """
        name = name.lower()
        return name in self.names or name.startswith(f"{self.model.lower()}-")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class ServerPool:
    """All servers. Suspect and dead ones are looked after here until they are well again."""

    def __init__(
        self, servers: Sequence[Server], max_retries: int, shake_hands: Callable[[Server, int], Awaitable[None]]
    ) -> None:
        self.servers = servers
        self.on_change: Callable[[], None] = lambda: None
        """Called when a server has come back or died."""
        self._max_retries, self.shake_hands = max_retries, shake_hands
        self._nurses: set[asyncio.Task[None]] = set()

    def pick(self, given_up: Collection[Server] = (), last: Server | None = None) -> Server | None:
        """Return the live server with the least in flight, or None when all have their fill or pause.

        Args:
            given_up: Those that are not asked.
            last: One that is asked only where no other takes it.
        """
        now = time.monotonic()
        free = [server for server in self.servers if server.can_take(now) and server not in given_up]
        return min(free, key=lambda server: (server is last, server.in_flight, server.answered), default=None)

    def may_answer(self, given_up: Collection[Server]) -> bool:
        """Say whether there is another server that is not dead."""
        return any(server.state != "dead" for server in self.servers if server not in given_up)

    def pause_left_s(self) -> float | None:
        """Return the seconds until a pausing server can be asked again; None when none pauses."""
        now = time.monotonic()
        pauses = [server.paused_until - now for server in self.servers if server.state == "live"]
        return min((pause for pause in pauses if pause > 0), default=None)

    def end(self) -> SdftError | None:
        """Return the error to stop with when every server is dead; None as long as one may still answer."""
        if any(server.state != "dead" for server in self.servers):
            return None
        faults = "; ".join(f"{server.base_url}: {server.fault}" for server in self.servers)
        if all(isinstance(server.fault, RefusedError | ConfigError) for server in self.servers):
            return ConfigError(f"self_distillation.generation.base_urls: {faults}. What was answered before is kept")
        return ServerError(
            f"self_distillation.generation.base_urls: no server answers any more ({faults}). What was answered before "
            "is kept: start a server and run the same command again"
        )

    async def is_healthy(self, server: Server) -> bool:
        """Ask a server something harmless; where it fails too, it counts as unhealthy.

        Raises:
            ConfigError: It does not accept the key any more.
        """
        try:
            await self._introduced(server, QUICK_RETRIES)
        except (RequestError, SdftError) as err:
            if isinstance(err.__cause__, AuthError):
                raise
            self.mark_unhealthy(server, err)
        return server.state == "live"

    def mark_unhealthy(self, server: Server, fault: RequestError | SdftError) -> None:
        """Send a server no rows until it has answered something harmless."""
        if server.state != "live":
            return
        server.state, server.fault = "unhealthy", fault
        nurse = asyncio.get_running_loop().create_task(self._nurse(server))
        self._nurses.add(nurse)  # the event loop itself holds tasks only weakly
        nurse.add_done_callback(self._nurses.discard)

    async def _nurse(self, server: Server) -> None:
        """Ask a server until it is well: as often as the settings say, then it is dead, and is asked now and then."""
        for retries in itertools.chain([self._max_retries], itertools.repeat(0)):
            try:
                await self._introduced(server, retries)
            except (RequestError, SdftError) as err:
                server.fault = err
            else:
                if server.state == "dead":
                    LOG.info("%s is back", server.base_url)
                server.is_back()
                self.on_change()
                return
            if server.state != "dead":
                server.state = "dead"
                LOG.warning("%s is left out (%s); its rows go to the other servers", server.base_url, server.fault)
                self.on_change()
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _introduced(self, server: Server, retries: int) -> None:
        try:
            with anyio.fail_after(PROBE_S):
                await self.shake_hands(server, retries)
        except TimeoutError:
            raise RequestTimeoutError(f"no sign of life within {PROBE_S:g} s") from None

    async def aclose(self) -> None:
        """Stop looking after servers, and close all connections."""
        await cancel_all(self._nurses)
        for server in self.servers:
            await server.aclose()


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Return when tasks have ended."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            # A task group wraps what it runs: cancelled before its first step, the inner coroutine is never awaited.
            if inspect.getcoroutinestate(cast("Coroutine[Any, Any, Any]", task.get_coro())) != inspect.CORO_CREATED:
                task.cancel()
        # Told again and again: a task that was just connecting can lose the first word.
        await asyncio.wait(left, timeout=0.1)
