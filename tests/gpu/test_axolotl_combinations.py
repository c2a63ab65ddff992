"""The script for machines with GPUs: what it would run is valid, and it can tell a good run from a bad one."""

import argparse
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


def taught_logs(kl: float = 0.1, first_ce: float = 2.0) -> list[dict[str, float]]:
    return [{"loss": 2.0, "logit_distillation/ce": first_ce, "logit_distillation/kl": kl} for _ in range(6)]


def logs(first_ce: float = 2.0, kl: float = 0.1, loss: float = 2.0, steps: int = 6) -> list[dict[str, float]]:
    first = {"loss": 2.0, "dynsdpb/ce": first_ce}
    return [first, *({"loss": loss, "dynsdpb/ce": 1.9, "dynsdpb/kl": kl} for _ in range(steps - 1))]


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (logs(), None),
        (logs(steps=4), "logged 4 of 6 steps"),
        (logs(kl=0.0), "nothing was distilled in some step"),
        (logs(loss=float("nan")), "a loss is not finite"),
        (logs(first_ce=2.2), "starts at a cross-entropy of 2.2000, the plain case at 2.0000"),
    ],
)
def test_a_run_is_judged_by_what_it_logged(tmp_path: Path, found: list[dict[str, float]], fault: str | None):
    assert script.fault_of(script.CASES["full"], 0, "", state(tmp_path, found), plain_start=2.0) == fault


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (taught_logs(), None),
        (taught_logs(kl=0.0), "nothing was distilled in some step"),
        (taught_logs(first_ce=2.2), "starts at a cross-entropy of 2.2000, the plain case at 2.0000"),
        (logs(), "nothing was distilled in some step"),
    ],
)
def test_with_the_seed_model_as_teacher_each_step_distils(
    tmp_path: Path, found: list[dict[str, float]], fault: str | None
):
    assert script.fault_of(script.CASES["taught_lora"], 0, "", state(tmp_path, found), plain_start=2.0) == fault


def test_a_run_that_was_stopped_is_told(tmp_path: Path):
    assert script.fault_of(script.CASES["full"], None, "", tmp_path, None) == "was stopped at its time limit"


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


def test_plain_cases_come_first_and_give_the_start_of_their_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(name: str, folder: Path, options: argparse.Namespace) -> tuple[int, str]:
        is_taught = name.startswith("taught")
        first = {"full": 3.0, "taught_full": 2.0}.get(name, 2.0)
        state(folder, taught_logs(first_ce=first) if is_taught else logs(first_ce=first))
        return 0, ""

    monkeypatch.setattr(script, "run", run)
    names = ["full", "taught_full", "taught_lora", "lora", "ddp"]
    options = ["--on-cpu", "--folder", str(tmp_path), "--json", str(tmp_path / "found.json"), "--jobs", "2"]
    assert script.main([*names, *options]) == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(list(found)[:2]) == {"taught_lora", "lora"}
    assert {name for name, result in found.items() if result["status"] == "works"} == set(names) - {"full"}
    assert "starts at a cross-entropy of 3.0000, the plain case at 2.0000" in found["full"]["reason"]


def test_what_a_machine_lacks_is_skipped_with_the_reason():
    assert script.why_not_here(script.CASES["ddp"], 1, on_cpu=False) == "needs 2 GPUs"
    assert script.why_not_here(script.Case({}, packages=["no_such_package"]), 1, on_cpu=False) == (
        "no_such_package is not installed"
    )
