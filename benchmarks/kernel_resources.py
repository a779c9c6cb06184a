"""Does every Triton kernel compile for a GPU that is not here, and what does it take there?

    python benchmarks/kernel_resources.py [--target 90] [--quick] [--check]

Compiles the kernels for an NVIDIA GPU of the given compute capability, exactly as they would be launched in bf16, and
prints registers a thread, bytes spilled to memory and shared memory. Needs no GPU: Triton brings the assembler. The
first shape of each table in ``zfu_kernels.tiles`` is taken. ``--quick`` takes heads of 64 only.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Triton decides when it is imported.
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zfu_kernels.elastic_softmax import triton as elastic
from zfu_kernels.sigmoid_window import triton as sigmoid

# Shared memory that one program can have, in KiB, by compute capability.
ROOM = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}


def signature(kernel, values: dict) -> tuple[dict, dict, dict]:
    """Types, constants and divisibilities of the arguments, as the launcher would infer them."""
    types, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, tuple):
            types[name] = ("i32",) * len(value)
            attributes |= {(i, j): [["tt.divisibility", 16]] for j, x in enumerate(value) if x % 16 == 0}
        else:
            pointer = isinstance(value, torch.Tensor)
            types[name] = POINTERS[value.dtype] if pointer else "fp32" if isinstance(value, float) else "i32"
            if pointer or (isinstance(value, int) and value % 16 == 0):
                attributes[(i,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def compile_only(kernel, *arguments, target: int, rows: list, grid, warmup, **options) -> None:
    """Stands in for a launch: compiles, assembles, and notes what the assembler says."""
    names = [p.name for p in kernel.params]
    values = dict(zip(names, arguments, strict=False)) | {n: options.pop(n) for n in names if n in options}
    types, constants, attributes = signature(kernel, values)
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    assembler = next(Path(triton.__file__).parent.rglob("nvidia/bin/ptxas"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(made.asm["ptx"])
        chip = re.search(r"\.target (sm_\w+)", made.asm["ptx"])[1]
        command = [str(assembler), "-v", f"--gpu-name={chip}", str(file), "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (int(re.search(p, said)[1]) for p in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))
    module = kernel.fn.__module__.split(".")[-2]
    rows.append((f"{module}{kernel.fn.__name__}", values["D"], registers, spilled, made.metadata.shared / 1024))
    print("{:40} D={:<4} {:4} registers  {:5} bytes spilled  {:6.1f} KiB shared".format(*rows[-1]), flush=True)


def launch_everything(D: int) -> None:
    """Every kernel once, through the same functions that launch it on a GPU."""
    B, H, Hkv, T = 1, 4, 2, 2048
    q, do, o = (torch.empty(B, H, T, D, dtype=torch.bfloat16) for _ in range(3))
    k, v = (torch.empty(B, Hkv, T, D, dtype=torch.bfloat16) for _ in range(2))
    slopes, bias, lse = torch.empty(H), torch.empty(H, 512), torch.empty(B, H, T)
    distance = torch.zeros(B, T, dtype=torch.int64)
    sigmoid.sigmoid_window._init_fn(q, k, v, slopes, None, None, 1024, 0.0)
    sigmoid.sigmoid_window_backward._init_fn(do, q, k, v, slopes, None, None, 1024, 0.0, True)
    sigmoid.decode._init_fn(q[:, :, 0], k, v, distance, slopes, 1024, 0.0)
    for tau, plain in ((None, o), (slopes, o.float())):
        elastic.elastic_softmax._init_fn(q, k, v, bias, tau, None, None, T, True)
        elastic.elastic_softmax_backward._init_fn(do, q, k, v, bias, tau, None, None, plain, lse, T, True)
    elastic.decode._init_fn(q[:, :, 0], k, v, distance, bias, slopes, T)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", type=int, default=90, help="compute capability times ten (default 90: H100, H200)")
    parser.add_argument("--quick", action="store_true", help="heads of 64 only")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a kernel does not fit")
    arguments = parser.parse_args()
    rows: list[tuple] = []
    run = functools.partialmethod(compile_only, target=arguments.target, rows=rows)
    triton.JITFunction.run = run
    for module in (sigmoid, elastic):
        module.refuse = lambda q: None
    print(f"compute capability {arguments.target / 10}, triton {triton.__version__}, bf16, 2 query heads a key head")
    for D in (64,) if arguments.quick else (64, 128, 256):
        launch_everything(D)
    room = ROOM.get(arguments.target)
    too_large = [row for row in rows if room is not None and row[-1] > room]
    print(f"{len(rows)} kernels compiled, {len(too_large)} need more than {room} KiB of shared memory")
    return int(bool(too_large) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
