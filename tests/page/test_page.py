"""The page: what it shows is the data, nothing of a file is markup, and it needs nothing from elsewhere."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon.cli import main
from chameleon.jobs.zoo_state import EntryState, write_state
from chameleon.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, chart, nice
from chameleon.page.facts import Point, facts_of
from chameleon.page.html import render
from chameleon.page.serve import make_server
from chameleon.wording import time_text
from tests.support.recorded_run import make_run

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>{{ 7*7 }}"
VOID = {"meta", "link", "img", "line", "path", "circle"}


class Page(HTMLParser):
    """The elements of a page with their attributes, its text, and the text of elements by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(dict(attrs).get("class") or tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def of(self, name: str) -> list[str]:
        return [text for where, text in self.texts if name in where.split()]


def page_of(folder: Path) -> str:
    return render(facts_of(folder), folder)


def test_the_json_has_the_figures_of_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder), "--json", str(tmp_path / "facts.json")]) == 0
    page = Page((folder / "report.html").read_text())
    (run,) = json.loads((tmp_path / "facts.json").read_text())["runs"]
    assert page.of("trials") == [str(run["trials"])]
    assert page.of("together") == [time_text(run["curve"][-1]["us"] / 1e3)]
    assert page.of("latency") == [time_text(run["latency_ms"]["tuned"])]
    assert page.of("best") == [time_text(t["best_us"] / 1e3) for t in run["tasks"]]
    for name, spent in run["time"].items():
        assert page.of(f"{name}-is") == [f"{spent:.1f} s"]
    text = " ".join(text for _, text in page.texts)
    for failure in run["failures"]:
        assert f"{failure['task']}: {failure['first']}" in text
    for word in (*run["warnings"], run["outputs"], run["target"], run["manifest"]["cpu"]):
        assert word in text


@pytest.mark.parametrize("ended", [True, False])
def test_nothing_of_a_file_is_markup(tmp_path: Path, ended: bool) -> None:
    folder = make_run(tmp_path / "plain", ended=ended)
    evil = make_run(tmp_path / "evil", model=EVIL, name=EVIL, message=f"build_error: {EVIL}", ended=ended)
    plain_page, evil_page = Page(page_of(folder)), Page(page_of(evil))
    assert [tag for tag, _ in evil_page.elements] == [tag for tag, _ in plain_page.elements]
    assert not any(name.startswith("on") for _, attrs in evil_page.elements for name in attrs)
    assert EVIL in " ".join(text for _, text in evil_page.texts)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_name_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    folder = make_run(tmp_path / "run", model=text)
    (folder / "trials.jsonl").unlink()
    page = Page(page_of(folder))
    assert ("section", {"id": "run-1", "data-model": text}) in page.elements


def test_it_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "memory.png").write_bytes(b"\x89PNG")
    page = Page(page_of(folder))
    links = [a[name] or "" for _, a in page.elements for name in ("src", "href") if name in a]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "data:image/png;base64,iVBORw==" in links
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert not re.search(r"url\(|@import|https?://", page_of(folder))


def test_a_zoo_has_a_row_for_each_run(tmp_path: Path) -> None:
    for name in ("b", "a"):
        make_run(tmp_path / name, model=f"net {name}", ended=name == "a")
    page = Page(page_of(tmp_path))
    assert page.of("a")[:2] == ["a", "b"]
    assert [a["data-model"] for tag, a in page.elements if tag == "section"] == ["net a", "net b"]
    assert page.of("finished")[0] == "finished"
    assert page.of("interrupted")[0] == "interrupted"


def test_records_that_cannot_be_read_are_named_and_the_others_are_shown(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, model=f"net {name}")
    with (tmp_path / "a" / "trials.jsonl").open("a") as stream:
        stream.write("no record\n")
    page = Page(page_of(tmp_path))
    assert [a["data-model"] for tag, a in page.elements if tag == "section"] == ["net a", "net b"]
    (problem,) = page.of("problem")
    assert str(tmp_path / "a" / "trials.jsonl") in problem
    assert page.of("trials") == ["0", "7"]


def test_a_zoo_shows_what_waits_and_what_failed(tmp_path: Path) -> None:
    make_run(tmp_path / "b", model="net b")
    states = [("net b", "b", "finished", ""), ("net a", "a", "failed", "no such file"), ("net c", "c", "running", "")]
    write_state(tmp_path, [EntryState(model, "llvm", *rest) for model, *rest in states])
    page = Page(page_of(tmp_path))
    assert page.of("a")[:3] == ["b", "a", "c"]
    assert page.of("problem") == ["no such file"]
    assert [page.of(state)[0] for state in ("finished", "failed", "interrupted")]  # no process holds the zoo's lock
    (tmp_path / "zoo.json").write_text('{"entries": [{"model": 3}, 4]}')
    sections = [a for tag, a in Page(page_of(tmp_path)).elements if tag == "section"]
    assert [a["data-model"] for a in sections] == ["net b"]


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder), "-o", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


@given(
    steps=st.lists(st.tuples(st.integers(1, 9), st.floats(0.0, 1e4), st.floats(1e-3, 1e7)), min_size=1, max_size=20),
    over_time=st.booleans(),
)
def test_every_curve_stays_in_its_box(steps: list[tuple[int, float, float]], over_time: bool) -> None:
    trials = elapsed_s = 0.0
    curve = []
    for more, seconds, us in steps:
        trials, elapsed_s = trials + more, elapsed_s + seconds
        curve.append(Point(int(trials), elapsed_s, us))
    drawn = chart(curve, over_time=over_time)
    assert drawn is not None
    xs = [float(x) for x in re.findall(r"[MH]([-\d.e]+)", drawn.path)] + [t.at for t in drawn.xs]
    ys = [float(y) for y in re.findall(r"(?:V|M[-\d.e]+ )([-\d.e]+)", drawn.path)] + [t.at for t in drawn.ys]
    assert all(LEFT - 0.01 <= x <= WIDTH - RIGHT + 0.01 for x in xs)
    assert all(TOP - 0.01 <= y <= HEIGHT - BOTTOM + 0.01 for y in ys)
    assert len(drawn.ys) <= 7
    assert len(drawn.xs) <= 6


def test_no_point_no_curve() -> None:
    assert chart([], over_time=True) is None


def test_nice_numbers() -> None:
    assert nice(0.0, 33.5, 4) == [0, 10, 20, 30]
    assert nice(0.18, 0.28, 4) == [0.2, 0.25]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A run that was killed, and the port where its page is served."""
    folder = make_run(tmp_path / "run", ended=False)
    with make_server(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_served_page_is_read_anew_and_asks_again(served: tuple[Path, int]) -> None:
    folder, port = served
    status, text = get(port, "/")
    assert status == 200
    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in Page(text).elements
    assert json.loads(get(port, "/report.json")[1])["runs"][0]["state"] == "interrupted"
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "finished": True}))
    assert ("meta", {"http-equiv": "refresh", "content": "60"}) in Page(get(port, "/?x=1")[1]).elements
    (folder / "run.json").unlink()
    status, text = get(port, "/")
    assert status == 500
    assert "is not the folder of a run" in text


def test_only_the_page_is_served_and_only_by_its_own_name(served: tuple[Path, int]) -> None:
    _, port = served
    assert get(port, "/trials.jsonl")[0] == 404
    assert get(port, "/../run.json")[0] == 404
    assert get(port, "/", host=f"evil.example:{port}")[0] == 403
    assert get(port, "/", host=f"localhost:{port}")[0] == 200


def test_the_other_internet_protocol(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    folder = make_run(tmp_path / "run")
    with make_server(folder, "::1", 0) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        connection = http.client.HTTPConnection("::1", server.server_address[1], timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        thread.join()


def test_an_address_that_is_taken(served: tuple[Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    folder, port = served
    assert main(["report", str(folder), "--serve", "--port", str(port)]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
