"""The page in a real browser: nothing is said on its console, it fits a phone, and the served one follows its run."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from chameleon.page.facts import facts_of
from chameleon.page.html import render
from chameleon.page.serve import make_server
from tests.support.recorded_run import make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian's package: chromium)"),
]
SAID = re.compile(r"\bCONSOLE\b.*")


def look(folder: Path, url: str, *options: str) -> tuple[str, list[str]]:
    """Open an address; returns the document as the browser has it, and what came on its console."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it does not run for root
    done = subprocess.run(
        [
            *(str(BROWSER), "--headless=new", "--disable-gpu", "--enable-logging=stderr", *sandbox),
            *(f"--user-data-dir={folder / 'browser'}", "--no-first-run", *options, url),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, SAID.findall(done.stderr)


def page_in(folder: Path) -> str:
    path = folder / "page.html"
    path.write_text(render(facts_of(folder), folder))
    return path.as_uri()


def test_nothing_is_said_on_the_console(tmp_path: Path) -> None:
    url = page_in(make_run(tmp_path / "run", name="<script>alert(1)</script>"))
    document, said = look(tmp_path, url, "--dump-dom")
    assert not said
    assert document.count("<path") == 6
    assert "&lt;script&gt;alert(1)" in document


def test_the_console_is_heard_and_no_script_runs(tmp_path: Path) -> None:
    page_in(make_run(tmp_path / "run"))
    path = tmp_path / "run" / "page.html"
    script = "<script>document.title = 'changed'</script></body>"
    path.write_text(path.read_text().replace("</body>", script))
    document, said = look(tmp_path, path.as_uri(), "--dump-dom")
    assert "Content Security Policy" in "".join(said)
    assert "<title>run - Chameleon</title>" in document


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn_and_has_both_schemes(tmp_path: Path, scheme: str) -> None:
    url, shot = page_in(make_run(tmp_path / "run")), tmp_path / "shot.png"
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    _, said = look(tmp_path, url, f"--screenshot={shot}", "--window-size=900,1200", *dark)
    assert not said
    picture = np.asarray(matplotlib.image.imread(shot))[..., :3]
    corner = float(picture[:4, :4].mean())
    assert corner < 0.2 if scheme == "dark" else corner > 0.9
    green = np.array([11, 110, 79] if scheme == "light" else [76, 195, 138]) / 255
    assert (np.abs(picture - green).max(axis=-1) < 0.02).sum() > 500  # the curves and a part of the bar


def test_it_fits_a_phone(tmp_path: Path) -> None:
    """A frame as wide as a phone, in a page that says how wide its content is."""
    folder = make_run(tmp_path / "run", name="fused_" + "convolution_add_" * 20, message="build_error: " + "x" * 500)
    inside = html.escape(render(facts_of(folder), folder))
    measure = "document.title = 'wide ' + f.contentDocument.documentElement.scrollWidth + ' of ' + f.clientWidth"
    frame = f"""<iframe id="f" width="360" height="800" srcdoc="{inside}" onload="{measure}"></iframe>"""
    (folder / "phone.html").write_text(f"<!DOCTYPE html><title></title>{frame}")
    document, _ = look(tmp_path, (folder / "phone.html").as_uri(), "--dump-dom")
    wide, of = map(int, re.findall(r"<title>wide (\d+) of (\d+)", document)[0])
    assert wide <= of == 360


def test_the_served_page_says_nothing_either(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ended=False)
    with make_server(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        document, said = look(tmp_path, f"http://127.0.0.1:{server.server_address[1]}/", "--dump-dom")
        server.shutdown()
        thread.join()
    assert not said
    assert 'class="state interrupted"' in document
