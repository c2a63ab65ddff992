import json
import os
import resource
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.distillation.generation.journal import Journal
from axolotl_sdft.distillation.generation.journal_files import StoredVerdict
from axolotl_sdft.inference.interfaces import Answer


def key(number):
    return number.to_bytes(16, "big")


def answer(number):
    return Answer(f"answer {number}\nsecond line", "stop", 3)


def write(folder, run, *numbers):
    with Journal(folder, [run]).writer(run) as writer:
        for number in numbers:
            writer.append([key(number)], [answer(number)], seconds=0.5)


def journal_of(folder, *runs):
    journal = Journal(folder, runs)
    journal.refresh()
    return journal


def numbers_in(journal):
    return [int.from_bytes(one, "big") for one in journal]


def test_answers_come_back_as_they_were_written_whichever_process_wrote_them(tmp_path):
    write(tmp_path, "a", 0, 2)
    write(tmp_path, "b", 1)

    journal = journal_of(tmp_path)

    assert numbers_in(journal) == [0, 1, 2]
    assert journal[key(1)] == answer(1)
    assert journal[key(1)].seconds == 0.5


def test_a_process_that_has_nothing_to_write_leaves_no_file(tmp_path):
    write(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_dropped_and_the_rest_is_kept(tmp_path):
    write(tmp_path, "a", 0, 1)
    path = tmp_path / "answers-a.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a kill in the middle of the second line

    assert numbers_in(journal_of(tmp_path)) == [0]
    write(tmp_path, "b", 1)
    assert numbers_in(journal_of(tmp_path)) == [0, 1]


def test_a_batch_of_which_a_kill_left_the_first_answers_is_dropped_as_a_whole(tmp_path):
    write(tmp_path, "a", 0)
    with Journal(tmp_path).writer("b") as writer:
        writer.append([key(1), key(2)], [answer(1), answer(2)], seconds=1.0)
    path = tmp_path / "answers-b.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])

    assert numbers_in(journal_of(tmp_path)) == [0]


DAMAGE = {
    "rubbish": b"rubbish\n",
    "null bytes": b"\0" * 4096 + b"\n",
    "another encoding": '{"question": "ü"}\n'.encode("utf-16-be"),
    "a list": b"[1, 2]\n",
    "a number": b"7\n",
    "a line of another version": b'{"row": 0, "turn": 0, "attempt": 0, "text": "a", "finish_reason": "stop"}\n',
    "an answer without text": b'{"question": "' + b"0" * 32 + b'", "finish_reason": "stop", "num_tokens": 1}\n',
    "a key of letters": b'{"question": "' + b"z" * 32 + b'", "text": "a", "finish_reason": "stop", "num_tokens": 1,'
    b' "seconds": 0}\n',
    "deep nesting": b"[" * 100_000 + b"\n",
    "a verdict without a check": b'{"judged": "' + b"0" * 32 + b'", "passed": []}\n',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_line_is_skipped_and_counted_and_all_others_are_read(tmp_path, caplog, damage, place):
    write(tmp_path, "a", 0, 1)
    path = tmp_path / "answers-a.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:place], damage, *lines[place:]]))
    num_damaged = damage.count(b"\n")

    journal = journal_of(tmp_path)
    journal.refresh()

    assert numbers_in(journal) == [0, 1]
    assert [journal[key(number)] for number in (0, 1)] == [answer(0), answer(1)]
    offset = sum(map(len, lines[:place]))
    assert [record.message for record in caplog.records] == [
        f"{path}: {num_damaged} lines are damaged or not of a journal, the first at byte {offset}; they are skipped, "
        "and answers that stood in them are generated again"
    ]


def test_files_that_are_no_journals_are_left_alone(tmp_path):
    write(tmp_path, "a", 0)
    for name in ("answers-a.jsonl~", "#answers-a.jsonl#", ".nfs0001", "notes.txt", ".answers-a.jsonl.swp"):
        (tmp_path / name).write_bytes(b"anything")
    (tmp_path / "answers-a copy.jsonl").write_bytes((tmp_path / "answers-a.jsonl").read_bytes())

    assert numbers_in(journal_of(tmp_path)) == [0]


def test_a_folder_in_the_place_of_a_file_is_skipped_and_named_once(tmp_path, caplog):
    (tmp_path / "answers-a.jsonl").mkdir()
    write(tmp_path, "b", 0)

    journal = journal_of(tmp_path)
    journal.refresh()

    assert numbers_in(journal) == [0]
    named = [record.message for record in caplog.records if "answers-a.jsonl" in record.message]
    assert len(named) <= 1 or len(set(named)) == 1
    assert "answers-a.jsonl is skipped: Is a directory; answers in it are generated again" in named[0]


def test_a_file_that_vanishes_after_it_was_read_is_named(tmp_path):
    write(tmp_path, "a", 0)
    journal = journal_of(tmp_path)
    (tmp_path / "answers-a.jsonl").unlink()

    with pytest.raises(ArtifactError, match=r"answers-a.jsonl can't be read any more .* start again"):
        journal[key(0)]


def test_a_full_disk_stops_with_a_message_and_keeps_what_was_written(tmp_path):
    write(tmp_path, "a", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # no file may grow further, as on a full disk
    try:
        with pytest.raises(ArtifactError, match=r"the last batch could not be written \(.+\); make room"):
            write(tmp_path, "b", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert numbers_in(journal_of(tmp_path)) == [0]
    write(tmp_path, "c", 1)
    assert numbers_in(journal_of(tmp_path)) == [0, 1]


def test_a_reader_sees_what_another_process_has_added_since(tmp_path):
    journal = journal_of(tmp_path)
    write(tmp_path, "a", 0)
    assert key(0) not in journal

    journal.refresh()

    assert journal[key(0)] == answer(0)


def test_an_answer_that_failed_is_known_in_its_own_run_and_in_no_other(tmp_path):
    failed = Answer("", "error", 0, error="timed out")
    with Journal(tmp_path, ["a", "b"]).writer("a") as writer:
        writer.append([key(0), key(1)], [failed, replace(failed, error="too long", is_final=True)], seconds=1.0)

    own, other = journal_of(tmp_path, "a", "b"), journal_of(tmp_path, "c")

    assert own[key(0)] == failed  # for all ranks of that run
    assert key(0) not in other
    assert other[key(1)].error == "too long"  # it would fail again


def test_an_answer_counts_more_than_a_failure(tmp_path):
    with Journal(tmp_path, ["a"]).writer("a") as writer:
        writer.append([key(0)], [Answer("", "error", 0, error="timed out")], seconds=1.0)
    write(tmp_path, "b", 0)

    assert journal_of(tmp_path, "a")[key(0)] == answer(0)


def test_verdicts_of_several_checks_are_found_together_and_an_outage_is_forgotten_after_its_run(tmp_path):
    passed, rejected = StoredVerdict(key(0), "empty"), StoredVerdict(key(0), "leak", ("leak", "says so"))
    outage = StoredVerdict(key(0), "judge", ("check failed: judge", "ConnectionError: down"), is_outage=True)
    with Journal(tmp_path, ["a"]).writer("a") as writer:
        writer.add_verdicts([[passed, rejected], [StoredVerdict(key(1), "empty")]])
        writer.add_verdicts([[outage]])

    own, other = journal_of(tmp_path, "a"), journal_of(tmp_path, "b")

    assert own.verdicts(key(0)) == {"empty": passed, "leak": rejected, "judge": outage}
    assert other.verdicts(key(0)) == {"empty": passed, "leak": rejected}
    assert other.verdicts(key(2)) == {}


texts = st.text(st.characters(exclude_categories=["Cs"]))
answers = st.builds(
    Answer,
    texts,
    st.sampled_from(["stop", "length", "error"]),
    st.integers(0, 9999),
    st.floats(-50, 0) | st.none(),
    texts | st.none(),
)


@settings(max_examples=50)
@given(st.lists(answers, min_size=1))
def test_any_answer_comes_back_as_it_was(tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("journal")
    with Journal(folder, ["a"]).writer("a") as writer:
        writer.append([key(number) for number in range(len(answers))], answers, seconds=1.0)

    journal = journal_of(folder, "a")

    assert [journal[key(number)] for number in range(len(answers))] == answers


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (Answer("half \ud83d of a pair", "stop", 1), Answer("half \ufffd of a pair", "stop", 1)),
        (Answer("a", "stop", 1, float("nan")), Answer("a", "stop", 1)),
        (Answer(None, "stop", 1), Answer("", "error", 0, error="the backend gave no answer: its text is a NoneType")),
        (
            Answer("a", "tired", 1),
            Answer("", "error", 0, error="the backend gave no answer: its finish_reason is 'tired'"),
        ),
        (Answer("a", "stop", -1), Answer("", "error", 0, error="the backend gave no answer: its num_tokens is -1")),
    ],
)
def test_an_odd_answer_is_stored_as_one_that_can_be_read_again(tmp_path, given, stored):
    with Journal(tmp_path, ["a"]).writer("a") as writer:
        assert writer.append([key(0)], [given], seconds=1.0) == [stored]

    assert journal_of(tmp_path, "a")[key(0)] == stored


def test_many_small_batches_share_a_few_syncs_and_the_last_one_is_synced_in_the_end(tmp_path, monkeypatch):
    synced, usual = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), usual(descriptor))
    )
    monkeypatch.setattr("axolotl_sdft.distillation.generation.journal._SYNC_S", 3600)

    write(tmp_path, "a", *range(200))

    assert synced == [(tmp_path / "answers-a.jsonl").stat().st_size]


def test_more_files_than_a_process_may_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("axolotl_sdft.distillation.generation.journal._MAX_OPEN_FILES", 3)
    for number in range(10):
        write(tmp_path, f"run{number}", number)

    journal = journal_of(tmp_path)

    assert [journal[key(number)] for number in range(10)] == [answer(number) for number in range(10)]
    assert len(journal._open) == 3
    journal.close()


def test_memory_holds_where_the_answers_are_and_not_what_they_say(tmp_path):
    with Journal(tmp_path).writer("a") as writer:
        for start in range(0, 20_000, 100):
            keys = [key(number) for number in range(start, start + 100)]
            writer.append(keys, [Answer("word " * 200, "stop", 200)] * 100, seconds=0.1)

    tracemalloc.start()
    journal = journal_of(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(journal) == 20_000
    assert held < 20_000 * 350  # bytes; the texts alone are 1000 each


def test_a_line_can_be_read_by_a_person(tmp_path):
    write(tmp_path, "a", 5)
    assert json.loads((tmp_path / "answers-a.jsonl").read_text()) == {
        "question": "00000000000000000000000000000005",
        "text": "answer 5\nsecond line",
        "finish_reason": "stop",
        "num_tokens": 3,
        "seconds": 0.5,
        "ends_batch": True,
    }
