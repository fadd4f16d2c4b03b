"""Small ONNX graphs that `make` writes, one for each kind of operator, type, opset and plumbing of people's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.parser import parse_model

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A network in ONNX's text form, with weights.

    Attributes:
        text: inputs, outputs, nodes.
        weights: shapes of random weights by name.
        values: other constants by name.
        opset: of ONNX's own operators.
        domains: other operator sets, with their versions.
        functions: model-local functions, in text form.
        weight_type: of the random weights.
        listed: the weights are inputs as well, as files before IR version 4 have it.
        names: what to call things that the text form has no letters for.
    """

    text: str
    weights: Mapping[str, Shape] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    domains: Mapping[str, int] = field(default_factory=dict)
    functions: str = ""
    weight_type: type[np.generic] = np.float32
    listed: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


def proto(name: str, graph: Graph) -> onnx.ModelProto:
    """The model of a graph, its types checked; its weights depend on its name only."""
    sets = ", ".join(f'"{domain}" : {version}' for domain, version in {"": graph.opset, **graph.domains}.items())
    version = 10 if graph.opset > 20 else 3 if graph.listed else 8
    model = parse_model(f"<ir_version: {version}, opset_import: [{sets}]> {name} {graph.text} {graph.functions}")
    rng = np.random.default_rng(list(name.encode()))
    for weight, shape in graph.weights.items():
        model.graph.initializer.append(_tensor((rng.standard_normal(shape) * 0.3).astype(graph.weight_type), weight))
    for value, content in graph.values.items():
        model.graph.initializer.append(_tensor(np.asarray(content), value))
    if graph.listed:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in model.graph.initializer
        )
    _rename(model.graph, graph.names)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)  # fails where something does not fit
    return model


def _tensor(array: NDArray[Any], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]
        node.name = names.get(node.op_type, node.name)


def whole(*numbers: int) -> NDArray[np.int64]:
    """A vector of int64, as axes and shapes are given."""
    return np.array(numbers, np.int64)


def real(*numbers: float) -> NDArray[np.float32]:
    """A vector of float32."""
    return np.array(numbers, np.float32)


def norm(channels: int, dtype: type[np.floating[Any]] = np.float32) -> dict[str, NDArray[Any]]:
    """The four constants of a batch norm: s, b, m, v."""
    steps = np.linspace(0.5, 1.5, channels).astype(dtype)
    return {"s": steps, "b": steps - dtype(1), "m": dtype(1) - steps, "v": steps}


def eight_bits(*shape: int, seed: int = 0, dtype: type[np.generic] = np.int8) -> NDArray[Any]:
    """Random quantised weights; signed ones of seven bits: ONNX Runtime's kernels for AVX2 saturate above that."""
    low, high = (-63, 64) if dtype is np.int8 else (0, 256)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scale(number: float) -> np.float32:
    """A scalar: a scale or another factor."""
    return np.float32(number)


HALF = np.float16
QDQ = """(float[1,3,16,16] x) => (float[1,10] y) {
  xq = QuantizeLinear(x, xs, xz)            xd = DequantizeLinear(xq, xs, xz)
  wd = DequantizeLinear<AXIS>(w, ws, wz)    bd = DequantizeLinear<AXIS>(bias, bs, bz)
  c = Conv<pads=[1,1,1,1]>(xd, wd, bd)      r = Relu(c)
  rq = QuantizeLinear(r, rs, rz)            rd = DequantizeLinear(rq, rs, rz)
  p = GlobalAveragePool(rd)                 f = Flatten(p)
  ud = DequantizeLinear(u, us, uz)          g = Gemm<transB=1>(f, ud)
  gq = QuantizeLinear(g, gs, gz)            y = DequantizeLinear(gq, gs, gz)
}"""
ZERO, U8, BIAS = np.int8(0), np.uint8, np.arange(-400, 400, 100, dtype=np.int32)
QUANTISED: dict[str, Graph] = {
    "qdq_conv": Graph(
        QDQ.replace("<AXIS>", ""),
        values={
            **{"xs": scale(0.03), "xz": ZERO, "w": eight_bits(8, 3, 3, 3), "ws": scale(0.004), "wz": ZERO},
            **{"bias": BIAS, "bs": scale(0.00012), "bz": np.int32(0)},
            **{"rs": scale(0.03), "rz": ZERO, "u": eight_bits(10, 8, seed=1), "us": scale(0.005), "uz": ZERO},
            **{"gs": scale(0.01), "gz": ZERO},
        },
    ),
    "qdq_per_channel": Graph(
        QDQ.replace("AXIS", "axis=0"),
        values={
            **{"xs": scale(0.03), "xz": U8(128), "w": eight_bits(8, 3, 3, 3, seed=2)},
            **{"ws": np.linspace(0.002, 0.006, 8, dtype=np.float32), "wz": np.zeros(8, np.int8)},
            **{"bias": BIAS, "bz": np.zeros(8, np.int32)},
            **{"bs": np.linspace(0.002, 0.006, 8, dtype=np.float32) * scale(0.03)},
            **{"rs": scale(0.02), "rz": U8(0), "u": eight_bits(10, 8, seed=3), "us": scale(0.005), "uz": ZERO},
            **{"gs": scale(0.01), "gz": U8(120)},
        },
    ),
    "dynamic_quantised": Graph(
        """(float[6,32] x) => (float[6,16] y) {
          q, qs, qz = DynamicQuantizeLinear(x)   i = MatMulInteger(q, w, qz, wz)
          f = Cast<to=1>(i)   s = Mul(qs, ws)   m = Mul(f, s)   y = Add(m, b)
        }""",
        {"b": (16,)},
        {"w": eight_bits(32, 16, seed=4), "wz": np.int8(0), "ws": scale(0.004)},
    ),
    "dynamic_quantised_unsigned": Graph(
        """(float[2,5,16] x) => (float[2,5,12] y) {
          q, qs, qz = DynamicQuantizeLinear(x)   i = MatMulInteger(q, w, qz, wz)
          f = Cast<to=1>(i)   s = Mul(qs, ws)   m = Mul(f, s)   y = Relu(m)
        }""",
        values={"w": eight_bits(16, 12, seed=5, dtype=np.uint8), "wz": np.uint8(121), "ws": scale(0.004)},
    ),
    "qlinear_conv": Graph(
        """(float[1,8,10,10] x) => (float[] y) {
          q = QuantizeLinear(x, xs, xz)
          c = QLinearConv<pads=[1,1,1,1]>(q, xs, xz, w, ws, wz, ys, yz, bias)
          y = DequantizeLinear(c, ys, yz)
        }""",
        values={
            **{"xs": scale(0.03), "xz": U8(128), "w": eight_bits(8, 8, 3, 3, seed=6), "ws": scale(0.003), "wz": ZERO},
            **{"ys": scale(0.05), "yz": U8(127), "bias": BIAS},
        },
    ),
    "qlinear_matmul": Graph(
        """(float[4,16] x) => (float[] y) {
          q = QuantizeLinear(x, xs, xz)   m = QLinearMatMul(q, xs, xz, w, ws, wz, ys, yz)
          y = DequantizeLinear(m, ys, yz)
        }""",
        values={
            **{"xs": scale(0.03), "xz": U8(128), "w": eight_bits(16, 8, seed=7), "ws": scale(0.003), "wz": ZERO},
            **{"ys": scale(0.03), "yz": U8(127)},
        },
    ),
}
CONVOLUTIONS: dict[str, Graph] = {
    "conv_transpose_output_shape": Graph(
        """(float[1,6,9,9] x) => (float[] y) {
          c = ConvTranspose<strides=[2,2], kernel_shape=[3,3], output_shape=[18,18]>(x, w, k)  y = Relu(c) }""",
        {"w": (6, 4, 3, 3), "k": (4,)},
        opset=14,
    ),
    "conv_transpose_output_padding": Graph(
        """(float[1,6,7,9] x) => (float[] y) {
          y = ConvTranspose<strides=[2,3], pads=[1,1,1,1], output_padding=[1,2], kernel_shape=[3,3]>(x, w) }""",
        {"w": (6, 4, 3, 3)},
        opset=13,
    ),
    "conv_transpose_same_upper": Graph(
        """(float[1,6,8,8] x) => (float[1,4,16,16] y) {
          y = ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER", kernel_shape=[3,3]>(x, w) }""",
        {"w": (6, 4, 3, 3)},
        opset=11,
    ),
    "conv_transpose_group": Graph(
        """(float[1,8,7,7] x) => (float[] y) {
          c = ConvTranspose<strides=[2,2], group=2, pads=[1,1,1,1], kernel_shape=[4,4]>(x, w)  y = Relu(c) }""",
        {"w": (8, 3, 4, 4)},
        opset=14,
    ),
    "conv_transpose_depthwise": Graph(
        """(float[1,8,6,6] x) => (float[] y) {
          y = ConvTranspose<strides=[2,2], group=8, kernel_shape=[2,2]>(x, w, k) }""",
        {"w": (8, 1, 2, 2), "k": (8,)},
    ),
    "conv_transpose_1d": Graph(
        """(float[1,12,20] x) => (float[] y) {
          c = ConvTranspose<strides=[2], pads=[1,1], kernel_shape=[4]>(x, w)  y = LeakyRelu<alpha=0.1>(c) }""",
        {"w": (12, 6, 4)},
    ),
    "conv_transpose_3d": Graph(
        """(float[1,4,4,5,6] x) => (float[] y) {
          c = ConvTranspose<strides=[2,2,2], pads=[0,1,0,0,1,0], kernel_shape=[2,3,2]>(x, w)  y = Relu(c) }""",
        {"w": (4, 3, 2, 3, 2)},
    ),
    "conv_transpose_norm": Graph(
        """(float[1,6,8,8] x) => (float[] y) {
          c = ConvTranspose<strides=[2,2], dilations=[2,2], kernel_shape=[3,3]>(x, w)
          n = BatchNormalization(c, s, b, m, v)  y = Relu(n) }""",
        {"w": (6, 4, 3, 3)},
        norm(4),
        opset=15,
    ),
    "conv_1d": Graph(
        """(float[1,12,40] x) => (float[] y) {
          c = Conv<kernel_shape=[5], pads=[4,0], dilations=[1]>(x, w)  n = BatchNormalization(c, s, b, m, v)
          p = PRelu(n, slope)  y = Conv<strides=[2], group=4>(p, u) }""",
        {"w": (16, 12, 5), "u": (8, 4, 3), "slope": (16, 1)},
        norm(16),
    ),
    "conv_3d": Graph(
        """(float[1,4,6,10,10] x) => (float[] y) {
          c = Conv<pads=[1,1,1,1,1,1]>(x, w)  n = BatchNormalization(c, s, b, m, v)  r = Relu(n)
          p = MaxPool<kernel_shape=[2,2,2], strides=[2,2,2]>(r)  y = Conv<strides=[1,2,2]>(p, u) }""",
        {"w": (8, 4, 3, 3, 3), "u": (4, 8, 1, 2, 2)},
        norm(8),
    ),
    "conv_same_lower": Graph(
        """(float[1,3,14,15] x) => (float[] y) {
          c = Conv<auto_pad="SAME_LOWER", strides=[2,2], kernel_shape=[4,4]>(x, w)
          y = Conv<auto_pad="VALID", dilations=[2,1]>(c, u) }""",
        {"w": (8, 3, 4, 4), "u": (4, 8, 3, 3)},
        opset=11,
    ),
    "norm_training": Graph(
        """(float[2,4,8,8] x) => (float[2,6,8,8] y, float[6] mean, float[6] var) {
          c = Conv(x, w)  y, mean, var = BatchNormalization<training_mode=1>(c, s, b, m, v) }""",
        {"w": (6, 4, 1, 1)},
        norm(6),
        opset=15,
    ),
    "norm_instance": Graph(
        """(float[2,4,8,8] x) => (float[] y) {
          c = Conv(x, w)  n = InstanceNormalization<epsilon=0.01>(c, s, b)  y = Relu(n) }""",
        {"w": (6, 4, 1, 1)},
        {name: array for name, array in norm(6).items() if name in "sb"},
    ),
    "resize_linear": Graph(
        """(float[1,4,8,8] x) => (float[] y) {
          c = Conv(x, w)
          y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(c, , scales) }""",
        {"w": (4, 4, 1, 1)},
        {"scales": real(1, 1, 2, 1.5)},
        opset=13,
    ),
    "resize_nearest_sizes": Graph(
        """(float[1,4,8,8] x) => (float[] y) {
          r = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , , sizes)
          y = Conv(r, w) }""",
        {"w": (4, 4, 3, 3)},
        {"sizes": whole(1, 4, 13, 16)},
        opset=13,
    ),
    "resize_aligned": Graph(
        """(float[1,4,7,7] x) => (float[] y) {
          c = Conv(x, w)
          y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(c, roi, scales) }""",
        {"w": (4, 4, 2, 2)},
        {"roi": real(), "scales": real(1, 1, 2, 2)},
        opset=11,
    ),
    "resize_cubic": Graph(
        """(float[1,3,8,8] x) => (float[] y) {
          r = Resize<mode="cubic", coordinate_transformation_mode="pytorch_half_pixel">(x, , scales)
          y = Conv(r, w) }""",
        {"w": (4, 3, 3, 3)},
        {"scales": real(1, 1, 2, 2)},
        opset=13,
    ),
    "upsample_old": Graph(
        """(float[1,4,6,6] x) => (float[] y) { c = Conv(x, w)  y = Upsample<mode="nearest">(c, scales) }""",
        {"w": (4, 4, 3, 3)},
        {"scales": real(1, 1, 2, 2)},
        opset=9,
    ),
    "pool_ceil": Graph(
        """(float[1,3,17,18] x) => (float[] p, float[] q) {
          c = Conv(x, w)  p = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(c)
          q = AveragePool<kernel_shape=[3,2], strides=[2,2], ceil_mode=1>(c) }""",
        {"w": (4, 3, 2, 2)},
        opset=11,
    ),
    "pool_dilated": Graph(
        """(float[1,3,16,16] x) => (float[] y) {
          c = Conv(x, w)  y = MaxPool<kernel_shape=[3,3], dilations=[2,3], pads=[1,1,1,1]>(c) }""",
        {"w": (4, 3, 3, 3)},
        opset=12,
    ),
    "pool_count_pad": Graph(
        """(float[1,3,12,12] x) => (float[] p, float[] q) {
          c = Conv(x, w)  p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(c)
          q = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,0], count_include_pad=0>(c) }""",
        {"w": (4, 3, 1, 1)},
        opset=11,
    ),
    "pool_ceil_count_pad": Graph(
        """(float[1,3,12,12] x) => (float[] y) {
          c = Conv(x, w)
          y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1, ceil_mode=1>(c) }""",
        {"w": (4, 3, 1, 1)},
        opset=11,
    ),
    "pool_same_1d": Graph(
        """(float[1,6,21] x) => (float[] p, float[] q) {
          c = Conv(x, w)  p = AveragePool<kernel_shape=[4], strides=[2], auto_pad="SAME_UPPER">(c)
          q = MaxPool<kernel_shape=[3], strides=[2], auto_pad="SAME_LOWER">(c) }""",
        {"w": (6, 6, 1)},
    ),
    "pool_3d": Graph(
        """(float[1,3,6,8,8] x) => (float[] y, float[] z) {
          c = Conv(x, w)  y = AveragePool<kernel_shape=[2,3,2], strides=[2,2,2]>(c)  z = GlobalMaxPool(c) }""",
        {"w": (4, 3, 1, 1, 1)},
    ),
}
TRANSFORMERS: dict[str, Graph] = {
    "embedding": Graph("(int64[2,6] ids) => (float[2,6,16] y) { y = Gather(table, ids) }", {"table": (40, 16)}),
    "two_tables": Graph(
        """(int64[2,6] ids, int64[2,6] kinds) => (float[2,6,8] y) {
          a = Gather(words, ids)  b = Gather(others, kinds)  c = Add(a, b)  y = MatMul(c, w) }""",
        {"words": (40, 16), "others": (30, 16), "w": (16, 8)},
    ),
    "gather_columns": Graph(
        "(float[4,6] x, int64[3] ids) => (float[] y) { m = MatMul(x, w)  y = Gather<axis=-1>(m, ids) }",
        {"w": (6, 12)},
    ),
    "empty_past": Graph(
        """(float[1,4,16] x, float[1,0,16] past) => (float[] y, float[] present) {
          present = Concat<axis=1>(past, x)  y = MatMul(present, w) }""",
        {"w": (16, 8)},
        opset=13,
    ),
    "past_open": Graph(
        """(float[1,4,16] x, float[1,past_length,16] past) => (float[1,total,8] y, float[1,total,16] present) {
          present = Concat<axis=-2>(past, x)  y = MatMul(present, w) }""",
        {"w": (16, 8)},
    ),
    "range_positions": Graph(
        """(int64[batch,length] ids) => (float[] y) {
          shape = Shape(ids)  n = Gather(shape, one)  at = Range(zero, n, one)
          p = Gather(places, at)  t = Gather(words, ids)  a = Add(t, p)  y = MatMul(a, w) }""",
        {"words": (40, 16), "places": (24, 16), "w": (16, 12)},
        {"zero": np.int64(0), "one": np.int64(1)},
        opset=13,
    ),
    "range_mask": Graph(
        """(float[1,6,8] x) => (float[] y) {
          row = Range(zero, six, one)  column = Unsqueeze(row, last)  later = Greater(row, column)
          t = Transpose<perm=[0,2,1]>(x)  q = MatMul(x, t)  m = Where(later, low, q)  y = Softmax<axis=-1>(m) }""",
        values={
            **{"zero": np.int32(0), "six": np.int32(6), "one": np.int32(1), "last": whole(-1)},
            **{"low": scale(-1e9)},
        },
    ),
    "expand_mask": Graph(
        """(float[batch,2,length,length] q, int64[batch,length] mask) => (float[] y) {
          s = Shape(q)  b = Gather(s, zero)  l = Gather(s, two)  b1 = Unsqueeze(b, first)  l1 = Unsqueeze(l, first)
          to = Concat<axis=0>(b1, one, l1, l1)  m = Unsqueeze(mask, middle)  e = Expand(m, to)  f = Cast<to=1>(e)
          i = Sub(unit, f)  n = Mul(i, low)  a = Add(q, n)  y = Softmax<axis=-1>(a) }""",
        values={
            **{"zero": np.int64(0), "two": np.int64(2), "first": whole(0), "one": whole(1), "middle": whole(1, 2)},
            **{"unit": scale(1), "low": scale(-10000)},
        },
        opset=13,
    ),
    "where": Graph(
        """(float[2,4,8] x, bool[2,1,8] mask) => (float[2,4,8] y) {
          q = MatMul(x, w)  m = Where(mask, q, low)  y = Softmax<axis=-1>(m) }""",
        {"w": (8, 8)},
        {"low": scale(-1e9)},
        opset=13,
    ),
    "topk": Graph(
        """(float[2,16] x) => (float[2,3] values, int64[2,3] indices) {
          m = MatMul(x, w)  values, indices = TopK<axis=-1>(m, k) }""",
        {"w": (16, 12)},
        {"k": whole(3)},
    ),
    "topk_smallest": Graph(
        """(float[2,9,8] x) => (float[] values, int64[] indices) {
          m = MatMul(x, w)  values, indices = TopK<axis=1, largest=0>(m, k) }""",
        {"w": (8, 4)},
        {"k": whole(4)},
        opset=11,
    ),
    "nms": Graph(
        """(float[1,6,8,8] x) => (int64[] y) {
          a = Conv(x, w)  b = Reshape(a, to_boxes)  boxes = Transpose<perm=[0,2,1]>(b)
          c = Conv(x, u)  scores = Reshape(c, to_scores)
          y = NonMaxSuppression(boxes, scores, most, overlap, least) }""",
        {"w": (4, 6, 1, 1), "u": (2, 6, 1, 1)},
        {
            **{"to_boxes": whole(1, 4, 64), "to_scores": whole(1, 2, 64), "most": whole(4)},
            **{"overlap": real(0.5), "least": real(0.1)},
        },
        opset=11,
    ),
    "nonzero": Graph(
        "(float[1,4,6,6] x) => (int64[] y) { c = Conv(x, w)  g = Greater(c, zero)  y = NonZero(g) }",
        {"w": (2, 4, 1, 1)},
        {"zero": scale(0)},
        opset=13,
    ),
    "compress": Graph(
        """(float[6,8] x) => (float[] y) {
          m = MatMul(x, w)  s = ReduceMax<axes=[1], keepdims=0>(m)  g = Greater(s, zero)
          y = Compress<axis=0>(m, g) }""",
        {"w": (8, 4)},
        {"zero": scale(0)},
        opset=13,
    ),
    "lstm_operator": Graph(
        "(float[6,1,8] x) => (float[] y, float[] h, float[] c) { y, h, c = LSTM<hidden_size=12>(x, w, r, k) }",
        {"w": (1, 48, 8), "r": (1, 48, 12), "k": (1, 96)},
        opset=14,
    ),
    "gru_operator": Graph(
        """(float[6,2,8] x) => (float[] y, float[] h) {
          y, h = GRU<hidden_size=8, direction="bidirectional", linear_before_reset=1>(x, w, r, k) }""",
        {"w": (2, 24, 8), "r": (2, 24, 8), "k": (2, 48)},
        opset=14,
    ),
    "recurrent_step": Graph(
        """(float[1,16] x, float[1,8] h, int64 rate) => (float[1,2] p, float[1,8] next_h) {
          a = Concat<axis=1>(x, h)  g = Gemm(a, w, k)  next_h = Tanh(g)  o = MatMul(next_h, u)  p = Sigmoid(o) }""",
        {"w": (24, 8), "k": (8,), "u": (8, 2)},
        opset=15,
    ),
}
HALVES: dict[str, Graph] = {
    "half_conv_inside": Graph(
        """(float[1,3,16,16] x) => (float[1,10] y) {
          h = Cast<to=10>(x)  c = Conv<pads=[1,1,1,1]>(h, w)  n = BatchNormalization(c, s, b, m, v)  r = Relu(n)
          p = GlobalAveragePool(r)  f = Flatten(p)  g = Gemm(f, u)  o = Softmax(g)  y = Cast<to=1>(o) }""",
        {"w": (8, 3, 3, 3), "u": (8, 10)},
        norm(8, HALF),
        opset=13,
        weight_type=HALF,
    ),
    "half_conv": Graph(
        """(float16[1,3,16,16] x) => (float16[] y) {
          c = Conv<strides=[2,2]>(x, w)  r = Relu(c)  y = Conv(r, u) }""",
        {"w": (8, 3, 3, 3), "u": (4, 8, 3, 3)},
        opset=13,
        weight_type=HALF,
    ),
    "half_mask_lowest": Graph(
        """(float16[2,8,16] x, int64[2,8] mask) => (float16[] y) {
          q = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(q)  a = MatMul(x, t)
          f = Cast<to=10>(mask)  u = Unsqueeze(f, middle)  i = Sub(unit, u)  low = Mul(i, lowest)
          m = Add(a, low)  p = Softmax<axis=-1>(m)  y = MatMul(p, x) }""",
        {"w": (16, 16)},
        {"middle": whole(1), "unit": HALF(1), "lowest": HALF(-65504)},
        opset=13,
        weight_type=HALF,
    ),
    "half_mask_infinite": Graph(
        """(float16[2,8,16] x, bool[2,1,8] mask) => (float16[] y) {
          q = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(q)  a = MatMul(x, t)  bias = Where(mask, zero, lowest)
          m = Add(a, bias)  p = Softmax<axis=-1>(m)  y = MatMul(p, x) }""",
        {"w": (16, 16)},
        {"zero": HALF(0), "lowest": HALF(-np.inf)},
        opset=13,
        weight_type=HALF,
    ),
    "half_mixed_norm": Graph(
        """(float16[1,3,12,12] x) => (float16[] y) {
          c = Conv(x, w)  n = BatchNormalization(c, s, b, m, v)  y = Relu(n) }""",
        {"w": (8, 3, 3, 3)},
        norm(8),
        opset=15,
        weight_type=HALF,
    ),
}
LOCAL = """<domain: "pkg.layers", opset_import: ["" : 18]>
Dense (x, w, k) => (y) { a = MatMul(x, w)  y = Add(a, k) }"""
NESTED = """<domain: "pkg.layers", opset_import: ["" : 18]>
Scaled <factor> (x) => (y) { f = Constant<value_float: float = @factor>()  y = Mul(x, f) }
<domain: "pkg.layers", opset_import: ["" : 18, "pkg.layers" : 1]>
Block (x, w) => (y) { a = MatMul(x, w)  b = Relu(a)  y = pkg.layers.Scaled<factor = 0.5>(b) }"""
STRUCTURE: dict[str, Graph] = {
    "local_function": Graph(
        """(float[4,16] x) => (float[4,8] y) {
          a = pkg.layers.Dense(x, w, k)  r = Relu(a)  y = pkg.layers.Dense(r, u, l) }""",
        {"w": (16, 12), "k": (12,), "u": (12, 8), "l": (8,)},
        opset=18,
        domains={"pkg.layers": 1},
        functions=LOCAL,
    ),
    "local_function_nested": Graph(
        """(float[4,16] x) => (float[4,8] y) {
          a = pkg.layers.Block(x, w)  b = pkg.layers.Block(a, u)  y = pkg.layers.Scaled<factor = 3.0>(b) }""",
        {"w": (16, 12), "u": (12, 8)},
        opset=18,
        domains={"pkg.layers": 1},
        functions=NESTED,
    ),
    "if_constant": Graph(
        """(float[4,8] x) => (float[] y) {
          m = MatMul(x, w)
          y = If(yes) <then_branch = left () => (float[] l) { l = Relu(m) },
                       else_branch = right () => (float[] r) { r = Neg(m) }> }""",
        {"w": (8, 6)},
        {"yes": np.bool_(True)},
        opset=13,
    ),
    "if_shape": Graph(
        """(float[4,8,1] x) => (float[] y) {
          t = Transpose<perm=[2,0,1]>(x)  m = MatMul(t, w)  s = Shape(m)  n = Gather(s, zero)  is = Equal(n, one)
          z = If(is) <then_branch = left () => (float[] l) { l = Squeeze(m, first) },
                      else_branch = right () => (float[] r) { r = Identity(m) }>
          y = Relu(z) }""",
        {"w": (8, 6)},
        {"zero": np.int64(0), "one": np.int64(1), "first": whole(0)},
        opset=13,
    ),
    "if_input": Graph(
        """(float[4,8] x) => (float[4,6] y) {
          m = MatMul(x, w)  s = ReduceSum<keepdims=0>(m)  positive = Greater(s, zero)
          y = If(positive) <then_branch = left () => (float[4,6] l) { l = Relu(m) },
                            else_branch = right () => (float[4,6] r) { r = Neg(m) }> }""",
        {"w": (8, 6)},
        {"zero": scale(0)},
        opset=13,
    ),
    "loop": Graph(
        """(float[4,8] x) => (float[4,8] y) {
          y = Loop(n, yes, x) <body = step (int64 i, bool go, float[4,8] h) => (bool on, float[4,8] out) {
            on = Identity(go)  a = MatMul(h, w)  out = Tanh(a) }> }""",
        {"w": (8, 8)},
        {"n": np.int64(3), "yes": np.bool_(True)},
        opset=13,
    ),
    "scan": Graph(
        """(float[8] start, float[5,8] xs) => (float[8] last, float[5,8] ys) {
          last, ys = Scan<num_scan_inputs=1, body = step (float[8] h, float[8] x) => (float[8] n, float[8] y) {
            a = MatMul(h, w)  s = Add(a, x)  n = Tanh(s)  y = Identity(n) }>(start, xs) }""",
        {"w": (8, 8)},
        opset=13,
    ),
    "squeeze_axes": Graph(
        """(float[2,1,8,1] x) => (float[] y, float[] z) {
          a = Squeeze(x, last)  b = Squeeze(a, second)  y = MatMul(b, w)  u = Unsqueeze(y, ends)  z = Squeeze(u) }""",
        {"w": (8, 6)},
        {"last": whole(-1), "second": whole(-2), "ends": whole(-1, 0)},
        opset=13,
    ),
    "squeeze_conv": Graph(
        """(float[1,3,12,1] x) => (float[] y) {
          c = Conv<pads=[1,0,1,0], kernel_shape=[3,1]>(x, w)  s = Squeeze(c, last)
          u = Unsqueeze(s, third)  d = Conv(u, v)  y = Flatten<axis=-3>(d) }""",
        {"w": (8, 3, 3, 1), "v": (4, 8, 1, 1)},
        {"last": whole(-1), "third": whole(-2)},
        opset=13,
    ),
    "opset_20": Graph(
        """(float[1,8,32] x) => (float[1,8] y) {
          n = LayerNormalization<axis=-1>(x, g)  m = MatMul(n, w)  a = Gelu<approximate="tanh">(m)
          y = ReduceMean<keepdims=0>(a, last) }""",
        {"g": (32,), "w": (32, 24)},
        {"last": whole(-1)},
        opset=20,
    ),
    "opset_21_group_norm": Graph(
        """(float[1,4,8,8] x) => (float[] y) {
          c = Conv(x, w)  n = GroupNormalization<num_groups=2, epsilon=0.001>(c, s, b)  y = Mish(n) }""",
        {"w": (8, 4, 3, 3)},
        {name: array for name, array in norm(8).items() if name in "sb"},
        opset=21,
    ),
    "opset_23_attention": Graph(
        """(float[1,8,32] x) => (float[] y) {
          q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
          y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v) }""",
        {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32)},
        opset=23,
    ),
    "opset_23_rms_norm": Graph(
        "(float[1,8,32] x) => (float[] y) { n = RMSNormalization<axis=-1>(x, g)  y = MatMul(n, w) }",
        {"g": (32,), "w": (32, 16)},
        opset=23,
    ),
    "contrib_fused_matmul": Graph(
        """(float[1,8,32] x) => (float[] y) {
          m = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(x, w)  y = com.microsoft.QuickGelu<alpha=1.7>(m) }""",
        {"w": (24, 32)},
        domains={"com.microsoft": 1},
    ),
    "contrib_skip_norm": Graph(
        """(float[1,8,32] x, float[1,8,32] skip) => (float[] y) {
          n = com.microsoft.SkipLayerNormalization<epsilon=0.00001>(x, skip, g, k)
          m = MatMul(n, w)  y = com.microsoft.BiasGelu(m, l) }""",
        {"g": (32,), "k": (32,), "w": (32, 24), "l": (24,)},
        domains={"com.microsoft": 1},
    ),
    "sum_many": Graph(
        """(float[2,8] a, float[2,8] b, float[8] c) => (float[] y, float[] z) {
          m = MatMul(a, w)  y = Sum(m, b, c, a, one)  n = Mean(m, b, c)  z = Max(n, a, b) }""",
        {"w": (8, 8)},
        {"one": scale(1)},
        opset=13,
    ),
    "sum_of_one": Graph(
        "(float[2,8] x) => (float[] y) { m = MatMul(x, w)  s = Sum(m)  t = Concat<axis=-1>(s)  y = Max(t) }",
        {"w": (8, 8)},
        opset=13,
    ),
    "two_open": Graph(
        """(float[batch,16] a, float[batch,8] b) => (float[batch,8] y) { m = MatMul(a, w)  y = Add(m, b) }""",
        {"w": (16, 8)},
        opset=13,
    ),
    "open_image": Graph(
        """(float[n,3,8,width] x) => (float[n,t,12] y) {
          c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)  r = Relu(c)
          p = AveragePool<kernel_shape=[4,1]>(r)  s = Squeeze<axes=[2]>(p)  t = Transpose<perm=[0,2,1]>(s)
          m = MatMul(t, u)  y = Softmax<axis=2>(m) }""",
        {"w": (8, 3, 3, 3), "u": (8, 12)},
        opset=11,
    ),
    "unnamed_open": Graph(
        """(float[?,16] x) => (float[] y) { m = MatMul(x, w)  s = Shape(x)  r = Reshape(m, s2)  y = Relu(r) }""",
        {"w": (16, 8)},
        {"s2": whole(0, 2, -1)},
        opset=13,
    ),
    "unused_input": Graph(
        """(float[4,16] x, int64[1,3] unused) => (float[4,8] y, float[2] k) {
          y = MatMul(x, w)  k = Constant<value_floats=[1.5, -2.0]>() }""",
        {"w": (16, 8)},
        opset=13,
    ),
    "input_as_output": Graph(
        "(float[4,16] x) => (float[4,8] y, float[4,16] x, float[4,16] z) { y = MatMul(x, w)  z = Identity(x) }",
        {"w": (16, 8)},
        opset=13,
    ),
    "only_reshape": Graph(
        "(float[2,12] x) => (float[24] y) { y = Reshape(x, shape) }",
        values={"shape": whole(-1)},
        opset=13,
    ),
    "only_constant": Graph(
        "(float[2,3] x) => (float[2,3] y, float[3] z) { y = Identity(x)  z = Add(a, b) }",
        values={"a": real(1, 2, 3), "b": real(4, 5, 6)},
        opset=13,
    ),
    "names_of_tensorflow": Graph(
        "(float[1,3,10,10] x) => (float[] y) { c = Conv<pads=[1,1,1,1]>(x, w, k)  y = Relu(c) }",
        {"w": (8, 3, 3, 3), "k": (8,)},
        opset=9,
        listed=True,
        names={
            **{"x": "serving_default_images:0", "w": "model/conv 1/kernel:0", "k": "model/conv 1/bias:0"},
            **{"c": "model/conv 1/Conv2D;b", "y": "out/ä:0", "Conv": "StatefulPartitionedCall/model/conv 1/Conv2D"},
        },
    ),
    "listed_weights": Graph(
        "(float[4,16] x) => (float[4,8] y) { g = Gemm(x, w, k)  y = Tanh(g) }",
        {"w": (16, 8), "k": (8,)},
        opset=8,
        listed=True,
    ),
    "preprocess": Graph(
        """(uint8[1,20,24,3] image) => (float[] y) {
          f = Cast<to=1>(image)  t = Transpose<perm=[0,3,1,2]>(f)  a = Sub(t, mean)  d = Div(a, deviation)
          p = Pad(d, pads)  c = Conv<strides=[2,2]>(p, w)  y = Relu(c) }""",
        {"w": (8, 3, 3, 3)},
        {
            **{"mean": real(123, 117, 104).reshape(1, 3, 1, 1), "deviation": real(58, 57, 57).reshape(1, 3, 1, 1)},
            **{"pads": whole(0, 0, 0, 0, 0, 0, 2, 2)},
        },
        opset=13,
    ),
    "preprocess_to_bytes": Graph(
        """(uint8[1,3,12,12] image) => (uint8[1,3,12,12] y) {
          f = Cast<to=1>(image)  s = Mul(f, small)  c = Conv<pads=[1,1,1,1]>(s, w)  g = Sigmoid(c)
          l = Mul(g, large)  y = Cast<to=2>(l) }""",
        {"w": (3, 3, 3, 3)},
        {"small": scale(1 / 255), "large": scale(255)},
        opset=13,
    ),
    "scalars": Graph(
        """(float[2,8] x, float factor, int64 power) => (float y, float[2,6] z) {
          m = MatMul(x, w)  f = Cast<to=1>(power)  a = Mul(m, factor)  z = Add(a, f)
          y = ReduceSum<keepdims=0>(z) }""",
        {"w": (8, 6)},
        opset=13,
    ),
    "types": Graph(
        """(int32[2,5] ids, bool[2,5] keep, double[2,4] exact) => (float[] y, double[] z, int32[] i, bool[] n) {
          t = Gather(table, ids)  u = Unsqueeze(keep, last)  m = Where(u, t, zero)  y = MatMul(m, w)
          z = MatMul(exact, e)  i = Add(ids, one)  n = Not(keep) }""",
        {"table": (20, 12), "w": (12, 8)},
        {
            **{"last": whole(-1), "zero": scale(0), "one": np.int32(1)},
            **{"e": np.linspace(-1, 1, 12).reshape(4, 3)},
        },
        opset=13,
    ),
    "double_mlp": Graph(
        "(double[4,16] x) => (double[] y) { m = MatMul(x, w)  r = Tanh(m)  y = MatMul(r, u) }",
        {"w": (16, 12), "u": (12, 8)},
        opset=13,
        weight_type=np.float64,
    ),
}
GRAPHS: dict[str, Graph] = {**CONVOLUTIONS, **TRANSFORMERS, **QUANTISED, **HALVES, **STRUCTURE}
