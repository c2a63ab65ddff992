from dataclasses import replace

import pytest
from datasets import Dataset

from axolotl_sdft.core.errors import DatasetError, PluginError
from axolotl_sdft.distillation.generation.selection import Selection
from axolotl_sdft.distillation.interfaces import RowLimit
from axolotl_sdft.distillation.output.preview import Preview, PreviewedAnswer, answer_lines, preview, preview_lines
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer, Target
from tests.distillation.echo_backend import ASKED, SCRIPT, EchoBackend
from tests.distillation.test_pipeline import alpaca_rows, echo_config


def chat(*texts):
    roles = ["user", "assistant"] * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


def task_of(tmp_path, seed_dir, rows, kind="alpaca", **settings):
    return DistillationSpec(rows, echo_config(tmp_path, **settings), seed_dir, {"type": kind}, "seed")


def at_most(max_words):
    return RowLimit(max_words, lambda row: len(row["output"].split()))


def shown_answer(prompt="What?", reference="It is.", rewritten="Yes, it is.", rejection=None, **places):
    answer = Answer(rewritten, "stop", 4)
    settlement = Selection(Target(({"role": "user", "content": prompt},), reference), 0, answer, (), (0,))
    if rejection:
        settlement = replace(settlement, attempt=None, answer=None, rejections=(rejection,))
    return PreviewedAnswer(**{"row": 3, "turn": 0, "num_turns": 1, **places}, settlement=settlement, answer=answer)


@pytest.mark.usefixtures("echo_plugin")
def test_every_turn_of_a_row_is_shown_in_order_after_those_before_it_as_they_will_be_trained(tmp_path, seed_dir):
    rows = Dataset.from_list([chat("a", "one", "b", "7", "c", "three"), chat("d", "four")])
    spec = task_of(tmp_path, seed_dir, rows, "chat_template", checks=("no_seven",))

    shown = preview(spec, 2).answers

    assert [(one.row, one.turn, one.verdict) for one in shown] == [
        (0, 0, "accepted"),
        (0, 1, "rejected by no_seven: holds 7"),
        (0, 2, "accepted"),
        (1, 0, "accepted"),
    ]
    before_last = [message["content"] for message in shown[2].target.context]
    assert before_last == ["a", "1 messages, the last ends in one", "b", "7", "c"]


@pytest.mark.usefixtures("echo_plugin")
def test_a_preview_takes_the_answers_that_a_full_run_would_take(tmp_path, seed_dir):
    settings = {"checks": ("no_seven",), "max_attempts": 3}
    spec = task_of(tmp_path, seed_dir, alpaca_rows(9), **settings)

    previewed = preview(spec, 9)

    assert not (tmp_path / "out").exists()
    from datasets import load_from_disk

    full = load_from_disk(str(run_distillation(spec)))
    taken = [one.answer.text if one.settlement.answer else one.target.reference for one in previewed.answers]
    assert taken == full["output"]


@pytest.mark.usefixtures("echo_plugin")
def test_a_rejected_answer_is_asked_for_again_as_the_settings_say(tmp_path, seed_dir):
    ASKED.clear()
    SCRIPT.clear()
    SCRIPT.update({(0, 0, attempt): Answer(text, "stop", 1) for attempt, text in enumerate(("bad", "good", "unused"))})
    settings = {"checks": ("good",), "max_attempts": 3, "generation": {"backend": "scripted"}}

    previewed = preview(task_of(tmp_path, seed_dir, alpaca_rows(1), **settings), 1)

    assert [prompt.attempt for prompt in ASKED] == [0, 1]
    assert [(one.verdict, one.answer.text) for one in previewed.answers] == [("accepted at attempt 2", "good")]


@pytest.mark.usefixtures("echo_plugin")
def test_an_accepted_answer_with_another_result_is_shown_with_the_check_that_would_reject_it(tmp_path, seed_dir):
    SCRIPT.clear()
    SCRIPT.update({(0, 0, 0): Answer("16 clips.", "stop", 1), (1, 0, 0): Answer("It is 5.", "stop", 1)})
    rows = Dataset.from_dict({"instruction": ["How many?"] * 2, "input": [""] * 2, "output": ["#### 72", "#### 5"]})

    previewed = preview(task_of(tmp_path, seed_dir, rows, checks=("empty",), generation={"backend": "scripted"}), 2)

    other, same = (one.verdict for one in previewed.answers)
    assert other == "accepted, though numeric_answer would reject it: answer 16, reference 72"
    assert same == "accepted"
    assert list(preview_lines(previewed, "dataset", 2))[1] == (
        "1 of 2 accepted answers that were compared state another result than their original, and no check looks at "
        "that: add numeric_answer to self_distillation.checks"
    )


@pytest.mark.usefixtures("echo_plugin")
def test_an_answer_that_makes_its_row_too_long_is_asked_for_again_as_in_a_full_run(tmp_path, seed_dir):
    ASKED.clear()
    SCRIPT.clear()
    SCRIPT.update({(0, 0, attempt): Answer(text, "stop", 1) for attempt, text in enumerate(("good " * 9, "good"))})
    settings = {"checks": ("good",), "max_attempts": 2, "generation": {"backend": "scripted"}}
    spec = replace(task_of(tmp_path, seed_dir, alpaca_rows(1), **settings), row_limit=at_most(4))

    [shown] = preview(spec, 1).answers

    assert (shown.verdict, shown.answer.text) == ("accepted at attempt 2", "good")
    assert shown.settlement.rejections == (
        ("too_long", "it makes the row longer than sequence_len, which is 4 tokens"),
    )


@pytest.mark.usefixtures("echo_plugin")
def test_a_row_that_is_too_long_from_the_start_is_left_alone_as_in_a_full_run(tmp_path, seed_dir, monkeypatch):
    asked = []
    answer = EchoBackend.answer
    monkeypatch.setattr(EchoBackend, "answer", lambda self, prompt: asked.append(prompt) or answer(self, prompt))
    rows = [{"instruction": f"{row}?", "output": "long " * (50 if row % 2 else 1)} for row in range(6)]
    settings = {"generation": {"backend": "echo", "max_batch_size": 6}}
    spec = replace(task_of(tmp_path, seed_dir, Dataset.from_list(rows), **settings), row_limit=at_most(40))

    lines = list(preview_lines(preview(spec, 2), "dataset", 6))

    assert lines[:2] == [
        "dataset: 1 of 1 answers accepted (100 %)",
        "left alone: its row has more tokens than sequence_len (1 row); raise sequence_len to train such rows",
    ]
    assert {prompt.key[0] for prompt in asked} == {0, 2, 4}  # those shown are 0 and 3; a full batch has all six


@pytest.mark.usefixtures("echo_plugin")
def test_a_row_that_training_can_not_read_stops_a_preview_with_its_number(tmp_path, seed_dir):
    def count(row):
        if row["id"] == 6:
            raise ValueError("no such role")
        return 1

    spec = replace(task_of(tmp_path, seed_dir, alpaca_rows(9)), row_limit=RowLimit(8, count))
    with pytest.raises(DatasetError, match=r"can't tokenize row 6 as type 'alpaca' \(ValueError: no such role\)"):
        preview(spec, 3)


@pytest.mark.usefixtures("echo_plugin")
def test_a_preview_counts_and_measures_its_answers(tmp_path, seed_dir):
    previewed = preview(task_of(tmp_path, seed_dir, alpaca_rows(9), checks=("no_seven",)), 9)

    assert (previewed.num_rows, previewed.num_accepted, previewed.rejections) == (9, 8, {"no_seven": 1})
    assert previewed.gap == (8.0, pytest.approx((8 * 30 + 8) / 9))  # the echo backend counts characters
    assert preview(task_of(tmp_path, seed_dir, alpaca_rows(9), gap_samples=0), 2).gap is None


@pytest.mark.usefixtures("echo_plugin")
def test_a_backend_that_leaves_answers_out_is_refused(tmp_path, seed_dir, monkeypatch):
    monkeypatch.setattr(EchoBackend, "generate", lambda self, batches: iter(()))
    with pytest.raises(PluginError, match=r"backend 'echo' ended without 2 of 2 answers it was asked for"):
        preview(task_of(tmp_path, seed_dir, alpaca_rows(5)), 2)


def test_into_a_pipe_the_texts_come_whole_below_each_other():
    shown = shown_answer("One\ntwo?", "r " * 90, rejection=("leak", "says so"), turn=1, num_turns=3)
    assert list(answer_lines(shown, "datasets[0]", width=None)) == [
        "--- datasets[0], row 3, answer 2 of 3: rejected by leak: says so",
        "prompt:    One",
        "           two?",
        "reference: " + ("r " * 90).strip(),
        "rewritten: Yes, it is.",
        "",
    ]


def test_on_a_wide_terminal_the_answers_stand_side_by_side():
    shown = shown_answer("What is ice?", "Frozen water. " * 5, "Ice is water in its solid state.")
    assert list(answer_lines(shown, "dataset", width=101)) == [
        "--- dataset, row 3: accepted",
        "prompt:    What is ice?",
        "reference:                                        | rewritten:",
        "Frozen water. Frozen water. Frozen water. Frozen  | Ice is water in its solid state.",
        "water. Frozen water.                              |",
        "",
    ]


def test_on_a_narrow_terminal_the_answers_stand_below_each_other():
    lines = list(answer_lines(shown_answer(reference="word " * 20), "dataset", width=60))
    assert lines[2:4] == [f"reference: {'word ' * 10}".rstrip(), f"           {'word ' * 10}".rstrip()]


def test_wide_characters_and_long_words_are_broken_by_the_cells_they_take():
    lines = list(answer_lines(shown_answer(reference="水" * 30, rewritten="x" * 60), "dataset", width=101))
    assert lines[3:5] == [f"{'水' * 24}{' '} | {'x' * 49}", f"{'水' * 6}{' ' * 37} | {'x' * 11}"]


def test_a_text_can_not_steer_the_terminal():
    lines = list(answer_lines(shown_answer("\x1b[2J\x07boo\u202e", "a\r\nb\tc"), "dataset", width=None))
    assert lines[1:4] == [
        "prompt:    \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}boo\N{REPLACEMENT CHARACTER}",
        "reference: a",
        "           b   c",
    ]


def test_the_end_tells_acceptance_gap_and_the_time_for_all_rows():
    answers = (shown_answer(), shown_answer(), shown_answer(rejection=("leak", "says so")))
    previewed = Preview(answers, num_rows=2, seconds=5.0, gap=(2.811, 1.932))

    # 2.5 s a row, so 4,800 rows take 12,000 s.
    assert list(preview_lines(previewed, "datasets[0]", num_rows=4800)) == [
        "datasets[0]: 2 of 3 answers accepted (67 %), rejected: leak 1",
        "distribution gap: 2.81 nats per token before, 1.93 after",
        "time: about 3 h 20 min for all 4,800 rows, at the rate of these rows "
        "(not counted: loading the model, or starting its server)",
    ]


def test_a_gap_of_answers_drawn_at_temperature_1_is_told_with_what_it_does_not_say():
    previewed = Preview((shown_answer(),), num_rows=1, seconds=1.0, gap=(2.8, 2.9), is_pure_sample=True)
    [told] = [line for line in preview_lines(previewed, "datasets[0]", num_rows=1) if line.startswith("distribution")]
    assert told == (
        "distribution gap: 2.80 nats per token before, 2.90 after; "
        "of answers drawn at temperature 1 or above it need not fall"
    )


def test_the_time_for_all_rows_follows_from_a_full_batch_where_few_rows_were_shown():
    twice = replace(shown_answer(), settlement=replace(shown_answer().settlement, made=(0, 1)))
    previewed = Preview((shown_answer(), twice), num_rows=2, seconds=50.0, gap=None, full_batch=(64, 16.0))
    # A quarter of a second an answer, and 3 answers for 2 rows: 4,800 rows take 1,800 s.
    assert list(preview_lines(previewed, "datasets[0]", num_rows=4800))[-1] == (
        "time: about 30 min for all 4,800 rows, at the rate of 64 answers that were written together "
        "(not counted: loading the model, or starting its server)"
    )


def test_the_time_for_all_rows_holds_the_distribution_gap_of_as_many_as_it_is_measured_on():
    answers = (shown_answer(), shown_answer())
    previewed = Preview(answers, num_rows=2, seconds=4.0, gap=(3.0, 2.0), gap_seconds=1.0, gap_samples=64)
    assert previewed.seconds_for(10) == 10 * 2.0 + 10 * 0.5
    assert previewed.seconds_for(1000) == 1000 * 2.0 + 64 * 0.5


@pytest.mark.usefixtures("echo_plugin")
def test_as_many_answers_are_timed_as_the_backend_writes_together(tmp_path, seed_dir, monkeypatch):
    asked = []
    answer = EchoBackend.answer
    monkeypatch.setattr(EchoBackend, "answer", lambda self, prompt: asked.append(prompt) or answer(self, prompt))
    generation = {"backend": "echo", "max_batch_size": 4}
    previewed = preview(task_of(tmp_path, seed_dir, alpaca_rows(9), generation=generation), 2)
    assert previewed.full_batch[0] == 4
    assert len(asked) == 2 + 4  # the rows shown, then a batch
    assert (
        preview(task_of(tmp_path, seed_dir, alpaca_rows(9), generation=generation), 4).full_batch is None
    )  # these rows fill one


@pytest.mark.usefixtures("echo_plugin")
def test_rows_without_an_answer_to_rewrite_are_said_to_have_none(tmp_path, seed_dir):
    rows = Dataset.from_list([chat("a"), chat("a", "b"), chat("c")])
    previewed = preview(task_of(tmp_path, seed_dir, rows, "chat_template"), 1)
    assert list(preview_lines(previewed, "dataset", 3)) == [
        "dataset: none of the 1 rows holds an answer to rewrite: no answer in it that its type trains (1 row); check "
        "the type and the field names. Show more rows to see whether others do"
    ]


@pytest.mark.usefixtures("echo_plugin")
def test_where_all_rows_are_shown_none_of_which_holds_an_answer_no_more_can_be(tmp_path, seed_dir):
    rows = Dataset.from_list([chat("a", "<think>Well, "), chat("b", "<think>Hm, ")])
    previewed = preview(task_of(tmp_path, seed_dir, rows, "chat_template"), 2)
    assert list(preview_lines(previewed, "dataset", 2)) == [
        "dataset: none of the 2 rows holds an answer to rewrite: its thinking part has no end (2 rows)"
    ]
