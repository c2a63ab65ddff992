"""What is found out about servers before the first row is sent."""

import contextlib
import math
import socket
import traceback

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.config import OpenAIGeneration, TransformersGeneration
from axolotl_sdft.core.errors import CheckpointError, ConfigError, ServerError
from axolotl_sdft.inference.interfaces import Prompt, Target
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.openai.backend import OpenAIBackend
from axolotl_sdft.inference.openai.faults import TransientError
from axolotl_sdft.inference.openai.handshake import _few, _listed
from tests.inference.openai.openai_server import FakeServer, Fault

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def check(seed_dir):
    """Check servers for a seed model, by default the folder ``seed``."""

    def check(*servers, seed=seed_dir, **settings):
        urls = [server if isinstance(server, str) else server.url for server in servers]
        config = OpenAIGeneration(base_urls=urls, **settings)
        with contextlib.closing(OpenAIBackend(seed, config)) as backend:
            backend.check()

    return check


@pytest.fixture
def closed_port():
    """The address of a server that is not there: a port that nobody listens at, nor can for now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


# Which model


@pytest.mark.parametrize(
    "served",
    [
        {"model": "seed"},
        {"model": "Seed"},
        {"model": "some-org/seed"},
        {"model": "/models/seed/"},
        {"model": "rewriter", "root": "/models/seed"},
    ],
)
def test_the_seed_is_recognised_by_the_name_or_path_that_is_served(check, served):
    with FakeServer(**served) as server:
        check(server)
    assert server.chats[-1]["model"] == served["model"]


def test_a_seed_from_the_hub_is_recognised_by_its_id(check, tmp_path):
    snapshot = tmp_path / "models--some-org--Tiny-1B" / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    with FakeServer(model="some-org/Tiny-1B") as server:
        check(server, seed=snapshot)


def test_a_server_of_another_model_is_refused_with_what_it_serves(check):
    message = (
        r"base_urls: http://127.0.0.1:\d+/v1 serves 'llama', which is not the seed model 'seed'; .*generation.model"
    )
    with FakeServer(model="llama") as server, pytest.raises(ConfigError, match=message):
        check(server)


def test_what_a_gateway_says_in_the_place_of_its_models_is_told():
    with pytest.raises(TransientError, match=r"^no list of models in the response, but the message: log in first$"):
        _listed({"message": "log in first", "code": 0})
    assert _listed({"object": "list"}) == []


def test_of_a_server_with_many_models_or_long_names_a_few_are_told(check):
    with (
        FakeServer(model="long" * 1000) as server,
        pytest.raises(ConfigError, match=r"serves 'long.*\.\.\.'") as caught,
    ):
        check(server)
    assert len(str(caught.value)) < 400
    assert _few([f"model {number}" for number in range(12)]).endswith("'model 9' and 2 more")
    assert _few([]) == "nothing"


def test_a_model_that_is_named_need_not_be_called_like_the_seed(check):
    with FakeServer(model="llama") as server:
        check(server, model="llama")


def test_a_model_that_is_named_but_not_served_is_refused(check):
    with FakeServer() as server, pytest.raises(ConfigError, match=r"generation.model is 'x', but http.* serves 'seed'"):
        check(server, model="x")


def test_a_server_that_splits_text_otherwise_than_the_seed_is_refused(check, tiny_llama_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)

    def split(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    with FakeServer(model=tiny_llama_dir.name, tokenize=split) as same:
        check(same, seed=tiny_llama_dir)
    with FakeServer(model=tiny_llama_dir.name, tokenize=lambda text: split(text)[1:]) as other:
        message = f"splits text into other tokens than the seed model, so '{tiny_llama_dir.name}' is another model"
        with pytest.raises(ConfigError, match=message):
            check(other, seed=tiny_llama_dir)


def test_a_tokenizer_with_code_of_its_own_is_compared_only_where_the_code_may_run(
    check, seed_with_code, tiny_llama_dir
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    with FakeServer(
        model=seed_with_code.name, tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    ) as server:
        check(server, seed=seed_with_code, trust_remote_code=True)
        with pytest.raises(CheckpointError, match=r"tokenizer of .*coded can't be loaded .*trust_remote_c"):
            check(server, seed=seed_with_code)


def test_one_wrong_server_among_right_ones_is_refused(check):
    with FakeServer() as right, FakeServer(model="llama") as wrong, pytest.raises(ConfigError, match="serves 'llama'"):
        check(right, wrong)


# The key


def test_a_server_that_wants_a_key_says_which_variable_is_empty(check, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    message = r"HTTP 401.*wants a key: put it into the environment variable OPENAI_API_KEY, or name another"
    with FakeServer(key="open-sesame") as server, pytest.raises(ConfigError, match=message):
        check(server)


def test_a_wrong_key_is_refused_and_no_variable_shows_it_though_the_server_repeats_it(check, monkeypatch):
    monkeypatch.setenv("SDFT_TEST_KEY", "sk-wrong")
    message = (
        r"HTTP 401 .*wrong key: Bearer \[redacted key\]; it does not accept the key in the .* variable SDFT_TEST_KEY"
    )
    with FakeServer(key="open-sesame") as server, pytest.raises(ConfigError, match=message) as caught:
        check(server, api_key_env="SDFT_TEST_KEY")
    for err in (caught.value, caught.value.__cause__):
        frames = [frame for frame, _ in traceback.walk_tb(err.__traceback__) if frame.f_globals is not globals()]
        assert frames
        assert "sk-wrong" not in repr([frame.f_locals for frame in frames])


def test_space_around_a_key_does_no_harm(check, monkeypatch):
    monkeypatch.setenv("SDFT_TEST_KEY", " open-sesame\r\n")
    with FakeServer(key="open-sesame") as server:
        check(server, api_key_env="SDFT_TEST_KEY")


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(check, monkeypatch, key):
    monkeypatch.setenv("SDFT_TEST_KEY", key)
    with FakeServer() as server, pytest.raises(ConfigError, match="variable SDFT_TEST_KEY holds a space, a") as caught:
        check(server, api_key_env="SDFT_TEST_KEY")
    assert key not in str(caught.value)
    assert not server.headers


# Reachable


def test_a_server_that_is_not_there_is_one_clear_error(check, closed_port):
    message = rf"base_urls: no server can be used \({closed_port}: connect error.*\); start one, or correct the address"
    with pytest.raises(ServerError, match=message):
        check(closed_port)


def test_a_server_that_is_not_there_is_only_a_warning_where_another_one_is(check, closed_port, caplog):
    with FakeServer() as server:
        check(closed_port, server)
    assert f"{closed_port} can't be used yet (connect error" in caplog.text


def test_an_address_without_the_path_of_the_protocol_gets_a_hint(check):
    with (
        FakeServer() as server,
        pytest.raises(ConfigError, match=r"HTTP 404.*check the address, which often ends in /v1"),
    ):
        check(server.url.removesuffix("/v1"))


def test_a_redirect_is_not_followed_but_told(check):
    moved = Fault(308, {"Location": "https://elsewhere/v1/chat/completions"})
    message = r"HTTP 308.*redirected to https://elsewhere/.*name the address that it points to"
    with FakeServer(lambda text, number: moved) as server, pytest.raises(ConfigError, match=message):
        check(server)


def test_a_server_that_can_not_chat_says_why(check):
    no_template = Fault(400, body=b'{"error": {"message": "no chat template"}}')
    message = r"refuses a plain chat: HTTP 400 \w+: no chat template"
    with FakeServer(lambda text, number: no_template) as server, pytest.raises(ConfigError, match=message):
        check(server)


def test_a_server_that_is_busy_at_first_gets_a_second_chance(check):
    with FakeServer(lambda text, number: Fault(429, {"Retry-After": "0.05"}) if number == 0 else None) as server:
        check(server)
    assert len(server.chats) == 2


# With the seed model's own tokenizer and weights


def test_tokens_are_counted_with_the_seeds_tokenizer_where_the_server_does_not(tiny_llama_dir):
    with FakeServer(model=tiny_llama_dir.name, usage=False) as server:
        config = OpenAIGeneration(backend="openai", base_urls=(server.url,))
        with contextlib.closing(OpenAIBackend(tiny_llama_dir, config)) as backend:
            prompt = Prompt((0, 0), ({"role": "user", "content": "one two three"},))
            [(_, [answer])] = backend.generate([[prompt]])
    assert answer.text == "re: one two three"
    assert answer.num_tokens == len(AutoTokenizer.from_pretrained(tiny_llama_dir)("re: one two three")["input_ids"])


def test_likelihoods_from_a_server_agree_with_the_transformers_backend(tiny_llama_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)

    def score(ids):
        log_probs_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [None, *(log_probs_TV[place, token].item() for place, token in enumerate(ids[1:]))]

    targets = [
        (Target(({"role": "user", "content": "Hi"},), "unused"), "Hello to you."),
        (Target(({"role": "user", "content": "Name a colour."},), "unused"), "Red, or perhaps a dark blue."),
    ]
    with torch.inference_mode(), FakeServer(model=tiny_llama_dir.name, score=score) as server:
        config = OpenAIGeneration(backend="openai", base_urls=(server.url,))
        with contextlib.closing(OpenAIBackend(tiny_llama_dir, config)) as backend:
            told = backend.answer_nll(targets)
    expected = TransformersBackend(tiny_llama_dir, TransformersGeneration(dtype="float32")).answer_nll(targets)
    assert told == pytest.approx(expected, abs=1e-4)


def nll_from(server, seed_dir, texts):
    config = OpenAIGeneration(backend="openai", base_urls=(server.url,))
    with contextlib.closing(OpenAIBackend(seed_dir, config)) as backend:
        return backend.answer_nll([(Target(({"role": "user", "content": "Hi"},), "unused"), text) for text in texts])


def test_a_text_that_is_too_long_for_a_server_leaves_the_others_measured(tiny_llama_dir, caplog):
    with FakeServer(model=tiny_llama_dir.name, score=lambda ids: [-0.5] * len(ids), most_scored=60) as server:
        told = nll_from(server, tiny_llama_dir, ["long " * 60, "Hello", "long " * 70])
    assert told == [pytest.approx(math.nan, nan_ok=True), 0.5, pytest.approx(math.nan, nan_ok=True)]
    [left_out] = [record.message for record in caplog.records if "left out" in record.message]
    assert left_out.startswith("2 answers are left out of the distribution gap: HTTP 400 ")


def test_of_a_text_longer_than_a_server_takes_the_beginning_is_left_out(tiny_llama_dir):
    scored = []

    def score(ids):
        scored.append(ids)
        return [-0.5] * len(ids)

    with FakeServer(model=tiny_llama_dir.name, score=score, max_model_len=20) as server:
        assert nll_from(server, tiny_llama_dir, ["Hello to you"]) == [0.5]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    whole = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    whole += [*tokenizer("Hello to you")["input_ids"], tokenizer.eos_token_id]
    assert scored == [whole[-19:]]  # a server makes a new token as well, which needs room


def test_a_server_that_tells_no_likelihoods_leaves_the_gap_unmeasured(tiny_llama_dir):
    target = Target(({"role": "user", "content": "Hi"},), "unused")
    with FakeServer(model=tiny_llama_dir.name) as server:
        config = OpenAIGeneration(backend="openai", base_urls=(server.url,))
        with contextlib.closing(OpenAIBackend(tiny_llama_dir, config)) as backend:
            assert backend.answer_nll([(target, "Hello"), (target, "Good day")]) is None
