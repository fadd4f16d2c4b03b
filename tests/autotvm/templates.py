"""Tasks to tune: templates of TVM's own operators, and small ones with one kind of knob each."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import tvm
from tvm import autotvm, te, topi  # noqa: F401 topi registers its templates

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # build workers do not find this file

LLVM = "llvm"


def _permutable(cfg: Any, axes: list[Any]) -> list[Any]:
    return [cfg.axis(a) for a in axes]


def _interleave(cfg: Any, y: Any, x: Any, k: Any) -> None:
    axes = _permutable(cfg, [4, 4, 4, 4, 4, 4])
    cfg.define_reorder("order", axes, policy="interleave", spatial=[axes[:2], axes[2:4]], reduce=[axes[4:]])
    cfg.define_reorder("cuda", axes, policy="interleave_cuda", spatial=[axes[:2], axes[2:4]], reduce=[axes[4:]])


def _filtered(cfg: Any, y: Any, x: Any, k: Any) -> None:
    for name, axis in (("y", y), ("x", x), ("k", k)):
        cfg.define_split(name, axis, num_outputs=2)
    cfg.multi_filter(lambda e: e["y"].size[1] * e["x"].size[1] <= 16)


def _invalid(cfg: Any, y: Any, x: Any, k: Any) -> None:
    cfg.define_split("y", y, num_outputs=2)
    cfg.define_split("x", x, num_outputs=2)
    if cfg["y"].size[1] > 4:
        cfg.raise_error("tile of y too large")


def _huge(cfg: Any, y: Any, x: Any, k: Any) -> None:
    for i in range(4):
        cfg.define_split(f"s{i}", cfg.axis(512), num_outputs=4)
    cfg.multi_filter(lambda e: e["s0"].size[3] <= e["s1"].size[3])


def _candidates(cfg: Any, y: Any, x: Any, k: Any) -> None:
    cfg.define_split("open", y, policy="candidate", num_outputs=2, candidate=[[-1, 1], [-1, 3], [-1, 8], [-1, 3]])
    cfg.define_split("given", x, policy="candidate", num_outputs=3, candidate=[[1, 4, 4], [4, 1, 4], [4, 4, 1]])
    cfg.define_split("one", k, policy="candidate", num_outputs=1, candidate=[[-1], [16]])


def _split(policy: str, **options: Any) -> Callable[..., None]:
    def define(cfg: Any, y: Any, x: Any, k: Any) -> None:
        for name, axis, parts in (("y", y, 2), ("x", x, 3), ("k", k, 4)):
            cfg.define_split(name, axis, policy=policy, num_outputs=parts, **options)

    return define


def _reorders(cfg: Any, y: Any, x: Any, k: Any) -> None:
    axes = _permutable(cfg, [2, 3, 4, 5])
    cfg.define_reorder("identity", axes, policy="identity")
    cfg.define_reorder("all", axes, policy="all")
    cfg.define_reorder("some", axes, policy="interval_all", interval=(1, 3))
    cfg.define_reorder("listed", axes, policy="candidate", candidate=[axes, axes[::-1]])


def _annotations(cfg: Any, y: Any, x: Any, k: Any) -> None:
    axes = _permutable(cfg, [2, 3, 4])
    for policy in ("unroll", "try_unroll", "try_vec", "try_unroll_vec", "bind_gpu", "bind_gpu_virtual"):
        cfg.define_annotate(policy, axes, policy=policy)
    cfg.define_annotate("locate", axes, policy="locate_cache", num_anchor=2)


def _options(cfg: Any, y: Any, x: Any, k: Any) -> None:
    cfg.define_knob("flag", [True, False])
    cfg.define_knob("numbers", [0, 512, 1500, 4])
    cfg.define_knob("mixed", ["a", None, 3, 2.5])
    cfg.define_knob("lists", [[1, 2], [2, 1]])
    cfg.define_knob("single", ["only"])


KINDS: dict[str, Callable[..., None]] = {
    "factors": _split("factors"),
    "factors, bounded": _split("factors", max_factor=8),
    "factors, filtered": _split("factors", filter=lambda e: e.size[-1] >= 2),
    "power2": _split("power2"),
    "verbose": _split("verbose"),
    "verbose, no tail": _split("verbose", no_tail=True),
    "candidate": _candidates,
    "reorder": _reorders,
    "interleave": _interleave,
    "annotate": _annotations,
    "option": _options,
    "multi_filter": _filtered,
    "invalid": _invalid,
    "huge": _huge,
    "nothing": lambda cfg, y, x, k: None,
    "one point": lambda cfg, y, x, k: cfg.define_knob("only", [1]),
}


@autotvm.template("chameleon/knobs")
def knobs_of_kind(kind: str, n: int) -> Any:
    """A matrix product that ignores the knobs that it defines."""
    a, b = te.placeholder((n, n), name="a"), te.placeholder((n, n), name="b")
    r = te.reduce_axis((0, n), name="r")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
    schedule = te.create_schedule(c.op)
    KINDS[kind](autotvm.get_config(), *schedule[c].op.axis, *schedule[c].op.reduce_axis)
    return schedule, [a, b, c]


@autotvm.template("chameleon/matmul")
def matmul(n: int, m: int, fault: str = "") -> Any:
    """The matrix product of TVM's tutorial; with a `fault`, tiles of x of 8 and more break it at that stage."""
    a, b = te.placeholder((n, m), name="a"), te.placeholder((m, n), name="b")
    r = te.reduce_axis((0, m), name="r")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
    schedule, cfg = te.create_schedule(c.op), autotvm.get_config()
    y, x = schedule[c].op.axis
    cfg.define_split("y", y, num_outputs=2)
    cfg.define_split("x", x, num_outputs=2)
    yo, yi = cfg["y"].apply(schedule, c, y)
    xo, xi = cfg["x"].apply(schedule, c, x)
    schedule[c].reorder(yo, xo, r, yi, xi)
    broken = cfg["x"].size[-1] >= 8
    if broken and fault == "instantiate":
        cfg.raise_error("tile of x too large")
    if broken and fault == "build":
        schedule[c].bind(xi, te.thread_axis("threadIdx.x"))  # not on this target
    if broken and fault in ("hang", "crash"):
        call = tvm.tir.call_extern("int32", *{"hang": ("sleep", 1000), "crash": ("abort",)}[fault])
        d = te.compute((n, n), lambda i, j: c[i, j] + call.astype("float32"), name="d")
        schedule = te.create_schedule(d.op)
        return schedule, [a, b, d]
    return schedule, [a, b, c]


def create(name: str, *args: Any, target: str = LLVM) -> Any:
    return autotvm.task.create(name, args=args, target=tvm.target.Target(target))


def tensor(*shape: int) -> tuple[Any, ...]:
    return ("TENSOR", shape, "float32")


def _conv(channels: int, size: int, filters: int, kernel: int = 3, stride: int = 1) -> tuple[Any, ...]:
    pad = kernel // 2
    data, weights = tensor(1, channels, size, size), tensor(filters, channels, kernel, kernel)
    return data, weights, (stride, stride), (pad,) * 4, (1, 1)


def conv_task(channels: int = 16, size: int = 14, filters: int = 16, kernel: int = 3) -> Any:
    """`conv2d_NCHWc.x86`: on a machine with vectors of 16 numbers."""
    return create("conv2d_NCHWc.x86", *_conv(channels, size, filters, kernel), "NCHW", "NCHW", "float32")


TOPI: dict[str, tuple[str, tuple[Any, ...]]] = {
    "conv2d_NCHWc.x86": (LLVM, (*_conv(64, 56, 64), "NCHW", "NCHW", "float32")),
    "depthwise_conv2d_NCHWc.x86": (
        LLVM,
        (tensor(1, 64, 28, 28), tensor(64, 1, 3, 3), (1, 1), (1,) * 4, (1, 1), "NCHW", "NCHW", "float32"),
    ),
    "dense_pack.x86": (LLVM, (tensor(64, 512), tensor(1024, 512), None, "float32")),
    "dense_nopack.x86": (LLVM, (tensor(64, 512), tensor(1000, 512), None, "float32")),
    "conv2d_nchw.cuda": ("cuda -arch=sm_70", (*_conv(64, 56, 64), "float32")),
    "conv2d_nchw_winograd.cuda": ("cuda -arch=sm_70", (*_conv(64, 56, 64), "float32")),
    "conv2d_nchw_spatial_pack.arm_cpu": ("llvm -device=arm_cpu", (*_conv(64, 56, 64), "float32")),
    "conv2d_nchw_spatial_pack.mali": ("opencl -device=mali", (*_conv(64, 56, 64), "float32")),
    "dense_small_batch.gpu": ("cuda -arch=sm_70", (tensor(1, 512), tensor(1000, 512), None, "float32")),
}


@functools.cache
def topi_task(name: str) -> Any:
    target, args = TOPI[name]
    return create(name, *args, target=target)


@functools.cache
def kind_task(kind: str, n: int = 16) -> Any:
    return create("chameleon/knobs", kind, n)
