"""The script for machines with GPUs: what it would run is valid, and it can tell a good run from a bad one."""

import json
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl_sdft.core.errors import ConfigError
from tests.configs.test_example_configs import sdft_plugin, validate
from tests.gpu import axolotl_combinations as script

__all__ = ["sdft_plugin"]  # a fixture: Axolotl's schema knows our keys

NEEDS_A_GPU = {"deepspeed_zero2", "deepspeed_zero3", "flash_attention", "flash_attention_packed", "activation_offload"}
"""Cases that Axolotl itself refuses, or changes, where there is no GPU or a package is missing."""


@pytest.mark.parametrize("name", sorted(set(script.CASES) - NEEDS_A_GPU))
def test_each_case_is_valid_or_refused_as_it_says(name: str, tiny_llama_dir: Path):
    case = script.CASES[name]
    config = script.configuration(case, str(tiny_llama_dir), on_cpu=True)
    if case.refusal is None:
        validate(config)
    else:
        with pytest.raises(ConfigError, match=case.refusal):
            validate(config)


def state(folder: Path, logs: list[dict[str, float]]) -> Path:
    (folder / "out" / "checkpoint-6").mkdir(parents=True)
    (folder / "out" / "checkpoint-6" / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    return folder


def logs(first_ce: float = 2.0, kl: float = 0.1, loss: float = 2.0, steps: int = 6) -> list[dict[str, float]]:
    first = {"loss": 2.0, "dynsdpb/ce": first_ce}
    return [first, *({"loss": loss, "dynsdpb/ce": 1.9, "dynsdpb/kl": kl} for _ in range(steps - 1))]


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (logs(), None),
        (logs(steps=4), "logged 4 of 6 steps"),
        (logs(kl=0.0), "nothing was distilled from some iteration"),
        (logs(loss=float("nan")), "a loss is not finite"),
        (logs(first_ce=2.2), "starts at a cross-entropy of 2.2000, the plain case at 2.0000"),
    ],
)
def test_a_run_is_judged_by_what_it_logged(tmp_path: Path, found: list[dict[str, float]], fault: str | None):
    assert script.fault_of(script.CASES["full"], 0, "", state(tmp_path, found), plain_start=2.0) == fault


def test_a_run_that_failed_is_told_by_its_exit_code(tmp_path: Path):
    assert script.fault_of(script.CASES["full"], 9, "", tmp_path, None) == "exit code 9"


@pytest.mark.parametrize(
    ("returncode", "printed", "fault"),
    [
        (0, "", "was not refused"),
        (1, "with fsdp_config no process has the whole head to run; switch", None),
        (1, "Killed", "failed, but not with an error about 'no process has the whole head to run'"),
    ],
)
def test_a_case_that_must_be_refused_is_judged_by_its_error(
    tmp_path: Path, returncode: int, printed: str, fault: str | None
):
    assert script.fault_of(script.CASES["cut_cross_entropy_fsdp2"], returncode, printed, tmp_path, None) == fault


def test_without_a_gpu_the_script_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(script, "_num_gpus", lambda: 0)
    assert script.main([]) == 1
    assert capsys.readouterr().out == "no GPU is visible here\n"


@pytest.mark.e2e
def test_a_case_that_needs_no_gpu_runs_on_a_cpu(
    tmp_path: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--on-cpu", "--model", str(tiny_llama_dir), "--folder", str(tmp_path)]
    assert script.main(["lora", "cut_cross_entropy_fsdp2", *options]) == 0, (
        tmp_path / "lora" / "printed.txt"
    ).read_text()
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["lora", "works"],
        ["cut_cross_entropy_fsdp2", "works"],
    ]
