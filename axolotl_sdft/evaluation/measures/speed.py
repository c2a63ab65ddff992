"""How fast each model generates, and what memory that takes.

Each model runs in a child process of its own, so that its peak memory is its own: ``python -m
axolotl_sdft.evaluation.measures.speed`` reads a job as JSON from standard input and writes what it measured to standard
output. The models take turns, round by round, so that a machine that slows down slows all of them.

Shapes: T tokens.
"""

import contextlib
import dataclasses
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config.evaluation import SpeedConfig
from axolotl_sdft.core.errors import BackendError, ConfigError, SdftError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.evaluation.figures import SpeedFigures
from axolotl_sdft.evaluation.spec import ReportedModel

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)

Measured = dict[str, Any]
"""What a child measures: ``seconds`` of the generation, ``peak_bytes`` meanwhile, and the ``device``."""

_WARM_UP_TOKENS = 8
_KILLED = -9


def measure_speed(
    models: Sequence[ReportedModel],
    config: SpeedConfig,
    dtype: str,
    on_failure: Callable[[str], None] | None = None,
    *,
    trust_remote_code: bool = False,
    placement: Mapping[str, Any] | None = None,
) -> dict[str, SpeedFigures]:
    """Return the figures of each model by its name; medians over the rounds.

    Peak memory is what torch allocated on the accelerator, the weights included; on a CPU it is the resident memory of
    the process, Python and its libraries included. Give the memory of models in this process back before: the children
    need it.

    Args:
        models: What is timed, in turn.
        config: The ``recovery_report.speed`` block; with 0 rounds nothing is measured.
        dtype: Number format, as ``recovery_report.dtype``.
        on_failure: Takes the message of each model that can't be measured, which the figures then lack. Without it the
            first such model raises.
        trust_remote_code: Run code that comes with a model.
        placement: As ``RecoveryReportConfig.placement``.

    Raises:
        ConfigError: The tokens do not fit into the context of a model.
        BackendError: A model can't be measured; the message ends in the last line of its process.
    """
    check_speed(models, config, trust_remote_code=trust_remote_code)
    job = {"dtype": dtype, "trust_remote_code": trust_remote_code, "placement": dict(placement or {})}
    job |= {"prompt_tokens": config.prompt_tokens, "new_tokens": config.new_tokens}
    rounds: dict[str, list[Measured]] = {model.name: [] for model in models}
    with progress("Timing", config.rounds * len(models), "runs", LOG) as shown:
        for _ in range(config.rounds):
            for model in [model for model in models if model.name in rounds]:
                try:
                    rounds[model.name].append(_measure_in_child(model, job))
                except BackendError as err:
                    if on_failure is None:
                        raise
                    on_failure(str(err))
                    del rounds[model.name]
                shown.advance(model=model.name)
    return {name: _figures(measured, config) for name, measured in rounds.items() if measured}


def check_speed(models: Sequence[ReportedModel], config: SpeedConfig, *, trust_remote_code: bool = False) -> None:
    """Refuse more tokens than a model takes; loads no weights.

    Raises:
        ConfigError: The tokens do not fit into the context of a model.
    """
    num_tokens = config.prompt_tokens + config.new_tokens
    for model in models if config.rounds else ():
        longest = _context_length(model, trust_remote_code)
        if longest is not None and num_tokens > longest:
            raise ConfigError(
                f"recovery_report.speed.prompt_tokens is {config.prompt_tokens}, which with new_tokens "
                f"({config.new_tokens}) makes {num_tokens} tokens, but {model.name} ({model.folder}) takes at most "
                f"{longest}; lower prompt_tokens or new_tokens"
            )


def generate_greedily(model: Any, prompt_1T: "torch.Tensor", max_new_tokens: int, **settings: Any) -> "torch.Tensor":
    """Return prompt and greedy answer of one sequence, [1, T], whatever the checkpoint's own generation settings."""
    import torch

    from axolotl_sdft.inference.forwarding import attention_of_any_shape

    with torch.inference_mode(), attention_of_any_shape():
        generated_1T: torch.Tensor = model.generate(
            input_ids=prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            max_new_tokens=max_new_tokens,
            pad_token_id=0,  # unused with one sequence; named, or generate warns
            use_cache=True,
            **{"max_length": None, "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0},
            **{"temperature": None, "top_p": None, "top_k": None},
            **settings,
        )
    return generated_1T


def _context_length(model: ReportedModel, trust_remote_code: bool) -> int | None:
    """Return the most tokens that a model takes; None where its config does not tell or can't be read."""
    from transformers import AutoConfig

    from axolotl_sdft.core.trained_on import weights_dir
    from axolotl_sdft.inference.loading import context_length

    try:
        config = AutoConfig.from_pretrained(weights_dir(model.folder), trust_remote_code=trust_remote_code)
        return context_length(SimpleNamespace(config=config))
    except (OSError, ValueError):  # the child that loads it says best what is the matter
        return None


def _figures(rounds: Sequence[Measured], config: SpeedConfig) -> SpeedFigures:
    speeds = tuple(config.new_tokens / measured["seconds"] for measured in rounds)
    return SpeedFigures(
        tokens_per_second=statistics.median(speeds),
        speeds=speeds,
        peak_bytes=round(statistics.median(measured["peak_bytes"] for measured in rounds)),
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        device=rounds[0]["device"],
    )


def shared_by_shape(speeds: Mapping[str, SpeedFigures], shapes: Mapping[str, Any]) -> dict[str, SpeedFigures]:
    """Return the figures with those of models of one shape made one: the median over the rounds of all of them.

    Such models do the same work for each token, so that whatever differs between their times is the machine's doing.

    Args:
        speeds: Of each model, by its name.
        shapes: What is equal for models that take the same time; a model without one is left as it is.
    """
    shared = dict(speeds)
    for shape in {shape for shape in shapes.values() if shape is not None}:
        names = [name for name in speeds if shapes.get(name) == shape]
        together = tuple(speed for name in names for speed in speeds[name].speeds)
        peaks = [speeds[name].peak_bytes for name in names]
        for name in names:
            shared[name] = dataclasses.replace(
                speeds[name],
                tokens_per_second=statistics.median(together),
                speeds=together,
                peak_bytes=round(statistics.median(peaks)),
            )
    return shared


def _measure_in_child(model: ReportedModel, job: dict[str, Any]) -> Measured:
    package_root = str(Path(__file__).parents[3])
    search_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    child = subprocess.run(
        [sys.executable, "-m", "axolotl_sdft.evaluation.measures.speed"],
        input=json.dumps(job | {"name": model.name, "folder": str(model.folder)}),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONPATH": search_path, "PYTHONIOENCODING": "utf-8"},
    )
    if child.returncode == 0:
        answer: Measured = json.loads(child.stdout)
        if "error" not in answer:
            return answer
        reason = answer["error"]
    else:
        reason = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if child.returncode == _KILLED:
            reason = "it was killed, most likely since memory ran out"
    raise BackendError(f"the speed of {model.name} ({model.folder}) can't be measured: {reason}")


def _measure(job: dict[str, Any]) -> Measured:
    """Load the job's model in this process, and time one greedy generation after a short one to warm up."""
    import torch

    from axolotl_sdft.evaluation.loading import load_model
    from axolotl_sdft.inference.forwarding import input_device

    reported = ReportedModel(job["name"], Path(job["folder"]))
    model, tokenizer = load_model(
        reported, job["dtype"], **job["placement"], trust_remote_code=job["trust_remote_code"]
    )
    device = input_device(model)
    prompt_1T = torch.tensor([_random_ids(tokenizer, job["prompt_tokens"])], device=device)
    _generate_exactly(model, prompt_1T, min(_WARM_UP_TOKENS, job["new_tokens"]))
    _forget_peak(device)
    started = time.perf_counter()
    _generate_exactly(model, prompt_1T, job["new_tokens"])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_bytes": _peak_bytes(device), "device": described_device(device)}


def _random_ids(tokenizer: Any, count: int) -> list[int]:
    """Return ordinary tokens, the same ones for every model of a vocabulary. Special ones may stand for images."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    return random.Random(0).choices(ordinary, k=count)


def _generate_exactly(model: Any, prompt_1T: "torch.Tensor", num_tokens: int) -> None:
    """Generate so many tokens, and return when the device has."""
    generate_greedily(model, prompt_1T, num_tokens, min_new_tokens=num_tokens).cpu()


def _forget_peak(device: "torch.device") -> None:
    """Start the peak anew where the system can: loading takes more memory than generating."""
    import torch

    if reset := getattr(torch.get_device_module(device), "reset_peak_memory_stats", None):
        reset(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: "torch.device") -> int:
    """Return the peak on the accelerator where it counts one, else that of resident memory."""
    import torch

    if read := getattr(torch.get_device_module(device), "max_memory_allocated", None):
        return int(read(device))
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    kibibytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return kibibytes * 1024 if kibibytes is not None else _peak_since_start()


def _peak_since_start() -> int:
    """Return the peak of resident memory on systems without ``/proc``, loading included; 0 where nothing tells it."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def described_device(device: "torch.device") -> str:
    """Return what a device is called in a report, such as ``cpu, 2 threads`` or the name of a GPU."""
    import torch

    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return name(device) if name else device.type


def main() -> None:
    """Read a job from standard input and write what was measured, or the error, to standard output as JSON."""
    output, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not come between
    try:
        answer = _measure(json.load(sys.stdin))
    except SdftError as err:
        answer = {"error": str(err)}
    json.dump(answer, output)


if __name__ == "__main__":
    main()
