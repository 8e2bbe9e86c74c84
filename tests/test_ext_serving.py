"""How a network is served: where a model comes from, CPUs and threads, batches of any size, memory given back."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
import warnings
import zipfile

import numpy as np
import pytest

from subp_ext import FormatError, Graph, Node, Ref, Session, TensorSpec, affinity, load, save


def network(**metadata):
    weight = np.random.default_rng(0).standard_normal((32, 3, 3, 3)).astype(np.float32)
    node = Node("conv2d", "y", {"input": Ref("x"), "weight": Ref("w"), "padding": 1})
    shapes = (None, 3, None, None), (None, 32, None, None)
    return Graph([TensorSpec("x", shapes[0])], [TensorSpec("y", shapes[1])], [node], {"w": weight}, metadata)


@pytest.fixture
def file(tmp_path):
    save(tmp_path / "model.subp", network())
    return tmp_path / "model.subp"


def images(count=1, size=8):
    return np.random.default_rng(1).standard_normal((count, 3, size, size)).astype(np.float32)


def test_a_model_from_anywhere(file):
    want, raw = Session(file).run(images()), file.read_bytes()
    behind = io.BytesIO(b"something before it" + raw)
    behind.seek(19)
    with file.open("rb") as opened, file.open("rb") as mapped:
        memory = mmap.mmap(mapped.fileno(), 0, access=mmap.ACCESS_READ)
        for source in (str(file), raw, bytearray(raw), memoryview(raw), opened, behind, memory):
            assert np.array_equal(Session(source).run(images()), want)
        memory.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
def test_a_pipe_is_read_to_its_end(file, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    raw = file.read_bytes()
    writer = threading.Thread(target=lambda: pipe.write_bytes(raw), daemon=True)
    writer.start()
    assert np.array_equal(Session(pipe).run(images()), Session(file).run(images()))
    writer.join(timeout=10)


def test_what_is_nothing_to_read_from(file):
    with file.open(encoding="latin-1") as text, pytest.raises(TypeError, match="was opened as text; .* 'rb'"):
        load(text)
    with pytest.raises(TypeError, match="the model is a int; expected a path, bytes, a memoryview or a file opened"):
        Session(3)
    with pytest.raises(FormatError, match="the bytes: .* bytes, expected .* cut short"):
        load(file.read_bytes()[:-1])


def zipped():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return held.getvalue()


FOREIGN = {
    "is a zip archive, as torch.save writes": zipped(),
    "is a pickle, as torch.save wrote before": pickle.dumps({}, 2),
    "is a pickle; expected a .subp file: export its network": pickle.dumps({}, 4),
    "is a safetensors file, which has weights and no network": struct.pack("<Q", 8) + b'{"a": 1}' + bytes(100),
    "is an ONNX file": b"\x08\x0a\x12\x07pytorch\x1a\x05" + bytes(80),
    "is compressed": b"\x1f\x8b\x08" + bytes(80),
    "is a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\n" + bytes(80),
    "is a web page": b"<!doctype html><html>" + bytes(80),
    "line ends were changed": b"\x89SUBP\n\n" + bytes(80),
    "is empty": b"",
    "cut short: 3 bytes": b"\x89SU",
    "does not start as a .subp file does": bytes(100),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_another_file_is_named_for_what_it_is(message):
    with pytest.raises(FormatError, match=message) as error:
        load(FOREIGN[message])
    assert "damaged" not in str(error.value)


def test_a_batch_without_images_has_a_result_without_images():
    for session in (Session(network()), Session(network(independent_images=True))):
        found = session.run(images(0, 16))
        assert found.shape == (0, 32, 16, 16) and found.dtype == np.float32
    fixed = Graph(
        [TensorSpec("x", (None, 4))], [TensorSpec("y", (4,))], [Node("sum", "y", {"self": Ref("x"), "dim": 0})]
    )
    with pytest.raises(ValueError, match="a batch without images, while 'y' has no batch dimension"):
        Session(fixed).run(np.zeros((0, 4), np.float32))


def test_results_without_room_are_refused_before_anything_runs(monkeypatch):
    session = Session(network(independent_images=True))
    batch = np.broadcast_to(images(1, 256), (400, 3, 256, 256))
    ran = []
    monkeypatch.setattr(session, "_run", lambda arrays: ran.append(arrays))
    session._limit = 400 * 32 * 256 * 256 * 4 - 1
    with pytest.raises(ValueError, match=r"the results of 400 images take 3\.4 GB; .* run fewer at a time"):
        session.run(batch)
    assert not ran


def test_no_warning_of_numpy_leaves_a_run():
    nodes = [
        Node("log", "a", {"self": Ref("x")}),
        Node("div", "b", {"self": Ref("a"), "other": Ref("x")}),
        Node("_to_copy", "y", {"self": Ref("b"), "dtype": "int32"}),
    ]
    graph = Graph([TensorSpec("x", (None, 4))], [TensorSpec("y", (None, 4), "int32")], nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Session(graph).run(np.array([[0, -1, np.nan, np.inf]]))


def python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=kept | environment
    )


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
@pytest.mark.parametrize(
    "first, binding",
    [
        ("", {"OMP_PROC_BIND": "true"}),
        ("import torch; ", {"OMP_PROC_BIND": "true"}),
        ("import ctypes; ctypes.CDLL('libgomp.so.1'); ", {"OMP_PLACES": "cores", "OMP_PROC_BIND": "close"}),
    ],
    ids=["alone", "after torch", "after OpenMP"],
)
def test_bound_threads_hide_no_cpus(first, binding):
    if "torch" in first:
        pytest.importorskip("torch")
    done = python(first + "import subp_ext; print(subp_ext.cpu_info()['usable_cpus'])", **binding)
    assert done.stdout.strip() == str(len(os.sched_getaffinity(0))), done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
def test_cpus_taken_from_a_bound_process_do_not_come_back():
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        pytest.skip("one CPU, nothing to take away")
    code = "import os, subp_ext; print(subp_ext.cpu_info()['usable_cpus'])"
    code += f"; os.sched_setaffinity(0, {{{cpus[-1]}}}); print(subp_ext.cpu_info()['usable_cpus'])"
    done = python(code, OMP_PROC_BIND="true")
    assert done.stdout.split() == [str(len(cpus)), "1"], done.stderr


def test_a_system_without_affinity_has_all_its_cpus(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert len(affinity.usable()) == os.cpu_count()


FEW_THREADS = """
import os, resource, sys, threading, warnings
import numpy as np
from subp_ext import Session
model, images = Session(sys.argv[1], threads=1), np.ones((1, 3, 16, 16), np.float32)
want, found = model.run(images), []
many = [Session(sys.argv[1], threads=500) for _ in range(int(sys.argv[2]))]
for session in many:  # their memory, for which threads will leave no room
    entry = session._entry((images.shape,))
    entry.free.append(entry.take())
start = threading.Barrier(len(many) + 1)

def run(session):
    start.wait()
    found.extend(np.array_equal(session.run(images), want) for _ in range(3))

callers = [threading.Thread(target=run, args=(session,)) for session in many]
for caller in callers: caller.start()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    start.wait()
    for caller in callers: caller.join()
assert len(found) == 3 * len(many) and all(found)
print(len(told), told[0].message)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "callers, environment",
    [
        (1, {}),
        (4, {}),  # which must not count on the same room
        (1, {"OMP_STACKSIZE": "32M"}),  # larger stacks than of the threads that look for room
        (1, {"OMP_DYNAMIC": "true"}),
        (1, {"OMP_THREAD_LIMIT": "2"}),
    ],
    ids=["one caller", "several callers", "large stacks", "dynamic", "limit of OpenMP"],
)
def test_threads_that_cannot_be_created_mean_fewer_and_one_warning(file, tmp_path, callers, environment):
    script = tmp_path / "few.py"
    script.write_text(FEW_THREADS)
    code = f"import sys, runpy; sys.argv = ['few', {str(file)!r}, '{callers}']; runpy.run_path({str(script)!r})"
    done = python(code, OPENBLAS_NUM_THREADS="1", MALLOC_ARENA_MAX="1", **environment)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"1 (\d+) of 500 threads run, and .* because the system refuses .*", done.stdout.strip())
    assert found and int(found[1]) < 60, done.stdout


MEMORY = """
import sys
import numpy as np
from subp_ext import Graph, Node, Ref, Session, TensorSpec

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

weights = {f"w{i}": np.ones((256, 256, 3, 3), np.float32) for i in range(16)}
names = ["x", *(f"y{i}" for i in range(16))]
nodes = [
    Node("conv2d", names[i + 1], {"input": Ref(names[i]), "weight": Ref(f"w{i}"), "padding": 1}) for i in range(16)
]
graph = Graph([TensorSpec("x", (None, 256, 16, 16))], [TensorSpec("y15", (None, 256, 16, 16))], nodes, weights)
small = Session(Graph(graph.inputs, [TensorSpec("y0", (None, 256, 16, 16))], nodes[:1], {"w0": weights["w0"]}))
small.run(np.zeros((1, 256, 16, 16), np.float32))
before = resident()
session = Session(graph)
session.run(np.zeros((1, 256, 16, 16), np.float32))
held = resident() - before
session.close()
print(held, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_closed_session_returns_its_memory():
    done = python(MEMORY)
    held, left = map(float, done.stdout.split())
    assert held > 30 and left < 0.2 * held, (held, left)
