"""Tunes a network for processors that this machine emulates, runs it there, and compares the outputs.

    python -m scripts.fleets.emulated resnet20_cifar10 --trials 24

A device is a real server at a real tracker (`serve.py`), whose sessions are served by a program for the other
processor under qemu's user mode. Candidates are uploaded, linked and timed there, as on a board. The library of the
tuned network is linked by Debian's cross compiler, loaded there, and run by TVM's virtual machine.

The program is TVM's own runtime, compiled from the sources that its wheel carries. `device/session.cc` is its main
function, `device/support.h` stands in for the few headers that the wheel lacks. Nothing is downloaded.
It needs Debian's packages `qemu-user`, `g++-aarch64-linux-gnu` and `g++-riscv64-linux-gnu`.

Times under emulation mean nothing: the schedules that win here are not those that win on a board.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tvm
import tvm_ffi
import typer
from tvm import relax

from chameleon.cli import guarded
from chameleon.errors import ChameleonError, UsageError
from chameleon.jobs.compare import Arrays, arrays_of, difference, tolerance_of, worst
from chameleon.jobs.config import tune_config
from chameleon.jobs.run_folder import JobSpec, TuneReport
from chameleon.jobs.tune import tune_model
from chameleon.measure.link import Toolchain
from chameleon.measure.remote import connect
from chameleon.measure.tracker import Tracker, next_device
from chameleon.models.load import Model, input_arrays, load_model
from chameleon.target import detect_target, usable_cores
from scripts.common.options import names_of
from scripts.common.run_store import write_results
from scripts.common.tables import markdown
from scripts.fleets.loopback import fleet

HERE = Path(__file__).parent / "device"
THREADS = 2
SESSION_S = 600
"""Seconds for the runs of the whole network."""

DRAWS = 2
"""How many random inputs are compared."""

RUNTIME = (
    *("cpu_device_api", "device_api", "file_utils", "logging", "module", "tensor", "thread_pool", "threading_backend"),
    *("timer", "workspace_pool", "const_loader_module", "memory/memory_manager"),
    *("vm/builtin", "vm/bytecode", "vm/executable", "vm/vm"),
    *("rpc/rpc_channel", "rpc/rpc_device_api", "rpc/rpc_endpoint", "rpc/rpc_local_session", "rpc/rpc_module"),
    *("rpc/rpc_server_env", "rpc/rpc_session"),
)
"""What is compiled of TVM's runtime: the virtual machine, RPC and what they stand on."""

FFI = (
    *("backtrace", "container", "custom_allocator", "dtype", "error", "function", "init_once", "object", "tensor"),
    *("extra/env_c_api", "extra/env_context", "extra/json_parser", "extra/json_writer", "extra/library_module"),
    *("extra/library_module_dynamic_lib", "extra/module"),
)
"""The same of TVM's calling convention."""

LACKING = (
    *("include/tvm/support/io.h", "include/tvm/support/serializer.h", "include/tvm/support/cuda/nvtx.h"),
    *(f"src/support/{name}.h" for name in ("arena", "base64", "bytes_io", "ring_buffer", "utils")),
)
"""What the sources include and the wheel lacks; `support.h` has all of it."""

FLAGS = (
    *("-std=c++17", "-O0", "-w", "-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0"),
    *("-DTVM_FFI_EXPORTS", "-DTVM_RUNTIME_EXPORTS"),
)
LIBRARIES = ("-ldl", "-lpthread", "-Wl,--as-needed", "-latomic")  # the last: RISC-V has no atomic bytes


@dataclass(frozen=True)
class Emulated:
    """A processor that this machine emulates, and Debian's cross compiler for it."""

    architecture: str  # by LLVM's name, which is qemu's as well
    target: str

    @property
    def triple(self) -> str:
        return f"{self.architecture}-linux-gnu"

    @property
    def compiler(self) -> str:
        return f"{self.triple}-g++"

    @property
    def emulator(self) -> str:
        return f"qemu-{self.architecture}"

    @property
    def sysroot(self) -> Path:
        """Where Debian's cross compilers keep the C library of the other processor."""
        return Path("/usr") / self.triple

    def command(self, program: Path) -> list[str]:
        """What runs a program for this processor."""
        variables = {"TVM_NUM_THREADS": str(THREADS), "CXX": self.compiler}
        given = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
        return [self.emulator, "-L", str(self.sysroot), *given, str(program)]

    def lacking(self) -> str:
        """What this machine lacks to emulate it; empty if nothing."""
        tools = {self.emulator: "qemu-user", self.compiler: f"g++-{self.triple}"}
        return ", ".join(f"{tool} (Debian's package {p})" for tool, p in tools.items() if shutil.which(tool) is None)


def _emulated(architecture: str, **options: Any) -> Emulated:
    target = {"kind": "llvm", "mtriple": f"{architecture}-linux-gnu", **options, "num-cores": THREADS}
    return Emulated(architecture, json.dumps(target))


DEVICES = {d.architecture: d for d in (_emulated("aarch64", mcpu="cortex-a72"), _emulated("riscv64"))}
app = typer.Typer(add_completion=False)


def device_program(device: Emulated, folder: Path) -> Path:
    """The program that serves a session on an emulated processor.

    It is compiled once for each version of TVM, of the compiler and of its own source.

    Raises:
        ChameleonError: if it does not compile.
    """
    ours = [HERE / "session.cc", HERE / "support.h"]
    asked = [device.compiler, "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    facts = [tvm.__version__, tvm_ffi.__version__, version, *FLAGS, *LIBRARIES, *RUNTIME, *FFI]
    facts += [path.read_text() for path in ours]
    program = folder / f"{device.architecture}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
    if not program.exists():
        print(f"compiling TVM's runtime for {device.architecture}, once: some minutes", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _compile(device, Path(work)).replace(program)
    return program


def _compile(device: Emulated, work: Path) -> Path:
    """Compile and link the program in an empty folder."""
    package, ffi = Path(str(tvm.__file__)).parent, Path(str(tvm_ffi.__file__)).parent
    shutil.copytree(package / "src/runtime", work / "src/runtime")
    for name in LACKING:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(f'#include "{HERE / "support.h"}"\n')
    sources = [
        HERE / "session.cc",
        *(work / f"src/runtime/{name}.cc" for name in RUNTIME),
        *(ffi / f"src/ffi/{name}.cc" for name in FFI),
    ]
    folders = [work / "include", work / "src", package / "include", ffi / "include", ffi / "3rdparty/dlpack/include"]
    included = [f"-I{path}" for path in folders]
    objects = [work / f"{i}.o" for i in range(len(sources))]
    commands = [
        [device.compiler, *FLAGS, *included, "-c", str(source), "-o", str(made)]
        for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(_run, commands))
    program = work / "session"
    # The kernels, which come later, find TVM's functions in the program.
    _run([device.compiler, "-rdynamic", "-o", str(program), *map(str, objects), *LIBRARIES])
    return program


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ChameleonError(f"{' '.join(command)} failed: {done.stderr[:2000]}")


def outputs_there(tracker: str, key: str, library: Path, draws: Sequence[Arrays]) -> list[Arrays]:
    """The outputs of a network's library on the next free device with a key, for each of several inputs."""
    asked, until_s = Tracker(tracker), time.monotonic() + 60
    grant = next_device(asked, key, lambda: time.monotonic() < until_s)
    asked.close()
    if grant is None:
        raise ChameleonError(f"no device with the key {key} became free")
    session = connect(grant, SESSION_S)
    session.upload(str(library))
    device = session.cpu(0)
    machine = relax.VirtualMachine(session.load_module(library.name), device)
    outputs = []
    for arrays in draws:
        machine.set_input("main", *(tvm.runtime.tensor(x, device) for x in arrays))
        machine.invoke_stateful("main")
        outputs.append(arrays_of(machine.get_outputs("main")))
    return outputs


def outputs_here(model: Model, draws: Sequence[Arrays]) -> list[Arrays]:
    """The outputs of the network as TVM compiles it for this machine, without any tuning."""
    machine = relax.VirtualMachine(tvm.compile(model.mod, detect_target()), tvm.cpu())
    return [arrays_of(machine["main"](*(tvm.runtime.tensor(x) for x in arrays))) for arrays in draws]


def measure(device: Emulated, model: Model, trials: int, programs: Path, out: Path) -> dict[str, Any]:
    """Tune a network for an emulated processor, run it there and compare it.

    Args:
        out: folder of the run.

    Returns:
        A line with the trials, and how far the outputs are off.
    """
    command = device.command(device_program(device, programs))
    rng = np.random.default_rng(0)
    draws = [input_arrays(model, rng) for _ in range(DRAWS)]
    start_s = time.monotonic()
    with fleet(1, key=device.architecture, session=command) as tracker:
        spec = JobSpec(
            model.source.spec,
            target=device.target,
            out=out,
            tracker=tracker,
            device_key=device.architecture,
            toolchain=Toolchain(device.compiler),
        )
        report, _ = tune_model(spec, tune_config({}, {"trials": trials}), lambda _: None, print)
        there = outputs_there(tracker, device.architecture, out / "network.so", draws)
    tolerance = tolerance_of(model.mod)
    found = worst([difference(a, b, tolerance) for a, b in zip(there, outputs_here(model, draws), strict=True)])
    return {
        "architecture": device.architecture,
        "target": device.target,
        "emulator": _version(device.emulator),
        "compiler": _version(device.compiler),
        "network": model.name,
        **_of_report(report),
        "draws": DRAWS,
        "relative": found.relative,
        "tolerance": tolerance.floats,
        "fault": found.fault,
        "took_s": round(time.monotonic() - start_s, 1),
    }


def _of_report(report: TuneReport) -> dict[str, Any]:
    return {
        "tasks": len(report.tasks),
        "tuned": sum(task.best_us is not None for task in report.tasks),
        "trials": report.trials,
        "failures": report.failures,
    }


def _version(tool: str) -> str:
    return subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    head = ["processor", "network", "kernels tuned", "trials", "failed", "outputs off by", "allowed", "equal"]
    return markdown(
        head,
        [
            [
                row["architecture"],
                row["network"],
                f"{row['tuned']} of {row['tasks']}",
                str(row["trials"]),
                str(sum(row["failures"].values())),
                f"{row['relative']:.1e}",
                f"{row['tolerance']:g}",
                "no: " + row["fault"] if row["fault"] else "yes",
            ]
            for row in rows
        ],
    )


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="A network that `chameleon tune` takes.")] = "resnet20_cifar10",
    processors: Annotated[str, typer.Option(help=f"Some of {', '.join(DEVICES)}.")] = ",".join(DEVICES),
    trials: Annotated[int, typer.Option(min=1, help="Trials for each processor.")] = 24,
    programs: Annotated[Path, typer.Option(help="Folder of the compiled runtimes, kept.")] = Path("build/emulated"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/emulated"),
) -> None:
    """Tune a network for emulated processors, run it there and compare its outputs."""
    names = names_of(processors, "processor", DEVICES)
    for name in names:
        if lacking := DEVICES[name].lacking():
            raise UsageError(f"emulating {name} needs {lacking}")
    network, rows, start_s = load_model(model), [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows.append(measure(DEVICES[name], network, trials, programs.resolve(), Path(folder) / name / "run"))
    out.mkdir(parents=True, exist_ok=True)
    arguments = {"model": model, "processors": names, "trials": trials}
    write_results(out, rows, table(rows), arguments, time.monotonic() - start_s)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
