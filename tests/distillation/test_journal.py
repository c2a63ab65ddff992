import os
import resource
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

    assert sorted(answers) == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert answers[1, 0, 0] == Answer("answer 1\nsecond line", "stop", 3)
    assert Journal(tmp_path).seconds() == 1.5


def test_a_torn_last_line_is_dropped_and_the_next_batch_starts_on_a_line_of_its_own(tmp_path):
    write(tmp_path, 0, 0, 1)
    path = tmp_path / "journal-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a kill in the middle of the second line

    assert sorted(Journal(tmp_path).answers()) == [(0, 0, 0)]
    write(tmp_path, 0, 1)
    assert sorted(Journal(tmp_path).answers()) == [(0, 0, 0), (1, 0, 0)]


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

    assert sorted(Journal(tmp_path).answers()) == [(0, 0, 0)]
    write(tmp_path, 0, 1)
    assert sorted(Journal(tmp_path).answers()) == [(0, 0, 0), (1, 0, 0)]


def test_a_second_writer_of_the_same_rank_is_refused(tmp_path):
    with (
        Journal(tmp_path).writer(0),
        pytest.raises(ArtifactError, match=r"is being filled by another run; let it end, or stop it"),
        Journal(tmp_path).writer(0),
    ):
        pass
    write(tmp_path, 0, 0)  # free again


def test_a_batch_of_which_a_kill_left_the_first_answers_is_dropped_as_a_whole(tmp_path):
    write(tmp_path, 0, 0)
    with Journal(tmp_path).writer(0) as writer:
        writer.append([prompt(1), prompt(2)], [Answer("one", "stop", 1), Answer("two", "stop", 1)], seconds=1.0)
    path = tmp_path / "journal-00000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))

    assert sorted(Journal(tmp_path).answers()) == [(0, 0, 0)]
    write(tmp_path, 0, 1)
    assert len(path.read_text().splitlines()) == 2


def test_a_line_of_another_format_is_refused_like_rubbish(tmp_path):
    (tmp_path / "journal-00000.jsonl").write_text('{"answers": [], "seconds": 1.0}\n')

    with pytest.raises(ArtifactError, match=r"line 1 is no journal line; restore the file, or delete it"):
        Journal(tmp_path).answers()


def test_a_reader_sees_what_another_rank_has_added_since(tmp_path):
    journal = Journal(tmp_path)
    write(tmp_path, 1, 0)
    assert (0, 0, 0) in journal.answers()

    write(tmp_path, 1, 1)
    assert (1, 0, 0) not in journal

    journal.refresh()
    assert journal[1, 0, 0].text == "answer 1\nsecond line"
    assert (journal.seconds(), journal.num_tokens()) == (1.0, 6)


def test_chains_share_first_attempts_and_keep_later_ones_to_themselves(tmp_path):
    for chain, text in (("strict", "one"), ("lenient", "other")):
        with Journal(tmp_path, chain).writer(0) as writer:
            if chain == "strict":
                writer.append([prompt(0)], [Answer("first", "stop", 1)], seconds=1.0)
            writer.append([replace(prompt(0), attempt=1)], [Answer(text, "stop", 1)], seconds=1.0)

    seen = {chain: Journal(tmp_path, chain).answers() for chain in ("strict", "lenient", "new")}

    assert [journal[0, 0, 0].text for journal in seen.values()] == ["first"] * 3
    assert (seen["strict"][0, 0, 1].text, seen["lenient"][0, 0, 1].text) == ("one", "other")
    assert (0, 0, 1) not in seen["new"]


texts = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            Answer,
            texts,
            st.sampled_from(["stop", "length", "error"]),
            st.integers(0, 9999),
            st.floats(-50, 0) | st.none(),
            texts | st.none(),
        ),
        min_size=1,
    )
)
def test_any_answer_comes_back_as_it_was(tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("journal")
    with Journal(folder).writer(0) as writer:
        writer.append([prompt(row) for row in range(len(answers))], answers, seconds=1.0)

        journal = Journal(folder).answers()

        assert [journal[row, 0, 0] for row in range(len(answers))] == answers


def test_many_small_batches_share_a_few_syncs_and_the_last_one_is_synced_in_the_end(tmp_path, monkeypatch):
    synced, usual = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), usual(descriptor))
    )
    monkeypatch.setattr("axolotl_sdft.distillation.journal._SYNC_S", 3600)

    write(tmp_path, 0, *range(200))

    assert synced == [(tmp_path / "journal-00000.jsonl").stat().st_size]


def test_memory_holds_where_the_answers_are_and_not_what_they_say(tmp_path):
    with Journal(tmp_path).writer(0) as writer:
        for start in range(0, 20_000, 100):
            batch = [prompt(row) for row in range(start, start + 100)]
            writer.append(batch, [Answer("word " * 200, "stop", 200)] * 100, seconds=0.1)

    tracemalloc.start()
    journal = Journal(tmp_path).answers()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(journal) == 20_000
    assert held < 20_000 * 300  # bytes; the texts alone are 1000 each
