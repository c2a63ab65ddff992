import pytest
from pydantic import ValidationError

from axolotl_sdft.config import LogitDistillationConfig


def test_an_empty_block_is_half_and_half_at_temperature_one():
    config = LogitDistillationConfig()
    assert (config.alpha, config.temperature, config.tokens, config.teacher) == (0.5, 1.0, "answers", "auto")
    assert config.bits is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.1}, "less than or equal to 1"),
        ({"temperature": 0}, "greater than or equal to 0.1"),
        ({"tokens": "prompts"}, "'answers' or 'all'"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "both true; set one of them to false"),
        ({"load_in_8bit": True, "teacher": "shared"}, "load_in_8bit is true, but teacher is 'shared'.*teacher: own"),
        ({"temprature": 2}, "did you mean 'temperature'"),
    ],
)
def test_what_can_not_work_is_refused(settings: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        LogitDistillationConfig(**settings)


def test_a_quantized_teacher_is_one_of_its_own():
    assert LogitDistillationConfig(load_in_4bit=True).bits == 4
    assert LogitDistillationConfig(load_in_8bit=True, teacher="own").bits == 8
