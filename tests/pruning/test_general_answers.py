"""The seed model's own answers as calibration text, asked until they are enough and kept."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from axolotl_sdft.config import GeneralPromptsConfig
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.evaluation.spec import general_prompts
from axolotl_sdft.pruning import general_answers as module
from axolotl_sdft.pruning.general_answers import GeneralText, calibration_prompts, general_texts


@pytest.fixture
def model(tiny_llama_dir, monkeypatch):
    monkeypatch.setattr(module, "_MAX_NEW_TOKENS", 4)
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()


@pytest.fixture
def asked(monkeypatch):
    """What the model is asked, round by round; its answers are ten words."""
    rounds = []

    def answers(_self, prompts):
        rounds.append(list(prompts))
        yield dict.fromkeys(prompts, "word " * 10)

    monkeypatch.setattr(module._Asked, "_generated", answers)
    return rounds


def test_no_prompt_is_one_that_the_recovery_report_measures_on():
    prompts = calibration_prompts()
    assert len(prompts) == len(set(prompts)) == 128
    assert not set(prompts) & set(general_prompts(GeneralPromptsConfig(num_samples=1000)))


def test_any_first_few_prompts_are_of_many_kinds():
    first = calibration_prompts()[:8]
    assert any("loaves" in prompt for prompt in first)
    assert any("Python" in prompt for prompt in first)
    assert any("français" in prompt for prompt in first)
    assert any("get_weather" in prompt for prompt in first)


def test_prompts_are_answered_until_the_texts_are_long_enough(model, tiny_llama_dir, asked):
    texts = general_texts(model, tiny_llama_dir, num_tokens=1)
    assert [len(part) for part in asked] == [16]
    assert len(texts) == 16
    assert calibration_prompts()[3] in texts[3]
    assert "word word" in texts[3]


def test_prompts_that_are_wanted_for_sure_are_asked_together(model, tiny_llama_dir, asked):
    # No text is taken to be longer than 256 tokens, so 9,000 of them are at least 35 prompts: two whole rounds.
    general_texts(model, tiny_llama_dir, num_tokens=9_000)
    assert [len(part) for part in asked[:2]] == [32, 16]
    asked.clear()
    assert len(general_texts(model, tiny_llama_dir, num_tokens=10**6)) == 128
    assert [len(part) for part in asked] == [128]


def test_answers_that_were_written_are_kept_when_it_is_killed(model, tiny_llama_dir, tmp_path, monkeypatch):
    def killed_after_two(_self, prompts):
        yield dict.fromkeys(prompts[:2], "yes")
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Asked, "_generated", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        general_texts(model, tiny_llama_dir, num_prompts=3, folder=tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "answers.json").read_text()) == dict.fromkeys(
        calibration_prompts()[:2], "yes"
    )


def test_the_bar_ends_at_what_was_wanted_and_not_beyond(model, tiny_llama_dir, asked, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, _label, total, _unit, _log):
            self.total, self.done = total, 0

        def __enter__(self):
            bars.append(self)
            return self

        def __exit__(self, *_):
            pass

        def advance(self, count):
            self.done += count

    monkeypatch.setattr(module, "progress", Bar)
    general_texts(model, tiny_llama_dir, num_tokens=1)
    general_texts(model, tiny_llama_dir, num_prompts=20)
    assert [(bar.total, bar.done) for bar in bars] == [(1, 1), (20, 20)]


def test_half_of_what_a_patch_needs_is_asked_for_unless_told_otherwise(model, tiny_llama_dir, asked, monkeypatch):
    monkeypatch.setattr(module, "WANTED_PER_UNIT", 10**6)
    assert len(general_texts(model, tiny_llama_dir)) == 128
    monkeypatch.setattr(module, "WANTED_PER_UNIT", 0)
    assert len(general_texts(model, tiny_llama_dir)) == 16


def test_a_number_of_prompts_can_be_asked_for(model, tiny_llama_dir, asked):
    assert len(general_texts(model, tiny_llama_dir, num_prompts=3)) == 3
    assert asked == [list(calibration_prompts()[:3])]


def test_kept_answers_are_not_generated_again_and_more_are_added(model, tiny_llama_dir, tmp_path, asked, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "answers"
    first = general_texts(model, tiny_llama_dir, num_prompts=3, folder=folder)
    assert general_texts(model, tiny_llama_dir, num_prompts=3, folder=str(folder)) == first
    assert "answers to 3 general prompts (0 of them generated now" in caplog.text
    more = general_texts(model, tiny_llama_dir, num_prompts=5, folder=folder)
    assert more[:3] == first
    assert [len(part) for part in asked] == [3, 2]
    assert len(json.loads((folder / "answers.json").read_text())) == 5


def test_an_empty_answer_is_left_out_and_not_asked_for_again(model, tiny_llama_dir, tmp_path, monkeypatch):
    rounds = []

    def silent(_self, prompts):
        rounds.append(prompts)
        yield {prompt: "" if number else "yes" for number, prompt in enumerate(prompts)}

    monkeypatch.setattr(module._Asked, "_generated", silent)
    for _ in range(2):
        assert len(general_texts(model, tiny_llama_dir, num_prompts=3, folder=tmp_path / "kept")) == 1
    assert len(rounds) == 1


def test_prompts_that_memory_ran_out_for_are_counted_and_asked_again(model, tiny_llama_dir, tmp_path, caplog):
    def without_memory(_module, _args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    shortage = model.register_forward_pre_hook(without_memory, with_kwargs=True)
    asked = {"num_prompts": 3, "folder": tmp_path / "kept"}
    assert general_texts(model, tiny_llama_dir, **asked) == []
    assert "3 general prompts got no answer and are left out, such as for this reason: memory ran out" in caplog.text

    shortage.remove()
    caplog.clear()
    assert len(general_texts(model, tiny_llama_dir, **asked)) == 3
    assert "got no answer" not in caplog.text


def test_a_prompt_that_can_never_be_answered_is_asked_once(model, tiny_llama_dir, tmp_path, caplog):
    model.config.max_position_embeddings = 20  # hardly any prompt has so few tokens
    asked = {"num_prompts": 3, "folder": tmp_path / "kept"}
    assert general_texts(model, tiny_llama_dir, **asked) == []
    assert "3 general prompts got no answer and are left out, such as for this reason: the prompt has " in caplog.text
    assert json.loads((tmp_path / "kept" / "answers.json").read_text()) == dict.fromkeys(calibration_prompts()[:3], "")


def test_the_model_answers_greedily_and_comes_back_as_it_was(model, tiny_llama_dir):
    before = model.config._attn_implementation
    model.train()
    first, second = (general_texts(model, tiny_llama_dir, num_prompts=2) for _ in range(2))
    assert first == second
    assert model.training
    assert model.config._attn_implementation == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_writes_no_text_is_not_asked(tiny_llama_dir):
    tiny = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(CheckpointError, match="BertModel does not answer prompts"):
        general_texts(tiny, tiny_llama_dir, num_tokens=1)


def test_a_folder_without_a_tokenizer_is_named(model, tiny_llama_dir, tmp_path):
    shutil.copy(tiny_llama_dir / "config.json", tmp_path)
    # The oldest transformers makes an empty tokenizer of such a folder.
    with pytest.raises(
        CheckpointError, match=r"the tokenizer of .* can\'t be loaded \(|has no chat template to ask prompts in"
    ):
        general_texts(model, tmp_path)


def test_a_tokenizer_without_a_chat_template_takes_the_one_given(model, tiny_llama_dir, tmp_path, asked):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no chat template to ask prompts in"):
        general_texts(model, tmp_path, num_prompts=1)
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    (text,) = general_texts(model, tmp_path, num_prompts=1, chat_template=template)
    assert text == f"<user>{calibration_prompts()[0]}<assistant>{'word ' * 10}"


@pytest.fixture
def seed_with(tiny_llama_dir, tmp_path):
    """Makes a tokenizer's folder with another chat template."""

    def make(template):
        shutil.copytree(tiny_llama_dir, tmp_path / "seed")
        (tmp_path / "seed" / "chat_template.jinja").write_text(template)
        return tmp_path / "seed"

    return make


def test_a_template_that_shows_parts_alone_gets_prompts_and_answers_in_parts(model, seed_with, asked):
    parts = "{% for part in message.content %}{{ part.text }}{% endfor %}"
    folder = seed_with("{% for message in messages %}<{{ message.role }}>" + parts + "{% endfor %}")
    (text,) = general_texts(model, folder, num_prompts=1)
    assert text == f"<user>{calibration_prompts()[0]}<assistant>{'word ' * 10}"


def test_a_template_that_shows_nothing_of_a_prompt_is_not_asked_in(model, seed_with):
    folder = seed_with("{% for message in messages %}<{{ message.role }}>{% endfor %}")
    with pytest.raises(CheckpointError, match=r"the chat template of .*seed shows nothing of what is asked"):
        general_texts(model, folder, num_prompts=1)


def test_the_seed_model_writes_its_share_and_what_the_other_text_lacks():
    # A hidden size of 100 needs 1,000 tokens, a tenth of them to be held out.
    half = GeneralText(share=0.5)
    assert half.num_tokens(100, 5000) == 500
    assert half.num_tokens(100, 300) == 700
    assert half.num_tokens(100, 0) == 1000
    assert GeneralText(num_prompts=7).num_tokens(100, 0) is None
    assert "beside 300 that were read, the seed model answers general prompts until that gives 700 more" in (
        half.described(100, 300)
    )


def test_the_identity_follows_prompts_share_and_template():
    same, other = (GeneralText(share=share).identity for share in (0.5, 0.25))
    assert same == GeneralText(share=0.5).identity
    assert same != other
    assert GeneralText(num_prompts=3).identity != GeneralText(num_prompts=4).identity
    assert GeneralText(share=0.5, chat_template="x").identity != same
