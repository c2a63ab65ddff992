import pytest
import yaml
from pydantic import ValidationError

from axolotl_sdft.config import (
    GenerationConfig,
    OpenAIGeneration,
    PluginGeneration,
    SelfDistillationConfig,
    TransformersGeneration,
    VLLMGeneration,
    generation_config,
)


def test_top_p_without_sampling_is_refused():
    with pytest.raises(ValidationError, match=r"top_p is 0\.9, but temperature 0\.0 does not sample; set temp"):
        TransformersGeneration(top_p=0.9, temperature=0.0)
    assert TransformersGeneration(top_p=0.9, temperature=0.7).top_p == 0.9


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("Sure: ", r"answer_prefix is 'Sure: ', with a space at its end, which belongs to the next word's token"),
        ("\n", r"answer_prefix is '\\n', without a word; give one, or remove the key"),
    ],
)
def test_a_prefix_that_no_answer_can_begin_with_is_refused(prefix, message):
    with pytest.raises(ValidationError, match=message):
        SelfDistillationConfig(answer_prefix=prefix)
    assert SelfDistillationConfig(answer_prefix="Sure:\n").answer_prefix == "Sure:\n"


def test_top_k_without_sampling_is_refused():
    with pytest.raises(ValidationError, match=r"top_k is 50, but temperature 0\.0 does not sample; set temp"):
        TransformersGeneration(top_k=50, temperature=0.0)
    assert TransformersGeneration(top_k=50, temperature=0.95).top_k == 50


def test_one_server_may_be_written_without_a_list_and_a_slash_at_the_end_does_not_count():
    config = generation_config({"backend": "openai", "base_urls": "http://gpu1:8000/v1/"})
    assert config.base_urls == ("http://gpu1:8000/v1",)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "gpu1:8000/v1",
            r"holds 'gpu1:8000/v1', which is not an http\(s\) address; did you mean http://gpu1:8000/v1\?",
        ),
        ("gpu1", r"did you mean http://gpu1\?"),
        ("ftp://gpu1/v1", r"'ftp://gpu1/v1', which is not an http\(s\) address; write it as http://localhost:8000/v1"),
        ("file:///etc/hosts", "'file:///etc/hosts', which is not an http"),
        ("", "base_urls holds '', which is not an http"),
        ("http://", "base_urls holds 'http://', which is not an http"),
        ("http://gpu1:port/v1", "'http://gpu1:port/v1', which is not an http"),
        ("http://gpu1:65536/v1", r"not an http\(s\) address \(Port out of range 0-65535\)"),
        ("http://gpu1:0/v1", "not an http"),
        ("http://::1:8000/v1", "not an http"),
        ("http://[::1/v1", r"not an http\(s\) address \(Invalid IPv6 URL\)"),
        ("http://*:8000/v1", r"'\*' can't be the name of one server"),
        ("http://*.example.org/v1", "can't be the name of one server"),
        ("http://gpu..org/v1", "can't be the name of one server"),
        (f"http://{'a' * 64}/v1", "can't be the name of one server"),
        ("http://gpu 1/v1", "'http://gpu 1/v1', with a space, a backslash or a control character; take it out"),
        ("http://gpu1/v 1", "with a space, a backslash or a control character"),
        ("http://gpu1:80\n80/v1", "with a space, a backslash or a control character"),
        ("https://host/v1?key=7", r"holds 'https://host/v1' with a query or fragment; leave out what follows the path"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url, message):
    with pytest.raises(ValidationError, match=message):
        OpenAIGeneration(base_urls=(url,))


@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "me:secret@host/v1"])
def test_a_password_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(ValidationError, match="base_urls holds") as caught:
        OpenAIGeneration(base_urls=(url,))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("HTTPS://gpu_1.example.org./v1//", "https://gpu_1.example.org./v1"),
        (
            " http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}ro/v1 ",
            "http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}ro/v1",
        ),
    ],
)
def test_an_unusual_address_that_can_be_asked_is_taken(url, kept):
    assert OpenAIGeneration(base_urls=(url,)).base_urls == (kept,)


def test_a_query_is_refused_and_not_repeated():
    with pytest.raises(ValidationError, match="leave out what follows the path") as caught:
        OpenAIGeneration(base_urls=("https://host/v1?key=secret",))
    assert "secret" not in str(caught.value)


def test_template_arguments_that_disagree_are_told_but_not_if_they_are_secrets():
    with pytest.raises(
        ValidationError, match=r"sets api_key: '\*\*\*', but .* sets api_key: '\*\*\*'; remove one"
    ) as caught:
        generation_config(
            **{"backend": "openai", "base_urls": ("http://a/v1",), "chat_template_kwargs": {"api_key": "hidden1"}},
            extra_body={"chat_template_kwargs": {"api_key": "hidden2"}},
        )
    assert "hidden" not in str(caught.value)


def test_one_server_named_twice_is_refused():
    with pytest.raises(ValidationError, match=r"base_urls names one server twice: http://a/v1, http://a/v1"):
        OpenAIGeneration(base_urls=("http://a/v1", "http://a/v1/"))


@pytest.mark.parametrize("name", ["sk-1234", "hf_AbCd", "", "MY KEY"])
def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated(name):
    with pytest.raises(ValidationError, match="api_key_env is the name of an environment variable") as caught:
        OpenAIGeneration(api_key_env=name)
    assert not name or name not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "openai"}, r"backend openai needs base_urls.* such as \[http://localhost:8000/v1\]"),
        ({"extra_body": {"seed": 1}}, r"extra_body sets 'seed', which generation\.seed sets"),
        ({"extra_body": {"stream": True}}, "extra_body sets 'stream', but answers are read whole"),
    ],
)
def test_settings_of_servers_that_can_not_work_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        generation_config(SERVED | settings if settings.keys() == {"extra_body"} else settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_urls": ["http://a/v1"]}, "unknown key 'base_urls': backend transformers has none; set backend: openai"),
        ({"backend": "transformers", "extra_body": {}}, "backend transformers has none; .*or remove extra_body"),
        ({"backend": "vllm", "max_batch_size": 8}, "'max_batch_size': backend vllm has none; set backend: transformer"),
        ({"backend": "mine", "concurrency": 8}, "the backend of a plugin has none; set backend: openai, or remove"),
        ({"vllm_args": {"enforce_eager": True}}, "backend transformers has none; set backend: vllm, or remove vllm_a"),
        ({"backend": "openai", "dtype": "auto"}, "openai has none; set backend: (transformers or vllm|vllm or transf)"),
        ({"max_new_token": 8}, "unknown key 'max_new_token'; did you mean 'max_new_tokens'"),
    ],
)
def test_a_setting_of_another_backend_is_unknown_and_its_backend_is_named(settings, message):
    with pytest.raises(ValidationError, match=message):
        SelfDistillationConfig(generation=settings)


def test_the_settings_are_those_of_the_backend_that_is_named():
    def kind(**settings):
        return type(SelfDistillationConfig(generation=settings).generation)

    assert kind() is kind(backend="transformers") is TransformersGeneration
    assert kind(backend="vllm") is VLLMGeneration
    assert kind(backend="openai", base_urls=["http://a/v1"]) is OpenAIGeneration
    assert kind(backend="mine") is PluginGeneration


@pytest.mark.parametrize("settings", [VLLMGeneration(seed=7), PluginGeneration(backend="mine", options={"a": 1})])
def test_the_settings_of_a_backend_can_be_given_as_its_class(settings):
    config = SelfDistillationConfig(generation=settings)

    assert config.generation == settings
    assert SelfDistillationConfig.model_validate(config.model_dump()).generation == settings


def test_a_plugins_own_options_shape_its_answers_and_its_batches_do_not():
    plain = PluginGeneration(backend="mine")

    assert plain.shaping_answers() == {"backend": "mine", "temperature": 1.0}
    assert PluginGeneration(backend="mine", max_batch_size=2).shaping_answers() == plain.shaping_answers()
    with_options = PluginGeneration(backend="mine", options={"beams": 4})
    assert with_options.shaping_answers() == plain.shaping_answers() | {"options": {"beams": 4}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "vllm", "vllm_args": {"dtype": "half"}}, r"vllm_args sets 'dtype', which generation\.dtype sets"),
        ({"backend": "vllm", "vllm_args": {"model": "x"}}, "vllm_args sets 'model', which base_model sets"),
        (
            {"backend": "vllm", "vllm_args": {"--served-model-name": "x"}},
            "sets 'served_model_name', but the server is fo",
        ),
    ],
)
def test_arguments_of_vllm_that_can_not_work_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        generation_config(**settings)


def test_answers_are_shaped_by_the_settings_of_the_model_and_not_by_those_of_memory_and_speed():
    args = {"gpu_memory_utilization": 0.8, "max_num_seqs": 64}
    plain = VLLMGeneration()
    tuned = VLLMGeneration(
        vllm_args={"data-parallel-size": 2, **args}, python="/envs/vllm/bin/python", trust_remote_code=True
    )
    quantized = VLLMGeneration(vllm_args={**args, "quantization": "fp8"})
    embedded = TransformersGeneration(max_batch_size=4, max_batch_tokens=99, device_map="auto", trust_remote_code=True)
    served = OpenAIGeneration(base_urls="http://b/v1", concurrency=8, timeout_s=1.0, max_retries=2, api_key_env="KEY")

    assert tuned.shaping_answers() == plain.shaping_answers()
    assert quantized.shaping_answers() == plain.shaping_answers() | {"vllm_args": {"quantization": "fp8"}}
    default = {"temperature": 1.0}
    assert (
        embedded.shaping_answers()
        == TransformersGeneration().shaping_answers()
        == {
            "backend": "transformers",
            **default,
        }
    )
    assert served.shaping_answers() == {"backend": "openai", **default}
    assert generation_config(SERVED).shaping_answers() == served.shaping_answers()


def test_a_setting_counts_where_it_is_not_the_default():
    settings = {"max_new_tokens": 8, "temperature": 0.5, "top_p": 0.9, "seed": 1, "dtype": "float32"}

    assert TransformersGeneration(**settings).shaping_answers() == {"backend": "transformers", **settings}
    unset = TransformersGeneration(max_new_tokens=512).shaping_answers()
    assert unset == {"backend": "transformers", "temperature": 1.0}  # whose default was 0 once, so it is always there


SERVED = {"backend": "openai", "base_urls": ("http://a/v1",)}
NO_THINKING = {"enable_thinking": False}


def test_arguments_of_the_chat_template_shape_answers():
    plain, told = TransformersGeneration(), TransformersGeneration(chat_template_kwargs=NO_THINKING)

    assert told.shaping_answers() == plain.shaping_answers() | {"chat_template_kwargs": NO_THINKING}
    assert told.template_arguments == NO_THINKING
    assert plain.template_arguments == {}


def test_a_field_of_a_request_written_with_an_exponent_is_a_number():
    body = yaml.safe_load("{min_p: 1e-2, penalties: [2E0, 1.5e+1], stop: ['1e', 'e5', v1e5], user: 0e1f2}")
    sent = {"min_p": 0.01, "penalties": [2.0, 15.0], "stop": ["1e", "e5", "v1e5"], "user": "0e1f2"}
    assert generation_config(**SERVED, extra_body=body).request_fields == sent


def test_a_request_is_the_same_whichever_key_gives_the_chat_templates_arguments():
    settings = SERVED | {"extra_body": {"min_p": 0.05}}
    own = generation_config(**settings, chat_template_kwargs=NO_THINKING)
    body = generation_config(**SERVED, extra_body={"min_p": 0.05, "chat_template_kwargs": NO_THINKING})
    both = generation_config(**SERVED, extra_body=body.extra_body, chat_template_kwargs={"lang": "en"})

    assert own.request_fields == {"min_p": 0.05, "chat_template_kwargs": NO_THINKING}
    assert body.request_fields == own.request_fields
    assert own.shaping_answers() == body.shaping_answers()
    assert own.template_arguments == NO_THINKING
    assert body.template_arguments == NO_THINKING
    assert both.template_arguments == NO_THINKING | {"lang": "en"}
    assert generation_config(**settings).request_fields == {"min_p": 0.05}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template_kwargs": {"tokenize": True}}, "sets 'tokenize', but the backend turns the prompt into tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "sets 'messages', but the rewriting template makes the chat"),
        ({"chat_template_kwargs": {"add_generation_prompt": True}}, "'add_generation_prompt', but a prompt ends where"),
        (
            {**SERVED, "extra_body": {"chat_template_kwargs": {"chat_template": "x"}}},
            r"extra_body\.chat_template_kwargs sets 'chat_template', but the seed model's own chat template is used",
        ),
        (
            {
                **SERVED,
                "chat_template_kwargs": NO_THINKING,
                "extra_body": {"chat_template_kwargs": {"enable_thinking": True}},
            },
            r"generation\.chat_template_kwargs sets enable_thinking: False, but "
            r"generation\.extra_body\.chat_template_kwargs sets enable_thinking: True; remove one of the two",
        ),
        (
            {**SERVED, "chat_template_kwargs": NO_THINKING, "extra_body": {"chat_template_kwargs": "{}"}},
            r"extra_body sets chat_template_kwargs to '\{\}', which can't be joined with generation\.chat_template_kwa",
        ),
    ],
)
def test_arguments_of_the_chat_template_that_can_not_work_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        generation_config(**settings)


@pytest.mark.parametrize("text", ["chatml", "templates/mine.jinja"])
def test_a_chat_template_that_is_no_jinja_text_is_refused(text):
    with pytest.raises(ValidationError, match=f"chat_template is '{text}', which is no Jinja text; write the template"):
        generation_config(chat_template=text)


def test_what_a_server_takes_for_arguments_of_the_chat_template_is_sent_as_it_is():
    config = generation_config(**SERVED, extra_body={"chat_template_kwargs": "{}"})
    assert config.request_fields == {"chat_template_kwargs": "{}"}
    assert config.template_arguments == {}


@pytest.mark.parametrize("kind", GenerationConfig.__subclasses__())
def test_settings_that_only_change_the_speed_are_settings(kind):
    assert kind.model_fields.keys() > kind.SPEED_ONLY


def test_settings_with_further_fields_of_requests_can_be_hashed():
    first, second = (OpenAIGeneration(base_urls=("http://a/v1",), extra_body={"min_p": k}) for k in (0.1, 0.2))
    assert len({first, second, first.model_copy()}) == 2


def test_a_jinja_template_that_never_shows_the_reference_is_refused():
    with pytest.raises(ValidationError, match=r"template is a Jinja text without \{\{ reference \}\}"):
        SelfDistillationConfig(template="Answer this: {{ instruction }}")


@pytest.mark.parametrize("template", ["a_registered_name", "{{ instruction }} Like this: {{ reference }}"])
def test_a_template_is_a_name_or_a_jinja_text(template):
    assert SelfDistillationConfig(template=template).template == template


def test_a_check_named_twice_is_refused():
    with pytest.raises(ValidationError, match=r"checks names one twice: \['leak', 'empty', 'leak'\]"):
        SelfDistillationConfig(checks=("leak", "empty", "leak"))


def test_a_check_with_options_is_a_name_that_maps_to_them():
    config = SelfDistillationConfig(checks=["leak", {"length_ratio": {"min": 0.5}}])
    assert config.checks == ("leak", {"length_ratio": {"min": 0.5}})
    assert SelfDistillationConfig(**config.model_dump(exclude_none=True)) == config


@pytest.mark.parametrize("options", [None, {}])
def test_a_check_with_a_colon_and_nothing_behind_it_is_its_name(options):
    assert SelfDistillationConfig(checks=[{"leak": options}]).checks == ("leak",)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        (["leak", {"leak": {"phrases": ["tea"]}}], r"checks names one twice: \['leak', 'leak'\]"),
        ([{"leak": {"phrases": []}, "length_ratio": {"min": 1}}], "not one name with its options; give each its own"),
        ([{"length_ratio": 3}], "valid dictionary"),
    ],
)
def test_checks_that_are_no_names_with_options_are_refused(checks, message):
    with pytest.raises(ValidationError, match=message):
        SelfDistillationConfig(checks=checks)


def test_settings_with_options_and_examples_can_be_hashed_and_differ_in_their_hash():
    example = {"instruction": "Tea?", "reference": "Yes.", "answer": "Yes, please."}
    first, same = (SelfDistillationConfig(checks=[{"length_ratio": {"min": 0.5}}]) for _ in range(2))
    other = SelfDistillationConfig(checks=[{"length_ratio": {"min": 0.5}}], examples=[example])
    assert hash(first) == hash(same) != hash(other)


def test_an_example_needs_all_three_texts():
    with pytest.raises(ValidationError, match=r"examples\.0\.answer\n  Field required"):
        SelfDistillationConfig(examples=[{"instruction": "Tea?", "reference": "Yes."}])
    with pytest.raises(ValidationError, match="unknown key 'refrence'; did you mean 'reference'"):
        SelfDistillationConfig(examples=[{"instruction": "Tea?", "refrence": "Yes.", "answer": "Yes."}])


def test_answers_can_be_asked_for_again_and_the_most_likely_one_taken():
    config = SelfDistillationConfig(max_attempts=6)  # without a temperature: only the later ones are sampled
    assert (config.max_attempts, config.selection, config.min_attempts) == (6, "first", None)
    sampled = SelfDistillationConfig(max_attempts=4, selection="max_logprob", generation={"temperature": 0.7})
    assert (sampled.max_attempts, sampled.selection) == (4, "max_logprob")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"selection": "max_logprob", "max_attempts": 1},
            r"selection is max_logprob, but max_attempts is 1; set max_attempts above 1",
        ),
        (
            {"selection": "max_logprob", "max_attempts": 4, "generation": {"temperature": 0.0}},
            r"generation\.temperature is 0\.0, .*, such as 1\.0, or selec",
        ),
        (
            {"max_attempts": 4, "min_attempts": 2},
            r"min_attempts is 2, but selection is first, .*selection: max_logprob",
        ),
        (
            {
                "max_attempts": 4,
                "min_attempts": 5,
                "selection": "max_logprob",
                "generation": {"temperature": 0.7},
            },
            r"min_attempts is 5, above max_attempts 4; lower min_attempts, or raise max_attempts",
        ),
    ],
)
def test_attempts_that_have_nothing_to_select_from_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SelfDistillationConfig(**settings)
