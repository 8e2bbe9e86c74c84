"""The compiled part of subp_ext; everything else about the package is in setup.cfg."""

import platform
import runpy
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
KERNELS = "ext/kernels"
usable = runpy.run_path(str(ROOT / "ext/affinity.py"))["usable"]  # the CPUs to build on; importing it wants NumPy
DISPATCH = ["conv", "cpu", "dispatch", "fused_depthwise", "resample", "winograd"]  # without kernels of their own
HEADERS, LISTS = (sorted(map(str, Path(KERNELS).glob(f"*.{suffix}"))) for suffix in ("h", "inc"))
# A kernel set beyond the generic one is a line here: (machines it builds on, name, compiler flags). Of kernels/<name>.c
# (float32) and <kind>_<name>.c of KINDS those that there are get the flags. Nothing else does, or the compiler may use
# the instructions where no CPU check guards them. SUBP_HAVE_<NAME> is defined for everything, and guards its lines in
# the lists.
X86, ARM = {"x86_64", "amd64"}, {"aarch64", "arm64"}
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
ISA_SETS: list[tuple[set[str], str, list[str]]] = [
    (X86, "avx2", ["-mavx2", "-mfma"]),
    (X86, "avxvnni", ["-mavx2", "-mfma", "-mavxvnni"]),
    (X86, "avx512", AVX512),
    (X86, "avx512vbmi", [*AVX512, "-mavx512vbmi"]),
    (X86, "avx512vnni", [*AVX512, "-mavx512vnni"]),
    (X86, "avx512bf16", [*AVX512, "-mavx512vnni", "-mavx512bf16"]),
    (X86, "amx_bf16", [*AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]),
    (ARM, "neon", ["-ffp-contract=fast"]),  # part of the architecture
    (ARM, "neon_dotprod", ["-march=armv8.2-a+dotprod"]),
    (ARM, "neon_i8mm", ["-march=armv8.2-a+dotprod+i8mm"]),
    (ARM, "neon_bf16", ["-march=armv8.2-a+dotprod+i8mm+bf16"]),
]
CFLAGS = ["-O3", "-std=c11", "-fPIC", "-fvisibility=hidden", "-g0"]
# Of what checks and calls the kernels: 60,000 lines of Cython's C, whose loops are not the work.
CALLERS_CFLAGS = ["-O2", *CFLAGS[1:]]

# ISO C would leave fused multiply-adds off, which Arm and others have in their baseline.
GENERIC_CFLAGS = ["-ffp-contract=fast"]

# Results of the int8 kernels are the same bits everywhere: a product is fused with a sum only where the code says so.
INT8_CFLAGS = ["-ffp-contract=off"]
# Convolutions, depthwise ones, all else, and their flags.
KINDS = dict.fromkeys(["int8", "int8_depthwise", "int8_planes"], INT8_CFLAGS) | dict.fromkeys(
    ["bf16", "bf16_planes", "bf16_winograd"], []
)


def kernel_sets(machine: str) -> list[tuple[str, list[str]]]:
    """The sets to build for a machine beside the generic one, and their flags."""
    return [(name, flags) for machines, name, flags in ISA_SETS if machine.lower() in machines]


def kernel_files(name: str, flags: list[str]) -> list[tuple[str, list[str]]]:
    """The files of a set, and the flags of each."""
    files = [(name, flags)] + [(f"{kind}_{name}", [*flags, *own]) for kind, own in KINDS.items()]
    return [(file, own) for file, own in files if (ROOT / KERNELS / f"{file}.c").exists()]


here = kernel_sets(platform.machine())
macros = [(f"SUBP_HAVE_{name.upper()}", "1") for name, _ in here]


def kernel_library(name: str, files: list[str], flags: list[str]) -> tuple[str, dict]:
    """A static library of kernel files with flags of their own."""
    return f"subp_{name}", {
        "sources": [f"{KERNELS}/{file}.c" for file in files],
        "obj_deps": {"": HEADERS + LISTS},
        "include_dirs": [KERNELS],
        "macros": macros,
        "cflags": CFLAGS + flags,
    }


class BuildLibraries(build_clib):
    """`build_clib` on all cores: the kernel sets take most of an installation's time, and do not know each other."""

    def build_libraries(self, libraries: list[tuple[str, dict]]) -> None:
        with ThreadPoolExecutor(len(usable())) as pool:
            list(pool.map(lambda library: super(BuildLibraries, self).build_libraries([library]), libraries))


class BuildExtension(build_ext):
    """`build_ext` alone, as `--inplace` calls it, does not build the libraries it links."""

    def run(self) -> None:
        if find_spec("Cython") is None:  # setuptools would take an old _kernels.c in silence
            raise SystemExit("building the extension needs Cython: pip install cython, or pip install .")
        self.run_command("build_clib")
        super().run()


# The test harness reads the lists above from this file without setting anything up.
if __name__ == "__main__":
    setup(
        cmdclass={"build_clib": BuildLibraries, "build_ext": BuildExtension},
        # The linker resolves from left to right: the dispatch names the kernels, so its library comes first.
        libraries=[
            kernel_library("dispatch", DISPATCH, []),
            kernel_library("team", ["team"], ["-fopenmp"]),
            *(
                kernel_library(file, [file], own)
                for name, flags in [("generic", GENERIC_CFLAGS), *here]
                for file, own in kernel_files(name, flags)
            ),
        ],
        ext_modules=[
            Extension(
                "subp_ext._kernels",
                sources=["ext/_kernels.pyx"],
                # The kernels' own files too: what they are linked into is out of date with them.
                depends=[*HEADERS, *LISTS, *sorted(map(str, [*Path("ext").glob("*.pxi"), *Path(KERNELS).glob("*.c")]))],
                include_dirs=[KERNELS],
                define_macros=macros,
                extra_compile_args=[*CALLERS_CFLAGS, "-fopenmp"],
                extra_link_args=["-fopenmp", "-lm"],
            )
        ],
    )
