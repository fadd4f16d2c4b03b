"""Reading recorded landscapes: the formats agree, the rules of what is free hold, broken files say what is wrong."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.search.space import KnobSpace, option, split
from chameleon.search.trial import Status
from tuners.landscape import (
    Landscape,
    LandscapeError,
    LandscapeWarning,
    landscape_name,
    load_landscape,
    save_landscape,
)

DATA = Path(__file__).parents[1] / "data"


def by_values(landscape: Landscape) -> dict[tuple, tuple]:
    """What a landscape says, whatever its digits: values of a configuration to seconds and status."""
    out = {}
    for config, trial in zip(landscape.configs, landscape.measure(landscape.configs), strict=True):
        seconds = trial.seconds and round(trial.seconds, 12)
        out[tuple(landscape.space.values(config).items())] = (seconds, trial.status)
    return out


def cache(**changes) -> dict:
    """A hand-written Kernel Tuner cache: 2 x 3 points, one of which breaks a constraint (unlisted) and two fail."""
    entries = {
        "8,a": 2.0,
        "8,b": "CompilationFailedConfig",
        "2,a": 4.0,
        "2,b": 1.0,
        "16,b": "RuntimeFailedConfig",
    }
    listed = {key: {"x": int(key.split(",")[0]), "w": key.split(",")[1], "time": t} for key, t in entries.items()}
    params = {"x": [16, 2, 8], "w": ["a", "b"]}
    return {"kernel_name": "k", "tune_params_keys": ["x", "w"], "tune_params": params, "cache": listed, **changes}


def write(tmp_path: Path, document: object, name: str = "k.json") -> Path:
    path = tmp_path / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_formats_agree(name: str) -> None:
    cached, t4, lines = (load_landscape(DATA / f"{name}_{f}.gz") for f in ("cache.json", "t4.t4.json", "lines.jsonl"))
    assert by_values(cached) == by_values(t4) == by_values(lines)
    assert len(cached) > 200
    assert Status.RUN_ERROR in cached.statuses


def test_kernel_tuner_by_hand(tmp_path: Path) -> None:
    landscape = load_landscape(write(tmp_path, cache()))
    assert landscape.name == "k"
    assert [k.values for k in landscape.space.knobs] == [(2, 8, 16), ("a", "b")]
    assert landscape.configs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 1]]
    assert landscape.space.size == len(landscape) == 5
    assert landscape.best == 1e-3
    np.testing.assert_array_equal(landscape.values, [4e-3, 1e-3, 2e-3, np.nan, np.nan])
    trials = landscape.measure(landscape.configs)
    assert [t.status.value for t in trials] == ["ok", "ok", "ok", "build_error", "run_error"]
    assert trials[3].message == "CompilationFailedConfig"


def test_unlisted_is_outside_and_listed_failure_is_inside(tmp_path: Path) -> None:
    landscape = load_landscape(write(tmp_path, cache()))
    assert landscape.space.is_valid(np.array([[2, 0], [2, 1], [3, 0]])).tolist() == [False, True, False]
    unlisted, failed = landscape.measure(np.array([[2, 0], [2, 1]]))
    assert unlisted.status is Status.INVALID
    assert failed.status is Status.RUN_ERROR


@pytest.mark.parametrize(
    ("time", "status"),
    [
        ("InvalidConfig", Status.BUILD_ERROR),  # listed, so it costs a measurement like any other failure
        ("TimeoutFailedConfig", Status.TIMEOUT),
        ("SomethingElse", Status.RUN_ERROR),
        (1e20, Status.RUN_ERROR),
        (math.nan, Status.RUN_ERROR),
        (0.0, Status.RUN_ERROR),
    ],
)
def test_kernel_tuner_failures(tmp_path: Path, time: object, status: Status) -> None:
    document = cache()
    document["cache"]["8,a"]["time"] = time
    landscape = load_landscape(write(tmp_path, document))
    assert landscape.measure(np.array([[1, 0]]))[0].status is status


def t4_result(x: int, value: object, verdict: str = "correct", unit: str = "") -> dict:
    return {
        "configuration": {"x": x},
        "times": {},
        "invalidity": verdict,
        "correctness": 1,
        "measurements": [{"name": "power", "value": 7, "unit": "W"}, {"name": "time", "value": value, "unit": unit}],
    }


def test_t4_units_and_verdicts(tmp_path: Path) -> None:
    results = [
        t4_result(1, 3.0),
        t4_result(2, 5.0, unit="us"),
        t4_result(4, 1.0, "timeout"),
        t4_result(8, 1.0, "constraints"),
    ]
    results.append(t4_result(16, 0.5, "correctness"))
    landscape = load_landscape(write(tmp_path, {"schema_version": "1.0.0", "results": results}))
    np.testing.assert_allclose(landscape.values, [3e-3, 5e-6, np.nan, np.nan, np.nan])
    assert [s.value for s in landscape.statuses] == ["ok", "ok", "timeout", "build_error", "run_error"]
    seconds = {"metadata": {"timeunit": "seconds"}, "results": results[:1]}
    assert load_landscape(write(tmp_path, seconds)).best == 3.0


def test_autotvm_entities(tmp_path: Path) -> None:
    rows = [([d, b], 32 >> d, bool(b)) for d in (2, 0, 1) for b in (0, 1)]
    lines = [
        {"index": 0, "knobs": k, "entity": [["tile", "sp", [-1, f]], ["u", "ot", u]], "mean": 1e-3 * f, "error": None}
        for k, f, u in rows
    ]
    lines[0]["error"] = "crashed"
    landscape = load_landscape(write(tmp_path, "\n".join(json.dumps(line) for line in lines) + "\n", "a.jsonl"))
    assert landscape.space.knobs[0].values == ((1, 32), (2, 16), (4, 8))
    assert landscape.space.knobs[0].kind == "split"
    np.testing.assert_allclose(landscape.values, np.array([32, 32, 16, 16, np.nan, 8]) * 1e-3)


@st.composite
def landscapes(draw: st.DrawFn) -> Landscape:
    knobs = [
        split("s", draw(st.sampled_from([4, 12, 16])), 2),
        option("o", draw(st.sampled_from([("a", "b"), (1, 2, 5)]))),
    ]
    grid = np.array(list(np.ndindex(*(k.cardinality for k in knobs))), dtype=np.int64)
    rows = draw(st.lists(st.sampled_from(range(len(grid))), min_size=1, unique=True))
    times = [draw(st.one_of(st.just(math.nan), st.floats(1e-9, 1e3))) for _ in rows]
    times[0] = 1.5
    statuses = tuple(Status.RUN_ERROR if math.isnan(t) else Status.OK for t in times)
    messages = tuple("why \u2713" if math.isnan(t) else "" for t in times)
    return Landscape("x", KnobSpace(knobs, listed=grid[rows]), np.array(times), statuses, messages)


@settings(max_examples=40, deadline=None)
@given(landscape=landscapes(), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_save_and_load(tmp_path_factory: pytest.TempPathFactory, landscape: Landscape, suffix: str) -> None:
    path = tmp_path_factory.mktemp("save") / f"x{suffix}"
    save_landscape(landscape, path)
    again = load_landscape(path)
    assert again.space.fingerprint() == landscape.space.fingerprint()
    assert by_values(again) == by_values(landscape)
    assert sorted(again.messages) == sorted(landscape.messages)


def test_order_in_the_file_changes_nothing(tmp_path: Path) -> None:
    document = cache()
    turned = {**document, "cache": dict(reversed(document["cache"].items()))}
    one, other = load_landscape(write(tmp_path, document)), load_landscape(write(tmp_path, turned, "t.json"))
    np.testing.assert_array_equal(one.configs, other.configs)
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.t4.json.gz", "a"), ("a.json", "a"), ("a_v1.2.jsonl.gz", "a_v1.2"), ("plain", "plain"), (".json", ".json")],
)
def test_landscape_name(file: str, name: str) -> None:
    assert landscape_name(Path("folder.json") / file) == name


def test_repeated_configurations_keep_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, {"results": [t4_result(1, 3.0), t4_result(1, 1.0), t4_result(2, 9.0)]})
    with pytest.warns(LandscapeWarning, match="1 repeated"):
        landscape = load_landscape(path)
    np.testing.assert_allclose(landscape.values, [3e-3, 9e-3])


def test_torn_last_line_is_skipped(tmp_path: Path) -> None:
    text = gzip.decompress((DATA / "tiny_lines.jsonl.gz").read_bytes()).decode()
    path = write(tmp_path, text[:-20])
    with pytest.warns(LandscapeWarning, match="last line is cut short"):
        landscape = load_landscape(path)
    assert len(landscape) == len(text.splitlines()) - 2


def test_unclosed_kernel_tuner_cache_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(cache())[:-2] + ",\n")
    with pytest.warns(LandscapeWarning, match="never closed; using the 5 entries"):
        assert len(load_landscape(path)) == 5


HEADER = (
    '{"chameleon": 1, "kind": "landscape", "name": "n", '
    '"knobs": [{"name": "x", "kind": "option", "values": [1, 2]}]}\n'
)
TRIAL = '{"config": [0], "status": "ok", "seconds": 1e-3}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("hello\n", "no valid JSON"),
        ("[1, 2]", "holding a list"),
        ('{"a": 1}', r"an object with \['a'\]"),
        ({"results": []}, "none of its 0 configurations"),
        ({"results": [t4_result(1, "RuntimeFailedConfig", "runtime")]}, "none of its 1 configurations"),
        ({"results": [{"configuration": {"x": 1}}]}, "no measurement called 'time'"),
        ({"results": [{"times": {}}]}, "result 0: expected configuration.*'configuration' is missing"),
        ({"results": [t4_result(1, 3.0, unit="fortnights")]}, "unknown unit of time 'fortnights', known: s,"),
        ({"results": [t4_result(1, 3.0), {**t4_result(1, 3.0), "configuration": {"y": 1}}]}, r"one lacks 'x'"),
        (cache(cache={"8,a": {"x": 8, "time": 1.0}}), "entry '8,a': .*'w' is missing"),
        (cache(cache={"8,a": {"x": 8, "w": "a", "time": None}}), "entry '8,a'"),
        (json.dumps(cache())[:60], "no valid JSON"),
        (HEADER + "{oops}\n" + TRIAL, "line 2 is not valid JSON"),
        (HEADER + "[1]\n", "line 2: a JSON object expected, got a list"),
        (HEADER + TRIAL.replace("[0]", "[2]"), r"line 2: digits \(2,\) do not fit"),
        (HEADER + TRIAL.replace("[0]", "[0, 0]"), "line 2: digits"),
        (HEADER + TRIAL.replace('"ok"', '"fine"'), "line 2: .*'fine'"),
        (HEADER + TRIAL.replace('"seconds"', '"ms"'), "line 2: .*needs finite seconds"),
        (HEADER.replace(": 1,", ": 9,") + TRIAL, "format version 1 expected, got 9"),
        (HEADER.replace("option", "dial") + TRIAL, "the header: expected knobs .*'dial'"),
        (HEADER, "none of its 0 configurations"),
        ('{"chameleon": 1, "kind": "tuning", "target": "llvm"}\n' + TRIAL, "records of a tuning run"),
        ('{"i": [], "r": [], "v": 1}\n{"i": [], "r": [], "v": 1}\n', r"a line with \['i', 'r', 'v'\]"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path, content, "bad.json")
    with pytest.raises(LandscapeError, match=message) as caught:
        load_landscape(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_bad_bytes_say_what_is_wrong(tmp_path: Path) -> None:
    packed = (DATA / "tiny_cache.json.gz").read_bytes()
    damaged = packed[:1000] + bytes(200) + packed[1200:]
    for content, message in [(packed[:-100], "cut short"), (damaged, "gzip"), (b"\xff\xfe\x00", "got binary data")]:
        path = tmp_path / "bad.gz"
        path.write_bytes(content)
        with pytest.raises(LandscapeError, match=message):
            load_landscape(path)
    with pytest.raises(LandscapeError, match="No such file"):
        load_landscape(tmp_path / "missing.json")
    with pytest.raises(LandscapeError, match="Is a directory"):
        load_landscape(tmp_path)
