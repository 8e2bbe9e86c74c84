"""Everything that only a GPU can tell, in one run of some minutes: ``python tests/gpu/prove.py OUT.json``.

Needs torch, torchvision, timm and what they bring; the package need not be installed, nor its runtime built. Each check
has a process of its own, so that a crash or a hang of one leaves the others; the JSON is written anew after each.
``--device cpu --tiny`` runs the same code on a CPU, in one process, in seconds: it proves the checks, not the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/gpu")]

# Module, check, most seconds; what matters most comes first.
CHECKS = [
    ("checks", "makes_the_host_wait_for_nothing", 90),
    ("checks", "masks_equal_those_of_a_cpu", 60),
    ("costs", "mask_update", 60),
    ("costs", "step_overhead", 120),
    ("checks", "trains_in_every_precision", 90),
    ("checks", "skips_overflowing_steps", 60),
    ("checks", "resumes_to_the_bit", 60),
    ("two_ranks", "two_ranks_agree", 90),
    ("checks", "one_rank_of_torchrun", 60),
    ("checks", "takes_batches_of_ffcv", 120),
    ("checks", "trains_from_the_command_line", 150),
    ("checks", "compiles_once", 150),
]


def run_here(module: str, check: str, device: str, tiny: bool) -> dict:
    """Run a check in this process: its status, seconds, and figures or error."""
    import torch
    from parts import Place

    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Place(torch.device("cuda", 0) if device == "cuda" else torch.device(device), tiny, Path(folder))
            figures = getattr(__import__(module), check)(place)
        outcome = {"status": "passed", "figures": figures}
    except Exception as error:
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return outcome | {"seconds": round(time.perf_counter() - start, 2)}


def run_apart(module: str, check: str, device: str, tiny: bool, limit: float) -> dict:
    """Run a check in a process of its own, for some seconds at most."""
    flags = ["--device", device, *(["--tiny"] if tiny else []), "--only", check, "--here"]
    environment = os.environ | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if check == "resumes_to_the_bit" else {})
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, str(result), *flags]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
            error = f"ended with code {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            error = f"was not done after {limit:.0f} s"
        if result.is_file() and (found := json.loads(result.read_text())["checks"].get(check)):
            return found
    seconds = round(time.perf_counter() - start, 2)
    return {"status": "failed", "error": error, "traceback": output[-3000:], "seconds": seconds}


def machine(device: str) -> dict:
    """What the figures were measured on."""
    import timm
    import torch

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": device,
    }
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    return found | {"cores": len(os.sched_getaffinity(0))}


def main() -> int:
    """Run the checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("out", type=Path, metavar="OUT.json", help="where the results go")
    add("--device", default="cuda", choices=["cuda", "cpu"])
    add("--tiny", action="store_true", help="small networks: tries the checks themselves")
    add("--only", nargs="*", metavar="CHECK", help="these checks")
    add("--here", action="store_true", help="in this process; so it is on a CPU in small")
    add("--minutes", type=float, default=7.5, help="no check starts that could end later")
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --device cpu --tiny tries the checks without one")
    start, results = time.perf_counter(), {}
    document = {"machine": machine(args.device), "tiny": args.tiny, "checks": results}
    for module, check, seconds in CHECKS:
        if args.only is not None and check not in args.only:
            continue
        left = 60 * args.minutes - (time.perf_counter() - start)
        if left < 20:
            results[check] = {"status": "not run", "error": f"{args.minutes:g} minutes are over"}
        elif args.here or (args.device == "cpu" and args.tiny):
            results[check] = run_here(module, check, args.device, args.tiny)
        else:
            results[check] = run_apart(module, check, args.device, args.tiny, min(seconds, left))
        document["seconds"] = round(time.perf_counter() - start, 1)
        document["limits"] = {k: v for r in results.values() for k, v in r.get("figures", {}).get("limits", {}).items()}
        args.out.write_text(json.dumps(document, indent=1) + "\n")
        print(_line(check, results[check]), flush=True)
    for name, (value, limit, within) in document.get("limits", {}).items():
        print(f"{name}: {value:.3g}, at most {limit:g}: {'yes' if within else 'NO'}")
    return int(any(result["status"] != "passed" for result in results.values()))


def _line(check: str, result: dict) -> str:
    return f"{result['status']:8} {result.get('seconds', 0):6.1f} s  {check}  {result.get('error', '')[:300]}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
