"""What can go wrong on the way: each time the same dataset in the end, or a clear stop with all that was done kept."""

import json
import random
from itertools import islice

import pytest

from axolotl_sdft.core.errors import ArtifactError, PluginError
from axolotl_sdft.distillation.generation import rounds
from axolotl_sdft.distillation.pipeline import run_distillation
from tests.distillation import echo_backend, runs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows that a run without any fault gives."""
    root = tmp_path_factory.mktemp("undisturbed")
    runs.rewrite(root)
    assert len(runs.generated(root)) > runs.NUM_TARGETS  # some were rejected and asked for again
    return runs.result(root)


def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_dataset_and_makes_no_answer_twice(
    tmp_path, undisturbed
):
    moments, sizes = random.Random(0), set()
    for _ in range(20):
        before = runs.journaled(tmp_path)
        sizes.add(len(before))
        (tmp_path / "generated.txt").write_text("")
        process = runs.start(tmp_path, pause_after=10)  # however late the kill comes, there is work left
        if num_awaited := moments.randrange(10):
            runs.wait_for_answers(tmp_path, len(before) + num_awaited, process)
        process.kill()
        assert not before & set(runs.generated(tmp_path))

    runs.rewrite(tmp_path)

    assert len(sizes) > 5  # most kills came in the middle of the work
    assert runs.result(tmp_path) == undisturbed
    left_over = {path.name.split("-")[0] for path in (tmp_path / "out").iterdir()}
    assert left_over == {"answers", "distilled", ".distilled"}  # the last is the lock of the build


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_dataset_and_each_its_share(tmp_path, undisturbed, num_ranks):
    runs.rewrite(tmp_path, num_ranks)

    assert runs.result(tmp_path) == undisturbed
    keys = runs.generated(tmp_path)
    assert len(keys) == len(set(keys))
    shares = runs.shares(tmp_path)
    assert sum(shares) == len(keys)
    assert max(shares) < 1.2 * len(keys) / num_ranks


def test_windows_of_a_single_batch_are_dealt_out_to_all_ranks(tmp_path):
    runs.rewrite(tmp_path, num_ranks=2, window_rows=echo_backend.ROWS_PER_BATCH)

    shares = runs.shares(tmp_path)
    assert shares[0] == pytest.approx(shares[1], rel=0.1)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2)])
def test_a_restart_with_another_number_of_ranks_goes_on_where_the_killed_ones_stopped(
    tmp_path, undisturbed, before, after
):
    ranks = [runs.start(tmp_path, pause_after=60, RANK=str(rank), WORLD_SIZE=str(before)) for rank in range(before)]
    runs.wait_for_answers(tmp_path, 100, *ranks)
    for process in ranks:
        process.kill()
    kept = runs.journaled(tmp_path)
    (tmp_path / "generated.txt").write_text("")

    runs.rewrite(tmp_path, after)

    assert runs.result(tmp_path) == undisturbed
    assert not kept & set(runs.generated(tmp_path))


def test_a_full_disk_stops_the_run_clearly_and_it_goes_on_once_there_is_room(tmp_path, undisturbed):
    process = runs.start(tmp_path, max_file_bytes=20_000)
    assert process.end() == 1
    assert "ArtifactError" in runs.error_of(tmp_path)
    assert "could not be written (File too large); make room and start again" in runs.error_of(tmp_path)
    kept = runs.journaled(tmp_path)
    assert len(kept) > 50
    (tmp_path / "generated.txt").write_text("")

    runs.rewrite(tmp_path)

    assert runs.result(tmp_path) == undisturbed
    assert not kept & set(runs.generated(tmp_path))


@pytest.mark.usefixtures("echo_plugin")
def test_a_second_run_on_the_same_output_stops_and_the_first_is_not_disturbed(tmp_path, undisturbed):
    first = runs.start(tmp_path, pause_after=1)
    runs.wait_for_answers(tmp_path, 0, first)

    with pytest.raises(ArtifactError, match=r"distilled-.+ is being filled by another run; .*output_dir"):
        run_distillation(runs.echo_spec(tmp_path))

    runs.resume(tmp_path)
    runs.finish(first)
    assert runs.result(tmp_path) == undisturbed


@pytest.mark.usefixtures("echo_plugin")
def test_a_rank_that_outlived_its_run_keeps_a_smaller_run_from_doing_its_work_twice(tmp_path):
    ranks = [runs.start(tmp_path, pause_after=1, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    runs.wait_for_answers(tmp_path, 0, *ranks)
    ranks[0].kill()
    survivor = ranks[1]
    try:
        with pytest.raises(ArtifactError, match="is being filled by another run"):
            run_distillation(runs.echo_spec(tmp_path))
    finally:
        survivor.kill()


def test_ranks_that_see_another_seed_model_stop_rather_than_wait_for_each_other(tmp_path):
    first = runs.start(tmp_path, RANK="0", WORLD_SIZE="2")
    runs.wait_until(lambda: list(tmp_path.glob("out/.*.ranks/rank-00000.json")), lambda: first.describe("waits"), first)
    (tmp_path / "seed" / "config.json").write_text('{"copied": "later"}')
    second = runs.start(tmp_path, RANK="1", WORLD_SIZE="2")

    assert [first.end(), second.end()] == [1, 1]
    for process in (first, second):
        assert "they don't see the same rows, settings or seed model" in process.log.read_text()


@pytest.mark.usefixtures("echo_plugin")
def test_a_seed_model_that_changes_during_the_run_stops_it_before_the_dataset_is_built(tmp_path, monkeypatch):
    spec, usual = runs.echo_spec(tmp_path, num_rows=4), echo_backend.EchoBackend.answer

    def answer_and_change_the_seed(backend, prompt):
        (tmp_path / "seed" / "config.json").write_text('{"trained": true}')
        return usual(backend, prompt)

    monkeypatch.setattr(echo_backend.EchoBackend, "answer", answer_and_change_the_seed)
    with pytest.raises(ArtifactError, match=r"seed was changed while it wrote the answers in .* Start again to have"):
        run_distillation(spec)
    assert not list((tmp_path / "out").glob("distilled-*"))
    assert runs.journaled(tmp_path)


@pytest.mark.usefixtures("echo_plugin")
def test_a_seed_model_that_changed_between_two_runs_writes_answers_of_its_own(tmp_path):
    before = runs.echo_spec(tmp_path, num_rows=4)
    first = run_distillation(before)
    (tmp_path / "seed" / "config.json").write_text('{"trained": true}')
    after = runs.DistillationSpec(before.dataset, before.config, before.seed_dir, before.dataset_config, "seed")

    second = run_distillation(after)

    assert second != first
    assert before.answers_dir != after.answers_dir
    assert json.loads((first / "summary.json").read_text())["rows"] == 4


@pytest.mark.usefixtures("echo_plugin")
def test_answers_may_come_in_any_order(tmp_path, monkeypatch, undisturbed):
    usual = echo_backend.EchoBackend.generate

    def last_of_ten_first(backend, batches):
        done = usual(backend, batches)
        while some := list(islice(done, 10)):
            yield from reversed(some)

    monkeypatch.setattr(echo_backend.EchoBackend, "generate", last_of_ten_first)
    run_distillation(runs.echo_spec(tmp_path))

    assert runs.result(tmp_path) == undisturbed


@pytest.mark.usefixtures("echo_plugin")
def test_a_backend_that_leaves_answers_out_is_named(tmp_path, monkeypatch):
    usual = echo_backend.EchoBackend.generate

    def every_second(backend, batches):
        yield from (pair for number, pair in enumerate(usual(backend, batches)) if number % 2 == 0)

    monkeypatch.setattr(echo_backend.EchoBackend, "generate", every_second)
    with pytest.raises(PluginError, match="backend 'echo' ended without 2 of the answers it was asked for"):
        run_distillation(runs.echo_spec(tmp_path, num_rows=4))


@pytest.mark.usefixtures("echo_plugin")
def test_rows_are_planned_window_by_window_as_the_backend_draws_them(tmp_path, monkeypatch):
    planned, drawn = [], []
    usual = echo_backend.EchoBackend.batches, echo_backend.EchoBackend.generate

    def note_planned(backend, prompts):
        planned.append(len(prompts))
        return usual[0](backend, prompts)

    def note_drawn(backend, batches):
        for pair in usual[1](backend, batches):
            drawn.append((len(planned), len(pair[0])))
            yield pair

    monkeypatch.setattr(rounds, "_WINDOW_ROWS", 4)
    monkeypatch.setattr(echo_backend.EchoBackend, "batches", note_planned)
    monkeypatch.setattr(echo_backend.EchoBackend, "generate", note_drawn)
    run_distillation(runs.echo_spec(tmp_path, num_rows=8))

    assert drawn[:4] == [(1, 2), (1, 2), (2, 2), (2, 2)]  # the second window is planned after the first is drawn
