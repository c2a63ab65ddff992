import resource

import pytest

from axolotl_sdft.distillation.interfaces import Answer, Prompt
from axolotl_sdft.distillation.journal import Journal
from axolotl_sdft.errors import ArtifactError


def prompt(row, turn=0):
    return Prompt((row, turn), ({"role": "user", "content": "hello"},))


def write(folder, rank, *rows):
    with Journal(folder).writer(rank) as writer:
        for row in rows:
            writer.append([prompt(row)], [Answer(f"answer {row}\nsecond line", "stop", 3)], seconds=0.5)


def test_answers_come_back_as_they_were_written_whichever_rank_wrote_them(tmp_path):
    write(tmp_path, 0, 0, 2)
    write(tmp_path, 1, 1)

    answers = Journal(tmp_path).answers()

    assert sorted(answers) == [(0, 0), (1, 0), (2, 0)]
    assert answers[1, 0] == Answer("answer 1\nsecond line", "stop", 3)
    assert Journal(tmp_path).seconds() == 1.5


def test_a_torn_last_line_is_dropped_and_the_next_batch_starts_on_a_line_of_its_own(tmp_path):
    write(tmp_path, 0, 0, 1)
    path = tmp_path / "journal-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a kill in the middle of the second line

    assert sorted(Journal(tmp_path).answers()) == [(0, 0)]
    write(tmp_path, 0, 1)
    assert sorted(Journal(tmp_path).answers()) == [(0, 0), (1, 0)]


def test_a_spoilt_line_in_the_middle_is_an_error_that_names_file_and_line(tmp_path):
    write(tmp_path, 0, 0)
    path = tmp_path / "journal-00000.jsonl"
    path.write_bytes(b"rubbish\n" + path.read_bytes())

    with pytest.raises(ArtifactError, match=r"journal-00000.jsonl, line 1 is no journal line"):
        Journal(tmp_path).answers()


def test_a_full_disk_stops_with_a_message_and_keeps_what_was_written(tmp_path):
    write(tmp_path, 0, 0)
    size = (tmp_path / "journal-00000.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))  # no file may grow further, as on a full disk
    try:
        with pytest.raises(ArtifactError, match=r"the last batch could not be written \(.+\); make room"):
            write(tmp_path, 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert sorted(Journal(tmp_path).answers()) == [(0, 0)]
    write(tmp_path, 0, 1)
    assert sorted(Journal(tmp_path).answers()) == [(0, 0), (1, 0)]


def test_a_second_writer_of_the_same_rank_waits_for_the_first(tmp_path):
    from filelock import FileLock, Timeout

    with Journal(tmp_path).writer(0), pytest.raises(Timeout):
        FileLock(tmp_path / "journal-00000.lock", is_singleton=False).acquire(timeout=0)
    write(tmp_path, 0, 0)
