"""subp_dist.bench: what it measures, prints and writes, on a small network; no figure of time is judged.

One measurement of every engine and one sweep on `test_resnet` at 64x64 serve all tests.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import subp_ext
from subp_dist.bench import contest, plot, training, update
from subp_dist.bench.__main__ import PEERS, bench, check_precisions, engines_of, has_bf16, parse_args, sweep
from subp_dist.bench.files import NetworkFiles
from subp_dist.bench.quantized import quantize_for_openvino
from subp_dist.bench.tables import accuracy, as_curves, as_table
from subp_dist.errors import UsageError

COMMON = ["test_resnet", "--image-size", "64", "--threads", "1", "--rounds", "2", "--seconds", "0.01"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def document(folder) -> dict:
    return bench(parse_args([*COMMON, "--prune-rate", "0.5", "--batch-size", "2"]), folder)


def test_every_engine_computes_the_network_and_is_measured(document):
    assert list(document["engines"]) == ["subp", "subp_dense", *PEERS]
    for name, engine in document["engines"].items():
        assert 0 < engine["best_ms"] <= engine["median_ms"], name
        assert engine["load_ms"] > 0 and 20 < engine["memory_mb"] < 4000 and engine["runs"] >= 2 * 3, name
        assert engine["max_abs_diff"] < 1e-5 * document["logits_range"] + 1e-6, name
    assert document["engines"]["torch"]["memory_format"] in ("contiguous", "channels_last")
    assert document["max_abs_diff"] == max(document["engines"][n]["max_abs_diff"] for n in ("subp", "subp_dense"))
    json.dumps(document)


def test_no_engine_carries_the_memory_of_torch(document):
    engines = document["engines"]
    assert engines["subp"]["memory_mb"] < 100 < engines["torch"]["memory_mb"]


def test_the_ratio_is_over_the_fastest_peer_and_comes_first(document):
    engines, ratios = document["engines"], document["speedup"]
    fastest = min(PEERS, key=lambda name: engines[name]["best_ms"])
    assert ratios["over"] == fastest
    assert ratios["sparse"] == pytest.approx(engines[fastest]["best_ms"] / engines["subp"]["best_ms"])
    assert ratios["dense"] == pytest.approx(engines[fastest]["best_ms"] / engines["subp_dense"]["best_ms"])
    assert as_table(document).startswith(f"{ratios['sparse']:.2f}x as fast as the fastest dense peer, {fastest} ")


def test_files_hold_the_same_network_sparse_and_dense_and_are_used_again(folder, document):
    files = NetworkFiles(folder, "test_resnet", 0.5, 16, image_size=64)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    sparse, dense = (subp_ext.load(files.path(engine)) for engine in ("subp", "subp_dense"))
    packed = {key: c for key, c in sparse.constants.items() if isinstance(c, subp_ext.UniformBlockSparse)}
    assert packed and not [c for c in dense.constants.values() if isinstance(c, subp_ext.UniformBlockSparse)]
    for key, constant in packed.items():
        assert constant.indices.shape[1] == constant.shape[1] - constant.shape[1] // 2
        np.testing.assert_array_equal(constant.to_dense(), dense.constants[key])
    files.path("onnxruntime"), files.images(2)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    others = [NetworkFiles(folder, "test_resnet", 0.5, 16), NetworkFiles(folder, "test_resnet", 0.5, 16, ("a",))]
    assert len({files.name, *(other.name for other in others)}) == 3


def test_a_sweep_and_its_picture(folder, tmp_path):
    args = parse_args([*COMMON, "--against", "onnxruntime", "--sweep", "0", "0.5"])
    document = sweep(args, folder)
    found = {(point["block_size"], point["prune_rate"]) for point in document["points"]}
    assert found == {(size, rate) for size in (8, 16, 32) for rate in (0.0, 0.5)}
    fastest = document["engines"]["onnxruntime"]["best_ms"]
    assert all(point["speedup"] == pytest.approx(fastest / point["best_ms"]) for point in document["points"])
    assert as_curves(document).count("x\n") == 1 and "1x32" in as_curves(document)
    for name in ("a.svg", "b.svg"):
        plot.draw([document, document], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match=r"other.json is not a sweep"):
        plot.read_sweep(tmp_path / "other.json")


def test_a_narrower_dense_network_is_measured_against_its_own_logits(folder):
    asked = ["--prune-rate", "0.5", "--against", "torch", "--narrower", "channels=[16,24,40,48]"]
    document = bench(parse_args([*COMMON, *asked]), folder)
    sparse, narrower = (document["engines"][name] for name in ("subp", "subp_narrower"))
    assert narrower["max_abs_diff"] < 1e-4 and document["speedup"]["over"] == "torch"
    assert document["speedup_narrower"]["sparse"] == pytest.approx(narrower["best_ms"] / sparse["best_ms"])
    dense = document["macs"] | {"whole": NetworkFiles(folder, "test_resnet", 0, 16, image_size=64).macs("subp")}
    assert dense["narrower"] < dense["whole"] and 0.5 < dense["sparse"] / dense["whole"] < 1
    text = as_table(document)
    assert f"{document['speedup_narrower']['sparse']:.2f}x as fast as the narrower dense network" in text
    assert "channels=[16,24,40,48]" in text
    json.dumps(document)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--narrower", "channels"], r"--narrower 'channels': expected KEY=VALUE"),
        (["--narrower", "seed=3"], "--narrower seed: expected an argument for timm that leaves images and classes"),
        (["--narrower", "in_chans=1"], "--narrower in_chans: expected an argument for timm that leaves images"),
        (["--narrower", "width=3", "--sweep"], "leave out --sweep"),
    ],
)
def test_a_narrower_network_that_cannot_be_is_refused(flags, said):
    with pytest.raises(UsageError, match=said):
        parse_args([*COMMON, *flags])


@pytest.fixture(scope="module")
def int8(folder) -> dict:
    pytest.importorskip("nncf")
    return bench(parse_args([*COMMON, "--dtype", "int8", "--against", "openvino", "onnxruntime"]), folder)


def test_int8_meets_every_engine_in_every_precision(int8):
    bf16 = ["openvino_bf16"] * has_bf16(subp_ext.cpu_info()["features"])
    ours = ["subp_int8", "subp_int8_dense", "subp"]
    assert list(int8["engines"]) == [*ours, "openvino_int8", "onnxruntime_int8", *bf16, "openvino", "onnxruntime"]
    for name, engine in int8["engines"].items():
        precision = next((suffix for suffix in ("int8", "bf16") if f"_{suffix}" in name), "float32")
        assert engine["layers"].get(precision, 0) > 0, name
        assert engine["sqnr_db"] > {"int8": 10, "bf16": 20, "float32": 90}[precision], name
    assert int8["engines"]["openvino_int8"]["layers"] == int8["engines"]["onnxruntime_int8"]["layers"] == {"int8": 16}
    assert int8["dtype"] == "int8"
    json.dumps(int8)


def test_the_int8_ratios_are_over_int8_then_over_all_then_over_this_engine_in_float32(int8):
    engines = int8["engines"]
    best = {name: engine["best_ms"] for name, engine in engines.items()}
    peers = [name for name in engines if not name.startswith("subp")]
    rivals = {"speedup": [name for name in peers if "int8" in name], "speedup_any": peers, "speedup_float32": ["subp"]}
    for key, names in rivals.items():
        fastest = min(names, key=best.__getitem__)
        assert int8[key]["over"] == fastest
        assert int8[key]["sparse"] == pytest.approx(best[fastest] / best["subp_int8"])
        median = min(engines[name]["median_ms"] for name in names)
        assert int8[key]["sparse_median"] == pytest.approx(median / engines["subp_int8"]["median_ms"])
    assert int8["speedup"]["dense"] == pytest.approx(best[int8["speedup"]["over"]] / best["subp_int8_dense"])
    lines = as_table(int8).splitlines()
    for line, (key, whom) in zip(
        lines, {"speedup": "dense int8 peer", "speedup_any": "dense peer of any", "speedup_float32": "float32"}.items(),
        strict=False,
    ):  # fmt: skip
        assert line.startswith(f"{int8[key]['sparse']:.2f}x as fast as ") and whom in line


def test_the_peer_of_onnxruntime_has_weights_per_channel_and_unsigned_activations(folder, int8):
    onnx = pytest.importorskip("onnx")
    path = NetworkFiles(folder, "test_resnet", 0.5, 16, image_size=64).path("onnxruntime_int8")
    graph = onnx.load(path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    for layer in layers:
        weight = made_by[layer.input[1]]
        values, scales, zeros = (stored[name] for name in weight.input)
        assert values.dtype == np.int8 and scales.size == values.shape[0] and not zeros.any(), layer.name
        assert np.abs(values.astype(int)).reshape(len(values), -1).max(1).min() == 127, layer.name  # not seven bits
        assert stored[made_by[layer.input[0]].input[2]].dtype == np.uint8, layer.name
    assert len(layers) == 16


def test_the_peer_of_openvino_has_depthwise_weights_of_int8_per_channel(tmp_path):
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    files = NetworkFiles(tmp_path, "test_efficientnet", 0.5, 16, image_size=64)
    images = np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)
    path = tmp_path / "model.xml"
    quantize_for_openvino(files.path("openvino"), images, path, path.with_suffix(".bin"))
    layers = [op for op in openvino.Core().read_model(path).get_ops() if op.get_type_name() == "GroupConvolution"]
    assert layers
    for layer in layers:
        scaled = layer.input_value(1).get_node()
        groups = scaled.output(0).shape[0]
        values, scales = (scaled.input_value(port).get_node() for port in (0, 1))
        assert values.get_type_name() == "Convert" and values.input(0).get_element_type() == openvino.Type.i8
        assert list(scales.output(0).shape) == [groups, 1, 1, 1, 1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.stem == "model") == ["model.bin", "model.xml"]


@pytest.mark.skipif(not has_bf16(subp_ext.cpu_info()["features"]), reason="this CPU has no products of bfloat16")
def test_bfloat16_meets_the_peers_bfloat16(folder):
    document = bench(parse_args([*COMMON, "--dtype", "bfloat16", "--against", "torch"]), folder)
    engines = document["engines"]
    ours = ["subp_bf16", "subp_bf16_dense", "subp", "subp_int8"]
    assert list(engines) == [*ours, "torch_bf16", "torch"]
    for name in ("subp_bf16", "subp_bf16_dense", "torch_bf16"):
        assert set(engines[name]["layers"]) == {"bf16"} and engines[name]["sqnr_db"] > 20, name
    assert document["speedup"]["over"] == "torch_bf16" and document["speedup_float32"]["over"] == "subp"
    best = {name: engine["best_ms"] for name, engine in engines.items()}
    assert document["speedup"]["sparse"] == pytest.approx(best["torch_bf16"] / best["subp_bf16"])
    assert document["speedup_any"]["dense"] == pytest.approx(
        min(best["torch_bf16"], best["torch"]) / best["subp_bf16_dense"]
    )
    assert as_table(document).startswith(f"{document['speedup']['sparse']:.2f}x as fast as the fastest dense bfloat16")
    sparse = [path for path in folder.glob("*.bf16.subp") if ".dense." not in path.name]
    assert sparse
    for path in sparse:
        assert path.stat().st_size < 0.6 * path.with_name(path.name.replace(".bf16", "")).stat().st_size


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("openvino_int8", {"float32": 53}),
        ("openvino_bf16", {"float32": 53}),
        ("openvino", {"bf16": 53}),
        ("onnxruntime", {"float32": 52, "int8": 1}),
        ("onnxruntime", {}),
    ],
)
def test_an_engine_in_another_precision_than_its_name_says_is_thrown_out(name, layers):
    check_precisions({"openvino_int8": {"int8": 1, "bf16": 52}, "openvino_bf16": {"bf16": 3}, "torch": {"float32": 9}})
    with pytest.raises(UsageError, match=rf"^{name}: expected layers in .*, found .*its figures were thrown away"):
        check_precisions({name: layers})


def test_bfloat16_runs_where_the_cpu_has_it_alone():
    every = [
        "openvino_int8",
        "onnxruntime_int8",
        "openvino_bf16",
        "onnxruntime",
        "openvino",
        "torch",
        "torch_channels_last",
    ]
    assert engines_of(PEERS, "int8", bf16=True) == every
    assert engines_of(["openvino"], "int8", bf16=False) == ["openvino_int8", "openvino"]
    lower = ["openvino_bf16", "torch_bf16", "openvino_int8"]
    assert engines_of(["openvino", "torch"], "bfloat16", bf16=True)[:3] == lower
    assert engines_of(["torch"], "bfloat16", bf16=False) == ["torch", "torch_channels_last"]
    assert engines_of(["torch"], "float32", bf16=True) == ["torch", "torch_channels_last"]
    assert [has_bf16({"avx512bf16": False, "amx_bf16": has}) for has in (True, False)] == [True, False]


def test_accuracy_is_told_in_decibels():
    expected = np.array([[3.0, -4.0]])
    assert accuracy(expected + [[0.3, -0.4]], expected) == {
        "max_abs_diff": pytest.approx(0.4),
        "sqnr_db": pytest.approx(20.0),  # an error of a tenth
    }
    assert accuracy(expected, expected) == {"max_abs_diff": 0.0, "sqnr_db": None}


def test_a_stopped_engine_uses_no_cpu(folder, document):
    files = NetworkFiles(folder, "test_resnet", 0.5, 16, image_size=64)
    contender = contest.Contender("onnxruntime", "onnxruntime", files.path("onnxruntime"))
    try:
        contender.start(files.images(2)[0], 1, contest.distinct_cores(1), folder)
        contender.turn(0.01)
        stat = Path(f"/proc/{contender._process.pid}/stat")
        end = time.monotonic() + 60
        while (before := stat.read_text().rpartition(")")[2].split())[0] != "T":
            assert time.monotonic() < end, "it goes on"
            time.sleep(0.05)
        time.sleep(0.2)
        after = stat.read_text().rpartition(")")[2].split()
        assert after[0] == "T" and before[11:13] == after[11:13]
    finally:
        contender.close()
    assert contender._process.returncode == -signal.SIGKILL


def test_an_engine_that_fails_is_named_with_its_words(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    np.save(tmp_path / "images.npy", np.zeros((1, 3, 64, 64), np.float32))
    contender = contest.Contender("onnxruntime", "onnxruntime", tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"onnxruntime failed on model.onnx: .*(protobuf|Protobuf|INVALID)"):
        contest.compete([contender], tmp_path / "images.npy", 1, 1, 0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18", "--prune-rate", "1"], r"pruning rate 1.0: expected a share of blocks in \[0, 1\)"),
        (["resnet18", "--sweep", "0.5", "2"], "pruning rate 2.0"),
        (["resnet18", "--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        (["resnet18", "--sweep", "--against"], "--sweep: a speed-up needs at least one peer"),
        (["resnet18", "--json", "no/where.json"], "there is no folder no"),
    ],
)
def test_misuse_is_told_before_any_work(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse_args(arguments)


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--against openvino: it is not installed; pip install 'subp-dist\[bench\]'"):
        parse_args(["resnet18", "--against", "openvino"])


def test_a_quantizer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nncf" else object())
    assert parse_args(["resnet18", "--against", "openvino"]).dtype == "float32"
    with pytest.raises(UsageError, match=r"--against openvino: nncf, which quantizes for it, is not installed; pip"):
        parse_args(["resnet18", "--against", "openvino", "--dtype", "int8"])


def test_more_threads_than_cpus_are_refused():
    usable = len(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match=rf"this process may use {usable} CPUs"):
        contest.distinct_cores(usable + 1)
    assert len(set(contest.distinct_cores(usable))) == usable


@pytest.mark.slow
def test_the_command_writes_its_document(tmp_path):
    output = tmp_path / "out.json"
    command = [sys.executable, "-m", "subp_dist.bench", *COMMON, "--against", "torch", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    assert done.stdout.splitlines()[0].count("x as fast as the fastest dense peer, torch") == 1
    assert list(json.loads(output.read_text())["engines"]) == ["subp", "subp_dense", "torch"]


def test_a_training_step_is_measured_dense_and_pruned():
    step = training.Step(batch_size=2, img_size=32, block_size=16, channels_last=True)
    row = training.measure_times("test_resnet", step, steps=2, warmup=1)
    assert 0 < row["dense_best_s"] <= row["dense_s"] and row["ratio"] == row["pruned_s"] / row["dense_s"]
    assert row["mask_update_s"] > 0 and training._line({"model": "test_resnet"} | row).startswith("test_resnet ")


def test_a_mask_update_is_measured_by_number_of_ranks(capsys):
    row = update.measure(update.Update("test_resnet", "l1", block_size=16, prune_rate=0.5, updates=1), ranks=1)
    assert row["ranks"] == 1 and 0 < row["scoring_ms"] < row["update_ms"]
    assert capsys.readouterr().out.startswith("| 1 | ")
