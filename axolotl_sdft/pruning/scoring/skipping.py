"""Runs a model with some of its layers left out, from a layer in the middle on if that layer's input is known.

Shapes: B rows, T tokens of a row, D hidden size.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from axolotl_sdft.inference.forwarding import patched_forward
from axolotl_sdft.pruning.scoring.running import hidden_argument


class LayerSwitch:
    """What the layers of a model are to do on the next run; made by :func:`switched`."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.num_runs = 0
        """How many layers have run so far."""
        self._extras = [-1] * num_layers
        """How many elements follow the hidden states in what each layer returns; -1 for a plain tensor."""
        self._skipped: Collection[int] = ()
        self._start = 0
        self._start_BTD: Tensor | None = None
        self._held_layer = -1
        self._held_BTD: Tensor | None = None

    def set_run(self, skipped: Collection[int], hold: int = -1, resume: int = 0) -> None:
        """Say which layers the next run skips, and whose input is kept for a later one.

        Args:
            skipped: Layers that hand on what they receive.
            hold: The layer whose input is kept.
            resume: Start at this layer, from its input that the run before has kept; what is below does nothing.
        """
        self._skipped, self._held_layer = skipped, hold
        self._start, self._start_BTD, self._held_BTD = resume, self._held_BTD if resume else None, None

    def forward_of(self, index: int, own: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a layer does instead of its ``own`` forward."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            place = hidden_argument(args, kwargs)
            hidden_BTD = args[place] if isinstance(place, int) else kwargs[place]
            if index < self._start:
                return self._handed_on(index, hidden_BTD)
            if index == self._start and self._start_BTD is not None:
                hidden_BTD, self._start_BTD = self._start_BTD, None
            if index == self._held_layer:
                self._held_BTD = hidden_BTD.clone()  # a later layer may write into its input
            if index in self._skipped:
                return self._handed_on(index, hidden_BTD)
            return self._run(index, own, *_with_hidden(args, kwargs, place, hidden_BTD))

        return forward

    def _run(self, index: int, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.num_runs += 1
        output = own(*args, **kwargs)
        self._extras[index] = len(output) - 1 if isinstance(output, tuple) else -1
        return output

    def _handed_on(self, index: int, hidden_BTD: Tensor) -> Any:
        extras = self._extras[index]
        return hidden_BTD if extras < 0 else (hidden_BTD, *[None] * extras)


@contextmanager
def switched(layers: nn.ModuleList) -> Iterator[LayerSwitch]:
    """Give a switch over these layers, which do as before when it closes.

    The first run must skip none: it shows in what form each layer returns its hidden states.
    """
    switch = LayerSwitch(len(layers))
    with ExitStack() as patches:
        for index, layer in enumerate(layers):
            patches.enter_context(patched_forward(layer, switch.forward_of(index, layer.forward)))
        yield switch


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str, hidden_BTD: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(place, int):
        return (*args[:place], hidden_BTD, *args[place + 1 :]), kwargs
    return args, kwargs | {place: hidden_BTD}
