"""Times a cut against a plain copy of the bytes that stay, and against mergekit's passthrough where it is installed.

    python tests/benchmarks/bench_cut.py --workdir bench --mergekit ../mergekit-venv/bin/python

Makes a random bfloat16 Llama once, then runs each way in turn, several rounds, each in a process of its own. Prints
medians, each round's ratio to the copy of the same round, and the peak memory of the process and its children.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUM_LAYERS = 24
DROPPED = range(15, 21)
VOCABULARY = 32_000
SHARD_BYTES = 500_000_000
_PIECE = 2**24

CUT = """
import sys
from axolotl_sdft import cut_layers
cut_layers(sys.argv[1], range(int(sys.argv[3]), int(sys.argv[4])), sys.argv[2], max_shard_size="500MB")
"""
# Children of a child count too: the peak is that of the largest process.
MEASURE = """
import os, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - start
if code.returncode:
    sys.exit(code.stderr[-2000:])
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def model_config(gigabytes: float) -> dict[str, Any]:
    """Return the ``config.json`` of a Llama of about this size in bfloat16."""
    hidden = 256
    while 2 * sum(rows * columns for rows, columns in shapes(hidden + 128).values()) <= gigabytes * 1e9:
        hidden += 128
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "tie_word_embeddings": False,
    }


def shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """Return the shape of each matrix of the model; norms, a row of ``hidden`` numbers, count as one row."""
    layer = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    layer |= {"mlp.gate_proj": (4 * hidden, hidden), "mlp.up_proj": (4 * hidden, hidden)}
    layer |= {"mlp.down_proj": (hidden, 4 * hidden), "input_layernorm": (1, hidden)}
    layer |= {"post_attention_layernorm": (1, hidden)}
    names = {
        f"model.layers.{number}.{name}.weight": shape for number in range(NUM_LAYERS) for name, shape in layer.items()
    }
    ends = {"model.embed_tokens.weight": (VOCABULARY, hidden), "lm_head.weight": (VOCABULARY, hidden)}
    return ends | names | {"model.norm.weight": (1, hidden)}


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Write the model in files of at most 500 MB, a few megabytes in memory at a time."""
    folder.mkdir(parents=True)
    config = model_config(gigabytes)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shards: list[dict[str, tuple[int, int]]] = [{}]
    filled = 0
    for name, (rows, columns) in shapes(config["hidden_size"]).items():
        filled += 2 * rows * columns
        if filled > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 2 * rows * columns
        shards[-1][name] = (rows, columns)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_shard(path: Path, shard: dict[str, tuple[int, int]]) -> None:
    """Write a safetensors file of random numbers, the same piece over and over."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in shard.items():
        begin, end = end, end + 2 * rows * columns
        shape = [columns] if rows == 1 else [rows, columns]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # The upper byte of a bfloat16 between 0.004 and 0.02 is 0x3B or 0x3C.
    piece = bytes(byte if place % 2 == 0 else 0x3B + byte % 2 for place, byte in enumerate(os.urandom(2**16)))
    piece *= _PIECE // len(piece)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, _PIECE):
            file.write(piece[: end - start])


def passthrough_recipe(source: Path) -> str:
    """Return mergekit's recipe for the same cut."""
    slices = [(0, DROPPED.start), (DROPPED.stop, NUM_LAYERS)]
    sources = "".join(f"  - sources:\n      - model: {source}\n        layer_range: [{a}, {b}]\n" for a, b in slices)
    return f"slices:\n{sources}merge_method: passthrough\ndtype: bfloat16\n"


def commands(source: Path, kept: Path, workdir: Path, mergekit: str | None) -> Iterator[tuple[str, list[str], Path]]:
    """Give name, command and output folder of each way, the copy first."""
    yield "cp -r of the bytes kept", ["cp", "-r", str(kept), str(workdir / "copy")], workdir / "copy"
    bounds = [str(DROPPED.start), str(DROPPED.stop)]
    yield "cut_layers", [sys.executable, "-c", CUT, str(source), str(workdir / "cut"), *bounds], workdir / "cut"
    if mergekit:
        recipe = workdir / "recipe.yml"
        recipe.write_text(passthrough_recipe(source))
        script = str(Path(mergekit).with_name("mergekit-yaml"))
        options = ["--out-shard-size", "500M", "--no-copy-tokenizer"]
        yield "mergekit passthrough", [script, str(recipe), str(workdir / "merged"), *options], workdir / "merged"


def measure(command: list[str], output: Path) -> tuple[float, float]:
    """Run a command and return its seconds and the bytes of its largest process; the output is deleted."""
    shutil.rmtree(output, ignore_errors=True)
    run = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(command[:2])} failed:\n{run.stderr}")
    seconds, peak = map(float, run.stdout.split())
    shutil.rmtree(output)
    return seconds, peak


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Make the checkpoint unless it is there, run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit", help="Python of an environment that has mergekit")
    options = parser.parse_args()
    source, kept = options.workdir / f"seed-{options.gigabytes}", options.workdir / f"kept-{options.gigabytes}"
    if not source.exists():
        make_checkpoint(source, options.gigabytes)
    if not kept.exists():
        bounds = [str(DROPPED.start), str(DROPPED.stop)]
        subprocess.run([sys.executable, "-c", CUT, str(source), str(kept), *bounds], check=True)
    ways = list(commands(source, kept, options.workdir, options.mergekit))
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in ways}
    for _ in range(options.rounds):
        os.sync()  # what the previous way left to be written must not slow down this one
        for name, command, output in ways:
            time.sleep(1)
            figures[name].append(measure(command, output))
            os.sync()
    print_table(figures, folder_bytes(source), folder_bytes(kept), options.rounds)


def print_table(figures: dict[str, list[tuple[float, float]]], before: int, after: int, rounds: int) -> None:
    """Print medians; the ratio is the median of the ratios within a round."""
    copies = [seconds for seconds, _ in next(iter(figures.values()))]
    print(f"{after / 1e9:.2f} GB kept of {before / 1e9:.2f} GB, medians of {rounds} rounds:\n")
    print("| Way | seconds | times the copy | peak MB |")
    print("|---|---|---|---|")
    for name, rows in figures.items():
        seconds = statistics.median(row[0] for row in rows)
        ratio = statistics.median(row[0] / copy for row, copy in zip(rows, copies, strict=True))
        peak = statistics.median(row[1] for row in rows) / 1e6
        print(f"| {name} | {seconds:.2f} | {ratio:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
