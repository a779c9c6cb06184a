"""``zfu merge`` against mergekit: CPU seconds and peak anonymous memory of whole processes, one thread.

    python benchmarks/merging.py [--quick] [--check] [--json FILE] [--mergekit PATH] [--only PART]

Two fine-tunes of a base, random bf16 weights in the shape of a 341M-parameter Llama, four shards each. The peer runs
with ``--lazy-unpickle --out-shard-size 100M``, which keep its memory low, and neither side copies a tokenizer. Without
mergekit (looked for beside this Python and on PATH) only our own side is measured. The in-process rows compare with one
pass that reads both models, averages them and writes, without checks or checksums.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from _timing import Report, options, paired_seconds

from zfu_lib.merging.engine import checkpoint, plan, recipe, run

HIDDEN, INNER, VOCABULARY = 1024, 3120, 32000
DENSITY = "{weight: 0.5, density: 0.5}"
RECIPES = {
    "linear": ("linear", "{weight: 0.5}", ""),
    "ties": ("ties", DENSITY, ""),
    "dare_ties": ("dare_ties", DENSITY, ""),
    "hi_merging": ("hi_merging", "{weight: 0.5, density: 0.1, scale: 0.9}", ""),
    "task_arithmetic": ("task_arithmetic", "{weight: 0.5}", ""),
    "breadcrumbs": ("breadcrumbs", DENSITY, ""),
    "della": ("della", DENSITY, ""),
}
# The method of ours, the nearest one of theirs, how many times less CPU ours should take.
PAIRS = [("linear", "linear", 4), ("ties", "ties", 6), ("dare_ties", "dare_ties", 3), ("hi_merging", "ties", 6)]
MORE = [("task_arithmetic", "task_arithmetic", None), ("breadcrumbs", "breadcrumbs", None), ("della", "della", None)]
START = "import numpy, yaml, typer; import zfu_lib.cli; from zfu_lib.merging.engine import plan, recipe, run"


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """A Llama's tensors."""
    block = {f"self_attn.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qkvo"}
    block |= {f"mlp.{x}_proj.weight": (INNER, HIDDEN) for x in ("up", "gate")}
    block |= {"mlp.down_proj.weight": (HIDDEN, INNER)}
    block |= {f"{x}_layernorm.weight": (HIDDEN,) for x in ("input", "post_attention")}
    found = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    found |= {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def make_models(folder: Path, layers: int, count: int) -> list[Path]:
    """A base and ``count`` fine-tunes: N(0, 0.02) plus N(0, 0.002), rounded to bf16."""
    named, buffers = shapes(layers), checkpoint.Buffers()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN}
    config |= {"intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16}
    config |= {"num_key_value_heads": 16, "vocab_size": VOCABULARY, "torch_dtype": "bfloat16"}
    places = []
    for m in range(count + 1):
        place = folder / ("base" if m == 0 else f"expert{m}")
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(config))
        shards, where = [list(part) for part in np.array_split(list(named), 4)], {}
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05}-of-00004.safetensors"
            where |= dict.fromkeys(shard, file)
            with open(place / file, "wb") as stream:
                stream.write(checkpoint.header_bytes((name, "BF16", named[name]) for name in shard))
                for name in shard:
                    size, noise = int(np.prod(named[name])), list(named).index(name)
                    values = np.random.default_rng(noise).standard_normal(size, np.float32)
                    values *= 0.02
                    if m:
                        values += 0.002 * np.random.default_rng([noise, m]).standard_normal(size, np.float32)
                    stream.write(checkpoint.encode(values, "BF16", buffers))
        (place / checkpoint.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
        places.append(place)
    return places


def write_recipe(file: Path, name: str, base: Path, experts: list[Path]) -> Path:
    method, parameters, more = RECIPES[name]
    lines = [f"merge_method: {method}", "dtype: bfloat16", more]
    if method != "linear":
        lines += [f"base_model: {base}"]
    lines += ["models:", *(f"- {{model: {expert}, parameters: {parameters}}}" for expert in experts)]
    file.write_text("\n".join(lines) + "\n")
    return file


def child(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak anonymous MiB of a process (polled every 5 ms)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, status = 0, Path(f"/proc/{process.pid}/status")
    while True:
        try:
            line = next((line for line in status.read_text().splitlines() if line.startswith("RssAnon")), None)
        except OSError:
            line = None
        peak = max(peak, int(line.split()[1]) if line else 0)
        pid, code, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.005)
    process.returncode = code
    if code:
        raise RuntimeError(f"{command[0]} failed: {process.stderr.read()[-500:]}")
    return usage.ru_utime + usage.ru_stime, peak / 1024


def ours(file: Path, out: Path) -> list[str]:
    code = "from zfu_lib.cli import main; main()"
    return [sys.executable, "-c", code, "merge", str(file), str(out), "--threads", "1", "--shard-size", "0.2"]


def theirs(mergekit: str, file: Path, out: Path) -> list[str]:
    flags = ["--lazy-unpickle", "--out-shard-size", "100M", "--no-copy-tokenizer", "--no-write-model-card"]
    return [mergekit, str(file), str(out), *flags, "--random-seed", "0"]


def alternate(a: list[str], b: list[str], pairs: int, out: Path) -> tuple[list[list[float]], list[list[float]]]:
    """CPU seconds and peak anonymous memory of both commands, in alternation."""
    seconds, memory = [[], []], [[], []]
    for i in range(pairs):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            shutil.rmtree(out, ignore_errors=True)
            cpu, peak = child((a, b)[which])
            seconds[which].append(cpu)
            memory[which].append(peak)
    return seconds, memory


def one_pass(models: list[Path], out: Path, piece: int = 1 << 18) -> None:
    """Read two models, average, write: the least a linear merge can do."""
    out.mkdir(exist_ok=True)
    x, y, odd = np.empty(piece, np.float32), np.empty(piece, np.float32), np.empty(piece, np.uint32)
    raw = np.empty(piece, np.uint16)
    for file in sorted(models[0].glob("*.safetensors")):
        size = file.stat().st_size
        with (
            open(file, "rb", buffering=0) as a,
            open(models[1] / file.name, "rb", buffering=0) as b,
            open(out / file.name, "wb", buffering=0) as target,
        ):
            for start in range(0, size, 2 * piece):
                n = min(piece, (size - start) // 2)
                for stream, values in ((a, x), (b, y)):
                    stream.readinto(memoryview(raw[:n]).cast("B"))
                    bits = values[:n].view(np.uint32)
                    bits[...] = raw[:n]
                    np.left_shift(bits, 16, out=bits)
                np.add(x[:n], y[:n], out=x[:n])
                np.multiply(x[:n], np.float32(0.5), out=x[:n])
                bits = x[:n].view(np.uint32)
                np.right_shift(bits, 16, out=odd[:n])
                np.bitwise_and(odd[:n], 1, out=odd[:n])
                np.add(odd[:n], 0x7FFF, out=odd[:n])
                np.add(bits, odd[:n], out=bits)
                np.right_shift(bits, 16, out=bits)
                raw[:n] = bits
                target.write(memoryview(raw[:n]).cast("B"))


def in_process(report: Report, models: list[Path], work: Path, pairs: int, goal: float | None) -> None:
    file = write_recipe(work / "linear.yml", "linear", models[0], models[1:3])
    out = work / "out"

    def engine(checksums: bool) -> None:
        shutil.rmtree(out, ignore_errors=True)
        run.run(plan.make(recipe.read(file), shard_bytes=200_000_000), out, threads=1, checksums=checksums)

    def stream() -> None:
        shutil.rmtree(out, ignore_errors=True)
        one_pass(models[1:3], out)

    seconds = paired_seconds(lambda: engine(False), stream, pairs)
    report.add("linear in process, no checksums", "ours", "one pass", *seconds, goal, at_most=True)
    seconds = paired_seconds(lambda: engine(True), stream, pairs)
    report.add("linear in process", "ours", "one pass", *seconds, at_most=True)


def against_mergekit(
    report: Report, mergekit: str | None, models: list[Path], work: Path, pairs: int, judged: bool, compared: list
) -> None:
    for mine, peer, goal in compared:
        our_file = write_recipe(work / f"{mine}.yml", mine, models[0], models[1:3])
        our_call, out = ours(our_file, work / "out"), work / "out"
        if mergekit is None:
            shutil.rmtree(out, ignore_errors=True)
            cpu, peak = child(our_call)
            report.note(f"{mine:34} ours {cpu:.2f} CPU s, {peak:.0f} MiB")
            continue
        peer_call = theirs(mergekit, write_recipe(work / f"{peer}.yml", peer, models[0], models[1:3]), out)
        seconds, memory = alternate(peer_call, our_call, pairs, out)
        name = mine if mine == peer else f"{mine} / their {peer}"
        report.add(name, "mergekit", "ours", *seconds, goal if judged else None)
        report.add(f"{name}: memory", "mergekit", "ours", *memory, unit="MiB anonymous")


def memory_table(report: Report, work: Path, sizes: list[int], counts: list[int]) -> None:
    floor = child([sys.executable, "-c", START])[1]
    report.note(f"import floor {floor:.0f} MiB anonymous, {child([sys.executable, '-c', START])[0]:.2f} CPU s")
    ceilings = []
    for layers, count in [(layers, 2) for layers in sizes] + [(sizes[0], count) for count in counts]:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            base, *experts = make_models(Path(folder), layers, count)
            size = sum(int(np.prod(shape)) for shape in shapes(layers).values())
            for name in ("linear", "ties"):
                file = write_recipe(Path(folder) / "recipe.yml", name, base, experts)
                cpu, peak = child(ours(file, Path(folder) / "out"))
                ceilings.append(peak - floor)
                report.note(
                    f"{name:8} {size / 1e6:4.0f}M parameters, {count} models: {peak:4.0f} MiB anonymous "
                    f"({peak - floor:+.0f} over the floor), {cpu:.2f} CPU s"
                )
    report.add("memory over the import floor", "ours", "MiB", [max(ceilings)], [1.0], 64, at_most=True, unit="MiB")


def main() -> int:
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--mergekit", metavar="PATH", help="the mergekit-yaml to compare with")
    parser.add_argument("--only", choices=("stream", "mergekit", "more", "memory"), help="one part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    beside = Path(sys.executable).with_name("mergekit-yaml")
    mergekit = arguments.mergekit or (str(beside) if beside.is_file() else shutil.which("mergekit-yaml"))
    layers = 1 if arguments.quick else 20
    size = sum(int(np.prod(shape)) for shape in shapes(layers).values())
    report = Report(f"merging two fine-tunes of a {size / 1e6:.0f}M-parameter Llama, bf16, one thread")
    report.note("against mergekit" if mergekit else "mergekit-yaml is not here: only our own side is measured")
    with tempfile.TemporaryDirectory(prefix="merge_bench_") as folder:
        work = Path(folder)
        models = make_models(work / "models", layers, 2)
        if arguments.only in (None, "stream"):
            in_process(report, models, work, arguments.pairs, None if arguments.quick else 1.3)
        judged = not arguments.quick
        if arguments.only in (None, "mergekit"):
            against_mergekit(report, mergekit, models, work, arguments.pairs, judged, PAIRS)
        if arguments.only in (None, "more"):
            against_mergekit(report, mergekit, models, work, 1, judged, MORE)
        shutil.rmtree(work / "models")
        if arguments.only in (None, "memory"):
            memory_table(report, work, [1] if arguments.quick else [1, 8, 20], [4] if arguments.quick else [4, 8, 16])
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
