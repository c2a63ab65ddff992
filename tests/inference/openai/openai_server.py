"""A real HTTP server that speaks the OpenAI protocol and misbehaves on demand.

It runs in a thread (``with FakeServer() as server``), or alone: ``python -m tests.inference.openai.openai_server``
"""

import argparse
import asyncio
import json
import threading
import time
from dataclasses import dataclass, field

CANARY_TEXT = "Say yes."  # what the backend asks to see whether a server is well


@dataclass(frozen=True)
class Fault:
    """What a server does instead of answering."""

    status: int = 200
    headers: dict = field(default_factory=dict)
    body: bytes = b'{"error": {"message": "out of order"}}'
    delay_s: float = 0.0
    is_cut: bool = False
    """Half of the body goes out, then the connection is closed."""
    is_reset: bool = False
    """The connection is reset without a word."""


RUBBISH = Fault(body=b"<html>not JSON</html>")
HALF = Fault(body=b'{"choices": [{"message": {"content": "half an ans', is_cut=True)
RESET = Fault(is_reset=True)
SILENCE = Fault(delay_s=60.0)
OTHER_MODEL = Fault(
    body=b'{"model": "intruder", "choices": [{"message": {"content": "I am another"}, "finish_reason": "stop"}]}'
)


class FakeServer:
    """Answers each chat with ``re: `` and its last message.

    Args:
        fault: Called with the last message of a chat and the number of chats before it; returns a fault or None.
        model, root: What it serves.
        key: The key that it wants.
        reply_s: How long an answer takes.
        waits_for: No row is answered before so many were in flight at once.
        tokenize: Splits a text into ids; without it there is no ``/tokenize``.
        score: Gives each id of a prompt its log-probability; without it, text completions ignore ``echo``.
        refused_fields: Fields of a chat request that it doesn't know.
        choice: Replaces parts of the answer's ``choices[0]``.
        usage: Whether it counts tokens, or the counts that it tells.
        max_model_len: The longest prompt and answer together, as vLLM tells it in its list of models.
        most_scored: Text completions of more tokens are refused.
    """

    def __init__(
        self,
        fault=lambda text, number: None,
        *,
        model="seed",
        root=None,
        key=None,
        reply_s=0.0,
        waits_for=0,
        tokenize=None,
        score=None,
        refused_fields=(),
        choice=None,
        usage=True,
        max_model_len=None,
        most_scored=None,
    ):
        self.fault, self.model, self.root, self.key, self.reply_s = fault, model, root, key, reply_s
        self.tokenize, self.score, self.refused_fields = tokenize, score, refused_fields
        self.choice, self.usage, self.waits_for = choice or {}, usage, waits_for
        self.max_model_len, self.most_scored = max_model_len, most_scored
        self.chats, self.times, self.headers = [], [], []
        self.in_flight = self.most_in_flight = 0
        self.port, self._is_dead = 0, False
        self._loop, self._server, self._writers, self._tasks = asyncio.new_event_loop(), None, set(), set()

    def __enter__(self):
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.revive()
        return self

    def __exit__(self, *error):
        self.die()
        self._run(_settle(self._tasks))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def texts(self):
        """The last messages of all chats but canaries, in the order in which they came."""
        return [text for chat in self.chats if (text := chat["messages"][-1]["content"]) != CANARY_TEXT]

    def revive(self):
        """Listen, on the same port as before."""
        self._is_dead = False
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024))
        self.port = self._server.sockets[0].getsockname()[1]

    def die(self):
        """Refuse connections from now on, and reset those that are open."""
        self._loop.call_soon_threadsafe(self.die_inside)
        self._run(asyncio.sleep(0))

    def die_inside(self):
        """Like :meth:`die`, called while a chat is handled."""
        self._is_dead = True
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(600)

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        self._tasks.add(asyncio.current_task())
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path = head.split(" ", 2)[:2]
                headers = dict(line.lower().split(": ", 1) for line in head.strip().split("\r\n")[1:])
                raw = dict(line.split(": ", 1) for line in head.strip().split("\r\n")[1:])
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if self._is_dead:  # what was accepted or sent before, and comes to be handled only now
                    writer.transport.abort()
                    return
                self.headers.append(raw)
                fault = await self._answer(method, path, raw, json.loads(body) if body else None)
                if fault.is_reset:
                    writer.transport.abort()
                    return
                length = len(fault.body) * 2 if fault.is_cut else len(fault.body)
                lines = {"Content-Length": length, "Content-Type": "application/json"} | fault.headers
                top = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
                writer.write(f"HTTP/1.1 {fault.status} Whatever\r\n{top}\r\n".encode() + fault.body)
                await writer.drain()
                if fault.is_cut:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(asyncio.current_task())

    async def _answer(self, method, path, headers, body):
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return _said(401, f"wrong key: {headers.get('Authorization')}")
        if path == "/v1/models":
            told = {} if self.max_model_len is None else {"max_model_len": self.max_model_len}
            return _json({"data": [{"id": self.model, "root": self.root or self.model} | told]})
        if path == "/tokenize" and self.tokenize:
            return _json({"tokens": self.tokenize(body["prompt"])})
        if path == "/v1/completions":
            if self.most_scored is not None and len(body["prompt"]) > self.most_scored:
                return _said(400, "too long")
            return _json({"choices": [{"logprobs": {"token_logprobs": self._scores(body["prompt"])}}]})
        if path == "/v1/chat/completions":
            return await self._chat(body)
        return _said(404, "no such path")

    def _scores(self, ids):
        return [-1.0] if self.score is None else [*self.score(ids), -1.0]  # the last one is the new token's

    async def _chat(self, body):
        number, text = len(self.chats), body["messages"][-1]["content"]
        self.chats.append(body)
        self.times.append(time.monotonic())
        if body["model"] != self.model:
            return _said(404, f"no model {body['model']}")
        refused = [name for name in self.refused_fields if name in body]
        if refused:
            return _said(400, f"unknown field {refused[0]}")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self.fault(text, number)
            delay_s = self.reply_s if fault is None else fault.delay_s
            if delay_s:
                await asyncio.sleep(delay_s)
            if fault is None and text != CANARY_TEXT:
                await self._wait_for_others()
        finally:
            self.in_flight -= 1
        return fault or self._reply(text, body)

    async def _wait_for_others(self):
        for _ in range(60_000):  # a client that never sends so many gets its answer after a minute or more
            if self.most_in_flight >= self.waits_for:
                return
            await asyncio.sleep(0.001)

    def _reply(self, text, body):
        choice = {"message": {"role": "assistant", "content": f"re: {text}"}, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.25}, {"token": "b", "logprob": -0.75}]}
        usage = (
            {"usage": self.usage if isinstance(self.usage, dict) else {"completion_tokens": 3}} if self.usage else {}
        )
        return _json({"model": self.model, "choices": [choice | self.choice]} | usage)


def _json(value):
    return Fault(body=json.dumps(value).encode())


def _said(status, message):
    return Fault(status, body=json.dumps({"error": {"message": message}}).encode())


async def _settle(tasks):
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main():
    parser = argparse.ArgumentParser(description="Serve instant answers for measurements.")
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--model", default="seed")
    parser.add_argument("--reply-s", type=float, default=0.05)
    arguments = parser.parse_args()
    server = FakeServer(model=arguments.model, reply_s=arguments.reply_s)
    server.port = arguments.port
    with server:
        print(f"serving at {server.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
