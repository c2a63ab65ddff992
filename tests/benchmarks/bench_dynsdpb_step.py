"""Measures what a DynSDPB step costs at equal tokens.

    python -m tests.benchmarks.bench_dynsdpb_step --model-dir DIR --mode lora
    python -m tests.benchmarks.random_models 8b DIR   # makes a model of random weights where there is none of the shape

Three ways in turn, several rounds, each in a process of its own so that its peak memory is its own:

* plain: ``transformers.Trainer`` on 2 N rows a step
* dynsdpb: ``DynSDPBTrainer`` on N new rows a step, so that N previous ones go along
* straightforward: N new and N previous rows in two forward passes, both graphs and the full previous logits kept

Prints medians of the time of a step, of the processor's time for it, and of the peak memory while steps run (that of
the device where there is one), as a table. Ratios are medians of those within a round. With ``--mode qlora`` the
weights are quantized to 4 bits (bitsandbytes, nf4).
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.rounds import forget_peak, in_turn, peak_megabytes, wait_for_device

WAYS = ("plain", "dynsdpb", "straightforward")
_TITLES = {
    "plain": "plain training",
    "dynsdpb": "DynSDPB",
    "straightforward": "two forward passes, full logits kept",
}
_WARM_UP_STEPS = 2  # the first step of DynSDPB repeats nothing; then the optimizer makes its state


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the median times of a step in seconds and the peak memory meanwhile, in MB."""
    import torch
    from transformers import TrainingArguments

    torch.manual_seed(0)
    steps = _WARM_UP_STEPS + options.steps
    batch_rows = options.rows * (2 if way == "plain" else 1)
    model = _model(options)
    watch = _watch()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_rows,
            max_steps=steps,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=options.checkpointing,
        )
        extra = _dynsdpb_settings(options) if way == "dynsdpb" else {}
        rows = _rows(model, steps * batch_rows, options)
        trainer = _trainer_class(way)(model=model, args=args, train_dataset=rows, callbacks=[watch], **extra)
        trainer.train()
    times = {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds}
    return {name: statistics.median(taken) for name, taken in times.items()} | {"megabytes": peak_megabytes()}


def _model(options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model_dir, **loading(options.mode, dtype))
    if options.mode == "full":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def loading(mode: str, dtype: Any) -> dict[str, Any]:
    """Return how a model is loaded, on the device where there is one: with ``qlora``, quantized to 4 bits."""
    import torch

    settings: dict[str, Any] = {"dtype": dtype}
    if torch.cuda.is_available():
        settings["device_map"] = {"": "cuda"}
    if mode == "qlora":
        from transformers import BitsAndBytesConfig

        four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        settings["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **four_bits)
    return settings


def _rows(model: Any, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    input_ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (count, options.tokens))
    labels = input_ids.clone()
    labels[:, : options.prompt] = -100
    mask = torch.ones_like(input_ids)
    return [{"input_ids": input_ids[row], "labels": labels[row], "attention_mask": mask[row]} for row in range(count)]


def _dynsdpb_settings(options: argparse.Namespace) -> dict[str, Any]:
    from axolotl_sdft import DynSDPBConfig

    return {"dynsdpb": DynSDPBConfig(teacher_storage=options.memory, chunk_tokens=options.chunk_tokens)}


def _trainer_class(way: str) -> type[Any]:
    from transformers import Trainer

    from axolotl_sdft import DynSDPBTrainer

    return {"plain": Trainer, "dynsdpb": DynSDPBTrainer, "straightforward": _straightforward_class()}[way]


def _straightforward_class() -> type[Any]:
    import torch
    from transformers import Trainer

    class StraightforwardTrainer(Trainer):
        previous: tuple[dict[str, Any], Any] | None = None

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            now = model(**inputs)
            loss, previous = now.loss, self.previous
            self.previous = (inputs, now.logits.detach())
            if previous is not None:
                again = model(**previous[0])
                present, before = ((logits.float() / 2.0).log_softmax(-1) for logits in (again.logits, previous[1]))
                divergence = torch.nn.functional.kl_div(present, before, reduction="none", log_target=True).sum(-1)
                loss = (loss + again.loss) / 2 + 4.0 * divergence[previous[0]["labels"] != -100].mean()
            return (loss, now) if return_outputs else loss

    return StraightforwardTrainer


def _watch() -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Times each step after the first ones, and starts the peak anew once these are over."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.cpu_seconds: list[float] = []
            self._started = (0.0, 0.0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == _WARM_UP_STEPS:
                forget_peak()
            self._started = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait_for_device()
            if state.global_step > _WARM_UP_STEPS:
                self.seconds.append(time.perf_counter() - self._started[0])
                self.cpu_seconds.append(time.process_time() - self._started[1])

    return Watch()


def main() -> None:
    """Run all ways in child processes and print the table, or one way in this process."""
    options = _options()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    print("\n".join(table(in_turn("tests.benchmarks.bench_dynsdpb_step", options.ways, options.rounds, options.json))))


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the lines of a Markdown table; ratios are to plain training in the same round, or without it to the first
    way."""
    lines = [
        "| | seconds a step | times plain | CPU seconds | times plain | peak, MB | times plain |",
        "|---" * 7 + "|",
    ]
    for way, rounds in found.items():
        cells = []
        for key, digits in (("seconds", 2), ("cpu_seconds", 2), ("megabytes", 0)):
            pairs = zip(rounds, found.get("plain") or next(iter(found.values())), strict=True)
            ratio = statistics.median(figures[key] / plain[key] for figures, plain in pairs)
            cells += [f"{statistics.median(figures[key] for figures in rounds):.{digits}f}", f"{ratio:.3f}"]
        lines.append(f"| {_TITLES[way]} | {' | '.join(cells)} |")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--mode", choices=("lora", "qlora", "full"), default="lora")
    parser.add_argument("--rows", type=int, default=2, help="new rows a step; plain training gets twice as many")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each row (default: 256)")
    parser.add_argument("--prompt", type=int, default=0, help="leading tokens of each row that are not trained")
    parser.add_argument("--steps", type=int, default=3, help="steps measured in each process (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured (default: 5)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--memory", default="auto", choices=("auto", "hidden_states", "logits", "top_k"))
    parser.add_argument("--chunk-tokens", type=int, default=64)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS, help="ways to compare (default: all)")
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process and print it as JSON")
    parser.add_argument("--json", type=Path, help="file for the figures, written after each way")
    return parser.parse_args()


if __name__ == "__main__":
    main()
