"""One engine in a process of its own: loads a file, then runs it whenever it is its turn.

Started as a script, not as a module of the package: importing ``subp_dist`` imports torch, whose memory and threads no
other engine should carry. Commands come as lines on stdin, answers go as JSON lines to stdout:

    (start)        {"load_ms", "version"}
    turn SECONDS   {"ms": [...]} of the runs that fit, after some to wake threads and caches
    memory         {"peak_mb"} of the whole life of the process
    result FILE    {} after writing the output for the images, as .npy
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

# A script's folder comes first on the path: its neighbours are no top-level modules.
sys.path = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402

Run = Callable[[np.ndarray], np.ndarray]

WARM_RUNS, LEAST_RUNS = 2, 3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def load_subp(path: str, threads: int) -> tuple[Run, str]:
    import subp_ext

    return subp_ext.Session(path, threads=threads).run, subp_ext.cpu_info()["kernel_set"]


def load_onnxruntime(path: str, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images})[0], onnxruntime.__version__


def load_openvino(path: str, threads: int) -> tuple[Run, str]:
    import openvino

    # Left to itself it computes in bfloat16 where the CPU can.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert precision in ("f32", "float32"), f"openvino computes in {precision}"
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images}, share_inputs=True)[0], openvino.__version__


def load_torch(path: str, threads: int, channels_last: bool = False) -> tuple[Run, str]:
    import torch

    torch.set_num_threads(threads)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = torch.load(path, weights_only=False).to(memory_format=memory_format)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images).to(memory_format=memory_format)).numpy()

    return run, torch.__version__


def load_torch_channels_last(path: str, threads: int) -> tuple[Run, str]:
    return load_torch(path, threads, channels_last=True)


LOADERS: dict[str, Callable[[str, int], tuple[Run, str]]] = {
    "subp": load_subp,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "torch": load_torch,
    "torch_channels_last": load_torch_channels_last,
}

# What to import before the load is timed, where it is not the engine's own name: a pickled model needs its classes.
MODULES = {"subp": ("subp_ext",), "torch": ("torch", "timm"), "torch_channels_last": ("torch", "timm")}


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
    with Path(path).open("rb") as file:  # into the page cache, for every engine alike
        while file.read(1 << 24):
            pass
    for module in MODULES.get(engine, (engine,)):  # importing is not loading
        importlib.import_module(module)
    start = time.perf_counter()
    run, version = LOADERS[engine](path, threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    print(json.dumps({"load_ms": load_ms, "version": version}), file=answers)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "turn":
            answer = {"ms": turn(run, images, float(argument))}
        elif command == "memory":
            answer = {"peak_mb": peak_mb()}
        else:
            np.save(argument, run(images))
            answer = {}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), {int(cpu) for cpu in sys.argv[5].split(",")})
