"""Builds the harness from the sources and flags of setup.py, and runs it on random shapes.

python tests/harness/run.py COUNT SEED                      as the product is built
python tests/harness/run.py COUNT SEED --sanitize           under AddressSanitizer and UndefinedBehaviorSanitizer, which
                                                            do not see what AMX touches: its tiles are emulated
python tests/harness/run.py COUNT SEED --machine aarch64    NEON, cross-compiled and emulated
"""

from __future__ import annotations

import argparse
import functools
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Functions and lines for reports; what debuggers want besides takes a quarter of the time to compile.
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Wpointer-arith", "-Werror"]
PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"


def missing(machine: str) -> str | None:
    """Returns why the harness cannot be built and run for a machine, or None."""
    if machine == platform.machine():
        return None if shutil.which("gcc") else "no gcc found"
    tools = [f"{machine}-linux-gnu-gcc", f"qemu-{machine}"]
    lacking = [tool for tool in tools if not shutil.which(tool)]
    if not lacking:
        return None
    return f"no {' and no '.join(lacking)} found; launch/setup.sh installs {PACKAGES} when root runs it"


def build(directory: Path, machine: str, sanitize: bool) -> list[str]:
    """Compiles the harness and the kernels it drives into a directory; returns the command that runs it.

    Raises:
        subprocess.CalledProcessError: the compiler failed; it has said why.
    """
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    kernels, sets = ROOT / setup["KERNELS"], setup["kernel_sets"](machine)
    native = machine == platform.machine()
    compiler = "gcc" if native else f"{machine}-linux-gnu-gcc"
    # A sanitized program cannot be static: the emulator then finds the libraries where the cross compiler does.
    static = [] if native or sanitize else ["-static"]
    command = [] if native else [f"qemu-{machine}", *(["-L", f"/usr/{machine}-linux-gnu"] if sanitize else [])]
    flags = [*setup["CFLAGS"], *WARNINGS, *(SANITIZE if sanitize else []), f"-I{kernels}"]
    flags += [f"-DSUBP_HAVE_{name.upper()}=1" for name, _ in sets]
    if sanitize and "amx_bf16" in dict(sets):
        flags += ["-DSUBP_EMULATED_TILES=1", f"-I{Path(__file__).parent}"]
    sources = [(kernels / f"{name}.c", []) for name in setup["DISPATCH"]]
    sources += [
        (kernels / f"{file}.c", special)
        for name, flags_of_set in [("generic", setup["GENERIC_CFLAGS"]), *sets]
        for file, special in setup["kernel_files"](name, flags_of_set)
    ]
    sources += [(path, []) for path in sorted(Path(__file__).parent.glob("*.c"))]
    run = functools.partial(subprocess.run, check=True)
    objects = [directory / f"{number}.o" for number in range(len(sources))]
    jobs = [
        [compiler, *flags, *special, "-c", str(source), "-o", str(target)]
        for (source, special), target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(setup["usable"]())) as pool:
        list(pool.map(run, jobs))
    program = str(directory / "harness")
    run([compiler, *flags, *static, *map(str, objects), "-o", program, "-lm"])
    return [*command, program]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, help="cases of each kernel and operator")
    parser.add_argument("seed", type=int, help="of the first case")
    parser.add_argument("--machine", default=platform.machine(), help="to compile for, emulated if it is another one")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    args = parser.parse_args()
    if reason := missing(args.machine):
        parser.error(reason)
    with tempfile.TemporaryDirectory() as directory:
        program = build(Path(directory), args.machine, args.sanitize)
        return subprocess.run([*program, str(args.count), str(args.seed)]).returncode


if __name__ == "__main__":
    sys.exit(main())
