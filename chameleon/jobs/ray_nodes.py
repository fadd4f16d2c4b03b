"""Measures candidates on the nodes of a Ray cluster: the search stays here, building and timing happen there.

Ray places the work, notices what dies, and keeps others off the cores that measure. So there is no queue and no
heartbeat here. On every node one actor holds all of the node's cores, with a GPU target one actor a GPU, and measures
one candidate at a time with the same builder and runner that measure without a cluster.

What a node that dies had in hand goes to the others. No candidate is blamed for it.

Times of different processors cannot be compared. So only nodes of one kind are used: those with the same processor,
cores, TVM and Chameleon. The others are left out, with a word.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportMissingImports=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import importlib.util
import math
import platform
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm.s_tir import Schedule
from tvm.target import Target

import chameleon
from chameleon.errors import ChameleonError, UsageError, described, first_line
from chameleon.jobs.measurer import Built, Measurer, local_measurer
from chameleon.jobs.stages import Say
from chameleon.manifest import cpu_name
from chameleon.measure.runner import device_name
from chameleon.search import Trial
from chameleon.target import check_runs_here, usable_cores
from chameleon.workers.faults import EnvironmentFault
from tuners.outcomes import failed_trial
from tuners.proposals import Config

MakeMeasurer = Callable[[Target, ExitStack], Measurer]

ANSWER_S = 10.0
"""Seconds that a cluster may take to answer at its address."""
START_S = 120.0
"""Seconds to wait for the first node: it imports TVM, and its cores may be taken by somebody else's work."""
TOGETHER_S = 15.0
"""Seconds to wait for the others after the first one. Those that come later join where they are of its kind."""
LOOK_S = 1.0
"""Seconds after which nodes that joined the cluster, or came back, are looked for again."""
MOST_LOSSES = 2
"""A node whose actor died so often is left out. A candidate that was in hand at so many deaths is left unmeasured."""


@dataclass(frozen=True)
class Kind:
    """What makes the times of two nodes comparable."""

    processor: str
    cores: int
    device: str  # the name of the GPU; empty for a CPU target
    tvm: str
    chameleon: str

    def __str__(self) -> str:
        device = f", {self.device}" if self.device else ""
        return f"{self.processor}, {self.cores} cores{device}, TVM {self.tvm}, Chameleon {self.chameleon}"


@dataclass(frozen=True)
class Answer:
    """What a node says: a value, or the fault of its environment for which no candidate is to blame."""

    value: Any = None
    fault: str = ""


# --- on a node ---


class NodeWorker:
    """Builds and times candidates on a node; Ray runs it as an actor."""

    def __init__(self, target: str, make: MakeMeasurer) -> None:
        self._target, self._make, self._stack = Target(target), make, ExitStack()
        self._measurer: Measurer | None = None
        self._built: dict[int, Built] = {}

    def begin(self) -> tuple[Kind, Answer]:
        """Say what kind of node this is, and whether it can measure for the target: a tiny kernel is built and run."""
        kind = _kind_here(self._target)
        try:
            _check_fits(self._target)
            self._measurer = self._make(self._target, self._stack)
            self._measurer.check()
        except ChameleonError as error:
            return kind, Answer(fault=first_line(error))
        return kind, Answer()

    def build(self, candidates: dict[int, tuple[Config, tvm.IRModule]]) -> Answer:
        """Build candidates and keep them; the value is by number the error, empty if there is none, and seconds."""
        self.discard(list(self._built))
        try:
            built = self._ready.build([(config, Schedule(mod)) for config, mod in candidates.values()])
        except EnvironmentFault as fault:
            return Answer(fault=str(fault))
        self._built = dict(zip(candidates, built, strict=True))
        return Answer({number: (b.error, b.build_s) for number, b in self._built.items()})

    def time(self, number: int, task: str | None, cold: bool) -> Answer:
        """Time a candidate that was built; the value is its trial. It is kept only where no task is named."""
        candidate = self._built[number]
        try:
            if task is None:
                return Answer(self._ready.time(candidate, cold=cold))
            return Answer(self._ready.time_in_task(candidate, task))
        except EnvironmentFault as fault:
            return Answer(fault=str(fault))
        finally:
            if task is not None:
                self.discard([number])

    def discard(self, numbers: Sequence[int]) -> None:
        """Remove what was built."""
        for number in numbers:
            if candidate := self._built.pop(number, None):
                candidate.discard()

    def close(self) -> None:
        """Stop the workers and remove what is left."""
        self.discard(list(self._built))
        self._stack.close()

    @property
    def _ready(self) -> Measurer:
        assert self._measurer is not None  # `begin` comes first
        return self._measurer


def _kind_here(target: Target) -> Kind:
    kind = target.kind.name
    device = tvm.device(device_name(kind)) if kind != "llvm" else None
    name = str(device.device_name) if device is not None and device.exist else ""
    version = str(getattr(tvm, "__version__", "unknown"))
    return Kind(cpu_name(), usable_cores(), name, version, chameleon.__version__)


def _check_fits(target: Target) -> None:
    """Refuse a target that is not this node's.

    Raises:
        UsageError: if it is of another processor, or has another number of cores.
        EnvironmentFault: if there is no such device.
    """
    check_runs_here(target)
    cores = int(target.attrs.get("num-cores", usable_cores())) if target.kind.name == "llvm" else usable_cores()
    if cores != usable_cores():
        raise UsageError(f"the target has {cores} cores, and the node {platform.node()} {usable_cores()}")
    if not tvm.device(device_name(target.kind.name)).exist:
        raise EnvironmentFault(f"the node {platform.node()} has no {target.kind.name} device")


# --- where the search is ---


@dataclass
class _Node:
    """An actor, and what it has in hand.

    Attributes:
        answer: what Ray will answer next; None while it has nothing to do.
        building: the numbers of the candidates that are being built.
        built: those that wait to be timed there.
        timing: the one that is being timed.
    """

    node_id: str
    name: str
    actor: Any
    answer: Any
    cores: int = 1
    joined: bool = False
    building: list[int] = field(default_factory=list)
    built: deque[int] = field(default_factory=deque)
    timing: int | None = None


@dataclass(frozen=True)
class NodeBuilt:
    """A candidate that was built on a node."""

    config: Config
    number: int
    error: str
    cluster: RayMeasurer

    @property
    def ready(self) -> bool:
        return not self.error

    def discard(self) -> None:
        """Remove what was built; the node does so at its next build as well."""
        self.cluster.discard(self)


@contextmanager
def ray_measurer(address: str, target: Target, say: Say, make: MakeMeasurer = local_measurer) -> Iterator[RayMeasurer]:
    """Connect to a running Ray cluster, and measure on its nodes.

    Args:
        address: `auto`, or what `ray start` printed, such as `10.0.0.1:6379`.
        say: is told of nodes that join, are lost or left out.
        make: makes the measurer of a node, there.

    Raises:
        UsageError: if Ray is not installed.
        EnvironmentFault: if no cluster answers.
    """
    check_cluster(address)
    import ray

    connected = ray.is_initialized()
    if not connected:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError: as the address is wrong
            raise _no_cluster(address, error) from error
    measurer = RayMeasurer(ray, target, say, make)
    try:
        yield measurer
    finally:
        measurer.close()
        if not connected:
            ray.shutdown()


def check_cluster(address: str) -> None:
    """Check what connecting to a cluster needs, before a model is loaded.

    Raises:
        UsageError: if Ray is not installed.
        EnvironmentFault: if the address is `host:port` and nobody listens there; Ray itself would try for minutes.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--ray needs Ray; install it with `pip install 'chameleon-tvm[ray]'`")
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except OSError as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"no Ray cluster answers at {address!r} ({first_line(error)}); start one with `ray start --head`, or give its "
        "address"
    )


class RayMeasurer:
    """Measures candidates on the nodes of a cluster; `chameleon.jobs.measurer.Measures` says what each method does."""

    def __init__(self, ray: Any, target: Target, say: Say, make: MakeMeasurer) -> None:
        self._ray, self._target, self._say, self._make = ray, target, say, make
        self._nodes: list[_Node] = []
        self._losses: Counter[str] = Counter()  # by Ray's id of a node
        self._left_out: dict[str, str] = {}  # why, by Ray's id of a node
        self._kind: Kind | None = None
        self._looked_s = -math.inf
        self._numbers = 0
        self._home: _Node | None = None  # where candidates are compared that `build` gave
        self._compared: dict[int, tuple[Config, tvm.IRModule]] = {}  # these candidates, by number
        self._errors: dict[int, str] = {}  # of their builds there; empty where there is none

    def check(self) -> None:
        """Wait for the nodes and choose their kind.

        Raises:
            EnvironmentFault: if no node can measure for the target.
        """
        self._hire()
        deadline_s = time.monotonic() + START_S
        while starting := [node.answer for node in self._nodes if not node.joined]:
            left_s = max(0.0, deadline_s - time.monotonic())
            self._ray.wait(starting, num_returns=1, timeout=left_s)
            done, _ = self._ray.wait(starting, num_returns=len(starting), timeout=min(left_s, TOGETHER_S))
            self._choose_kind([node for node in self._nodes if any(node.answer is ref for ref in done)])
            if any(node.joined for node in self._nodes) or left_s <= 0:
                break
        self._check_any()

    def _check_any(self) -> None:
        """Refuse to go on without a node.

        Raises:
            EnvironmentFault: that says why each node is left out.
        """
        if any(node.joined for node in self._nodes):
            return
        reasons = "; ".join(dict.fromkeys(self._left_out.values()))
        if starting := [node.name for node in self._nodes]:
            reasons = "; ".join(filter(None, [reasons, f"{', '.join(starting)} did not start in {START_S:g} s"]))
        needed = "a GPU" if self._on_gpu else "a core"
        raise EnvironmentFault(f"no node of the Ray cluster can measure: {reasons or f'none has {needed}'}")

    def __call__(
        self, candidates: Sequence[tuple[Config, Schedule]], *, task: str, in_time: Callable[[], bool]
    ) -> Iterator[Trial]:
        """Build and time candidates on all nodes; what is left when the time is over is dropped."""
        batch = _Batch([config for config, _ in candidates], [schedule.mod for _, schedule in candidates])
        for node in self._nodes:
            node.built.clear()
        while True:
            self._look_again()
            self._give_work(batch, task, in_time)
            busy = [node for node in self._nodes if node.building or node.timing is not None]
            if not busy and (batch.is_done(self._nodes) or not in_time()):
                return
            self._wait_for_any()
            waited = [node.answer for node in self._nodes if node.answer is not None]
            done, _ = self._ray.wait(waited, num_returns=1, timeout=LOOK_S)
            for node in [n for n in self._nodes if any(n.answer is ref for ref in done)]:
                if node.joined:
                    yield from self._hear(node, batch)
                else:
                    self._choose_kind([node])

    def build(self, candidates: Sequence[tuple[Config, Schedule]]) -> list[NodeBuilt]:
        """Build candidates that are to be compared, all on one node. Those of an earlier call can be timed no more."""
        self._compared = {self._next_number(): (config, schedule.mod) for config, schedule in candidates}
        self._build_at_home()
        return [NodeBuilt(config, n, self._errors[n], self) for n, (config, _) in self._compared.items()]

    @property
    def processor(self) -> str:
        """The processor of the nodes that measure; `check` comes first."""
        assert self._kind is not None
        return self._kind.processor

    def report(self) -> list[str]:
        """Why nodes were left out, a line for each."""
        return [f"the node {why}" for why in self._left_out.values()]

    @property
    def can_cool(self) -> bool:
        return self._target.kind.name == "llvm"

    def time(self, candidate: NodeBuilt, *, cold: bool = False) -> Trial:
        """Time one candidate at full length; if its node has died, all of them are built again on another one."""
        while True:
            if self._home is None:
                self._build_at_home()
            if error := self._errors[candidate.number]:
                return failed_trial(candidate.config, error, building=True)
            try:
                return self._ask_home(lambda actor: actor.time.remote(candidate.number, None, cold), moving=False)
            except _Moved:
                continue

    def discard(self, candidate: NodeBuilt) -> None:
        """Remove what was built of a candidate."""
        self._compared.pop(candidate.number, None)
        if self._home is not None:
            self._home.actor.discard.remote([candidate.number])

    def close(self) -> None:
        """End the actors; their workers end with them, and remove what they built."""
        closing = [node.actor.close.remote() for node in self._nodes if node.joined]
        self._ray.wait(closing, num_returns=len(closing), timeout=10.0) if closing else None
        for node in self._nodes:
            self._ray.kill(node.actor)
        self._nodes = []

    # --- nodes ---

    @property
    def _on_gpu(self) -> bool:
        return self._target.kind.name != "llvm"

    def _look_again(self) -> None:
        if time.monotonic() - self._looked_s >= LOOK_S:
            self._hire()

    def _hire(self) -> None:
        """Start an actor for every node, or every GPU, that has none."""
        self._looked_s = time.monotonic()
        for known in self._ray.nodes():
            node_id, resources = known["NodeID"], known["Resources"]
            cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            wanted = gpus if self._on_gpu else min(cores, 1)
            if not known["Alive"] or node_id in self._left_out or self._losses[node_id] >= MOST_LOSSES:
                continue
            for _ in range(wanted - sum(node.node_id == node_id for node in self._nodes)):
                self._nodes.append(self._hired(node_id, str(known["NodeManagerHostname"]), max(1, cores // wanted)))

    def _hired(self, node_id: str, host: str, cores: int) -> _Node:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self._ray.remote(NodeWorker).options(
            num_cpus=cores,
            num_gpus=1 if self._on_gpu else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        started = actor.remote(str(self._target), self._make)
        return _Node(node_id, f"{host} ({node_id[:8]})", started, started.begin.remote(), cores)

    def _choose_kind(self, started: Sequence[_Node]) -> None:
        """Let nodes that have started join, if they can measure and are of the kind that is measured on."""
        fitting: list[tuple[_Node, Kind]] = []
        for node in started:
            try:
                kind, answer = self._ray.get(node.answer)
            except self._ray.exceptions.RayError as error:
                self._lose(node, error)
                continue
            if answer.fault:
                self._leave_out(node, answer.fault)
            else:
                node.cores = kind.cores
                fitting.append((node, kind))
        if self._kind is None and fitting:
            self._kind = Counter(kind for _, kind in fitting).most_common(1)[0][0]
            self._say(f"measuring on nodes of the kind: {self._kind}")
        for node, kind in fitting:
            if kind == self._kind:
                node.joined, node.answer = True, None
                self._say(f"the node {node.name} measures")
            else:
                self._leave_out(node, f"it is of another kind, whose times cannot be compared: {kind}")

    def _leave_out(self, node: _Node, why: str) -> None:
        self._say(f"the node {node.name} is left out: {why}")
        self._left_out[node.node_id] = f"{node.name}: {why}"
        self._drop(node)

    def _lose(self, node: _Node, error: Exception) -> None:
        if isinstance(error, self._ray.exceptions.RayTaskError):  # it lives, and cannot do what it is asked to
            self._leave_out(node, described(error.cause or error))
            return
        self._losses[node.node_id] += 1
        self._say(f"the node {node.name} is lost ({type(error).__name__}); what it had in hand goes to the others")
        if self._losses[node.node_id] >= MOST_LOSSES:
            self._left_out[node.node_id] = f"{node.name}: lost {MOST_LOSSES} times ({first_line(error)})"
        self._drop(node)

    def _drop(self, node: _Node) -> None:
        self._nodes.remove(node)
        self._ray.kill(node.actor)
        if self._home is node:
            self._home = None

    # --- work ---

    def _give_work(self, batch: _Batch, task: str, in_time: Callable[[], bool]) -> None:
        """Let every node that is idle time what it has built, or else build a part of what waits."""
        idle = [node for node in self._nodes if node.joined and node.answer is None]
        for left, node in zip(range(len(idle), 0, -1), idle, strict=True):
            if not in_time():
                return
            if node.built:
                node.timing = node.built.popleft()
                node.answer = node.actor.time.remote(node.timing, task, False)
            elif batch.waiting:
                n = min(node.cores, math.ceil(len(batch.waiting) / left))
                node.building = [batch.waiting.popleft() for _ in range(n)]
                node.answer = node.actor.build.remote({i: (batch.configs[i], batch.mods[i]) for i in node.building})

    def _hear(self, node: _Node, batch: _Batch) -> Iterator[Trial]:
        """Take what a node has done, or take back what it had in hand."""
        in_hand = node.building or [node.timing]
        try:
            answer = self._ray.get(node.answer)
        except self._ray.exceptions.RayError as error:
            self._lose(node, error)
            dropped = batch.take_back(in_hand, node.built, died=True)
            if dropped:
                self._say(f"{dropped} candidates are left unmeasured: {MOST_LOSSES} nodes died with them in hand")
            return
        if answer.fault:
            self._leave_out(node, answer.fault)
            batch.take_back(in_hand, node.built, died=False)
            return
        node.answer = None
        if node.timing is not None:
            node.timing = None
            yield answer.value
            return
        node.building = []
        for number, (error, build_s) in answer.value.items():
            if error:
                yield failed_trial(batch.configs[number], error, {"build": round(build_s, 4)}, building=True)
            else:
                node.built.append(number)

    def _build_at_home(self) -> None:
        """Build the candidates that are compared where they are compared.

        Raises:
            EnvironmentFault: if no node is left.
        """
        built = self._ask_home(lambda actor: actor.build.remote(self._compared))
        self._errors = {number: error for number, (error, _) in built.items()}

    def _ask_home(self, ask: Callable[[Any], Any], *, moving: bool = True) -> Any:
        """Ask the node where candidates are compared; another one takes its place where it dies.

        Args:
            moving: whether the other one can answer as well.

        Raises:
            EnvironmentFault: if no node is left.
            _Moved: if the node has died, and the other one cannot answer.
        """
        while True:
            if self._home is None:
                self._wait_for_any()
                self._home = next(node for node in self._nodes if node.joined)
            home = self._home
            try:
                answer = self._ray.get(ask(home.actor))
            except self._ray.exceptions.RayError as error:
                self._lose(home, error)
            else:
                if not answer.fault:
                    return answer.value
                self._leave_out(home, answer.fault)
            if not moving:
                raise _Moved

    def _wait_for_any(self) -> None:
        if not any(node.joined for node in self._nodes):
            self.check()

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers


class _Moved(Exception):
    """The node that had built a candidate is gone."""


class _Batch:
    """Candidates of one task by number, and those that wait for a node."""

    def __init__(self, configs: Sequence[Config], mods: Sequence[tvm.IRModule]) -> None:
        self.configs, self.mods = configs, mods
        self.waiting = deque(range(len(configs)))
        self._deaths: Counter[int] = Counter()

    def is_done(self, nodes: Sequence[_Node]) -> bool:
        """Whether nothing waits, to be built or to be timed."""
        return not self.waiting and not any(node.built for node in nodes)

    def take_back(self, in_hand: Sequence[int | None], built: Sequence[int], *, died: bool) -> int:
        """Let others build what a node had; returns how many are dropped, since nodes died with them in hand."""
        numbers = [number for number in in_hand if number is not None]
        if died:
            self._deaths.update(numbers)
        kept = [number for number in numbers if self._deaths[number] < MOST_LOSSES]
        self.waiting.extendleft(reversed([*kept, *built]))
        return len(numbers) - len(kept)
