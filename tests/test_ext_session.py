"""Session and runtime: a small network against torch, input checks, lifetimes, threads, and what the process decides.

What depends on the process (environment, affinity, imports) runs in a subprocess of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import subp_ext
from subp_ext import FormatError, Graph, Node, Ref, Session, TensorSpec, UniformBlockSparse, runtime, save


def weights():
    rng = np.random.default_rng(0)
    sparse = rng.standard_normal((16, 8, 3, 3)).astype(np.float32)
    sparse[:, ::2] = 0
    return {
        "stem": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "stem_bias": rng.standard_normal(8).astype(np.float32),
        "sparse": UniformBlockSparse.from_dense(sparse, 8),
        "depth": rng.standard_normal((16, 1, 3, 3)).astype(np.float32),
        "project": rng.standard_normal((16, 16, 1, 1)).astype(np.float32),
        "head": rng.standard_normal((5, 16)).astype(np.float32),
        "head_bias": rng.standard_normal(5).astype(np.float32),
    }


def network() -> Graph:
    def conv(output, source, weight, **args):
        return Node("conv2d", output, {"input": Ref(source), "weight": Ref(weight), **args})

    nodes = [
        conv("a", "x", "stem", bias=Ref("stem_bias"), stride=[2, 2], padding=[1, 1], activation="relu"),
        conv("b", "a", "sparse", bias=None, padding=[1, 1], dilation=[1, 1], groups=1),
        conv("c", "b", "depth", padding=[1, 1], groups=16, activation="silu"),
        conv("d", "c", "project", residual=Ref("b"), activation="relu6"),
        Node("adaptive_avg_pool2d", "p", {"self": Ref("d"), "output_size": [1, 1]}),
        Node("sym_size", "n", {"self": Ref("x"), "dim": 0}),
        Node("view", "v", {"self": Ref("p"), "size": [Ref("n"), 16]}),
        Node("linear", "y", {"input": Ref("v"), "weight": Ref("head"), "bias": Ref("head_bias")}),
    ]
    return Graph(
        [TensorSpec("x", (None, 3, 16, 12))],
        [TensorSpec("y", (None, 5)), TensorSpec("d", (None, 16, 8, 6))],
        nodes,
        weights(),
        {"model": "small"},
    )


def image(batch=2, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, 3, 16, 12)).astype(np.float32)


def simple(*nodes, outputs=("y",), inputs=("x",), shape=(None, 4), constants=None) -> Graph:
    return Graph(
        [TensorSpec(name, shape) for name in inputs],
        [TensorSpec(name, shape) for name in outputs],
        list(nodes),
        constants or {},
    )


def unaligned(array: np.ndarray) -> np.ndarray:
    shifted = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def test_arrays_whose_elements_are_not_aligned():
    x, weight, bias = image(), np.ones((4, 3, 3, 3), np.float32), np.arange(4, dtype=np.float32)
    want = subp_ext.conv2d(x, weight, bias)
    assert np.array_equal(subp_ext.conv2d(*map(unaligned, (x, weight, bias))), want)
    graph = simple(Node("add", "y", {"self": Ref("x"), "other": Ref("w")}), constants={"w": unaligned(bias)})
    assert np.array_equal(Session(graph).run(x[:, 0, 0, :4]), x[:, 0, 0, :4] + bias)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)


def test_a_network_matches_torch():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    w = {k: torch.from_numpy(v.to_dense() if isinstance(v, UniformBlockSparse) else v) for k, v in weights().items()}
    w = {name: value.double() for name, value in w.items()}
    a = f.relu(f.conv2d(torch.from_numpy(image()).double(), w["stem"], w["stem_bias"], 2, 1))
    b = f.conv2d(a, w["sparse"], None, 1, 1)
    c = f.silu(f.conv2d(b, w["depth"], None, 1, 1, groups=16))
    d = f.relu6(f.conv2d(c, w["project"]) + b)
    y = f.linear(d.mean((2, 3)), w["head"], w["head_bias"])
    got_y, got_d = Session(network()).run(image())
    # Four layers of at most 72 terms; errors of a layer grow with the values it passes on, about 1e3 here.
    for got, want in ((got_y, y), (got_d, d)):
        assert got.dtype == np.float32
        assert np.abs(got - want.numpy()).max() <= 4 * 75 * 1.2e-7 * float(b.abs().max() * 16)


def test_file_path_dict_list_and_context_manager_agree(tmp_path):
    save(tmp_path / "n.subp", network())
    want = Session(network()).run(image())
    with Session(str(tmp_path / "n.subp")) as session:
        assert session.metadata == {"model": "small"}
        assert [s.name for s in session.inputs] == ["x"] and session.outputs[0].shape == (None, 5)
        for given in (image(), [image()], {"x": image()}):
            for got, expected in zip(session.run(given), want, strict=True):
                assert np.array_equal(got, expected)
    for use in (lambda: session.run(image()), session.report, session.__enter__):
        with pytest.raises(RuntimeError, match="the session was closed; make another one"):
            use()
    session.close()


def test_a_run_ends_well_while_another_thread_closes():
    session, messages = Session(network()), set()
    want = session.run(image())[0]

    def work():
        try:
            while True:
                assert np.array_equal(session.run(image())[0], want)
        except RuntimeError as error:
            messages.add(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    session.run(image(3))
    session.close()
    for worker in workers:
        worker.join()
    assert messages == {"the session was closed; make another one"}


def test_a_session_cannot_be_sent_to_another_process():
    with pytest.raises(TypeError, match="make one in each process, from the file"):
        pickle.dumps(Session(network()))


def test_threads_give_the_same_bits():
    results = [Session(network(), threads=threads).run(image(3)) for threads in (1, 2, 3)]
    for other in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))


def test_an_image_gives_the_same_bits_in_any_batch():
    session = Session(network())
    whole = session.run(image(3))[1]
    assert np.array_equal(session.run(image(3)[1:2])[1][0], whole[1])


def test_several_python_threads_may_run_one_session():
    session = Session(network(), threads=2)
    want = [session.run(image(seed=seed))[0] for seed in range(4)]
    wrong = []

    def work(seed):
        for _ in range(10):
            if not np.array_equal(session.run(image(seed=seed))[0], want[seed]):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_float64_and_other_memory_orders_are_cast():
    session, x = Session(network()), image()
    want = session.run(x)[0]
    assert np.array_equal(session.run(x.astype(np.float64))[0], want)
    assert np.array_equal(session.run(np.asfortranarray(x))[0], want)


@pytest.mark.parametrize(
    "given, message",
    [
        (image()[0], r"input 'x' has shape \[3, 16, 12\]; expected \[any, 3, 16, 12\]; .* batch dimension: x\[None\]"),
        (image().transpose(0, 2, 3, 1), r"channels last; pass x\.transpose\(0, 3, 1, 2\)"),
        (image()[:, :2], r"expected \[any, 3, 16, 12\]"),
        (image()[:, :, :0], r"expected \[any, 3, 16, 12\]"),
        (image().astype(np.float64) * 1e39, "is float64 with numbers beyond the range of float32, 3.4e\\+38"),
        (np.zeros((1, 3, 16, 12), np.uint8), "is uint8; expected float32: normalise it first"),
        ({"z": image()}, r"inputs are named \['z'\]; expected \['x'\]"),
        ([image(), image()], r"2 inputs given; expected 1: \['x'\]; images of a batch are one array: numpy.stack"),
        ("cat.jpg", "input 'x' is a str; expected a float32 array"),
        (None, "input 'x' is a NoneType; expected a float32 array"),
        ([[[1, 2], [3]]], "input 'x' is no array: setting an array element"),
        (image().astype(object), "input 'x' is object; expected float32$"),
        (image().astype(np.complex64), "input 'x' is complex64; expected float32$"),
    ],
)
def test_inputs_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        Session(network()).run(given)


def test_unknown_operators_are_named_together():
    graph = simple(Node("fft", "a", {"self": Ref("x")}), Node("sort", "y", {"self": Ref("a")}))
    with pytest.raises(ValueError, match="does not have: fft, sort"):
        Session(graph)


def test_errors_name_the_node():
    graph = simple(Node("view", "y", {"self": Ref("x"), "size": [3, 5]}))
    with pytest.raises(ValueError, match=r"node 'y' \(view\): cannot reshape"):
        Session(graph)
    bad = network()
    bad.nodes[0].args["stride"] = 0
    with pytest.raises(ValueError, match=r"node 'a' \(conv2d\): stride is 0"):
        Session(bad)
    wrong = simple(Node("relu", "y", {"self": Ref("x"), "slope": 1}))
    with pytest.raises(ValueError, match=r"node 'y' \(relu\): .*slope"):
        Session(wrong)


@pytest.mark.parametrize(
    "op, args",
    [
        ("logical_or", {"self": Ref("x"), "other": None}),
        ("logical_and", {"self": None, "other": Ref("x")}),
        ("where", {"condition": Ref("x"), "self": Ref("x"), "other": "hello"}),
    ],
)
def test_results_that_are_no_numbers_are_refused(op, args):
    with pytest.raises(ValueError, match="node 'y'"):
        Session(simple(Node(op, "y", args))).run(np.zeros((1, 4), np.float32))


@pytest.mark.parametrize(
    "op, args, name",
    [
        ("layer_norm", {"input": Ref("x"), "normalized_shape": [4], "eps": Ref("x")}, "eps"),
        ("softmax", {"self": Ref("x"), "dim": Ref("x")}, "dim"),
        ("leaky_relu", {"self": Ref("x"), "negative_slope": Ref("x")}, "negative_slope"),
        ("max_pool2d", {"self": Ref("x"), "kernel_size": [Ref("x"), 1]}, "kernel_size"),
    ],
)
def test_a_tensor_in_the_place_of_a_number_is_named(op, args, name):
    graph = Graph([TensorSpec("x", (1, 2, 4, 4))], [TensorSpec("y", (1, 2, 4, 4))], [Node(op, "y", args)])
    with pytest.raises(ValueError, match=rf"node 'y' \({op}\): argument '{name}' is"):
        Session(graph)


def test_a_residual_that_does_not_fit_is_named():
    nodes = [Node("conv2d", "y", {"input": Ref("x"), "weight": Ref("w"), "residual": Ref("r")})]
    graph = Graph(
        [TensorSpec("x", (None, 3, 5, 5)), TensorSpec("r", (1, 4, 1, 1))],
        [TensorSpec("y", (None, 4, 5, 5))], nodes, {"w": np.ones((4, 3, 1, 1), np.float32)},
    )  # fmt: skip
    with pytest.raises(ValueError, match="node 'y'.*the residual has another shape"):
        Session(graph).run([np.ones((2, 3, 5, 5), np.float32), np.ones((1, 4, 1, 1), np.float32)])


@pytest.mark.parametrize("readers", [1, 2])
def test_a_constant_residual_is_kept(readers):
    """As of conv(x) + position with a batch of one: the packed form holds weight and bias, and nothing else."""
    rng = np.random.default_rng(3)
    weight, position = rng.standard_normal((4, 3, 1, 1)), rng.standard_normal((1, 4, 5, 5))
    constants = {"w": weight.astype(np.float32), "position": position.astype(np.float32)}
    nodes = [Node("conv2d", "y", {"input": Ref("x"), "weight": Ref("w"), "residual": Ref("position")})]
    if readers == 2:
        nodes.append(Node("add", "z", {"self": Ref("y"), "other": Ref("position")}))
    outputs = [TensorSpec(node.output, (1, 4, 5, 5)) for node in nodes]
    x = rng.standard_normal((1, 3, 5, 5)).astype(np.float32)
    results = Session(Graph([TensorSpec("x", (1, 3, 5, 5))], outputs, nodes, constants)).run(x)
    expected = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], x) + position
    for count, result in enumerate([results] if readers == 1 else results):
        assert np.allclose(result, expected + count * position, atol=1e-5)


def test_weights_are_held_once_where_all_sizes_are_fixed():
    """A 3x3 layer that runs after Winograd needs its transformed weights alone, 4 times the plain ones."""
    rng = np.random.default_rng(4)
    constants = {"w": rng.standard_normal((32, 32, 3, 3)).astype(np.float32)}
    node = Node("conv2d", "y", {"input": Ref("x"), "weight": Ref("w"), "padding": [1, 1]})
    x = rng.standard_normal((2, 32, 56, 56)).astype(np.float32)
    held, results = {}, {}
    for size in (56, None):
        graph = Graph(
            [TensorSpec("x", (None, 32, size, size))],
            [TensorSpec("y", (None, 32, size, size))],
            [node],
            dict(constants),
        )
        session = Session(graph, threads=1)
        results[size] = session.run(x)
        held[size] = session.report().weight_bytes
        assert ("winograd" in session.report().rows[0].kernel) == (runtime.kernel_set() != "generic")
    plain = constants["w"].nbytes if runtime.kernel_set() != "generic" else 0
    assert held[None] - held[56] == plain and np.array_equal(results[56], results[None])


def test_results_are_the_callers_own():
    constant = np.ones((1, 4), np.float32)
    graph = simple(Node("alias", "y", {"self": Ref("x")}), outputs=("y", "x", "k"), constants={"k": constant})
    session, x = Session(graph), np.zeros((1, 4), np.float32)
    for result in session.run(x):
        result += 5
    assert not x.any() and np.all(constant == 1)
    assert np.array_equal(session.run(x)[2], constant)


def test_tuples_several_inputs_and_folded_constants():
    graph = simple(
        Node("exp", "e", {"self": Ref("k")}),
        Node("add", "s", {"self": Ref("x"), "other": Ref("z")}),
        Node("mul", "m", {"self": Ref("s"), "other": Ref("e")}),
        Node("chunk", "t", {"self": Ref("m"), "chunks": 2, "dim": 1}),
        Node("getitem", "y", {"self": Ref("t"), "index": 1}),
        inputs=("x", "z"),
        constants={"k": np.zeros(4, np.float32)},
    )
    session = Session(graph)
    x = np.arange(4, dtype=np.float32)[None]
    assert np.array_equal(session.run({"z": x, "x": x}), [[4, 6]])
    assert "e" not in [row.node for row in session.report().rows]


def test_report_says_what_ran():
    report = Session(network(), profile=True).report()
    rows = {row.node: row for row in report.rows}
    assert rows["b"].kernel.startswith("f32_ubsconv") and rows["b"].kept_share == 0.5 and rows["b"].why == "sparse"
    assert rows["b"].macs == 16 * 4 * 9 * 8 * 6 and rows["b"].dense_macs == 2 * rows["b"].macs
    assert rows["b"].shape == (1, 16, 8, 6) and rows["b"].gflops == 2e-6 * rows["b"].macs / rows["b"].ms
    assert rows["c"].kernel.startswith("f32_dwconv") and rows["c"].macs == 16 * 9 * 8 * 6
    assert rows["p"].kernel.startswith("f32_mean__") and "n" not in rows and "v" not in rows
    assert rows["y"].kernel.startswith("f32_ubsconv") and rows["y"].macs == 16 * 5
    assert all(row.ms > 0 for row in rows.values())
    assert report.shares["sparse"] == rows["b"].macs / sum(row.macs or 0 for row in report.rows)
    assert sum(report.shares.values()) == pytest.approx(1) and not report.fallbacks
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["kept_share"] == 0.5
    assert "50%" in str(report) and "on fallbacks" in str(report)
    session = Session(network())
    session.run(image(3))
    assert session.report().rows[1].ms is None and session.report().input_shapes == ((3, 3, 16, 12),)


def test_a_weight_computed_from_the_input_runs_on_the_reference():
    graph = Graph(
        [TensorSpec("x", (1, 2, 3, 3))],
        [TensorSpec("y", (1, 1, 1, 1))],
        [Node("conv2d", "y", {"input": Ref("x"), "weight": Ref("x")})],
    )
    session = Session(graph)
    assert session.run(np.ones((1, 2, 3, 3), np.float32)).item() == 18
    assert session.report().rows[0].kernel == "reference"
    assert session.report().shares["fallback"] == 1 and session.report().rows[0].why


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "m.subp").write_bytes(b"nothing")
    with pytest.raises(FormatError):
        Session(tmp_path / "m.subp")
    with pytest.raises(FileNotFoundError):
        Session(tmp_path / "absent.subp")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "two", 10**9])
def test_thread_counts_that_make_no_sense(threads):
    with pytest.raises(ValueError, match="expected a whole number"):
        Session(network(), threads=threads)


def test_threads_come_from_argument_then_environment_then_process(monkeypatch):
    for name in ("SUBP_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert Session(network()).threads == runtime.usable_cpus()
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert Session(network()).threads == 5
    monkeypatch.setenv("SUBP_NUM_THREADS", "3")
    assert Session(network()).threads == 3 and Session(network(), threads=1).threads == 1
    monkeypatch.setenv("SUBP_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="SUBP_NUM_THREADS is 'many'"):
        Session(network())


@pytest.mark.parametrize(
    "files, membership, want",
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a/b", 3.0),
        ({"cpu.max": "50000 100000"}, "0::/not/mounted", 0.5),
        ({"cpu,cpuacct/j/cpu.cfs_quota_us": "200000", "cpu,cpuacct/j/cpu.cfs_period_us": "100000"},
         "5:memory:/j\n4:cpu,cpuacct:/j", 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", None),
        ({}, "0::/", None),
    ],
)  # fmt: skip
def test_control_group_quotas(tmp_path, files, membership, want):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    assert runtime.cgroup_cpus(tmp_path, tmp_path / "membership") == want
    assert runtime.cgroup_cpus(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(
    "files, membership, want",
    [
        ({"memory.max": "1000000"}, "0::/", 1_000_000),
        ({"a/b/memory.max": "max", "a/memory.max": "2000000"}, "0::/a/b", 2_000_000),
        ({"memory/j/memory.limit_in_bytes": "3000000"}, "5:cpu:/other\n4:memory:/j", 3_000_000),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, "4:memory:/", None),
        ({}, "0::/", None),
    ],
)
def test_control_group_memory(tmp_path, files, membership, want):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    free = runtime.memory_limit(tmp_path, tmp_path / "absent")
    assert runtime.memory_limit(tmp_path, tmp_path / "membership") == (want or free)


def test_affinity_limits_the_threads():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no CPU affinity")
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import subp_ext"
    done = python(code + "; print(subp_ext.cpu_info()['default_threads'])", SUBP_NUM_THREADS="", OMP_NUM_THREADS="")
    assert done.stdout.strip() == "1", done.stderr


def test_kernel_set_from_the_environment():
    done = python("import subp_ext; i = subp_ext.cpu_info(); print(i['kernel_set'], i['why'])", SUBP_KERNEL="generic")
    assert done.stdout.strip() == "generic SUBP_KERNEL is set", done.stderr
    done = python("import subp_ext; subp_ext.cpu_info()", SUBP_KERNEL="vliw")
    assert "SUBP_KERNEL=vliw: no such kernel set; available here: generic" in done.stderr


def test_a_wrong_choice_of_algorithm_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    save(tmp_path / "m.subp", network())
    monkeypatch.setenv("SUBP_WINOGRAD", "yes")
    with pytest.raises(ValueError, match="SUBP_WINOGRAD is 'yes'") as error:
        Session(tmp_path / "m.subp")
    assert not isinstance(error.value, FormatError)


def test_a_set_this_cpu_cannot_run_is_refused(monkeypatch):
    class Fake:
        @staticmethod
        def kernel_sets():
            return [
                {"name": "generic", "needs": "portable C11", "usable": True},
                {"name": "future", "needs": "2048-bit vectors", "usable": False},
            ]

    monkeypatch.setattr(runtime, "kernels", lambda: Fake)
    monkeypatch.setenv("SUBP_KERNEL", "future")
    with pytest.raises(ValueError, match="this CPU lacks 2048-bit vectors; available here: generic"):
        runtime.kernel_set.__wrapped__()
    monkeypatch.delenv("SUBP_KERNEL")
    assert runtime.kernel_set.__wrapped__() == "generic"


RUN = """
import numpy as np, subp_ext
w = np.ones((8, 8, 3, 3), np.float32)
assert subp_ext.conv2d(np.ones((1, 8, 5, 5), np.float32), w, threads=2)[0, 0, 2, 2] == 72
"""


def test_torch_is_not_needed():
    block = "import sys; sys.modules['torch'] = None; sys.modules['subp_dist'] = None\n"
    done = python(block + RUN + "print(sorted(m for m in sys.modules if m.startswith('torch.')))")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("torch_first", [True, False])
def test_beside_torch_and_its_openmp(torch_first):
    pytest.importorskip("torch")
    use = "import torch; torch.set_num_threads(2); assert torch.ones(512, 512).mm(torch.ones(512, 512))[0, 0] == 512\n"
    done = python((use + RUN if torch_first else RUN + use) * 2 + "print('fine')")
    assert done.stdout.strip() == "fine", done.stderr


def test_missing_kernels_say_how_to_build_them():
    code = "import sys; sys.modules['subp_ext._kernels'] = None\nimport subp_ext; subp_ext.Session('m.subp')"
    done = python(code)
    assert "ImportError" in done.stderr and "python setup.py build_ext --inplace" in done.stderr


def test_public_names_exist():
    assert all(hasattr(subp_ext, name) for name in subp_ext.__all__)
    assert {"conv2d", "linear", "getitem"} <= set(subp_ext.supported_ops())


@pytest.mark.parametrize("independent, ran", [(True, [2, 2, 1]), (False, [5])])
def test_a_large_batch_runs_in_parts_where_no_image_depends_on_another(monkeypatch, independent, ran):
    graph = network()
    graph.metadata["independent_images"] = independent
    x = image(5)
    want = Session(network(), threads=1).run(x)
    batches, run = [], Session._run
    monkeypatch.setattr(Session, "_run", lambda self, arrays: batches.append(len(arrays[0])) or run(self, arrays))
    session = Session(graph, threads=1)
    one = session.report(x[:1])
    monkeypatch.setattr("subp_ext.session.CACHED_ACTIVATIONS", int(2.5 * one.arena_bytes))
    batches.clear()
    for expected, found in zip(want, session.run(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert batches == ran
    report = session.report(x)
    if independent:
        assert report.input_shapes == ((2, 3, 16, 12),) and report.batch == 5
        assert "2 of 5 images at a time" in str(report)
        assert sum(row.macs or 0 for row in report.rows) == 2 * sum(row.macs or 0 for row in one.rows)
    else:
        assert report.input_shapes == ((5, 3, 16, 12),) and report.batch == 5 and "at a time" not in str(report)
