"""How the requests of a client are spread over connections."""

import asyncio

from axolotl_sdft.inference.openai.api_key import ApiKey
from axolotl_sdft.inference.openai.client import Client, _Lane
from tests.inference.openai.openai_server import FakeServer, Fault

CHAT = {"model": "seed", "messages": [{"role": "user", "content": "Well?"}], "max_tokens": 8}


def asked(url, *numbers_at_once):
    """Send so many requests at once, then so many, by one client."""

    async def ask():
        client = Client(url, ApiKey("SDFT_NO_KEY"), timeout_s=60.0, max_retries=0)
        for number in numbers_at_once:
            await asyncio.gather(*(client.request("/chat/completions", CHAT) for _ in range(number)))
        await client.aclose()

    asyncio.run(ask())


def test_no_pool_of_connections_gets_so_large_that_looking_through_it_takes_longer_than_a_request(monkeypatch):
    lanes, most = [], {}
    start, send = _Lane.__init__, _Lane.send

    def started(self, **options):
        lanes.append(self)
        start(self, **options)

    def sent(self, request, **options):
        most[id(self)] = max(most.get(id(self), 0), self.in_flight)
        return send(self, request, **options)

    monkeypatch.setattr(_Lane, "__init__", started)
    monkeypatch.setattr(_Lane, "send", sent)
    with FakeServer(waits_for=70) as server:
        asked(server.url, 70, 40)

    assert (server.most_in_flight, len(server.chats)) == (70, 110)
    assert [most[id(lane)] for lane in lanes] == [32, 32, 6]  # none is added for the 40 that follow
    assert all(lane.is_closed and lane.in_flight == 0 for lane in lanes)


def test_a_cookie_that_a_server_sets_comes_back_to_it():
    answer = b'{"model": "seed", "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}'
    with FakeServer(lambda text, number: Fault(headers={"set-cookie": "node=7"}, body=answer)) as server:
        asked(server.url, 1, 1)
    assert [headers.get("Cookie") for headers in server.headers] == [None, "node=7"]
