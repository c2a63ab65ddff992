"""The servers' key in what servers say, in whatever form they quote it."""

import base64
import html
import json
import logging
from urllib.parse import quote

import pytest

from axolotl_sdft.inference.openai.api_key import HIDDEN, REDACTED, ApiKey, LogRedaction

PLAIN = "sk-very-secret-4711-abcdefgh"
ODD = 'k&y/with"odd<signs>+4711'


@pytest.fixture
def key(monkeypatch):
    """Make the key of a variable, which is set to a value."""

    def make(value):
        monkeypatch.setenv("SDFT_TEST_KEY", value)
        return ApiKey("SDFT_TEST_KEY")

    return make


FORMS = {
    "as it is": str,
    "percent-encoded": lambda value: quote(value, safe=""),
    "percent-encoded whole": lambda value: "".join(f"%{ord(sign):02x}" for sign in value),
    "percent-encoded twice": lambda value: quote(quote(value, safe=""), safe=""),
    "for HTML": html.escape,
    "for JSON": lambda value: json.dumps(value)[1:-1],
    "for JSON twice": lambda value: json.dumps(json.dumps(value)),
    "in escapes of JSON": lambda value: "".join(f"\\u{ord(sign):04x}" for sign in value),
    "in hexadecimal": lambda value: value.encode().hex(),
    "in base64": lambda value: base64.b64encode(value.encode()).decode(),
    "in base64 behind a name": lambda value: base64.b64encode(f"user:{value}".encode()).decode(),
    "in base64 behind a longer name": lambda value: base64.b64encode(f"user1:{value}:x".encode()).decode(),
    "in base64 for addresses": lambda value: base64.urlsafe_b64encode(f"a:{value}".encode()).decode(),
    "broken into lines": lambda value: "\n".join(value[start : start + 7] for start in range(0, len(value), 7)),
    "with a zero-width space": lambda value: f"{value[:5]}\u200b{value[5:]}",
    "with an escape": lambda value: f"{value[:5]}\x1b {value[5:]}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [PLAIN, ODD])
def test_a_key_is_found_in_every_form(key, value, form):
    quoted = FORMS[form](value)
    shown = key(value).redacted(f"bad key: {quoted}, try another")
    assert quoted not in shown
    assert REDACTED in shown or shown == HIDDEN


def test_what_stands_around_a_key_stays(key):
    assert key(PLAIN).redacted(f"bad key {PLAIN}!") == f"bad key {REDACTED}!"


def test_halves_of_a_key_are_taken_out_one_by_one(key):
    said = f"it begins with {PLAIN[:16]} and ends with {PLAIN[12:]}."
    assert key(PLAIN).redacted(said) == f"it begins with {REDACTED} and ends with {REDACTED}."


def test_a_few_characters_of_a_key_stay_as_servers_mask_it(key):
    assert key(PLAIN).redacted("sk-very***fgh") == "sk-very***fgh"


@pytest.mark.parametrize(
    "value", ["", "EMPTY", "none", "123", "anything", "Not-Needed", "NO_KEY_NEEDED", "sk-no-key-required"]
)
def test_words_that_stand_for_no_key_are_left_alone(key, value):
    said = f"none of the 123 is EMPTY or {value}"
    assert key(value).redacted(said) == said


@pytest.mark.parametrize("value", ["correct-horse-battery-staple", "sk-wrong", "anything1", "aBcDeFgH", "12345678"])
def test_a_passphrase_and_what_is_not_made_of_words_is_a_key(key, value):
    assert key(value).redacted(f"bad key {value}!") == f"bad key {REDACTED}!"


def test_a_short_key_is_found_as_a_word_alone(key):
    assert key("a1b2").redacted("a1b2, not xa1b2y") == f"{REDACTED}, not xa1b2y"


def test_texts_and_names_of_parsed_json_are_cleaned_and_all_else_is_kept(key):
    body = {"id": [PLAIN, 7, None, 0.5, True], f"by {PLAIN}": {"deep": [[f"x{PLAIN}"]]}}
    cleaned = {"id": [REDACTED, 7, None, 0.5, True], f"by {REDACTED}": {"deep": [[f"x{REDACTED}"]]}}
    assert key(PLAIN).cleaned(body) == cleaned


def test_log_lines_of_the_http_libraries_hold_no_key_and_those_of_each_request_are_left_out(key, caplog, monkeypatch):
    below, sdk, http = (logging.getLogger(name) for name in ("httpcore2.http11", "openai._base_client", "httpx"))
    for logger in (below, sdk, http):
        caplog.set_level(logging.DEBUG, logger=logger.name)
        monkeypatch.setattr(logger, "filters", [])  # Axolotl gives one to each logger that is made after its import
    redaction = LogRedaction(key(PLAIN))
    redaction.turn_on()
    below.debug("headers %r", [(b"X-Key", PLAIN.encode())])
    sdk.debug("options: {'provider': {'api_key': 'another'}}")
    sdk.warning("refused %s", PLAIN)
    http.info("a line for each request")
    redaction.turn_off()
    assert PLAIN not in caplog.text
    assert f"headers [(b'X-Key', b'{REDACTED}')]" in caplog.text
    assert f"refused {REDACTED}" in caplog.text
    assert "another" not in caplog.text
    assert "a line for each request" not in caplog.text
    http.info("again")
    assert "again" in caplog.text
