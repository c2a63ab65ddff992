"""Answers and verdicts are known by their content: whatever becomes of the rows, only new questions are asked."""

import json
import logging
from dataclasses import replace
from functools import partial

import pytest
from datasets import Dataset, load_from_disk

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.core.errors import ArtifactError, DatasetError, ServerError
from axolotl_sdft.distillation.checks import guarded
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer
from axolotl_sdft.plugins import specifications
from axolotl_sdft.plugins.registry import registry
from tests.distillation.echo_backend import EchoBackend

pytestmark = pytest.mark.usefixtures("echo_plugin")


class CountingBackend(EchoBackend):
    """Answers with `about` and the question, and counts; fails where the question is in `FAILING`."""

    def check(self):
        if "server" in FAILING:
            raise ServerError("no server can be used")

    def answer(self, prompt):
        question = prompt.messages[0]["content"]
        ASKED.append(question)
        if question in FAILING:
            return Answer("", "error", 0, error="timed out")
        return replace(ODD.get(question, Answer(f"about {question}", "stop", 3)))


ASKED: list[str] = []
FAILING: set[str] = set()
ODD: dict[str, Answer] = {}
JUDGED: list[str] = []
VERDICTS: dict[str, object] = {}
"""What the judge says of an answer: a reason, or an error that it raises; by default it passes."""


@specifications.hookimpl
def sdft_register_backends(register):
    register("counting", CountingBackend)


@specifications.hookimpl
def sdft_register_templates(register):
    register("question_alone", lambda target: [{"role": "user", "content": target.context[-1]["content"]}])


@specifications.hookimpl
def sdft_register_checks(register):
    def judge(answer, target):
        JUDGED.append(answer.text)
        verdict = VERDICTS.get(answer.text)
        if isinstance(verdict, BaseException):
            raise verdict
        return verdict() if callable(verdict) else verdict

    register("judge", judge)


@pytest.fixture(autouse=True)
def _fresh(echo_plugin):
    import sys

    for memory in (ASKED, FAILING, ODD, JUDGED, VERDICTS):
        memory.clear()
    registry().add_plugin(sys.modules[__name__], "counting")


def row(name, output="original"):
    return {"instruction": name, "output": output}


def spec_for(tmp_path, seed_dir, rows, **settings):
    settings = {"template": "question_alone", "checks": ("judge",), "gap_samples": 0, "max_attempts": 1} | settings
    settings = {"generation": {"backend": "counting"}, "output_dir": str(tmp_path / "out")} | settings
    config = SelfDistillationConfig(**settings)
    return DistillationSpec(Dataset.from_list(rows), config, seed_dir, {"type": "alpaca"}, "seed")


def outputs(folder):
    return load_from_disk(str(folder))["output"]


def asked_by(spec):
    """Run a task; return what was asked and judged by it alone."""
    ASKED.clear()
    JUDGED.clear()
    folder = run_distillation(spec)
    return sorted(ASKED), sorted(JUDGED), outputs(folder)


ROWS = [row("a"), row("b"), row("c")]


@pytest.mark.parametrize(
    ("rows", "new"),
    [
        ([*ROWS, row("d")], ["d"]),
        ([row("d"), *ROWS], ["d"]),
        (ROWS[:2], []),
        (ROWS[::-1], []),
        ([ROWS[2], row("d"), ROWS[0]], ["d"]),
        ([{**one, "id": number} for number, one in enumerate(ROWS)], []),
    ],
)
def test_of_rows_added_removed_shuffled_or_with_other_columns_only_new_questions_are_asked(
    tmp_path, seed_dir, rows, new
):
    run_distillation(spec_for(tmp_path, seed_dir, ROWS))

    asked, judged, rewritten = asked_by(spec_for(tmp_path, seed_dir, rows))

    assert asked == new
    assert judged == [f"about {one}" for one in new]
    assert rewritten == [f"about {one['instruction']}" for one in rows]


def test_a_question_that_several_rows_ask_is_asked_once_and_judged_once(tmp_path, seed_dir):
    asked, judged, rewritten = asked_by(spec_for(tmp_path, seed_dir, [*ROWS, *ROWS, row("a")]))

    assert asked == ["a", "b", "c"]
    assert judged == ["about a", "about b", "about c"]
    assert rewritten == [f"about {name}" for name in "abcabca"]


def test_another_reference_is_judged_anew_and_not_asked_again(tmp_path, seed_dir):
    run_distillation(spec_for(tmp_path, seed_dir, ROWS))

    asked, judged, _ = asked_by(spec_for(tmp_path, seed_dir, [row("a", "another one"), row("b")]))

    assert (asked, judged) == ([], ["about a"])


@pytest.mark.parametrize(
    "changed",
    [
        {"generation": {"backend": "counting", "max_new_tokens": 9}},
        {"generation": {"backend": "counting", "temperature": 0.5}},
        {"generation": {"backend": "counting", "chat_template_kwargs": {"enable_thinking": False}}},
    ],
)
def test_other_sampling_settings_or_template_arguments_ask_again(tmp_path, seed_dir, changed):
    run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    assert asked_by(spec_for(tmp_path, seed_dir, ROWS, **changed))[0] == ["a", "b", "c"]


def test_another_random_seed_asks_again_only_where_answers_are_sampled(tmp_path, seed_dir):
    def generation(seed, temperature):
        return {"generation": {"backend": "counting", "seed": seed, "temperature": temperature}}

    for temperature, again in ((0.0, []), (0.5, ["a", "b", "c"])):
        run_distillation(spec_for(tmp_path, seed_dir, ROWS, **generation(1, temperature)))
        assert asked_by(spec_for(tmp_path, seed_dir, ROWS, **generation(2, temperature)))[0] == again


def test_a_judge_that_wavers_is_asked_once_and_its_first_word_stands(tmp_path, seed_dir):
    words = iter(["it is poor", None, "it is poor"])
    VERDICTS["about a"] = lambda: next(words)
    first = run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    import shutil

    shutil.rmtree(first)
    asked, judged, rewritten = asked_by(spec_for(tmp_path, seed_dir, ROWS))

    assert (asked, judged) == ([], [])
    assert rewritten == ["original", "about b", "about c"]


def test_a_further_check_leaves_the_verdicts_of_the_others_alone(tmp_path, seed_dir):
    run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    _, judged, _ = asked_by(spec_for(tmp_path, seed_dir, ROWS, checks=("truncated", "judge", "no_seven")))
    assert judged == []


def test_an_answer_that_failed_is_asked_again_by_the_next_start_alone_and_then_the_dataset_is_made_anew(
    tmp_path, seed_dir, caplog
):
    FAILING.add("b")
    spec = spec_for(tmp_path, seed_dir, ROWS, max_attempts=2)
    first = run_distillation(spec)
    assert sorted(ASKED) == ["a", "b", "b", "c"]  # both attempts, and no more
    assert outputs(first) == ["about a", "original", "about c"]
    assert json.loads((first / "summary.json").read_text())["to_try_again"] == {"failed": 2, "not_judged": 0}
    assert "2 answers failed and 0 could not be judged" in caplog.text

    FAILING.clear()
    again = spec_for(tmp_path, seed_dir, ROWS, max_attempts=2)
    assert again.is_done
    assert asked_by(again) == (["b"], ["about b"], ["about a", "about b", "about c"])
    assert again.finished_dir == again.dataset_dir != first

    assert asked_by(spec_for(tmp_path, seed_dir, ROWS, max_attempts=2))[0] == []


def test_answers_that_fail_again_leave_the_dataset_as_it_is(tmp_path, seed_dir):
    FAILING.add("b")
    first = run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    ASKED.clear()

    assert run_distillation(spec_for(tmp_path, seed_dir, ROWS)) == first
    assert ASKED == ["b"]


def test_a_server_that_is_gone_does_not_take_a_dataset_away_that_is_there(tmp_path, seed_dir, caplog):
    FAILING.add("b")
    first = run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    FAILING.add("server")

    assert run_distillation(spec_for(tmp_path, seed_dir, ROWS)) == first
    assert f"could not be tried again (no server can be used); using {first} as it is" in caplog.text


def test_where_all_answers_failed_there_is_no_dataset_and_all_are_asked_again(tmp_path, seed_dir):
    FAILING.update("abc")
    with pytest.raises(DatasetError, match=r"answered none of 3 prompts: failed 3 \(such as: timed out\)"):
        run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    FAILING.clear()

    assert asked_by(spec_for(tmp_path, seed_dir, ROWS))[0] == ["a", "b", "c"]


def test_a_request_that_would_fail_again_is_not_sent_again(tmp_path, seed_dir):
    ODD["b"] = Answer("", "error", 0, error="the prompt is too long", is_final=True)
    spec = spec_for(tmp_path, seed_dir, ROWS)

    assert run_distillation(spec) == spec.dataset_dir
    assert json.loads((spec.dataset_dir / "summary.json").read_text())["rejections"] == {"failed": 1}


@pytest.mark.parametrize("error", [ConnectionError("down"), TimeoutError("slow"), RuntimeError("out of memory")])
def test_a_judge_that_is_out_of_order_is_asked_again_by_the_next_start(tmp_path, seed_dir, error, caplog):
    VERDICTS["about b"] = error
    first = run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    assert load_from_disk(str(first))["sdft_reasons"][1] == [f"check failed: judge: {type(error).__name__}: {error}"]
    assert json.loads((first / "summary.json").read_text())["rejections"] == {"check failed: judge": 1}
    assert "the check judge failed" in caplog.text

    VERDICTS.clear()
    assert asked_by(spec_for(tmp_path, seed_dir, ROWS)) == ([], ["about b"], ["about a", "about b", "about c"])


@pytest.mark.parametrize("error", [ValueError("odd"), RecursionError("deep"), KeyError("x"), ZeroDivisionError("by 0")])
def test_a_check_that_an_answer_makes_fail_rejects_it_for_good(tmp_path, seed_dir, error):
    VERDICTS["about b"] = error
    spec = spec_for(tmp_path, seed_dir, ROWS)
    assert run_distillation(spec) == spec.dataset_dir
    assert outputs(spec.dataset_dir) == ["about a", "original", "about c"]

    assert asked_by(spec_for(tmp_path, seed_dir, [*ROWS, row("d")]))[1] == ["about d"]


@pytest.mark.parametrize("verdict", [True, 7, ["no"], SystemExit(3)])
def test_a_check_that_returns_no_reason_or_wants_to_end_the_run_rejects_the_answer(tmp_path, seed_dir, verdict):
    VERDICTS["about b"] = verdict
    assert outputs(run_distillation(spec_for(tmp_path, seed_dir, ROWS))) == ["about a", "original", "about c"]


def test_a_judge_that_hangs_is_given_up_and_after_three_times_not_waited_for(tmp_path, seed_dir, monkeypatch, caplog):
    import threading

    monkeypatch.setenv("AXOLOTL_SDFT_CHECK_SECONDS", "0.5")
    for name in "abcde":
        VERDICTS[f"about {name}"] = lambda: threading.Event().wait(600)
    rows = [row(name) for name in "abcdef"]

    folder = spec_for(tmp_path, seed_dir, rows, checks=("judge",), generation={"backend": "counting"})
    with pytest.raises(DatasetError, match=r"check failed: judge 6 \(such as: .*no verdict within 0.5 s"):
        run_distillation(folder)
    assert JUDGED == ["about a", "about b", "about c"]


POISON = {
    "half a surrogate pair": Answer("half \ud83d of it", "stop", 3),
    "null bytes": Answer("a\0b", "stop", 3),
    "no text": Answer(None, "stop", 3),
    "a number": Answer(7, "stop", 3),
    "huge": Answer("word " * 200_000, "stop", 3),
    "markup": Answer("</script></body><h1>{{ 7 * 7 }}{% for %}", "stop", 3),
    "not a number": Answer("fine", "stop", 3, mean_logprob=float("nan")),
    "no count": Answer("fine", "stop", None),
    "terminal escapes": Answer("\x1b]0;title\x07\x9b31m", "stop", 3),
}


@pytest.mark.parametrize("answer", POISON.values(), ids=POISON)
def test_one_poisonous_answer_ends_neither_a_run_nor_a_restart(tmp_path, seed_dir, answer):
    ODD["b"] = answer
    checks = ("empty", "truncated", "leak", "repetition", "refusal", "judge")
    settings = {"checks": checks, "gap_samples": 9}
    first = run_distillation(spec_for(tmp_path, seed_dir, ROWS, **settings))
    assert outputs(first)[::2] == ["about a", "about c"]
    assert (first / "report.html").exists()

    again = run_distillation(spec_for(tmp_path, seed_dir, [*ROWS, row("d")], **settings))
    assert outputs(again)[2:] == ["about c", "about d"]


def test_a_text_that_the_seed_models_tokenizer_fails_on_costs_the_gap_and_no_more(
    tmp_path, seed_dir, monkeypatch, caplog
):
    def fail(backend, targets):
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(CountingBackend, "answer_nll", fail)
    folder = run_distillation(spec_for(tmp_path, seed_dir, ROWS, gap_samples=9))

    assert outputs(folder) == ["about a", "about b", "about c"]
    assert "the distribution gap was not measured: UnicodeEncodeError" in caplog.text


def test_a_page_that_can_not_be_written_costs_that_page_and_no_more(tmp_path, seed_dir, monkeypatch, caplog):
    def fail(*arguments):
        raise ValueError("odd")

    monkeypatch.setattr("axolotl_sdft.distillation.output.dataset.write_report", fail)
    folder = run_distillation(spec_for(tmp_path, seed_dir, ROWS))

    assert outputs(folder) == ["about a", "about b", "about c"]
    assert "the report could not be written (ValueError: odd)" in caplog.text


def test_a_check_is_another_one_with_another_name_option_or_version():
    def check(answer, target, *, limit=1):
        return None

    from functools import partial

    identities = {guarded.check_identity("one", check), guarded.check_identity("two", check)}
    identities |= {guarded.check_identity("one", partial(check, limit=limit)) for limit in (2, 3)}
    check.version = "2"
    identities.add(guarded.check_identity("one", check))
    assert len(identities) == 5


class _Limit:
    def __init__(self, limit):
        self.limit = limit


def test_an_option_counts_by_what_it_holds_wherever_it_lies_in_memory():
    def check(answer, target, *, limit=None):
        return None

    def identity(limit):
        return guarded.check_identity("one", partial(check, limit=limit))

    assert identity(_Limit(1)) == identity(_Limit(1)) != identity(_Limit(2))
    assert identity(str.lower) == identity(str.lower) != identity(str.upper)
    assert identity(partial(_Limit, 1)) == identity(partial(_Limit, 1)) != identity(partial(_Limit, 2))


def test_what_the_journal_has_is_said(tmp_path, seed_dir, caplog):
    caplog.set_level(logging.INFO)
    run_distillation(spec_for(tmp_path, seed_dir, ROWS))
    run_distillation(spec_for(tmp_path, seed_dir, [*ROWS, row("d")]))
    assert "3 answers are in the journal already, 1 to go" in caplog.text


@pytest.mark.parametrize("output_dir", ["x" * 256, "/".join(["folder"] * 700), "ü" * 130])
def test_a_path_that_is_too_long_is_one_clear_error_that_names_the_key(tmp_path, seed_dir, output_dir):
    spec = spec_for(tmp_path, seed_dir, ROWS, output_dir=str(tmp_path / output_dir))
    with pytest.raises(ArtifactError, match=r"self_distillation.output_dir is .* name a folder with a shorter path"):
        run_distillation(spec)
    with pytest.raises(ArtifactError, match=r"self_distillation.output_dir is .* name a folder with a shorter path"):
        _ = spec.is_done


def test_damaged_and_stray_files_among_the_answers_change_nothing_but_what_they_held(tmp_path, seed_dir, caplog):
    spec = spec_for(tmp_path, seed_dir, ROWS)
    run_distillation(spec)
    [journal] = spec.answers_dir.glob("answers-*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    damaged = [b"\0" * 99 + b"\n" if b"about b" in line else line for line in lines]
    journal.write_bytes(b"".join(damaged))
    (spec.answers_dir / "answers-folder.jsonl").mkdir()
    (spec.answers_dir / "answers-old.jsonl~").write_bytes(b"\xff\xfe")

    asked, judged, _ = asked_by(spec_for(tmp_path, seed_dir, [*ROWS, row("d")]))

    assert asked == ["b", "d"]
    assert judged == ["about d"]  # the verdict on the other one is known already
    assert f"{journal}: 1 lines are damaged or not of a journal" in caplog.text
