"""All servers: which one gets the next request, and how one that fails is brought back or given up."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import anyio

from axolotl_sdft.core.errors import ConfigError, SdftError, ServerError
from axolotl_sdft.inference.openai.retries import Denied, Refused, RequestError, Throttled, TimedOut, backoff_seconds
from axolotl_sdft.inference.openai.servers import PROBE_S, Server

LOG = logging.getLogger(__name__)

PROBE_INTERVAL_S = 30.0
"""A dead server is asked this often whether it is back."""


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Return when tasks have ended."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        # Told again and again: a task that was just connecting can lose the first word.
        await asyncio.wait(left, timeout=0.1)


class ServerPool:
    """All servers. Suspect and dead ones are looked after here until they are well again."""

    def __init__(
        self, servers: Sequence[Server], max_retries: int, introduce: Callable[[Server], Awaitable[None]]
    ) -> None:
        self.servers = servers
        self.on_change: Callable[[], None] = lambda: None
        """Called when a server has come back or died."""
        self._max_retries, self.introduce = max_retries, introduce
        self._nurses: set[asyncio.Task[None]] = set()

    def pick(self) -> Server | None:
        """Return the live server with the least in flight, or None when all have their fill or pause."""
        now = time.monotonic()
        free = [server for server in self.servers if server.can_take(now)]
        return min(free, key=lambda server: (server.in_flight, server.answered), default=None)

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
        if all(isinstance(server.fault, Refused | ConfigError) for server in self.servers):
            return ConfigError(f"self_distillation.generation.base_urls: {faults}. What was answered before is kept")
        return ServerError(
            f"self_distillation.generation.base_urls: no server answers any more ({faults}). What was answered before "
            "is kept: start a server and run the same command again"
        )

    async def is_well(self, server: Server) -> bool:
        """Ask a server something harmless; where it fails too, the server becomes suspect.

        Raises:
            ConfigError: It does not accept the key any more.
        """
        try:
            await self._introduced(server)
        except (RequestError, SdftError) as err:
            if isinstance(err.__cause__, Denied):
                raise
            self.suspect(server, err)
        return server.state == "live"

    def suspect(self, server: Server, fault: RequestError | SdftError) -> None:
        """Send a server no rows until it has answered something harmless."""
        if server.state != "live":
            return
        server.state, server.fault = "suspect", fault
        nurse = asyncio.get_running_loop().create_task(self._nurse(server))
        self._nurses.add(nurse)  # the event loop itself holds tasks only weakly
        nurse.add_done_callback(self._nurses.discard)

    async def _nurse(self, server: Server) -> None:
        """Ask a server until it is well, first soon and after ``max_retries`` now and then."""
        for failures in itertools.count():
            dead = server.state == "dead"
            await asyncio.sleep(PROBE_INTERVAL_S if dead else backoff_seconds(failures))
            try:
                await self._introduced(server)
            except Throttled as err:
                server.fault = err
                await asyncio.sleep(err.wait_s or 0.0)
            except (RequestError, SdftError) as err:
                server.fault = err
            else:
                server.is_back()
                if dead:
                    LOG.info("%s is back", server.base_url)
                self.on_change()
                return
            if failures == self._max_retries:
                server.state = "dead"
                LOG.warning("%s is left out (%s); its rows go to the other servers", server.base_url, server.fault)
                self.on_change()

    async def _introduced(self, server: Server) -> None:
        try:
            with anyio.fail_after(PROBE_S):
                await self.introduce(server)
        except TimeoutError:
            raise TimedOut(f"no sign of life within {PROBE_S:g} s") from None

    async def aclose(self) -> None:
        """Stop looking after servers, and close all connections."""
        await cancel_all(self._nurses)
        for server in self.servers:
            await server.aclose()
