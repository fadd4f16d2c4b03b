"""Turns MetaSchedule's design spaces into a knob space: the decisions of a trace become digits, and digits decisions.

A design space of MetaSchedule is a trace with sampling instructions. The decisions of these instructions are the
knobs: `SamplePerfectTile` becomes a split, `SampleCategorical` an option, `SampleComputeLocation` a location. If there
are several design spaces, the choice among them becomes the leading knob `sketch`. To get the schedule of a
configuration, the trace of its sketch is replayed with the configuration's decisions. Then MetaSchedule's
post-processors run. They may refuse the configuration, which costs no measurement.

Sharing. The sketches of an operator are variants of one structure, so most of their instructions mean the same. Two
instructions of different sketches share a knob if three things are equal:

- their values: kind, extent, parts and bound of a tile; candidates; range of locations;
- their role: the block and loop that they act on, as written in the trace. `conv2d_nchw.3` is the fourth loop of that
  block; `root/unroll_explicit` is an annotation;
- their order, where one role occurs more than once.

An instruction with only one possible decision gets no knob.

Canonical digits. A compute location may not fit, such as a loop of extent one. TVM then moves it to the next outer one
that fits. `replay` reads the decisions back, so configurations that give the same schedule have the same canonical
digits.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import Trace
from tvm.target import Target

from chameleon.search.space import Digits, Knob, KnobSpace, location, option, split
from tuners.thread_limits import ThreadLimit, thread_limit
from tuners.tune_context import tune_context

INLINE, ROOT, DEEPEST = -2, -1, 1 << 20
"""TVM's codes for compute locations: inlined, at the root, and deeper than any loop nest (TVM takes the deepest)."""

SAMPLERS = ("SamplePerfectTile", "SampleCategorical", "SampleComputeLocation")


class Refused(Exception):
    """A configuration gives no schedule: the replay of its trace or a post-processor refused it."""


@dataclass(frozen=True)
class _Sketch:
    """One design space: its trace, and which of its instructions belongs to which knob.

    Attributes:
        mod: what it schedules.
        postprocs: what runs behind it.
        instructions: the whole trace.
        defaults: the decisions that it was generated with, by instruction.
        sampling: the positions in `instructions` of the instructions that have a knob.
        columns: for each of these instructions, the position of its knob in the space.
    """

    mod: IRModule
    postprocs: tuple[ms.Postproc, ...]
    instructions: tuple[Any, ...]
    defaults: dict[Any, Any]
    sampling: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class _DesignSpaces:
    """A module, the design spaces that a generator made for it, and the post-processors that belong to them."""

    mod: IRModule
    schedules: Sequence[Schedule]
    postprocs: Sequence[ms.Postproc]


class TraceSpace:
    """The knob space of one workload on one target, and the schedules of its configurations.

    Args:
        mod: a module with one function, `main`, as MetaSchedule's tasks have it.
        target: what the workload is tuned for; CPU targets need `num-cores`.
        space_generator: MetaSchedule's generator or its name.
        seed: of the generator's own sampling; it does not change the space.
        alternatives: other modules that may take the workload's place, with their generators. Their design spaces
            come after those of the workload itself, as further values of the knob `sketch`.

    Attributes:
        space: the knobs.
        modules: the workload and its alternatives.
        forms: for each sketch the position in `modules` of what it schedules.

    Raises:
        ValueError: on a module without a schedulable function, or with loops whose extent is not known.
    """

    def __init__(
        self,
        mod: IRModule,
        target: Target,
        *,
        space_generator: ms.SpaceGenerator.SpaceGeneratorType = "post-order-apply",
        seed: int = 0,
        alternatives: Sequence[tuple[IRModule, ms.SpaceGenerator]] = (),
    ) -> None:
        found = []
        generator: Any
        for form, generator in ((mod, space_generator), *alternatives):
            context = tune_context(form, target, generator, _tvm_seed(seed))
            postprocs = context.space_generator.postprocs if context.space_generator else None
            found.append(_DesignSpaces(context.mod or form, context.generate_design_space(), postprocs or ()))
        self._build(found)

    @classmethod
    def from_design_spaces(
        cls, mod: IRModule, schedules: Sequence[Schedule], postprocs: Sequence[ms.Postproc]
    ) -> TraceSpace:
        """Makes the space from design spaces that were generated elsewhere (a running tuner hands them over)."""
        space = cls.__new__(cls)
        space._build([_DesignSpaces(mod, schedules, postprocs)])
        return space

    def _build(self, found: Sequence[_DesignSpaces]) -> None:
        if not found[0].schedules:
            raise ValueError("the space generator gave no design space: nothing in this module can be scheduled")
        self.modules = tuple(spaces.mod for spaces in found)
        # The generator's order depends on its rules. On x86 these depend on what was imported before. The digits must
        # not depend on that, so the traces of each module are sorted.
        traces: dict[str, tuple[int, _DesignSpaces, Trace]] = {}
        for number, spaces in enumerate(found):
            made = ((_signature(t), t) for t in map(_trace, spaces.schedules))
            for signature, trace in sorted(made, key=lambda pair: pair[0]):
                traces.setdefault(signature, (number, spaces, trace))
        shared = _SharedKnobs()
        specs = [self._specs(trace, spaces.mod) for _, spaces, trace in traces.values()]
        sharing = [shared.place([(name, spec) for _, name, spec in entries]) for entries in specs]
        self._leading = len(traces) > 1 or not shared.knobs
        lead = [option("sketch", range(len(traces)))] if self._leading else []
        columns = [tuple(c + len(lead) for c in cs) for cs in sharing]
        self.forms = tuple(number for number, _, _ in traces.values())
        self._sketches = tuple(
            _Sketch(
                spaces.mod,
                tuple(spaces.postprocs),
                tuple(t.insts),
                dict(t.decisions.items()),
                tuple(i for i, _, _ in spec),
                cs,
            )
            for (_, spaces, t), spec, cs in zip(traces.values(), specs, columns, strict=True)
        )
        self._limits = [_thread_limit(t, s) for (*_, t), s in zip(traces.values(), self._sketches, strict=True)]
        self.space = KnobSpace(
            [*lead, *shared.knobs],
            sketches=columns if self._leading else None,
            valid=self._within_limits if any(self._limits) else None,
        )
        self._sketch_of = {signature: i for i, signature in enumerate(traces)}
        self._digit_of = [{_plain(v): i for i, v in enumerate(k.values)} for k in self.space.knobs]

    @property
    def signatures(self) -> tuple[str, ...]:
        """The instructions of each sketch as JSON: kind, inputs, attributes and outputs, without decisions."""
        return tuple(self._sketch_of)

    def _within_limits(self, configs: Digits) -> NDArray[np.bool_]:
        """Which of `[n, n_knobs]` ask for a number of GPU threads that is allowed, `[n]`."""
        ok = np.ones(len(configs), dtype=bool)
        for sketch, limit in enumerate(self._limits):
            mine = configs[:, 0] == sketch if self._leading else ok.copy()
            if limit is not None and mine.any():
                ok[mine] = limit.holds(configs[mine], self.space.knobs)
        return ok

    def _specs(self, trace: Trace, mod: IRModule) -> list[tuple[int, str, tuple[Any, ...]]]:
        """The searched instructions of a trace: position, role, and what `_knob` needs to make the knob."""
        rows = trace.as_json(remove_postproc=True)[0]
        roles, deepest, found = _roles(rows), self._deepest_locations(trace, mod), []
        for position, decision in _decisions(trace).items():
            kind, _, attrs, _ = rows[position]
            if kind == "SamplePerfectTile":
                found.append(
                    (position, roles[position], ("split", _extent(roles[position], decision), *map(int, attrs)))
                )
            elif kind == "SampleCategorical":
                found.append((position, roles[position], ("option", *(_number(v) for v in attrs[0]))))
            elif kind == "SampleComputeLocation":
                found.append((position, roles[position], ("location", *deepest[position])))
        return [entry for entry in found if len(_knob("", entry[2]).values) > 1]

    def _deepest_locations(self, trace: Trace, mod: IRModule) -> dict[int, tuple[int, int]]:
        """The outermost and innermost location that each `SampleComputeLocation` can take, by position in the trace.

        At which loops a block may be computed depends on the tiles, since loops of extent one are skipped. Tiles that
        are spread evenly leave the fewest loops of extent one. The generator's own tiles, and tiles with everything at
        the outer or at the inner level, are tried as well.
        """
        insts, found = list(trace.insts), {}
        where = [i for i, inst in enumerate(insts) if inst.kind.name == "SampleComputeLocation"]
        for spread in (None, "even", "outer", "inner") if where else ():
            for code in (DEEPEST, INLINE):
                decisions = dict(trace.decisions.items())
                for inst, decision in decisions.items():
                    if inst.kind.name == "SampleComputeLocation":
                        decisions[inst] = code
                    elif inst.kind.name == "SamplePerfectTile" and spread:
                        decisions[inst] = _spread([int(f) for f in decision], spread)
                try:
                    taken = _decisions(_trace(_apply(mod, insts, decisions)))
                except Refused:
                    continue
                for i in where:
                    low, high = found.get(i, (ROOT, ROOT))
                    found[i] = min(low, int(taken[i])), max(high, int(taken[i]))
        return {i: found.get(i, (ROOT, ROOT)) for i in where}

    def replay(self, config: Sequence[int] | Digits) -> tuple[Schedule, Digits]:
        """Makes the schedule of a configuration `[n_knobs]`, not post-processed, and its canonical digits `[n_knobs]`.

        Raises:
            Refused: if the trace does not apply with these decisions.
            ValueError: if the configuration is not of this space.
        """
        row = np.asarray(config, dtype=np.int64)
        cards = self.space.cardinalities
        inside = row.shape == cards.shape and bool(((row >= 0) & (row < cards)).all())
        if not inside or (self.space.canonical(row[None])[0] != row).any():
            raise ValueError(
                f"configuration {row.tolist()} is outside of the space: expected digits below {cards.tolist()}"
            )
        sketch = self._sketch(row)
        decisions = dict(sketch.defaults)
        for position, column in zip(sketch.sampling, sketch.columns, strict=True):
            knob, digit = self.space.knobs[column], int(row[column])
            decisions[sketch.instructions[position]] = digit if knob.kind == "option" else knob.values[digit]
        schedule = _apply(sketch.mod, sketch.instructions, decisions)
        digits = self._read(int(row[0]), _decisions(_trace(schedule)))
        if digits is None:
            raise Refused("replay: a tile of a loop whose extent depends on other knobs")
        return schedule, digits

    def post_process(self, schedule: Schedule, digits: Digits) -> Schedule:
        """Run MetaSchedule's post-processors on a replayed schedule, in place.

        Some of them draw random numbers (thread extents of unbound blocks). Their random generator is seeded from the
        canonical digits `[n_knobs]`, so that a configuration always gives the same schedule.

        Raises:
            Refused: if a post-processor refuses the schedule; the message names the post-processor.
        """
        schedule.seed(_tvm_seed(zlib.crc32(np.ascontiguousarray(digits, dtype="<i8").tobytes())))
        schedule.enter_postproc()
        for postproc in self._sketch(digits).postprocs:
            name = type(postproc).__name__
            try:
                accepted = postproc.apply(schedule)
            except Exception as error:  # whatever it raises, the configuration is useless; tuning goes on
                raise Refused(f"{name}: {_first_line(error)}") from error
            if not accepted:
                raise Refused(name)
        return schedule

    def schedule(self, config: Sequence[int] | Digits) -> Schedule:
        """The finished schedule of one configuration `[n_knobs]`, ready to build.

        Raises:
            Refused: if the replay or a post-processor refuses it.
        """
        return self.post_process(*self.replay(config))

    def digits(self, source: Trace | Schedule) -> Digits | None:
        """The digits `[n_knobs]` of a trace, such as one from a database; None if the trace is not of this space."""
        trace = _trace(source) if isinstance(source, Schedule) else source
        sketch = self._sketch_of.get(_signature(trace))
        return None if sketch is None else self._read(sketch, _decisions(trace))

    def _read(self, sketch: int, decisions: dict[int, Any]) -> Digits | None:
        """Digits `[n_knobs]` from decisions by position in the trace; None if one is not a value of its knob."""
        row = np.zeros(self.space.n_knobs, dtype=np.int64)
        if self._leading:
            row[0] = sketch
        part = self._sketches[sketch if self._leading else 0]
        for position, column in zip(part.sampling, part.columns, strict=True):
            decision = _plain(decisions[position])
            is_option = self.space.knobs[column].kind == "option"
            digit = decision if is_option else self._digit_of[column].get(decision)
            if digit is None:
                return None
            row[column] = digit
        return row

    def workload(self, config: Sequence[int] | Digits) -> IRModule:
        """What a configuration `[n_knobs]` schedules: the workload itself or one of its alternatives."""
        return self._sketch(config).mod

    def _sketch(self, config: Sequence[int] | Digits) -> _Sketch:
        return self._sketches[int(config[0]) if self._leading else 0]


def _apply(mod: IRModule, instructions: Sequence[Any], decisions: dict[Any, Any]) -> Schedule:
    schedule = Schedule(mod, seed=1, error_render_level="none")
    try:
        Trace(list(instructions), decisions).apply_to_schedule(schedule, remove_postproc=True)
    except Exception as error:  # if a primitive does not apply, TVM's C++ side throws one of several types
        raise Refused(f"replay: {_first_line(error)}") from error
    return schedule


class _SharedKnobs:
    """The knobs of all sketches, one for each role and set of values."""

    def __init__(self) -> None:
        self.knobs: list[Knob] = []
        self._known: dict[str, list[tuple[tuple[Any, ...], int]]] = {}

    def place(self, entries: Sequence[tuple[str, tuple[Any, ...]]]) -> list[int]:
        """The positions of the knobs of one sketch's instructions; makes a new knob where none fits."""
        taken: list[int] = []
        for role, spec in entries:
            same_role = self._known.setdefault(role, [])
            position = next((p for s, p in same_role if s == spec and p not in taken), None)
            if position is None:
                position = len(self.knobs)
                self.knobs.append(_knob(f"{role}#{len(same_role) + 1}" if same_role else role, spec))
                same_role.append((spec, position))
            taken.append(position)
        return taken


def _knob(name: str, spec: tuple[Any, ...]) -> Knob:
    kind, *details = spec
    if kind == "split":
        return split(name, *details)
    if kind == "option":
        return option(name, details)
    low, high = details
    return location(name, range(low, high + 1))


def _roles(rows: Sequence[Any]) -> list[str]:
    """The role of each instruction of a trace in JSON: what it acts on.

    This is the origin of its input, or of what uses its output.
    """
    origin: dict[str, str] = {}
    roles = []
    for position, (kind, inputs, attrs, outputs) in enumerate(rows):
        source = next((origin[x] for x in inputs if isinstance(x, str) and x in origin), "")
        if kind == "SampleCategorical":
            source = _use(rows[position + 1 :], outputs[0], origin)
        elif kind == "SampleComputeLocation":
            source = f"{source}/location"
        roles.append(source)
        for i, out in enumerate(outputs):
            if kind == "GetSBlock":
                origin[out] = str(attrs[0])
            elif kind == "GetLoops":
                origin[out] = f"{source}.{i}"
            else:
                origin[out] = f"{source}/{kind}{i}"
    return roles


def _use(later: Sequence[Any], output: str, origin: dict[str, str]) -> str:
    """What a sampled number is used for: the block or loop, and the annotation or instruction."""
    for kind, inputs, attrs, _ in later:
        if output in inputs:
            key = str(attrs[0]).removeprefix("meta_schedule.") if kind == "Annotate" else kind
            return f"{origin.get(inputs[0], '')}/{key}"
    return "unused"


def _extent(role: str, decision: Sequence[Any]) -> int:
    factors = [int(f) for f in decision]
    if min(factors) < 1:
        raise ValueError(
            f"the loop {role!r} has an extent that is not known before it runs (tile {factors}); "
            "expected static shapes: give the model fixed input shapes and extract its tasks again"
        )
    return int(np.prod(factors, dtype=object))


def _spread(factors: Sequence[int], how: str) -> list[int]:
    """A tile of the same extent, spread evenly over the levels, or with all of it at the outer or the inner level."""
    extent = int(np.prod(factors, dtype=object))
    tile = [1] * len(factors)
    if how != "even":
        tile[0 if how == "outer" else -1] = extent
        return tile
    for i, prime in enumerate(sorted(_prime_factors(extent), reverse=True)):
        tile[min(range(len(tile)), key=tile.__getitem__) if i >= len(tile) else i] *= prime
    return tile


def _prime_factors(n: int) -> Iterator[int]:
    prime = 2
    while prime * prime <= n:
        while n % prime == 0:
            yield prime
            n //= prime
        prime += 1
    if n > 1:
        yield n


def _thread_limit(trace: Trace, sketch: _Sketch) -> ThreadLimit | None:
    kinds = [inst.kind.name for inst in sketch.instructions]
    tiles = {
        i: _plain(sketch.defaults[sketch.instructions[i]])
        for i, kind in enumerate(kinds)
        if kind == "SamplePerfectTile"
    }
    rows = trace.as_json(remove_postproc=True)[0]
    return thread_limit(rows, dict(zip(sketch.sampling, sketch.columns, strict=True)), tiles)


def _trace(schedule: Schedule) -> Trace:
    if schedule.trace is None:
        raise ValueError(
            "a schedule without a trace: expected one made with tracing on, as `tvm.s_tir.Schedule(mod)` does"
        )
    return schedule.trace


def _decisions(trace: Trace) -> dict[int, Any]:
    """The decisions of a trace, by the position of their instruction."""
    taken = trace.decisions
    return {i: taken[inst] for i, inst in enumerate(trace.insts) if inst in taken}


def _signature(trace: Trace) -> str:
    """The instructions of a trace as text, without decisions and post-processing; the same for the same sketch."""
    return json.dumps(_numbers(trace.as_json(remove_postproc=True)[0]))


def _numbers(value: Any) -> Any:
    """The same nested lists with plain numbers.

    In a fresh trace a number is a TVM node; in a loaded trace it is plain.
    """
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return value if value is None or isinstance(value, str) else _number(value)


def _plain(value: Any) -> Any:
    return tuple(int(v) for v in value) if hasattr(value, "__len__") else int(value)


def _number(value: Any) -> int | float:
    number = float(getattr(value, "value", value))
    return int(number) if number.is_integer() else number


def _tvm_seed(seed: int) -> int:
    """TVM takes seeds from 1 to 2^31 - 1."""
    return 1 + seed % (2**31 - 1)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
