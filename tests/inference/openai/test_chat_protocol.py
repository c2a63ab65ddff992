"""How the responses of servers are read."""

import pytest

from axolotl_sdft.inference.interfaces import Answer
from axolotl_sdft.inference.openai.chat_protocol import finish_of, read_answer
from axolotl_sdft.inference.openai.faults import RefusedError, TransientError


def response(finish_reason="stop", content="Half a sentence", **message):
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"content": content, **message}}
    return {"model": "seed", "choices": [choice], "usage": {"completion_tokens": 3}}


def read(body, control_tokens=()):
    return read_answer(body, lambda name: name == "seed", lambda text: len(text.split()), control_tokens=control_tokens)


# How an answer ended


@pytest.mark.parametrize(
    "said",
    [
        *("stop", "STOP", " Stop ", "eos", "eos_token", "eos-token", "eosFound", "end_turn", "stop_sequence"),
        *("COMPLETE", "endoftext", "FINISHED", "end of text"),
    ],
)
def test_a_word_for_finished_is_a_finished_answer(said):
    assert read(response(said)) == Answer("Half a sentence", "stop", 3)


@pytest.mark.parametrize(
    "said",
    [
        *("length", "LENGTH", "model_length", "max_tokens", "MAX_TOKENS", "maxTokens", "max_new_tokens", "token_limit"),
        *("maximum_tokens", "max_output_tokens", "model_context_window_exceeded", "ERROR_LIMIT"),
    ],
)
def test_a_word_for_too_long_is_an_answer_that_was_cut_off(said):
    assert read(response(said)) == Answer("Half a sentence", "length", 3)


@pytest.mark.parametrize(
    "said",
    [
        *("content_filter", "CONTENT_FILTERED", "SAFETY", "tool_calls", "function_call", "tool_use", "refusal"),
        *(
            "guardrail_intervened",
            "repetition",
            "stopped by the moon",
            "nonstop",
            ["stop"],
            {"reason": "stop"},
            1,
            True,
        ),
    ],
)
def test_any_other_word_is_no_answer_and_is_not_asked_for_again(said):
    assert finish_of(said) is None
    with pytest.raises(RefusedError, match=r"^no finished answer \(finish_reason "):
        read(response(said))


@pytest.mark.parametrize("said", [None, "", "abort", "error", "cancelled", "insufficient_system_resource"])
def test_an_answer_that_the_server_gave_up_is_asked_for_again(said):
    with pytest.raises(TransientError, match=rf"^no finished answer \(finish_reason {said!r}\)"):
        read(response(said))


def test_an_answer_without_a_finish_reason_is_asked_for_again():
    body = response()
    del body["choices"][0]["finish_reason"]
    with pytest.raises(TransientError, match=r"finish_reason None"):
        read(body)


@pytest.mark.parametrize("call", [{"tool_calls": [{"function": {"name": "f"}}]}, {"function_call": {"name": "f"}}])
def test_a_call_is_no_answer_whatever_stands_beside_it(call):
    with pytest.raises(RefusedError, match="but a call of a function"):
        read(response(**call))
    assert read(response(**dict.fromkeys(call))).text == "Half a sentence"  # null, as vLLM sends it


def test_a_refusal_beside_the_content_is_told():
    with pytest.raises(RefusedError, match="the server refuses to answer: I can't help with that"):
        read(response(content=None, refusal="I can't help with that"))
    assert read(response(refusal=None)).text == "Half a sentence"


# Where the text is


def test_text_in_parts_is_joined_without_the_thinking():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": " One"},
        {"type": "output_text", "text": ", two"},
        ", three ",
    ]
    assert read(response(content=parts)).text == "One, two, three"


def test_a_refusal_among_the_parts_is_told():
    with pytest.raises(RefusedError, match="refuses to answer: No"):
        read(response(content=[{"type": "text", "text": "Well"}, {"type": "refusal", "refusal": "No"}]))


@pytest.mark.parametrize("content", [7, {"text": "x"}, [{"type": "image_url"}], [3], [{"type": "text"}], [{"text": 5}]])
def test_what_is_not_text_is_no_answer(content):
    with pytest.raises(TransientError, match="no text in the answer"):
        read(response(content=content))


def test_half_a_character_is_no_text():
    with pytest.raises(RefusedError, match="half a character"):
        read(response(content="smile \ud83d"))
    assert read(response(content="smile \N{GRINNING FACE}")).text == "smile \N{GRINNING FACE}"


CONTROL_TOKENS = frozenset({"<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Paris.<|im_end|>", "Paris."),
        ("Paris.</s>", "Paris."),
        ("Paris.<|im_end|>\n<|endoftext|>\n", "Paris."),
        ("<think>Is <|im_end|> asked?</think>Paris.<|im_end|>", "<think>Is <|im_end|> asked?</think>Paris."),
        ("<|im_end|>", ""),
        ("Paris <b>is</b> |it|.", "Paris <b>is</b> |it|."),
    ],
)
def test_an_answer_ends_before_the_token_that_ends_it(content, expected):
    assert read(response(content=content), CONTROL_TOKENS).text == expected


@pytest.mark.parametrize(
    "content", ["Paris.<|im_end|>\n<|im_start|>user\nAnd Spain?<|im_end|>", "Paris.<|im_end|>\nuser\nAnd Spain?"]
)
def test_an_answer_that_goes_on_with_another_turn_is_refused(content):
    with pytest.raises(RefusedError, match=r"^the answer goes on behind <\|im_end\|>, a control token"):
        read(response(content=content), CONTROL_TOKENS)


# The response as a whole


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], "text", 5, {}, {"choices": None}, {"choices": []}, {"choices": {}}, {"choices": ["text"]}),
        {"choices": [{"text": "a text completion", "finish_reason": "stop"}]},
        {"choices": [{"message": "text", "finish_reason": "stop"}]},
    ],
)
def test_a_response_of_another_form_is_no_answer(body):
    with pytest.raises(TransientError, match=r"^no (answer in|message in) the response"):
        read(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"message": "quota exceeded"}, "quota exceeded"),
        ({"detail": [{"loc": ["model"], "msg": "unknown"}]}, r".*unknown"),
        ({"detail": {"error": {"message": "no backend"}}, "choices": []}, "no backend"),
        ({"code": 500, "msg": "404 NOT_FOUND", "success": False}, "404 NOT_FOUND"),
        ({"error": None, "message": "quota exceeded"}, "quota exceeded"),
    ],
)
def test_what_a_gateway_says_in_the_place_of_an_answer_is_told(body, told):
    with pytest.raises(TransientError, match=f"^no answer in the response, but the message: {told}"):
        read(body)


def test_a_piece_of_a_stream_is_no_answer():
    with pytest.raises(TransientError, match="a piece of a stream"):
        read({"choices": [{"delta": {"content": "Half"}, "finish_reason": "stop"}]})


def test_an_error_counts_though_an_answer_stands_beside_it():
    error = {"error": {"message": "upstream is gone", "code": 502}}
    with pytest.raises(TransientError, match="but an error: upstream is gone"):
        read(response() | error)
    inner = response()
    inner["choices"][0] |= error
    with pytest.raises(TransientError, match="but an error: upstream is gone"):
        read(inner)
    assert read(response() | {"error": None}).text == "Half a sentence"


def test_of_several_answers_the_first_by_its_number_is_taken():
    first, second = response(content="first")["choices"], response(content="second")["choices"]
    second[0]["index"] = 1
    assert read(response() | {"choices": second + first}).text == "first"


@pytest.mark.parametrize(
    "usage", [None, [], {"completion_tokens": -1}, {"completion_tokens": True}, {"completion_tokens": 10**40}]
)
def test_tokens_are_counted_here_where_the_server_tells_no_number(usage):
    assert read(response() | {"usage": usage}).num_tokens == 3
    assert read(response(content="one two") | {"usage": usage}).num_tokens == 2


def test_a_log_probability_that_is_no_number_is_none():
    body = response()
    body["choices"][0]["logprobs"] = {"content": [{"logprob": float("nan")}, {"logprob": -1.0}]}
    assert read(body).mean_logprob is None
