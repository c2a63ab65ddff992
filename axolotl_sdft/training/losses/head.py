"""Where a model's logits come from: what goes into its output head, what comes out, and what is done with that.

Most models return what the head gives. Gemma caps it, Cohere and Granite scale it. Which of these a model does is
looked up in its configuration and believed only where it reproduces the logits of a real pass.

Some models are made to compute their loss without logits (cut cross-entropy, Liger's fused loss, TRL's chunked one):
they never call their head in training. What would go into it is then what their body gives.

Shapes: B rows, T positions, H hidden, V vocabulary, S sampled positions.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from axolotl_sdft.training.teachers.previous_prediction import identity

LogitTransform = Callable[[Tensor], Tensor]

_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling",)  # some models multiply by it, others divide
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap")
_NUM_SAMPLES = 16
_ACCELERATORS = ("cuda", "xpu", "npu")  # whose random numbers can be put back device by device


@dataclass(frozen=True)
class HeadCall:
    """What went into the output head in a forward pass, and what came out."""

    hidden: Tensor
    """[B, T, H]"""

    raw: Tensor
    """[B, T, V]"""

    few: Tensor
    """Some of ``raw``, as they were when it came out."""

    @property
    def is_intact(self) -> bool:
        """Whether ``raw`` still is what came out, as far as those tell."""
        return torch.equal(_few_of(self.raw).nan_to_num(), self.few.nan_to_num())


@dataclass
class HookRecord:
    """What was seen of the passes that counted, those run with gradients as they were when the watch began.

    A trainer may run the model once more under ``no_grad``, for metrics or for the outputs it is asked for. Nothing can
    be learnt from such a pass.
    """

    calls: list[HeadCall] = field(default_factory=list)
    """Calls of the output head."""

    hidden: Tensor | None = None
    """What the body gave last, [B, T, H]; None where it was not watched, or gave no such tensor."""

    outputs: list[Any] = field(default_factory=list)
    """What the whole model returned, pass by pass."""

    num_uncounted: int = 0
    """Passes of the whole model that did not count."""

    def trained_outputs(self, returned: Any) -> Any:
        """Return the outputs that gradients can pass: those that the trainer returned, else those of the last pass."""
        logits = logits_of(returned)
        has_gradient = logits is not None and logits.requires_grad
        return self.outputs[-1] if self.outputs and not has_gradient else returned


@dataclass(frozen=True)
class OutputHead:
    """Runs a model's output head apart from the model."""

    module: nn.Module

    context: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered while it runs, such as autocast."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return what the head gives for hidden states [..., H]: [..., V], before it is finished."""
        with self.context():
            return self.module(hidden)

    is_constant: bool = False
    """Its parameters get no gradient, even where they are trained."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those of its parameters that get a gradient."""
        trained = (parameter for parameter in self.module.parameters() if parameter.requires_grad)
        return () if self.is_constant else tuple(trained)

    def as_constant(self) -> "OutputHead":
        """Return the same head, whose parameters get no gradient."""
        return replace(self, is_constant=True)


@contextmanager
def watched(head: nn.Module | None, body: nn.Module | None, model: nn.Module | None = None) -> Iterator[HookRecord]:
    """Give a record, kept while the block runs, of the calls of the head, the body and the whole model that count."""
    seen, with_gradients = HookRecord(), torch.is_grad_enabled()

    def record_head(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        is_told = bool(args) and torch.is_tensor(args[0]) and torch.is_tensor(output)
        if is_told and torch.is_grad_enabled() == with_gradients:
            seen.calls.append(HeadCall(args[0], output, _few_of(output)))

    def record_body(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if torch.is_grad_enabled() == with_gradients:
            hidden = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
            seen.hidden = hidden if torch.is_tensor(hidden) and hidden.dim() == 3 else None

    def record_model(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if torch.is_grad_enabled() == with_gradients:
            seen.outputs.append(output)
        else:
            seen.num_uncounted += 1

    with ExitStack() as handles:
        for module, record in ((head, record_head), (body, record_body), (model, record_model)):
            if module is not None:
                handles.callback(module.register_forward_hook(record).remove)
        yield seen


def logits_of(outputs: Any) -> Tensor | None:
    """Return the logits in what a model returned; None where there are none."""
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    return logits if torch.is_tensor(logits) else None


@contextmanager
def leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Let a model in training run once more while the block is open, with nothing of it to be seen afterwards.

    No module changes its mode: some prepare themselves for inference as soon as they run in evaluation mode, and
    training then goes on with what they made (4-bit weights of bitsandbytes on a CPU). Random numbers and the running
    statistics of normalisations are put back instead.
    """
    used = {parameter.device for parameter in model.parameters() if parameter.device.type in _ACCELERATORS}
    kind = next((device.type for device in used), "cuda")
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    copies = [buffer.clone() for buffer in statistics]
    devices = sorted(device.index or 0 for device in used)
    with torch.random.fork_rng(devices, device_type=kind), warnings.catch_warnings():
        # Of reentrant checkpointing, which misses the gradients that this pass is to do without.
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, copy in zip(statistics, copies, strict=True):
                    buffer.copy_(copy)


def find_head(model: Any) -> nn.Module | None:
    """Return the module that makes logits of hidden states; None when the model doesn't say."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def find_body(model: Any) -> nn.Module | None:
    """Return the module whose last hidden state goes into the head; None when the model doesn't say."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(inner, "base_model", None)
    return body if isinstance(body, nn.Module) and body is not inner else None


def is_frozen(head: nn.Module) -> bool:
    """Whether training leaves the head as it is.

    A wrapper of PEFT counts as trained, whatever its own parameters say: what it trains may be held elsewhere.
    """
    is_wrapped = any(type(module).__module__.startswith("peft.") for module in head.modules())
    return not is_wrapped and not any(parameter.requires_grad for parameter in head.parameters())


def infer_logit_transform(logits_SV: Tensor, raw_SV: Tensor, model_config: Any) -> LogitTransform | None:
    """Return what turns the head's output into these logits; None when nothing known does."""
    # Any cap changes the last bits of some of so many numbers, so what is equal is not a coincidence.
    if torch.equal(raw_SV.to(logits_SV.dtype), logits_SV):
        return identity
    step = max(torch.finfo(logits_SV.dtype).eps, torch.finfo(raw_SV.dtype).eps)
    candidates = (logit_transform for logit_transform in _candidates(model_config) if logit_transform is not identity)
    return next(
        (logit_transform for logit_transform in candidates if _is_close(logit_transform(raw_SV), logits_SV, 8 * step)),
        None,
    )


def head_gives(head: Callable[[Tensor], Tensor], hidden_SH: Tensor, raw_SV: Tensor) -> bool:
    """Whether the head, run again, gives what it gave in the pass, as nearly as another matrix shape allows."""
    with torch.no_grad():
        again_SV = head(hidden_SH)
    coarse = 2e-3 if raw_SV.dtype in (torch.float32, torch.float64) else 3e-2
    return again_SV.shape == raw_SV.shape and _is_close(again_SV, raw_SV, coarse)


def sampled(positions_N: Tensor) -> Tensor:
    """Return a few of the positions, spread evenly."""
    return positions_N[:: max(1, -(-len(positions_N) // _NUM_SAMPLES))]


def _few_of(values: Tensor) -> Tensor:
    return sampled(values.detach().flatten()).clone()


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    found, expected = found.float(), expected.float()
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=tolerance * largest)


def _candidates(model_config: Any) -> Iterator[LogitTransform]:
    """Give every way of finishing that the configuration's numbers allow; the most likely, with a cap, first."""
    text_config = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    factors = [factor for name in _FACTORS if (factor := _number(text_config, name))]
    factors += [1.0 / divisor for name in _DIVISORS if (divisor := _number(text_config, name))]
    caps = [cap for name in _CAPS if (cap := _number(text_config, name))]
    for cap in [*caps, None]:
        for factor in [*factors, 1.0]:
            yield partial(_logit_transform, factor=factor, cap=cap) if (factor, cap) != (1.0, None) else identity


def _logit_transform(raw: Tensor, factor: float, cap: float | None) -> Tensor:
    scaled = raw * factor if factor != 1.0 else raw
    return scaled if cap is None else torch.tanh(scaled / cap) * cap


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value else None
