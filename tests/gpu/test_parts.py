"""What `python -m tests.gpu` runs: within its time, in order of worth, and on a CPU as a whole."""

import json
import os
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml

pytest.importorskip("axolotl")

from tests.gpu import __main__ as program
from tests.gpu.parts import Bench, all_parts, quickstart_config
from tests.gpu.results import REPOSITORY


def parts(tmp_path, *arguments):
    return all_parts(program._options([*arguments, "--workdir", str(tmp_path)]))


def rows(path: Path, keys: tuple[str, str], count: int) -> None:
    lines = [{keys[0]: f"What is {n} more than {n}?", keys[1]: f"It is {2 * n}."} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of the sets that the study of recovery reads, with rows of our own."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, train in (("dolly", 64), ("gsm8k", 32), ("openfunctions", 32)):
        keys = ("question", "answer") if name == "gsm8k" else ("instruction", "output")
        rows(folder / f"{name}_train.jsonl", keys, train)
        rows(folder / f"{name}_test.jsonl", keys, 2)
    return folder


def test_all_parts_fit_25_minutes_with_time_to_make_what_they_need(tmp_path, data):
    found = parts(tmp_path, "--data", str(data))
    assert tuple(found) == program.PARTS
    assert all(part.skipped is None for part in found.values())
    made = {command.name: command.limit for part in found.values() for command in part.commands if command.is_needed}
    assert sum(part.limit for part in found.values()) + sum(made.values()) <= 25 * 60


def test_recovery_is_skipped_plainly_without_its_rows(tmp_path, data):
    assert parts(tmp_path)["recovery"].skipped == "no folder of rows was named with --data"
    (data / "gsm8k_test.jsonl").unlink()
    assert parts(tmp_path, "--data", str(data))["recovery"].skipped == f"{data} holds no gsm8k_test.jsonl"


def test_on_a_gpu_the_quickstart_differs_in_dtype_and_kernels_alone(tmp_path):
    bench = Bench(program._options(["--workdir", str(tmp_path), "--model", "models/a"]))
    config = quickstart_config(bench, tmp_path)
    shipped = yaml.safe_load((REPOSITORY / "example_configs/quickstart.yml").read_text())
    assert config["bf16"] == "auto"
    differing = {key for key in shipped if config.get(key) != shipped[key]} - {"bf16"}
    assert {key for key in differing if not key.endswith("_kernel")} == {
        *("base_model", "datasets", "output_dir", "dataset_prepared_path")
    }
    assert Path(config["datasets"][0]["path"]).is_file()


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "machine", lambda: {"device": "CPU (x86_64)"})
    assert program.main(["--workdir", str(tmp_path / "runs")]) == 1
    assert "no GPU is visible here" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_part_that_is_not_there_is_refused_with_those_that_are(capsys):
    with pytest.raises(SystemExit):
        program._options(["quickstart", "stepz"])
    assert "there is no part 'stepz'; known: quickstart, trainers" in capsys.readouterr().err


def test_a_project_that_is_not_installed_has_its_entry_points(tmp_path):
    folder = tmp_path / "axolotl_sdft-0.dist-info"
    program.write_entry_points(folder)
    found = Distribution.at(folder)
    assert found.metadata["Name"] == "axolotl-sdft"
    groups = {entry.group for entry in found.entry_points}
    assert groups == {"axolotl.cli_commands", "axolotl_sdft"}
    assert all(entry.load() for entry in found.entry_points if entry.group == "axolotl_sdft")


@pytest.mark.e2e
def test_all_parts_run_on_a_cpu_at_tiny_sizes(tmp_path, data, smollm2_dir):
    output, log = tmp_path / "results.json", tmp_path / "log"
    places = ["--workdir", str(tmp_path / "runs"), "--output", str(output), "--data", str(data)]
    command = [sys.executable, "-m", "tests.gpu", "--on-cpu", "--model", str(smollm2_dir.absolute()), *places]
    # A machine for it has no servers to ask, and so not the package that asks them.
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "openai.py").write_text(
        'raise ModuleNotFoundError("No module named openai", name="openai")'
    )
    with log.open("w") as file:
        environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'missing'}{os.pathsep}{REPOSITORY}"}
        limit = ["--minutes", "600"]  # no machine is too slow
        streams = {"stdout": file, "stderr": subprocess.STDOUT}
        code = subprocess.run([*command, *limit], cwd=tmp_path, env=environment, check=False, **streams).returncode
    assert output.is_file(), log.read_text()[-3000:]
    found = json.loads(output.read_text())
    assert {name: part.get("reason") for name, part in found["parts"].items()} == dict.fromkeys(program.PARTS)
    assert code == 0
    measured = {
        f"{name}, {command}": result["figures"]
        for name, part in found["parts"].items()
        for command, result in part["commands"].items()
        if result.get("figures") is not None
    }
    assert measured["quickstart, train"]["steps"] == 2
    assert measured["quickstart, train"]["last"]["logit_distillation/kl"] > 0
    assert measured["trainers, combinations"]["lora"]["status"] == "works"
    assert set(measured["rewriting, tiny"]) >= {"backend", "padded"}
    assert set(measured["steps, logit lora"]) == {"plain", "forward", "shared", "loaded"}
    assert set(measured["pruning, stages"]) == {"load", "score", "patch", "cut, bare", "cut, patched"}
    assert len(measured["recovery, study"]) == 4
