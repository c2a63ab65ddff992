"""Templates, checks and backends that are given as functions, without a plugin."""

import json
import shutil

import pytest
from pydantic import ValidationError

from axolotl_sdft import SelfDistillationConfig, distill_dataset
from axolotl_sdft.core.errors import ConfigError, PluginError
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer
from tests.core.test_callables import cell
from tests.distillation.echo_backend import EchoBackend
from tests.distillation.test_pipeline import alpaca_rows

CELL = """
    FORBIDDEN = ["0"]

    def ends_in(answer, target, *, also=()):
        return f"ends in {answer.text[-1]}" if answer.text[-1] in [*FORBIDDEN, *also] else None

    def short(target):
        return [{"role": "user", "content": f"In short: {target.reference}"}]
"""


class Loud(EchoBackend):
    """Echoes in capitals."""

    def answer(self, prompt):
        answer = super().answer(prompt)
        return type(answer)(answer.text.upper(), "stop", 7)


def config_of(tmp_path, **settings):
    given = {"checks": [cell(CELL, "ends_in")], "template": cell(CELL, "short"), "generation": {"backend": Loud}}
    return SelfDistillationConfig(output_dir=str(tmp_path / "out"), gap_samples=0, **given | settings)


def spec_of(tmp_path, seed_dir, **settings):
    return DistillationSpec(alpaca_rows(2), config_of(tmp_path, **settings), seed_dir, {"type": "alpaca"}, "seed")


class GoingOn(EchoBackend):
    """Goes on behind the beginning of an answer."""

    def answer(self, prompt):
        return Answer(f"{prompt.answer_prefix}about {prompt.messages[-2]['content'][-1]}1", "stop", 7)


def test_each_answer_begins_with_the_prefix_which_no_check_holds_against_it(tmp_path, seed_dir):
    prefix = "Let us now think about all of this step by step.\n"
    config = config_of(tmp_path, answer_prefix=prefix, checks=["leak"], generation={"backend": GoingOn})

    distilled = distill_dataset(alpaca_rows(2), config, seed_model=seed_dir)

    assert list(distilled["output"]) == [f"{prefix}about 01", f"{prefix}about 11"]


def test_a_backend_that_leaves_the_prefix_out_is_refused(tmp_path, seed_dir):
    config = config_of(tmp_path, answer_prefix="Well,", checks=[])

    with pytest.raises(PluginError, match=r"gave an answer without self_distillation\.answer_prefix before it: '"):
        distill_dataset(alpaca_rows(2), config, seed_model=seed_dir)


def test_a_prefix_in_a_thinking_part_is_refused_before_anything_is_asked(tmp_path, tiny_llama_dir):
    seed_dir = tmp_path / "thinker"
    shutil.copytree(tiny_llama_dir, seed_dir)
    opening = "{{ '<|assistant|>' }}{% if enable_thinking is not defined %}{{ '<think>\n' }}{% endif %}"
    (seed_dir / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}" + opening)
    settings = {"answer_prefix": "Well,", "template": "reference", "checks": [], "max_attempts": 1}
    generation = {"max_new_tokens": 2}
    config = SelfDistillationConfig(output_dir=str(tmp_path / "out"), generation=generation, **settings)
    with pytest.raises(ConfigError, match=r"answer_prefix is 'Well,', but the chat template opens a thinking part"):
        distill_dataset(alpaca_rows(2), config, seed_model=seed_dir)

    quiet = generation | {"chat_template_kwargs": {"enable_thinking": False}}
    config = SelfDistillationConfig(output_dir=str(tmp_path / "out"), generation=quiet, gap_samples=0, **settings)
    distilled = distill_dataset(alpaca_rows(2), config, seed_model=seed_dir)
    assert all(text.startswith("Well,") for text in distilled["output"])


def test_functions_do_what_names_do(tmp_path, seed_dir):
    distilled = distill_dataset(alpaca_rows(2), config_of(tmp_path), seed_model=seed_dir)

    assert list(distilled["output"]) == ["Answer 0", "1 MESSAGES, THE LAST ENDS IN 1"]
    assert list(distilled["sdft_reasons"]) == [["ends_in: ends in 0"], [""]]
    [summary] = (tmp_path / "out").glob("distilled-*/summary.json")
    settings = json.loads(summary.read_text())["provenance"]["settings"]
    assert settings["checks"][0].startswith("notebook.ends_in ")
    assert settings["template"].startswith("notebook.short ")
    assert settings["generation"]["backend"].startswith("tests.distillation.test_functions.Loud ")


def test_the_same_functions_run_again_find_the_same_dataset(tmp_path, seed_dir):
    assert spec_of(tmp_path, seed_dir).dataset_dir == spec_of(tmp_path, seed_dir).dataset_dir


def test_a_check_that_was_changed_makes_another_dataset_of_the_same_answers(tmp_path, seed_dir):
    before = config_of(tmp_path)
    changed = config_of(tmp_path, checks=[cell(CELL.replace('["0"]', '["1"]'), "ends_in")])
    first = distill_dataset(alpaca_rows(2), before, seed_model=seed_dir)
    second = distill_dataset(alpaca_rows(2), changed, seed_model=seed_dir)

    assert [list(each["sdft_source"]) for each in (first, second)] == [
        ["original", "distilled"],
        ["distilled", "original"],
    ]
    assert len(list((tmp_path / "out").glob("answers-*"))) == 1


def test_another_backend_asks_for_answers_of_its_own(tmp_path, seed_dir):
    plain = spec_of(tmp_path, seed_dir, generation={"backend": EchoBackend})
    assert plain.answers_dir != spec_of(tmp_path, seed_dir).answers_dir


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"checks": [cell(CELL, "short")]},
            r"the check short must take \(answer, target\), but its signature is \(targ",
        ),
        ({"template": cell(CELL, "ends_in")}, r"the template ends_in must take \(target\), but its signature is"),
        ({"generation": {"backend": cell(CELL, "short")}}, r"the backend short must take \(model_dir, config\), but"),
        ({"checks": [lambda answer, target: None]}, "<lambda> can't be recognised by a later run: .* is a lambda"),
        (
            {"checks": [cell(CELL, "ends_in"), cell(CELL, "ends_in")]},
            r"checks names one twice: \['ends_in', 'ends_in'\]",
        ),
        ({"checks": [7]}, "Input should be a valid string"),
        ({"template": 7}, "Input should be a valid string"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_with_the_settings(tmp_path, settings, message):
    with pytest.raises(ValidationError, match=message):
        config_of(tmp_path, **settings)


def test_a_function_with_the_name_of_a_registered_check_is_refused(tmp_path, seed_dir):
    leak = cell("def leak(answer, target): return None", "leak")
    with pytest.raises(
        ConfigError, match=r"checks holds a function leak, but a registered check has that name; rename"
    ):
        spec_of(tmp_path, seed_dir, checks=[leak])


def test_settings_with_functions_can_be_hashed_copied_and_read_again(tmp_path):
    config = config_of(tmp_path)

    assert SelfDistillationConfig.model_validate(config.model_dump()) == config
    assert hash(config) == hash(config_of(tmp_path))
    assert config.generation.backend_name == "Loud"
