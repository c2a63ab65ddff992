import subprocess
import sys
from pathlib import Path

import click
import pytest

from axolotl_sdft.integrations.axolotl.compat import ending_quietly, other_trainers, running_command

pytest.importorskip("axolotl")

from axolotl.integrations.base import BasePlugin, PluginManager


def launch(folder, script):
    """Run a script as a launcher runs `axolotl merge-lora`."""
    package = folder / "axolotl" / "cli"
    package.mkdir(parents=True)
    for path in (package, package.parent):
        (path / "__init__.py").touch()
    (package / "merge_lora.py").write_text(f"from axolotl_sdft.integrations.axolotl import compat\n{script}")
    repository = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{folder}:{repository}", "PATH": ""}
    command = [sys.executable, "-m", "axolotl.cli.merge_lora"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_launched_process_knows_its_command_from_the_module_it_runs(tmp_path):
    done = launch(tmp_path, "print(compat.running_command())")
    assert done.stdout.strip() == "merge-lora"


def test_ctrl_c_ends_a_launched_process_with_what_was_said_and_no_traceback(tmp_path):
    done = launch(tmp_path, "with compat.ending_quietly():\n    print('kept')\n    raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "kept\n", "")


def test_ctrl_c_reaches_whoever_has_called_the_plugin_in_a_process_of_their_own():
    with pytest.raises(KeyboardInterrupt), ending_quietly():
        raise KeyboardInterrupt


def test_a_command_that_runs_in_process_is_known_from_click():
    seen = []
    command = click.Command("preprocess", callback=lambda: seen.append(running_command()))
    command.main([], prog_name="preprocess", standalone_mode=False)
    assert seen == ["preprocess"]


def test_outside_the_command_line_there_is_no_command():
    assert running_command() is None


class Trainer:
    pass


class WithTrainer(BasePlugin):
    def get_trainer_cls(self, cfg):
        return Trainer if cfg.get("kd_trainer") else None


def test_another_plugins_trainer_is_found_only_where_it_would_run(monkeypatch):
    own = WithTrainer()
    plugins = {"a.Plain": BasePlugin(), "a.Other": type("Other", (WithTrainer,), {})(), "own": own}
    monkeypatch.setattr(PluginManager.get_instance(), "plugins", plugins)

    listed = {"plugins": ["a.Plain", "a.Other", "own"]}
    assert other_trainers(listed | {"kd_trainer": True}, own) == {"a.Other": "Trainer"}
    assert other_trainers(listed, own) == {}
    assert other_trainers({"plugins": ["own"], "kd_trainer": True}, own) == {}
