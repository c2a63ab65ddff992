"""Deals requests to servers, as many at once as they take, and has another one take what one could not answer.

The event loop runs in a thread of its own, so that whoever consumes the results may take its time. The two threads meet
in two queues: work in a deque that the loop draws from by itself, results in a queue that the consumer waits on.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from axolotl_sdft.inference.openai.faults import (
    BadRequestError,
    EndpointError,
    QuestionRefusedError,
    RefusedError,
    RequestError,
    RequestTimeoutError,
    ThrottledError,
    TransientError,
    backoff_seconds,
)
from axolotl_sdft.inference.openai.servers import Server, ServerPool, cancel_all

_AHEAD = 2  # requests drawn per request in flight: enough that no server waits for the consumer

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class BackgroundLoop:
    """An event loop in a thread of its own, which does not keep the process alive."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="sdft-servers", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Return what a coroutine returns; an interrupt cancels it."""
        future: Future[ResultT] = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """End the thread: what still runs there is cancelled, then one last coroutine runs."""
        self.run(_cancel_others())
        self.run(last)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancel_others() -> None:
    await cancel_all(asyncio.all_tasks() - {asyncio.current_task()})


@dataclass(eq=False)
class _Job(Generic[ItemT]):
    item: ItemT
    tries: int = 0
    """Failures at one server that may be this item's own fault."""

    last: Server | None = None
    """The one at which it failed last; another one is asked next where it has room."""

    given_up: set[Server] = field(default_factory=set)
    """Those that are well and will not answer it."""

    fault: RefusedError | None = None
    """Why, once there are such: one for which it is asked again in a later run, where there is any."""


class Dispatcher(Generic[ItemT, ResultT]):
    """Has every item asked once by some server, with retries, for one consumer.

    Args:
        background: Where the requests run.
        pool: The servers.
        ask: Sends an item to a server and returns the result, or raises a :class:`RequestError`.
        max_retries: How often an item is asked again before a server has refused it; it is refused when all have.
    """

    def __init__(
        self,
        background: BackgroundLoop,
        pool: ServerPool,
        ask: Callable[[Server, ItemT], Awaitable[ResultT]],
        max_retries: int,
    ) -> None:
        self._background, self._pool, self._ask, self._max_retries = background, pool, ask, max_retries
        self._waiting: deque[_Job[ItemT]] = deque()
        self._results: SimpleQueue[tuple[ItemT | None, ResultT | BaseException]] = SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_hungry = True
        self._timer: asyncio.TimerHandle | None = None

    def run(self, items: Iterable[ItemT]) -> Generator[tuple[ItemT, ResultT | RefusedError], None, None]:
        """Yield each item with its result, or with why it is refused for good, in the order in which they come.

        Items are drawn in the caller's thread, at most twice as many as the servers take at once. Closing the iterator
        cancels what is under way.

        Raises:
            ServerError: All servers are dead.
            ConfigError: The servers refuse the key, or serve another model by now.
        """
        ahead = _AHEAD * sum(server.concurrency for server in self._pool.servers)
        source, is_drained, open_items = iter(items), False, 0
        self._pool.on_change = self._look_again
        try:
            while True:
                # Two for each result, so that a fast server can't keep the queue from filling.
                for _ in range(min(2, ahead - open_items)):
                    try:
                        self._submit(next(source))
                    except StopIteration:
                        is_drained = True
                        break
                    open_items += 1
                if not open_items:
                    return
                if is_drained or open_items >= ahead or not self._results.empty():
                    item, result = self._results.get()
                    if item is None or (isinstance(result, BaseException) and not isinstance(result, RefusedError)):
                        raise result  # type: ignore[misc]
                    open_items -= 1
                    yield item, result
        finally:
            if not self._background.loop.is_closed():  # else there is nothing left to cancel
                self._background.run(self._cancel())

    def _submit(self, item: ItemT) -> None:
        self._waiting.append(_Job(item))
        if self._is_hungry:  # only then: a wake-up per item would cost both threads dearly
            self._is_hungry = False
            self._background.loop.call_soon_threadsafe(self._deal)

    def _deal(self) -> None:
        """Send out what waits, as far as the servers take it."""
        while True:
            if not self._waiting:
                self._is_hungry = True
                if not self._waiting:  # looked at again: an item may have come just before the flag was set
                    return
            taken = self._next()
            if taken is None:
                self._wait_for_servers()
                return
            job, server = taken
            server.in_flight += 1
            task = asyncio.get_running_loop().create_task(self._serve(job, server))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> tuple[_Job[ItemT], Server] | None:
        """Take out the first item that some server takes now; None where none does."""
        first = self._waiting[0]
        if not first.given_up:
            server = self._pool.pick(last=first.last)
            return (self._waiting.popleft(), server) if server is not None else None
        for job in self._waiting.copy():  # another thread adds to it
            server = self._pool.pick(job.given_up, job.last)
            if server is not None:
                self._waiting.remove(job)
                return job, server
            if not job.given_up:  # then there is no room for any other item either
                break
        return None

    def _look_again(self) -> None:
        """Go on with the servers that are there now: one has come back, or has died."""
        for job in self._waiting.copy():
            if self._is_refused(job):
                self._waiting.remove(job)
        self._deal()

    def _is_refused(self, job: _Job[ItemT]) -> bool:
        """Hand out an item as refused if no server is left for it: each has given it up, or is dead.

        One that a dead server may answer yet is asked again in a later run.
        """
        if job.fault is None or self._pool.may_answer(job.given_up):
            return False
        was_asked_everywhere = len(job.given_up) == len(self._pool.servers)
        self._results.put((job.item, job.fault if was_asked_everywhere else RefusedError(str(job.fault))))
        return True

    def _wait_for_servers(self) -> None:
        end = self._pool.end()
        if end is not None:
            self._results.put((None, end))
        pause_s = self._pool.pause_left_s()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if pause_s is not None:
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._deal)

    async def _serve(self, job: _Job[ItemT], server: Server) -> None:
        """Ask one server about one item, and see what becomes of the item."""
        sent_at = time.monotonic()
        fault: RequestError | None = None
        try:
            self._results.put((job.item, await self._ask(server, job.item)))
            server.has_answered()
        except RequestError as err:
            fault = err
        except Exception as err:  # a bug of ours must reach the consumer, who would wait for ever
            self._results.put((None, err))
        finally:
            server.in_flight -= 1
        if fault is not None:
            try:
                await self._settle(job, server, sent_at, fault)
            except Exception as err:
                self._results.put((None, err))
        self._deal()

    async def _settle(self, job: _Job[ItemT], server: Server, sent_at: float, fault: RequestError) -> None:
        """Put an item back that may succeed yet, be it at another server; hand out the others as refused."""
        job.last = server
        if isinstance(fault, RefusedError) and not isinstance(fault, EndpointError | BadRequestError):
            self._results.put((job.item, fault))  # what the model says to it, which is the same at every server
            return
        if not await self._may_succeed(job, server, sent_at, fault):
            tries = f" ({job.tries} times)" if job.tries > 1 else ""
            kind = QuestionRefusedError if isinstance(fault, BadRequestError) else RefusedError
            if job.fault is None or isinstance(job.fault, QuestionRefusedError):
                job.fault = kind(f"{fault}{tries}")
            job.given_up.add(server)
            job.tries = 0
        if not self._is_refused(job):
            self._waiting.appendleft(job)

    async def _may_succeed(self, job: _Job[ItemT], server: Server, sent_at: float, fault: RequestError) -> bool:
        """Say whether an item is to be asked again. Where the server may be to blame, it is looked at first."""
        if isinstance(fault, ThrottledError):
            job.tries += server.has_too_much(sent_at, fault.wait_s)
        else:
            # What fails while a server is being looked after says nothing about the item.
            job.tries += (self._max_retries + 1 if fault.was_repeated else 1) * (server.state == "live")
        if isinstance(fault, RequestTimeoutError):
            server.has_too_much(sent_at, 0.0)  # too many at once also look like this
        is_last = job.tries > self._max_retries or isinstance(fault, EndpointError | BadRequestError)
        if is_last or isinstance(fault, RequestTimeoutError):
            if server.state == "live" and await self._pool.is_healthy(server):
                return not is_last
            job.tries = min(job.tries, self._max_retries)
        elif isinstance(fault, TransientError):
            self._deal()  # its place is free meanwhile
            await asyncio.sleep(backoff_seconds(job.tries))
        return True

    async def _cancel(self) -> None:
        """Give up what is under way, so that nothing is left when the consumer goes on."""
        self._pool.on_change = lambda: None
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        await cancel_all(self._tasks)
