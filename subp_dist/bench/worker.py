"""One engine in a process of its own: loads a file, then runs it whenever it is its turn.

Started as a script, not as a module of the package: importing ``subp_dist`` imports torch, whose memory and threads no
other engine should carry. Commands come as lines on stdin, answers go as JSON lines to stdout:

    (start)        {"load_ms", "version"}
    turn SECONDS   {"ms": [...]} of the runs that fit, after some to wake threads and caches
    memory         {"peak_mb"} of the whole life of the process
    layers         {precision: number} of the convolutions and matrix products, as the engine really runs them
    result FILE    {} after writing the output for the images, as .npy
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A script's folder comes first on the path: its neighbours are no top-level modules.
sys.path = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402

Run = Callable[[np.ndarray], np.ndarray]

WARM_RUNS, LEAST_RUNS = 2, 3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run.

    Attributes:
        run: images ``[B, C, H, W]`` float32 to logits.
        version: of the engine.
        layers: counts convolutions and matrix products by the precision they run in: ``float32``, ``bf16``, ``int8``.
    """

    run: Run
    version: str
    layers: Callable[[], dict[str, int]]


def load_subp(path: str, threads: int) -> Engine:
    import subp_ext

    session = subp_ext.Session(path, threads=threads)
    return Engine(session.run, subp_ext.cpu_info()["kernel_set"], lambda: _subp_layers(session))


def _subp_layers(session: Any) -> dict[str, int]:
    rows = [row for row in session.report().rows if row.op in ("conv2d", "linear", "matmul")]
    return Counter(_OWN_NAMES.get(row.products, "float32") for row in rows)


def load_onnxruntime(path: str, threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Engine(
        lambda images: session.run(None, {"input": images})[0],
        onnxruntime.__version__,
        lambda: _onnxruntime_layers(path),
    )


def _onnxruntime_layers(path: str) -> dict[str, int]:
    """From the graph that is left of a file after all fusions; a quantized layer that was not fused runs in float32."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # that such a file is for this machine alone
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    products = [node.op_type for node in nodes if any(part in node.op_type for part in ("Conv", "Gemm", "MatMul"))]
    return Counter("int8" if name.startswith("Q") or "Integer" in name else "float32" for name in products)


def load_openvino(path: str, threads: int, precision: str = "f32") -> Engine:
    import openvino

    # Left to itself it computes float32 models in bfloat16 where the CPU can.
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert found in _OPENVINO_NAMES[precision], f"openvino computes in {found} where {precision} was asked for"
    request = compiled.create_infer_request()
    return Engine(
        lambda images: request.infer({0: images}, share_inputs=True)[0],
        f"{openvino.__version__}, INFERENCE_PRECISION_HINT {found}",
        lambda: _openvino_layers(compiled),
    )


def _openvino_layers(compiled: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = {key: node.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision")}
        if info["layerType"] in ("Convolution", "Deconvolution", "FullyConnected", "MatMul"):
            counts[_OPENVINO_PRECISIONS.get(info["runtimePrecision"], info["runtimePrecision"])] += 1
    return counts


# How results name the types of this engine and of torch.
_OWN_NAMES = {"bfloat16": "bf16", "int8": "int8"}

_OPENVINO_NAMES = {"f32": ("f32", "float32"), "bf16": ("bf16", "bfloat16")}
_OPENVINO_PRECISIONS = {"f32": "float32", "u8": "int8", "i8": "int8"}


def load_openvino_bf16(path: str, threads: int) -> Engine:
    return load_openvino(path, threads, "bf16")


def load_openvino_int8(path: str, threads: int) -> Engine:
    """What was not quantized runs in the best precision of the CPU, as it does unless one is asked for."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return load_openvino(path, threads, "bf16" if "BF16" in capabilities else "f32")


def load_torch(path: str, threads: int, channels_last: bool = False, dtype: str = "float32") -> Engine:
    import torch

    torch.set_num_threads(threads)
    form = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    form["dtype"] = getattr(torch, dtype)
    model = torch.load(path, weights_only=False).to(**form)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images).to(**form)).float().numpy()

    return Engine(run, torch.__version__, lambda: _torch_layers(model))


def _torch_layers(model: Any) -> dict[str, int]:
    weights = [module.weight for module in model.modules() if hasattr(module, "weight")]
    names = [str(weight.dtype).removeprefix("torch.") for weight in weights if weight is not None and weight.ndim > 1]
    return Counter(_OWN_NAMES.get(name, name) for name in names)


def load_torch_channels_last(path: str, threads: int) -> Engine:
    return load_torch(path, threads, channels_last=True)


def load_torch_bf16(path: str, threads: int) -> Engine:
    """The whole network in bfloat16, which oneDNN's kernels want in channels-last."""
    return load_torch(path, threads, channels_last=True, dtype="bfloat16")


LOADERS: dict[str, Callable[[str, int], Engine]] = {
    "subp": load_subp,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "openvino_bf16": load_openvino_bf16,
    "openvino_int8": load_openvino_int8,
    "torch": load_torch,
    "torch_channels_last": load_torch_channels_last,
    "torch_bf16": load_torch_bf16,
}

# What to import before the load is timed, where it is not the engine's own name: a pickled model needs its classes.
MODULES = {
    "subp": ("subp_ext",),
    "openvino_bf16": ("openvino",),
    "openvino_int8": ("openvino",),
    "torch": ("torch", "timm"),
    "torch_channels_last": ("torch", "timm"),
    "torch_bf16": ("torch", "timm"),
}


def turn(run: Run, images: np.ndarray, seconds: float) -> list[float]:
    """Milliseconds of each run that starts within the time, at least ``LEAST_RUNS``."""
    for _ in range(WARM_RUNS):
        run(images)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run(images)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _read(path: Path) -> None:
    """In pieces, for what a process holds at once counts in its peak of memory."""
    if path.exists():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def peak_mb() -> float:
    """VmHWM is this program's; getrusage would also count the process that it was forked from."""
    with Path("/proc/self/status").open() as file:
        kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return kilobytes / 1024


def main(engine: str, path: str, images_path: str, threads: int, cpus: set[int]) -> None:
    # A worker that is stopped would otherwise outlive a benchmark that was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, cpus)
    # Engines print as they like; answers have a pipe of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    images = np.load(images_path)
    for part in {Path(path), Path(path).with_suffix(".bin")}:  # into the page cache, for every engine alike
        _read(part)
    for module in MODULES.get(engine, (engine,)):  # importing is not loading
        importlib.import_module(module)
    start = time.perf_counter()
    loaded = LOADERS[engine](path, threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    print(json.dumps({"load_ms": load_ms, "version": loaded.version}), file=answers)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "turn":
            answer = {"ms": turn(loaded.run, images, float(argument))}
        elif command == "memory":
            answer = {"peak_mb": peak_mb()}
        elif command == "layers":
            answer = loaded.layers()
        else:
            np.save(argument, loaded.run(images))
            answer = {}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), {int(cpu) for cpu in sys.argv[5].split(",")})
