"""The plugins of docs/plugins.md do what the page says, in the stage that they are for."""

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

from axolotl_sdft import LayerPruningConfig, SelfDistillationConfig, distill_dataset, plan_pruning, score_layers
from axolotl_sdft.inference.interfaces import Answer, Target
from axolotl_sdft.plugins.registry import CHECKS, EXTENSION_POINTS, TEMPLATES, registry
from tests.docs.pages import REPOSITORY, prose

pytestmark = pytest.mark.usefixtures("plugins_of_the_pages")
TARGET = Target(({"role": "user", "content": "What is ice?"},), "Frozen water.")


def test_every_hook_has_a_section_with_its_name_and_arguments():
    text = prose(REPOSITORY / "docs" / "plugins.md")
    for point in EXTENSION_POINTS:
        assert f"`{point.hook}(register)`" in text
        assert f"({', '.join(point.arguments)}) ->" in text


def test_the_check_rejects_more_questions_than_its_option_allows():
    check = registry().resolve(CHECKS, "no_questions", "checks")
    asking = Answer("Ice? What do you want to know?", "stop", 7)
    assert check(asking, TARGET) == "asks 2 questions"
    assert check(asking, TARGET, allowed=2) is None


def test_the_judge_rejects_what_shares_too_few_words_with_the_reference():
    check = registry().resolve(CHECKS, "shared_words", "checks")
    assert check(Answer("Frozen rain.", "stop", 3), TARGET) is None
    assert check(Answer("Frozen rain.", "stop", 3), TARGET, min_score=0.9) == "score 0.5, below 0.9"


def test_the_template_asks_for_two_sentences_and_shows_the_reference():
    (message,) = registry().resolve(TEMPLATES, "brief", "template")(TARGET)
    assert message["content"].startswith("What is ice?\n\nAnswer in two sentences.")
    assert message["content"].endswith("Frozen water.")


def test_the_metric_takes_the_middle_layers(tiny_llama_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    scores = score_layers(model, [], "middle_first", num_layers=2)
    config = LayerPruningConfig(num_layers=2, metric="middle_first")
    assert plan_pruning(scores, config).drop_layers == (2, 3)


def test_backend_and_row_format_rewrite_rows_of_a_type_of_their_own(tiny_llama_dir, tmp_path):
    config = SelfDistillationConfig(
        template="brief",
        checks=["no_questions"],
        generation={"backend": "shouting"},
        output_dir=str(tmp_path),
        gap_samples=0,
    )
    rows = Dataset.from_list([{"ask": "Name a bird.", "say": "A wren."}, {"ask": "Why?", "say": "Because."}])
    distilled = distill_dataset(rows, config, seed_model=tiny_llama_dir, dataset_config={"type": "my_package.faq"})
    facts = "Answer in two sentences. These are the facts:"
    assert list(distilled["say"]) == [f"Name a bird.\n\n{facts} A wren.".upper(), "Because."]
    assert list(distilled["sdft_reasons"]) == [[""], ["no_questions: asks 1 questions"]]
