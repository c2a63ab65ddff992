"""What is shown and written holds no escapes and no secrets, wherever its parts come from."""

import logging

import click
import pytest
from click.testing import CliRunner

from axolotl_sdft.cli.commands import SdftCommand, echo
from axolotl_sdft.core.errors import ConfigError, ServerError, UnknownNameError
from axolotl_sdft.core.safe_output import is_secret_name, keep_log_lines_printable, looks_secret, masked
from axolotl_sdft.core.texts import one_line, printable
from axolotl_sdft.distillation.generation.selection import rejection_of
from axolotl_sdft.inference.interfaces import Answer, Target

# Colour, title of the window (OSC), C1, carriage return, bell, backspace, overrides of the writing direction.
STEERING = [
    "\x1b[31m",
    "\x1b]0;owned\x07",
    "\x9b2J",
    "\r",
    "\x07",
    "\x08",
    "\x7f",
    "\x00",
    "\u202e",
    "\u2067",
    "\u200f",
]
MARK = "\N{REPLACEMENT CHARACTER}"


def is_harmless(text):
    return not any(sign in text for steering in STEERING for sign in steering if not sign.isprintable())


@pytest.mark.parametrize("steering", STEERING)
def test_nothing_that_steers_a_terminal_is_printable(steering):
    shown = printable(f"before{steering}after")
    assert is_harmless(shown)
    assert shown.startswith(f"before{MARK}")
    assert shown.endswith("after")


def test_lines_tabs_and_all_scripts_stay():
    text = "a\tb\nc \N{GRINNING FACE} \N{HEBREW LETTER ALEF}\N{DEVANAGARI LETTER A}\N{ZERO WIDTH NON-JOINER}"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"
    assert one_line("a\n\tb  c\x1b") == f"a b c{MARK}"


@pytest.mark.parametrize("kind", [ConfigError, ServerError, UnknownNameError])
def test_an_error_says_nothing_that_steers_a_terminal(kind):
    assert str(kind("no \x1b[2Jmodel\rname")) == f"no {MARK}[2Jmodel{MARK}name"


def test_a_command_prints_neither_lines_nor_errors_that_steer_a_terminal():
    @click.command(cls=SdftCommand)
    def shows():
        echo("an answer\x1b]0;owned\x07")
        raise ConfigError("a name\x1b[31m")

    result = CliRunner().invoke(shows)
    assert result.exit_code == 1
    assert f"an answer{MARK}]0;owned{MARK}\n" in result.output
    assert f"Error: a name{MARK}[31m\n" in result.output


def test_log_lines_of_the_package_steer_no_terminal_and_those_of_others_stay(caplog):
    logging.getLogger("axolotl_sdft.some.module").warning("role %s left alone", "x\x1b[31m\r")
    logging.getLogger("another").warning("role %s", "x\x1b[31m")
    assert [record.getMessage() for record in caplog.records] == [
        f"role x{MARK}[31m{MARK} left alone",
        "role x\x1b[31m",
    ]


def test_log_records_are_looked_at_once_however_often_that_is_asked_for():
    before = logging.getLogRecordFactory()
    keep_log_lines_printable()
    assert logging.getLogRecordFactory() is before


def test_a_rejection_reason_is_one_line_without_escapes():
    target = Target(({"role": "user", "content": "Hi"},), "Hello")
    failed = Answer("", "error", 0, error="HTTP 400:\n\x1b[31mno")
    assert rejection_of(failed, target, ()) == ("failed", f"HTTP 400: {MARK}[31mno")
    checks = [("own", lambda answer, target: "because of\n\x9b2J")]
    assert rejection_of(Answer("Good day", "stop", 2), target, checks) == ("own", f"because of {MARK}2J")


# Secrets among the settings


@pytest.mark.parametrize(
    "name",
    [
        *(
            "api_key",
            "apiKey",
            "API-KEY",
            "x-api-key",
            "openai_api_key",
            "hf_token",
            "access_token",
            "auth_token",
            "token",
        ),
        *("password", "db_password", "client_secret", "secret", "Authorization", "credentials", "key", "private_key"),
        "aws_secret_access_key",
    ],
)
def test_a_name_of_a_secret_is_known(name):
    assert is_secret_name(name)
    assert masked({"extra_body": {name: "hunter2"}}) == {"extra_body": {name: "***"}}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "tokens",  # which of them logit_distillation distils
            "max_tokens",
            "max_new_tokens",
            "num_tokens",
            "stop_token_ids",
            "eos_token",
            "bos_token",
            "top_k",
            "tokenizer",
        ),
        *(
            "skip_special_tokens",
            "max_batch_tokens",
            "monkey",
            "keyboard",
            "tokens_per_second",
            "cache_salt",
            "api_key_env",
        ),
    ],
)
def test_a_name_of_something_else_is_left_alone(name):
    assert not is_secret_name(name)
    assert masked({name: "plain"}) == {name: "plain"}


@pytest.mark.parametrize(
    "text",
    [
        *("sk-abcdefghijklmnopqrstuvwx", "hf_abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrstuvwxyz0123"),
        *("Basic dXNlcjpwYXNz", "Authorization: Basic c2VjcmV0OmtleQ==", "Token abcdef0123"),
        *("AKIAABCDEFGHIJKLMNOP", "Bearer abcdefgh12345", "https://me:hidden@host/v1", "https://host/v1?api_key=abc"),
        *("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "0123456789abcdef0123456789abcdef"),
    ],
)
def test_a_form_of_a_secret_is_known(text):
    assert looks_secret(text)
    assert masked([{"anything": text}]) == [{"anything": "***"}]


@pytest.mark.parametrize(
    "text",
    [
        *("HuggingFaceTB/SmolLM2-135M-Instruct", "http://gpu1:8000/v1", "./data/rows-2024.jsonl", "{{ reference }}"),
        *("Rewrite the answer in your own words, please: sk-", "self-distilled-data-of-the-seed-model-by-rows"),
        *(
            "You need a basic understanding of it.",
            "the token probabilities",
            "Basic JavaScript",
            "basic COVID-19 facts",
        ),
    ],
)
def test_a_text_of_another_form_is_left_alone(text):
    assert not looks_secret(text)


def test_a_commit_is_not_a_secret():
    settings = {"revision": "0123456789abcdef0123456789abcdef01234567"}
    assert masked(settings) == settings


def test_all_below_a_secret_name_is_masked_but_what_is_not_set():
    settings = {"credentials": {"user": "me", "pin": 1234, "more": ["x"], "none": None, "is_used": True}, "top_k": 20}
    hidden = {"user": "***", "pin": "***", "more": ["***"], "none": None, "is_used": True}
    assert masked(settings) == {"credentials": hidden, "top_k": 20}
