"""subp_dist.export.quantize and its parts: what runs on integers, their scales, biases, tables, reports and refusals.

A hand-made network of 8x8 pixels with a residual, depthwise and sparse convolutions, squeeze-and-excitation, pools, a
concatenation and a classifier, against integers by NumPy (`integer_oracle`), to the bit.
"""

import dataclasses
import functools

import integer_oracle
import numpy as np
import pytest

import subp_ext
from subp_dist.errors import UsageError
from subp_dist.export.calibrate import run_values
from subp_dist.export.histogram import BINS, Histogram, activation_type
from subp_dist.export.placement import place
from subp_dist.export.quantize import QuantizeOptions, quantize_by_name, quantize_graph, run_all
from subp_dist.export.quantize_report import agreement, sqnr
from subp_dist.export.scales import quantized_weight
from subp_dist.export.tables import normalised, value_types, with_tables, with_uint8_input
from subp_ext import Graph, Node, Ref, TensorSpec, UniformBlockSparse
from subp_ext.dtypes import TypedArray

WIDTH = 16
RANDOM = np.random.default_rng(0)
IMAGES = (
    RANDOM.normal(size=(40, 3, 8, 8)).astype(np.float32)
    * np.linspace(0.3, 1, 40, dtype=np.float32)[:, None, None, None]
)


def conv(output, source, outputs, inputs, kernel=1, groups=1, sparse=False, gain=1.0, **args):
    """A node and its constants; a sparse weight keeps every second input channel of each block row."""
    random = np.random.default_rng(sum(map(ord, output)))
    weight = random.normal(size=(outputs, inputs // groups, kernel, kernel)).astype(np.float32)
    weight *= gain / np.sqrt(inputs / groups * kernel * kernel)
    if sparse:
        mask = np.zeros((outputs // 8, inputs), bool)
        mask[0::2, 0::2] = mask[1::2, 1::2] = True
        weight *= np.repeat(mask, 8, 0)[:, :, None, None]
        weight = UniformBlockSparse.from_dense(weight, 8, 1, mask)
    bias = random.normal(size=outputs).astype(np.float32) * 0.2
    constants = {f"{output}.weight": weight, f"{output}.bias": bias}
    refs = {"input": Ref(source), "weight": Ref(f"{output}.weight"), "bias": Ref(f"{output}.bias")}
    shape = {"stride": [1, 1], "padding": [kernel // 2] * 2, "groups": groups}
    return Node("conv2d", output, refs | shape | args), constants


def network(*parts, output="fc", inputs=3) -> Graph:
    """A graph of nodes, and of pairs of a node and its constants."""
    nodes, constants = [], {}
    for part in parts:
        node, found = part if isinstance(part, tuple) else (part, {})
        nodes.append(node)
        constants |= found
    spec = TensorSpec("x", (None, inputs, None, None))
    shape = (None, 10) if output == "fc" else (None,) * 4
    return Graph([spec], [TensorSpec(output, shape)], nodes, constants, {"independent_images": True})


def classifier(source: str, inputs: int):
    random = np.random.default_rng(7)
    weight = random.normal(size=(10, inputs)).astype(np.float32)
    args = {"input": Ref(source), "weight": Ref("fc.weight"), "bias": Ref("fc.bias")}
    return Node("linear", "fc", args), {"fc.weight": weight, "fc.bias": np.zeros(10, np.float32)}


@functools.cache
def centred() -> Graph:
    graph = body()
    features = run_values(graph, IMAGES, ["flat"])["flat"].mean(0)
    # Else one class would be the largest for every image.
    bias = -graph.constants["fc.weight"] @ features
    return dataclasses.replace(graph, constants=graph.constants | {"fc.bias": bias.astype(np.float32)})


def everything() -> Graph:
    graph = centred()
    return dataclasses.replace(graph, constants=dict(graph.constants))


def body() -> Graph:
    return network(
        conv("stem", "x", WIDTH, 3, 3, activation="relu6", stride=[1, 1]),
        conv("dw", "stem", WIDTH, WIDTH, 3, groups=WIDTH, activation="relu"),
        Node("mean", "squeeze", {"self": Ref("dw"), "dim": [2, 3], "keepdim": True}),
        conv("se.reduce", "squeeze", 8, WIDTH, activation="relu"),
        conv("se.expand", "se.reduce", WIDTH, 8, activation="sigmoid"),
        Node("mul", "gated", {"self": Ref("dw"), "other": Ref("se.expand")}),
        conv("project", "gated", WIDTH, WIDTH, sparse=True, residual=Ref("stem"), activation="relu"),
        conv("left", "project", 8, WIDTH, 3, activation="silu", padding=[[0, 2], [1, 1]]),
        conv("right", "project", 8, WIDTH),
        Node("cat", "both", {"tensors": [Ref("left"), Ref("right")], "dim": 1}),
        Node("max_pool2d", "pooled", {"self": Ref("both"), "kernel_size": [2, 2]}),
        Node("add", "twice", {"self": Ref("pooled"), "other": Ref("pooled")}),
        conv("last", "twice", 32, WIDTH, sparse=True, activation="relu"),
        Node("adaptive_avg_pool2d", "average", {"self": Ref("last"), "output_size": [1, 1]}),
        Node("flatten", "flat", {"self": Ref("average"), "start_dim": 1}),
        classifier("flat", 32),
    )


@pytest.fixture(scope="module")
def quantized():
    return quantize_graph(everything(), IMAGES)


def test_the_graph_computes_what_integers_do(quantized):
    graph = with_tables(quantized[0])
    expected = integer_oracle.run(graph, IMAGES[:6])
    types = {name: type for name, type in value_types(graph).items() if graph_ops(graph).get(name) != "flatten"}
    found = run_values(graph, IMAGES[:6], list(types), types)
    assert len(found) > 14 and {type.dtype.name for type in types.values()} == {"uint8"}
    for name, values in found.items():
        assert np.array_equal(values, expected[name]), name
    assert np.array_equal(run_all(graph, IMAGES[:6]), expected["fc"])


def graph_ops(graph: Graph) -> dict[str, str]:
    return {node.output: node.op for node in graph.nodes}


def test_results_are_near_float32(quantized):
    graph, report = quantized
    exact, found = run_all(everything(), IMAGES), run_all(graph, IMAGES)
    assert sqnr(exact, found) > 25 and report.sqnr == pytest.approx(sqnr(exact, found))
    assert report.agreement == agreement(exact, found) > 90


def test_all_is_int8_and_the_report_says_so(quantized):
    graph, report = quantized
    kinds = graph_ops(graph)
    assert kinds["se.expand"] == kinds["left"] == "lookup" and kinds["x.uint8"] == "quantize"
    functions = {node.args["function"] for node in graph.nodes if node.op == "lookup"}
    assert functions == {"sigmoid", "silu"}
    assert report.int8_macs_share == 1 and not report.kept
    rows = {row.name: row for row in report.layers}
    # Dense multiply-accumulates of 64 pixels, half of them where the weight keeps half of its blocks.
    assert rows["stem"].macs == 64 * 16 * 27 and rows["project"].macs == 64 * 16 * 16 // 2
    assert rows["left"].op == "silu" and rows["fc"].macs == 320 and rows["stem"].sqnr > 30
    assert rows["fc"].scale is None and "float32 result" in rows["fc"].reason
    assert report.to_json()["int8_macs_share"] == 1 and "100.0% of the MACs in int8" in report.summary()


def test_zero_is_exact_scales_are_positive_and_weights_symmetric(quantized):
    graph, _ = quantized
    exact = everything()
    for type in value_types(graph).values():
        q = type.quantization
        assert q.scale > 0 and 0 <= q.zero_point <= 255
        assert type.to_float(type.from_float(np.zeros(1)))[0] == 0
    for name, before in exact.constants.items():
        after = graph.constants[name]
        if name.endswith("bias"):
            assert after.dtype == np.float32
            continue
        values = after.values
        assert values.dtype == np.int8 and values.min() >= -127 and values.max() <= 127
        dense, scale = integer_oracle.integers(after)
        real = before.to_dense() if isinstance(before, UniformBlockSparse) else before.reshape(dense.shape)
        assert not dense[real == 0].any(), "a zero stays one"
        assert (np.abs(dense).max((1, 2, 3)) == 127).all(), "every channel uses its range"
        assert np.abs(dense * scale[:, None, None, None] - real).max() <= 0.501 * scale.max()
        if isinstance(before, UniformBlockSparse):
            assert isinstance(after, UniformBlockSparse) and np.array_equal(after.indices, before.indices)


def test_parts_of_a_concatenation_and_what_is_passed_on_share_a_type(quantized):
    types = value_types(quantized[0])
    assert types["left"] == types["right"] == types["both"] == types["pooled"]
    assert types["flat"] == types["average"] != types["last"]


def test_a_narrow_part_that_others_read_keeps_its_scale():
    graph = network(
        conv("wide", "x", 8, 3, gain=40.0),
        conv("narrow", "x", 8, 3),
        Node("cat", "both", {"tensors": [Ref("wide"), Ref("narrow")], "dim": 1}),
        conv("other", "narrow", 16, 8),
        conv("last", "both", 16, 16, residual=Ref("other")),
        output="last",
    )
    found, _ = quantize_graph(graph, IMAGES)
    types, ops = value_types(found), {node.output: node for node in found.nodes}
    assert types["wide"] == types["both"] != types["narrow"]
    assert ops["narrow.as_both"].op == "lookup" and ops["narrow.as_both"].args["function"] == "requantize"
    assert ops["narrow.as_both"].type == types["both"]
    expected = integer_oracle.run(found, IMAGES[:2])["last.uint8"]
    values = run_values(found, IMAGES[:2], ["last.uint8"], types)["last.uint8"]
    assert np.abs(values.astype(int) - expected).max() <= 1
    assert run_all(found, IMAGES[:2]).dtype == np.float32, "an output is float32 to those outside"


@pytest.mark.parametrize("range", ["auto", "minmax", "percentile", "mse"])
def test_every_range_holds_most_of_what_is_seen(range):
    graph, report = quantize_graph(everything(), IMAGES, QuantizeOptions(range))
    assert report.sqnr > 20
    scale = graph.nodes[0].args["scale"]
    widest = np.ptp(IMAGES) / 255
    assert scale == pytest.approx(widest, rel=0.02) if range == "minmax" else 0.5 * widest < scale <= widest * 1.01


def test_a_function_that_is_flat_needs_no_range():
    sigmoid = network(
        conv("layer", "x", 8, 3, gain=30.0, activation="hardsigmoid"), conv("last", "layer", 8, 8), output="last"
    )
    graph, _ = quantize_graph(sigmoid, IMAGES, QuantizeOptions("minmax"))
    node = next(node for node in graph.nodes if node.output == "layer.sum")
    assert float(node.type.quantization.scale) == pytest.approx(6 / 255)


def test_biases_keep_the_means_of_results():
    shift = {}
    for correct in (False, True):
        # Weights of very different sizes in a channel round badly, all of them to one side.
        graph = everything()
        for name in ("dw.weight", "left.weight"):
            graph.constants[name] = np.round(graph.constants[name], 2) + np.float32(0.004)
            graph.constants[name][:, 0, 0, 0] = 4.0
        found, _ = quantize_graph(graph, IMAGES, QuantizeOptions(bias_correction=correct))
        shift[correct] = np.abs((run_all(found, IMAGES) - run_all(graph, IMAGES)).mean(0)).max()
    assert shift[True] < 0.1 * shift[False]


def test_layers_that_are_kept_stay_as_they_were():
    graph, report = quantize_graph(everything(), IMAGES, QuantizeOptions(keep_float=("fc", "se.*")))
    before = everything().constants
    assert report.kept == dict.fromkeys(["se.reduce", "se.expand", "fc"], "asked for (--keep-float)")
    for name in ("fc.weight", "se.reduce.weight", "se.expand.bias"):
        assert graph.constants[name] is before[name] or np.array_equal(graph.constants[name], before[name])
    ops = {node.output: node for node in graph.nodes}
    assert ops["se.expand"].args["activation"] == "sigmoid" and ops["se.expand"].type is None
    assert ops["gated"].type is not None, "the product of a uint8 value stays between int8 layers"
    assert sqnr(run_all(everything(), IMAGES), run_all(graph, IMAGES)) > 25


def test_no_operator_runs_on_integers_between_float32_ones():
    graph = network(
        conv("first", "x", 8, 3, activation="relu"),
        Node("mul", "product", {"self": Ref("first"), "other": Ref("first")}),
        Node("max_pool2d", "pooled", {"self": Ref("product"), "kernel_size": [2, 2]}),
        conv("last", "pooled", 8, 8),
        Node("silu", "end", {"self": Ref("last")}),
        output="end",
    )
    shapes = dict.fromkeys(["first", "product", "x"], (1, 8, 8, 8)) | {"pooled": (1, 8, 4, 4)}
    assert place(graph, shapes).int8 == {"first", "product", "pooled", "last"}
    assert place(graph, shapes, ["first"]).int8 == {"pooled", "last"}, "quantizing before the pool saves float32"
    assert place(graph, shapes, ["last"]).int8 == {"first"}, "its result is float32 at no cost"


def test_sensitive_layers_go_back_to_float32():
    graph = everything()
    # A channel that takes nearly all of the 256 levels, and that the classifier does not look at.
    bias, weight = graph.constants["last.bias"].copy(), graph.constants["fc.weight"].copy()
    bias[0], weight[:, 0] = 2000, 0
    graph.constants |= {"last.bias": bias, "fc.weight": weight}
    _, plain = quantize_graph(graph, IMAGES)
    assert plain.agreement < 80
    found, report = quantize_graph(graph, IMAGES, QuantizeOptions(max_drop=5))
    assert report.agreement >= 95 and set(report.kept) == {"fc"}
    assert report.kept["fc"].startswith("sensitive: with all layers in int8") and "more than 5" in report.kept["fc"]
    labels = run_all(graph, IMAGES).argmax(1)
    _, labelled = quantize_graph(graph, IMAGES, QuantizeOptions(max_drop=5), labels)
    assert labelled.top1 == (100.0, labelled.agreement) and labelled.kept == report.kept


def test_tables_are_what_nodes_compute():
    named, _ = quantize_by_name(everything(), IMAGES, QuantizeOptions())
    tabled = with_tables(named)
    by_name = {node.output: node for node in named.nodes}
    for node in tabled.nodes:
        if node.op != "lookup":
            continue
        inner = value_types(named)[node.args["self"].name].quantization
        real = (np.arange(256) - int(inner.zero_point)) * float(inner.scale)
        function = {"silu": lambda x: x / (1 + np.exp(-x)), "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[
            node.args["function"]
        ]
        scale, zero = float(node.type.quantization.scale), int(node.type.quantization.zero_point)
        expected = np.clip(np.rint(function(real) / scale) + zero, 0, 255)
        assert np.array_equal(tabled.constants[node.args["table"].name], expected)
        assert by_name[node.output].op == node.args["function"]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("keep", [(), ("stem",)])
def test_raw_pixels_give_the_bits_of_normalised_images(layout, keep):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    graph, _ = quantize_graph(everything(), IMAGES, QuantizeOptions(keep_float=keep))
    raw = with_uint8_input(
        dataclasses.replace(graph, metadata=graph.metadata | {"input_size": [3, 8, 8]}), layout, mean, std
    )
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), np.uint8)
    images = ((pixels.astype(np.float32) / np.float32(255)) - np.float32(mean)[:, None, None]) / np.float32(std)[
        :, None, None
    ]
    assert np.array_equal(normalised(mean, std)[1][pixels[:, 1]], images[:, 1])
    given = pixels if layout == "nchw" else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    session = subp_ext.Session(raw)
    assert np.array_equal(session.run(given), subp_ext.Session(graph).run(images))
    assert session.inputs[0].dtype == "uint8" and session.metadata["uint8_input"] == layout
    assert session.metadata["input_size"] == ([3, 8, 8] if layout == "nchw" else [8, 8, 3])


def test_files_are_small(quantized, tmp_path):
    wide = network(conv("a", "x", 64, 3, 3, activation="relu"), conv("b", "a", 64, 64, 3, sparse=True), output="b")
    found, _ = quantize_graph(wide, IMAGES)
    for name, graph in {"float32": wide, "int8": found}.items():
        subp_ext.save(tmp_path / name, graph)
    assert (tmp_path / "int8").stat().st_size <= 0.30 * (tmp_path / "float32").stat().st_size
    again = subp_ext.load(tmp_path / "int8")
    assert np.array_equal(run_all(again, IMAGES), run_all(found, IMAGES))


def test_a_channel_without_weights_and_a_value_without_range_are_fine():
    graph = everything()
    graph.constants["dw.weight"] = graph.constants["dw.weight"].copy()
    graph.constants["dw.weight"][3] = 0
    graph.constants["last.bias"] = np.full(32, -1e3, np.float32)  # a ReLU that is never on
    found, _ = quantize_graph(graph, IMAGES)
    assert np.abs(run_all(found, IMAGES) - run_all(graph, IMAGES)).max() < 1e-3


def test_a_bias_far_beyond_the_products_stays_within_32_bits():
    bias = np.array([1e6, 0.0, -1e-3, 3.0])
    weight = np.full((4, 2, 1, 1), 1e-6, np.float32)
    weight[1] = 0
    found = quantized_weight(weight, bias, 0.01)
    assert isinstance(found, TypedArray)
    scale = found.type.quantization.scale.astype(np.float64)
    assert np.abs(bias / (scale * 0.01)).max() <= 2**28 * (1 + 1e-6) and (scale > 0).all()


REFUSED = {
    "too few": (lambda: (everything(), IMAGES[:4]), "4 calibration images are too few; give 8 or more"),
    "fewer than run at once": (lambda: (of_batch(41), IMAGES), "40 .* are too few; the network takes 41 at a time"),
    "constant": (lambda: (everything(), np.ones_like(IMAGES)), "are the same, or of one colour"),
    "the same": (lambda: (everything(), np.repeat(IMAGES[:1], 9, 0)), "are the same, or of one colour"),
    "not numbers": (lambda: (everything(), np.where(IMAGES > 2, np.nan, IMAGES)), "infinite or not a number"),
    "shape": (lambda: (everything(), IMAGES[:, :2]), r"shape \[40, 2, 8, 8\]; the network takes \[None, 3"),
    "quantized": (lambda: (raw_pixels(), IMAGES), "this graph is quantized already"),
    "again": (lambda: (quantize_graph(everything(), IMAGES)[0], IMAGES), "quantized already"),
    "overflow": (lambda: (overflowing(), IMAGES), "node 'last.?.*' computes values that are infinite or not a number"),
    "nothing": (lambda: (network(Node("relu", "fc", {"self": Ref("x")})), IMAGES), "no convolution or linear layer"),
}


def of_batch(count: int) -> Graph:
    graph = everything()
    inputs = [dataclasses.replace(spec, shape=(count, *spec.shape[1:])) for spec in graph.inputs]
    return dataclasses.replace(graph, inputs=inputs)


def test_a_network_of_a_fixed_number_of_images_is_measured_on_as_many():
    options = QuantizeOptions(max_drop=0.0)
    found, report = quantize_graph(of_batch(20), IMAGES, options)
    same, expected = quantize_graph(everything(), IMAGES, options)
    assert report.kept == expected.kept and report.agreement == expected.agreement
    # Means over images are summed in another order.
    np.testing.assert_allclose(run_all(found, IMAGES), run_all(same, IMAGES), atol=1e-5)


def raw_pixels() -> Graph:
    return with_uint8_input(quantize_graph(everything(), IMAGES)[0], "nchw", [0.5] * 3, [0.5] * 3)


def overflowing() -> Graph:
    graph = everything()
    graph.constants["last.bias"] = np.full(32, np.inf, np.float32)
    return graph


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantized_is_refused_in_one_line(case):
    make, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as error:
        quantize_graph(*make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"range": "max"}, "--range max: expected one of auto, minmax, percentile, mse"),
        ({"max_drop": -1.0}, "--max-drop -1: expected points between 0 and 100"),
        ({"keep_float": "fc"}, "keep_float 'fc': expected a list or tuple of texts"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        QuantizeOptions(**options)


@pytest.mark.parametrize(
    "patterns, message",
    [
        (("nothing",), "--keep-float nothing: no layer has such a name; there are stem, dw, se.reduce"),
        (("*",), "nothing is left to quantize: of 9 layers, 9 asked for"),
    ],
)
def test_patterns_that_leave_nothing_are_refused(patterns, message):
    with pytest.raises(UsageError, match=message):
        quantize_graph(everything(), IMAGES, QuantizeOptions(keep_float=patterns))


def test_a_histogram_counts_as_if_it_saw_all_at_once():
    random = np.random.default_rng(0)
    parts = [random.normal(size=500).astype(np.float32) * 10.0**power for power in (-3, 0, 2, 1, -1)]
    parts[1][:50] = 0
    one, all_, other = Histogram(), Histogram(), Histogram()
    for part in parts:
        one.add(part)
    all_.add(np.concatenate(parts))
    for part in parts[:2]:
        other.add(part)
    rest = Histogram()
    for part in parts[2:]:
        rest.add(part)
    other.merge(rest)
    for found in (one, other):
        assert (found.low, found.high, found.zeros) == (all_.low, all_.high, 50)
        edges, counts = found._edges_and_counts()
        expected = np.histogram(np.concatenate(parts)[np.concatenate(parts) != 0].astype(np.float64), edges)[0]
        assert np.array_equal(counts, expected) and len(counts) <= BINS


def test_a_percentile_is_numpys_to_a_bin():
    values = np.random.default_rng(0).normal(size=200000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    low, high = histogram.percentile(99.9)
    expected = np.percentile(values, [0.1, 99.9])
    assert np.allclose([low, high], expected, atol=4 * np.ptp(values) / BINS)


@pytest.mark.parametrize("kind", ["normal", "outliers", "positive", "sparse"])
def test_least_squares_is_near_the_best_of_many_ranges(kind):
    random = np.random.default_rng(0)
    values = random.standard_t(3, size=20000).astype(np.float32)
    if kind == "outliers":
        values[:3] = 500
    elif kind == "positive":
        values = np.abs(values)
    elif kind == "sparse":
        values = np.maximum(values, 0)
    else:
        values = random.normal(size=20000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)

    def error(low, high):
        type = activation_type(low, high)
        return float(((type.to_float(type.from_float(values)) - values) ** 2).mean())

    found = error(*histogram.least_squares())
    ends = np.linspace(0.02, 1, 40)
    best = min(error(a * min(values.min(), 0), b * values.max()) for a in ends for b in ends)
    assert found <= 1.05 * best


def test_least_squares_looks_through_a_function():
    values = np.random.default_rng(0).normal(size=20000).astype(np.float32) * 5
    histogram = Histogram()
    histogram.add(values)
    low, high = histogram.least_squares(lambda x: np.maximum(x, 0))
    plain = histogram.least_squares()
    assert low > -0.5 > plain[0] and high == pytest.approx(plain[1], rel=0.2)
