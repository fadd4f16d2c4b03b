"""The integers that kernels may be given, compared with trying out all ids one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tvm
from tvm import relax, te, tirx
from tvm.s_tir import Schedule

from chameleon.kernels.index_ranges import argument_ranges

pytestmark = pytest.mark.tvm

Index = Callable[[Any], Any]


def tensor(shape: tuple[int, ...], dtype: str = "float32", name: str = "x") -> Any:
    return te.placeholder(shape, dtype=dtype, name=name)


def lookup(index: Index, rows: int = 30, dtype: str = "int64") -> tirx.PrimFunc:
    """`out[i, j] = table[index(ids[i]), j]`."""
    ids, table = tensor((16,), dtype, "ids"), tensor((rows, 8), name="table")
    out = te.compute((16, 8), lambda i, j: table[index(ids[i]), j], name="out")
    return te.create_prim_func([ids, table, out])


@pytest.mark.parametrize(
    ("index", "same"),
    [
        (lambda v: v, lambda v: v),
        (lambda v: v.astype("int32"), lambda v: v),
        (lambda v: v.astype("int32") + 2, lambda v: v + 2),
        (lambda v: v - 1, lambda v: v - 1),
        (lambda v: v * 3 + 1, lambda v: v * 3 + 1),
        (lambda v: tirx.floordiv(v, tirx.IntImm("int64", 4)), lambda v: v // 4),
        (lambda v: tirx.Select(v < 0, v + 30, v), lambda v: v + 30 if v < 0 else v),
        (lambda v: tirx.if_then_else(v < 0, v + 30, v), lambda v: v + 30 if v < 0 else v),
    ],
)
def test_the_range_is_the_largest_with_which_all_accesses_stay_inside(index: Index, same: Index) -> None:
    found, table, out = argument_ranges(lookup(index))
    assert table is out is None
    assert found is not None
    low, high = found
    assert all(0 <= same(i) < 30 for i in range(low, high + 1))
    assert same(high + 1) >= 30 or same(high + 1) == same(high)


@pytest.mark.parametrize(
    "index",
    [
        lambda v: tirx.min(tirx.max(v, tirx.IntImm("int64", 0)), tirx.IntImm("int64", 29)),
        lambda v: tirx.floormod(v, tirx.IntImm("int64", 30)),
    ],
)
def test_ids_that_are_brought_inside_need_not_lie_outside(index: Index) -> None:
    assert argument_ranges(lookup(index))[0] == (0, 29)


def test_a_narrow_type_holds_what_it_can() -> None:
    assert argument_ranges(lookup(lambda v: v.astype("int32"), 1000, "int8"))[0] == (0, 126)
    assert argument_ranges(lookup(lambda v: v.astype("int32"), 1000, "uint8"))[0] == (0, 254)
    assert argument_ranges(lookup(lambda v: v.astype("int32"), 1000, "bool"))[0] == (0, 1)


def test_several_indices_and_indices_of_indices() -> None:
    rows, columns, table = tensor((16,), "int64", "rows"), tensor((16,), "int32", "columns"), tensor((30, 8))
    two = te.compute((16,), lambda i: table[rows[i], columns[i]])
    assert argument_ranges(te.create_prim_func([rows, columns, table, two]))[:2] == [(0, 29), (0, 7)]
    middle = tensor((50,), "int32", "middle")
    nested = te.compute((16,), lambda i: table[middle[rows[i]], 0])
    assert argument_ranges(te.create_prim_func([rows, middle, table, nested]))[:2] == [(0, 49), (0, 29)]


def test_ids_are_followed_through_copies_also_of_a_schedule() -> None:
    ids, table = tensor((16,), "int64", "ids"), tensor((30, 8))
    copy = te.compute((16,), lambda i: ids[i] + 5, name="copy")
    func = te.create_prim_func([ids, table, te.compute((16, 8), lambda i, j: table[copy[i], j], name="out")])
    assert argument_ranges(func)[0] == (0, 24)
    schedule = Schedule(lookup(lambda v: v))
    block = schedule.get_sblock("out")
    schedule.cache_read(block, 0, "local")
    i, j = schedule.get_loops(block)
    schedule.parallel(schedule.split(i, [4, None])[0])
    schedule.vectorize(j)
    assert argument_ranges(schedule.mod["main"])[0] == (0, 29)


def test_integers_of_unknown_use_are_small_and_never_divide_by_zero() -> None:
    x = tensor((16,), "int32")
    plain = te.create_prim_func([x, te.compute((16,), lambda i: x[i] * 2)])
    assert argument_ranges(plain) == [(0, 1), (0, 1)]
    divides = te.create_prim_func([x, te.compute((16,), lambda i: tirx.floordiv(100, x[i]))])
    assert argument_ranges(divides)[0] == (1, 1)


def kernels(build: Callable[..., relax.Expr], *arguments: tuple[tuple[int, ...], str]) -> list[tirx.PrimFunc]:
    """The kernels of one operator."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"p{i}", relax.TensorType(shape, dtype)) for i, (shape, dtype) in enumerate(arguments)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(build(*params)))
        builder.emit_func_output(out)
    mod: tvm.IRModule = relax.get_pipeline("zero")(builder.finalize())
    return [f for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]


@pytest.mark.parametrize(
    ("build", "ids", "updates", "largest"),
    [
        (lambda x, i: relax.op.take(x, i, axis=0), (4,), None, 29),
        (lambda x, i: relax.op.take(x, i, axis=1, mode="clip"), (4,), None, 7),
        (lambda x, i: relax.op.take(x, i, axis=0, mode="wrap"), (4,), None, 29),
        (lambda x, i: relax.op.gather_elements(x, i, axis=1), (30, 3), None, 7),
        (lambda x, i: relax.op.gather_nd(x, i), (5, 2), None, 7),
        (lambda x, i, u: relax.op.scatter_elements(x, i, u, axis=0), (3, 8), (3, 8), 29),
        (lambda x, i, u: relax.op.scatter_nd(x, i, u), (5, 1), (5, 8), 29),
    ],
)
def test_tvms_own_operators_that_index(
    build: Callable[..., relax.Expr], ids: tuple[int, ...], updates: tuple[int, ...] | None, largest: int
) -> None:
    arguments = [((30, 8), "float32"), (ids, "int64"), *([(updates, "float32")] if updates else [])]
    (func,) = kernels(build, *arguments)
    assert argument_ranges(func)[1] == (0, largest)
