"""Ways are measured in turn, figures found so far are on disk, and tables compare within a round."""

import json

import pytest

from tests.benchmarks import bench_dynsdpb_step, bench_logit_step, bench_pruning, rounds
from tests.benchmarks.rounds import in_turn, keep_figures


def test_figures_are_on_disk_after_each_way(tmp_path, monkeypatch):
    seen = []

    def figures(module, way):
        seen.append(json.loads(path.read_text()) if path.exists() else None)
        return {"seconds": 1.0 if way == "plain" else 2.0}

    path = tmp_path / "figures.json"
    monkeypatch.setattr(rounds, "_printed_figures", figures)
    found = in_turn("some.module", ["plain", "other"], 2, path)
    one, two = {"seconds": 1.0}, {"seconds": 2.0}
    assert found == {"plain": [one, one], "other": [two, two]}
    assert seen == [
        None,
        {"plain": [one], "other": []},
        {"plain": [one], "other": [two]},
        {"plain": [one, one], "other": [two]},
    ]


def test_a_way_that_fails_ends_the_benchmark_with_what_it_printed(monkeypatch):
    def fails(module, arguments, log):
        assert arguments[-2:] == ["--way", "plain"]
        log.write_text("loading\nOutOfMemoryError: no room\n")
        return 1

    monkeypatch.setattr(rounds, "run_module", fails)
    with pytest.raises(SystemExit, match="OutOfMemoryError: no room\nplain: exit code 1"):
        in_turn("some.module", ["plain"], 1)


def test_the_figures_of_a_way_are_the_last_line_that_holds_any(monkeypatch):
    def works(module, arguments, log):
        log.write_text('{"loss": 3}\n{"seconds": 2.5}\nWARNING: bye\n')
        return 0

    monkeypatch.setattr(rounds, "run_module", works)
    assert in_turn("some.module", ["plain"], 1) == {"plain": [{"seconds": 2.5}]}


def test_no_file_is_written_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep_figures(None, {"plain": []})
    assert not list(tmp_path.iterdir())


def step(seconds, cpu_seconds, megabytes):
    return [{"seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": megabytes}]


@pytest.mark.parametrize(("clock", "ratio"), [("cpu_seconds", "1.250"), ("seconds", "2.000")])
def test_a_step_with_a_teacher_is_compared_with_plain_training_and_a_forward_pass(clock, ratio):
    found = {"plain": step(2.0, 3.0, 100.0), "forward": step(1.0, 1.0, 80.0), "shared": step(6.0, 5.0, 130.0)}
    lines = bench_logit_step.table(found, clock)
    assert lines[-1] == f"| teacher that shares the layers | 6.00 | 5.00 | {ratio} | 130 | +30 |"


def test_a_step_of_dynsdpb_is_compared_with_plain_training():
    lines = bench_dynsdpb_step.table({"plain": step(2.0, 4.0, 100.0), "dynsdpb": step(3.0, 5.0, 110.0)})
    assert lines[-1] == "| DynSDPB | 3.00 | 1.500 | 5.00 | 1.250 | 110 | 1.100 |"


def test_a_model_is_quantized_with_qlora_alone():
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    assert "quantization_config" not in bench_dynsdpb_step.loading("lora", torch.bfloat16)
    quantization = bench_dynsdpb_step.loading("qlora", torch.bfloat16)["quantization_config"]
    assert (quantization.load_in_4bit, quantization.bnb_4bit_quant_type) == (True, "nf4")


def test_each_stage_of_pruning_has_a_line():
    figures = {"seconds": 1.25, "megabytes": 2000.4, "process_megabytes": 700.0}
    assert bench_pruning.table({"score": figures}).splitlines()[-1] == "| score | 1.2 | 2000 | 700 |"
