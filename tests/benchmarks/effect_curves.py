"""Draws the six figures that DynSDPB logs, as small panels over the steps of a run."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "dynsdpb/ce": "ce: cross-entropy, nats a token",
    "dynsdpb/kl": "kl: divergence from the step before, nats",
    "dynsdpb/alpha": "alpha: influence",
    "dynsdpb/temperature": "temperature",
    "dynsdpb/uncertainty": "uncertainty of the previous prediction",
    "dynsdpb/agreement": "agreement with the previous prediction",
}
_COLOUR = "#0072b2"
_AVERAGED = 9  # steps, of the thick line


def draw_curves(log: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Write a picture of a trainer's log history: thin lines are logged values, thick ones a running mean.

    Args:
        log: What ``trainer.state.log_history`` holds.
        title: What stands above the panels.
        path: The file; its suffix tells the format.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, (key, label) in zip(figure.subplots(2, 3, sharex=True).flat, PANELS.items(), strict=True):
        steps = [line["step"] for line in log if key in line]
        values = [line[key] for line in log if key in line]
        axes.plot(steps, values, color=_COLOUR, linewidth=0.8, alpha=0.4)
        axes.plot(steps, running_mean(values, _AVERAGED), color=_COLOUR, linewidth=1.8)
        axes.set_title(label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
    figure.supxlabel("optimizer step", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with fixed names inside, the same run gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "dynsdpb"}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return for each value the mean of those around it, ``width`` at most; fewer at both ends."""
    half = width // 2
    return [statistics.fmean(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]
