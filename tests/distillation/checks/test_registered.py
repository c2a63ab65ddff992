"""How the checks of a run are named, set and asked."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Annotated

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.core.errors import ConfigError, UnknownNameError
from axolotl_sdft.distillation.checks import BUILT_IN, first_rejection, prepared_by, resolve_checks, scored_check
from axolotl_sdft.inference.interfaces import Answer, Target
from axolotl_sdft.plugins.registry import Registry
from axolotl_sdft.plugins.specifications import hookimpl
from tests.distillation.checks.samples import asked, written


def test_the_first_check_that_rejects_gives_its_name_and_reason():
    checks = resolve_checks(["empty", "truncated", "leak"])
    cut_leak = Answer("Like the reference answer", "length", 3)
    assert first_rejection(cut_leak, asked(), checks) == ("truncated", "cut off after 3 tokens")
    assert first_rejection(cut_leak, asked(), checks[::-1]) == ("leak", "'reference answer' in the answer")


def test_an_answer_that_passes_all_checks_is_not_rejected():
    checks = resolve_checks(SelfDistillationConfig().checks)
    assert first_rejection(written("A drink made from leaves."), asked(), checks) is None


def test_a_refusal_fails_the_default_checks():
    checks = resolve_checks(SelfDistillationConfig().checks)
    rejection = first_rejection(written("Hello! I'm sorry, but I can't help with tea."), asked(), checks)
    assert rejection is not None
    assert rejection[0] == "refusal"


def test_an_unknown_check_is_refused_with_the_known_ones_named():
    with pytest.raises(UnknownNameError, match=r"self_distillation\.checks is 'leaks'.*known: .*numeric_answer"):
        resolve_checks(["empty", "leaks"])


def test_a_name_with_options_sets_them():
    [(name, check)] = resolve_checks([{"length_ratio": {"max": 1.5, "slack": 0}}])
    assert name == "length_ratio"
    assert check(written("one two three four"), asked(reference="one two")) == "4 words, the original 2"
    assert check(written("one two three"), asked(reference="one two")) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"length_ratio": {"mim": 1}},
            r"self_distillation\.checks: .*length_ratio has no option 'mim'; .*'min'",
        ),
        ({"length_ratio": {"min": -1}}, r"the check length_ratio has min: -1; .*greater than or equal to 0"),
        ({"length_ratio": {"slack": "some"}}, r"the check length_ratio has slack: 'some'; .*integer"),
        ({"empty": {"min": 1}}, r"the check empty has no option 'min'; it takes none"),
        ({"leak": {"template_sentences": ["x"]}}, r"the check leak has no option 'template_sentences'; .*phrases"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_way_out(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        resolve_checks([options])


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_check_says_what_it_rejects(name: str):
    assert (BUILT_IN[name].__doc__ or "").startswith("Reject an answer")


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_check_passes_an_answer_that_equals_its_original(name: str):
    reference = "Call it:\n```python\nbrew(cups=4)\n```\nThat makes 2 + 2 = 4 cups. The answer is 4."
    [(_, check)] = resolve_checks([name])
    assert check(written(reference), asked("How do I brew tea?", reference)) is None


MARKS = st.text(st.sampled_from("f(){}[]=+-x*/1.,\"'`~\n :\\\\#$%ae"), max_size=80)


@given(MARKS | st.text(max_size=80), MARKS | st.text(max_size=80))
def test_no_text_makes_a_built_in_check_fail(text: str, reference: str):
    for name, check in BUILT_IN.items():
        reason = check(written(text), asked(f"{reference} {text}", reference))
        assert reason is None or reason, name


PARTS = (
    *(
        "(",
        "f(",
        "[{",
        "1",
        "1+1=",
        "1,",
        "```\n",
        "~~~a\n",
        "(1+",
        '{"name":',
        "\\boxed{",
        "\\frac{",
        " ",
        "\n",
        "- ",
        "= ",
        "x=1, ",
    ),
    *(
        "the answer is ",
        "as an ai ",
        "I'm sorry ",
        "reference answer ",
        "f(x=1) ",
        "1 2 ",
        "1.2.",
        "and ",
        "'",
        "a*",
        "\u8336",
        "\ud800",
    ),
)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_an_answer_of_a_hundred_thousand_characters_is_judged_in_seconds(name: str):
    short = "f(1)\n```python\nx\n```\nThe answer is 1."
    for number, part in enumerate(PARTS):
        text = (part * 100_000)[:100_000]
        target = asked("Count.", short) if number % 3 else asked(text, text)
        started = time.monotonic()
        reason = BUILT_IN[name](written(text), target)
        assert time.monotonic() - started < 300, part  # about a second; quadratic ones take minutes
        assert reason is None or reason


# --- checks of plugins ---


class Plugin:
    """What an installed plugin package would bring."""

    def __init__(self, **checks):
        self.checks = checks

    @hookimpl
    def sdft_register_checks(self, register):
        for name, check in self.checks.items():
            register(name, check)


@pytest.fixture
def plugged(monkeypatch):
    """Registers checks as a plugin would, for one test."""

    def plug(**checks) -> None:
        plugins = Registry()
        plugins.add_plugin(Plugin(**checks), "tea_checks")
        monkeypatch.setattr("axolotl_sdft.distillation.checks.registry", lambda: plugins)

    return plug


def test_a_plugin_s_plain_function_is_a_check(plugged):
    plugged(no_milk=lambda answer, target: "milk" if "milk" in answer.text else None)
    [(_, check)] = resolve_checks(["no_milk"])
    assert check(written("Tea with milk"), asked()) == "milk"
    with pytest.raises(ConfigError, match="the check no_milk has no option 'cups'; it takes none"):
        resolve_checks([{"no_milk": {"cups": 1}}])


def test_a_plugin_s_check_has_the_options_that_its_keywords_declare(plugged):
    def few_words(answer: Answer, target: Target, *, most: Annotated[int, Field(ge=1)] = 3) -> str | None:
        return "too long" if answer.num_tokens > most else None

    plugged(few_words=few_words)
    [(_, by_default)], [(_, longer)] = resolve_checks(["few_words"]), resolve_checks([{"few_words": {"most": 4}}])
    assert by_default(written("Tea is a drink"), asked()) == "too long"
    assert longer(written("Tea is a drink"), asked()) is None
    with pytest.raises(ConfigError, match=r"few_words has most: 0; .*greater than or equal to 1"):
        resolve_checks([{"few_words": {"most": 0}}])


def test_what_a_plugin_s_check_needs_is_tested_before_any_work_starts(plugged):
    def needs_a_server(*, url: str) -> None:
        if not url:
            raise ConfigError("set url")

    @prepared_by(needs_a_server)
    def judged(answer: Answer, target: Target, *, url: str = "") -> str | None:
        return url

    plugged(judged=judged)
    with pytest.raises(ConfigError, match="set url"):
        resolve_checks(["judged"])
    [(_, check)] = resolve_checks([{"judged": {"url": "http://tea"}}])
    assert check(written("Tea"), asked()) == "http://tea"


def test_a_judge_behind_a_server_is_a_check_with_a_threshold(plugged, judge_url):
    def score(answer: Answer, target: Target) -> float:
        reply = httpx.post(judge_url, json={"question": target.instruction, "answer": answer.text}, timeout=600)
        return float(reply.raise_for_status().json()["score"])

    plugged(judge=scored_check(score, min_score=0.5))
    [(_, check)], [(_, strict)] = resolve_checks(["judge"]), resolve_checks([{"judge": {"min_score": 0.9}}])
    assert check(written("Tea is a drink."), asked()) is None  # 15 characters score 0.75
    assert check(written("Tea"), asked()) == "score 0.15, below 0.5"
    assert strict(written("Tea is a drink."), asked()) == "score 0.75, below 0.9"


def test_a_score_that_is_no_number_does_not_pass():
    assert scored_check(lambda answer, target: float("nan"), min_score=0.0)(written("Tea"), asked()) is not None


@pytest.fixture
def judge_url():
    """A server that scores an answer by its length: 20 characters are worth 1."""

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"score": len(request["answer"]) / 20}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
