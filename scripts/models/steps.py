#!/usr/bin/env python3
"""Take models through Chameleon's steps, and compare each artifact with ONNX Runtime or PyTorch.

    python -m scripts.models.steps tests/data/models/encoder.onnx [--trials 4] [--json]

The steps are those that people take: import, tune, compile, compile for little memory, memory, bench. A step is
- right: it ended well, and what it made computes the model's outputs;
- refused: it ended with a message for people;
- wrong: it ended well, and the outputs are not the model's;
- traceback: anything else.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from chameleon.cli import guarded
from chameleon.cli import main as chameleon
from chameleon.errors import ChameleonError
from scripts.common.capture import captured, text_of
from scripts.models.cases import STEPS, Case, read_cases
from scripts.models.reference import Reference, reference, tolerance, wrong

Status = Literal["right", "refused", "wrong", "traceback"]
MEMORY_LIMIT_S = 5
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])


@dataclass(frozen=True)
class Outcome:
    """How a step ended, why, and how long it took."""

    status: Status
    reason: str
    seconds: float

    def unlike(self, expected: str | None) -> str:
        """In what it differs from what is expected, a part of a refusal's reason or None; empty if in nothing."""
        if expected is None:
            return "" if self.status == "right" else f"{self.status}: {self.reason}"
        if self.status == "refused":
            return "" if expected in self.reason else f"refused, but not for {expected!r}: {self.reason}"
        return f"expected a refusal for {expected!r}, got {self.status}: {self.reason}"


@app.command()
def main(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Files that `cases.yaml` knows.")],
    trials: Annotated[int, typer.Option(help="Measurements of `tune`.", min=1)] = 4,
    steps: Annotated[str, typer.Option(help="Only these, separated by commas.")] = ",".join(STEPS),
    json_lines: Annotated[bool, typer.Option("--json", help="A JSON object for each step.")] = False,
) -> None:
    """Run the steps and print how each ended."""
    cases = read_cases()
    for model in models:
        case = cases.get(model.name) or Case("a file of one's own")
        with tempfile.TemporaryDirectory(prefix="chameleon-models-") as folder:
            for step, outcome in each_step(model, case, Path(folder), trials, steps.split(",")):
                if json_lines:
                    print(json.dumps({"model": model.name, "step": step, **asdict(outcome)}), flush=True)
                    continue
                other = outcome.unlike(case.expect[step])
                text = f"{model.name} {step}: {outcome.status} {outcome.reason} ({outcome.seconds:.1f} s)"
                print(text + " UNEXPECTED" * bool(other), flush=True)


def run_steps(path: Path, case: Case, folder: Path, trials: int) -> dict[str, Outcome]:
    """All steps of a model, in a folder of their own."""
    return dict(each_step(path, case, folder, trials))


def each_step(
    path: Path, case: Case, folder: Path, trials: int, steps: Sequence[str] = STEPS
) -> Iterator[tuple[str, Outcome]]:
    """The steps one after the other; what a step makes the later ones use."""
    known = reference(path, case)
    run = folder / "run"
    for step in steps:
        if step == "import":
            yield step, _timed(lambda: _imported(path, case, known))
            continue
        arguments, artifact = _command(step, path, folder, run, trials)
        check = _checker(step, case, known, artifact)
        yield step, _timed(lambda a=arguments, c=check: _called((*a, *case.arguments), c))


def _command(step: str, path: Path, folder: Path, run: Path, trials: int) -> tuple[tuple[str, ...], Path | None]:
    """The command line of a step, and the library that it writes."""
    model, out = str(path), ("--out", str(run))
    plain, lean = folder / "plain.so", folder / "lean.so"
    commands: dict[str, tuple[tuple[str, ...], Path | None]] = {
        "tune": (("tune", model, "--trials", str(trials), "--searcher", "random", *out), run / "network.so"),
        "compile": (("compile", model, "-o", str(plain), *out), plain),
        "memory_aware": (("compile", model, "--memory-aware", "-o", str(lean), *out), lean),
        "memory": (("memory", model, "--time-limit", str(MEMORY_LIMIT_S)), None),
        "bench": (("bench", model, *out, "--against", "onnxruntime"), None),
    }
    return commands[step]


def _checker(step: str, case: Case, known: Reference, artifact: Path | None) -> Callable[[str], str]:
    """What is wrong after a step that ended well, from what it said and made; empty if nothing is."""
    allowed = tolerance(case, [*known.inputs.values(), *known.outputs[0]])

    def library(_: str) -> str:
        import tvm

        assert artifact is not None
        if not artifact.exists():
            return f"{artifact.name} was not written"
        return wrong(case, known, tvm.runtime.load_module(str(artifact)))

    def printed(text: str) -> str:
        found = re.search(r"outputs differ by (\S+) at most, (\S+) of the largest", text)
        return "" if found is None or float(found[2]) <= allowed else found[0]

    return library if artifact else printed if step == "memory" else lambda _: ""


def _imported(path: Path, case: Case, known: Reference) -> tuple[Status, str]:
    """Load it, and run it as plain TVM builds it."""
    import tvm

    from chameleon.models.load import load_model

    with captured(1, 2):
        try:
            model = load_model(str(path), input_shape=known.open_shapes or None)
        except ChameleonError as error:
            return "refused", str(error)
        inputs = [(i.name, i.shape, i.dtype) for i in model.inputs]
        given = [(name, a.shape, str(a.dtype)) for name, a in known.inputs.items()]
        if [i[1:] for i in inputs] != [g[1:] for g in given]:
            return "wrong", f"inputs {inputs}, expected {given}"
        why = wrong(case, known, tvm.compile(model.mod, tvm.target.Target("llvm")))
    return ("wrong", why) if why else ("right", "")


def _called(arguments: Sequence[str], check: Callable[[str], str]) -> tuple[Status, str]:
    """Call the command line in this process and judge how it ended."""
    with captured(1, 2) as said:
        code = chameleon([*arguments])
        text = text_of(said)
    if "Traceback" in text:
        return "traceback", _last_line(text)
    if code:
        return _refusal(text, code)
    why = check(text)
    return ("wrong", why) if why else ("right", "")


def _refusal(text: str, code: int) -> tuple[Status, str]:
    lines = [line.strip() for line in text.splitlines()]
    said = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if said:
        return "refused", said[-1]
    boxed = [line.strip("│ ") for line in lines if line.startswith("│")]  # typer's word on wrong usage
    if code == 2 and boxed:
        return "refused", " ".join(boxed)
    return "traceback", f"exit code {code} without a message: {_last_line(text)}"


def _timed(step: Callable[[], tuple[Status, str]]) -> Outcome:
    started = time.perf_counter()
    try:
        status, reason = step()
    except Exception as error:  # what people would see as a traceback
        text = [line for line in str(error).splitlines() if line.strip()][:1]  # TVM's go on with a whole program
        status, reason = "traceback", f"{type(error).__name__}: {' '.join(text)[:300]}"
    return Outcome(status, " ".join(reason.split()), round(time.perf_counter() - started, 2))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
