"""The command `chameleon report`: a page about a run, as a file or served while the run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from chameleon.errors import UsageError
from chameleon.files import check_writable
from chameleon.store.place import Place


@dataclass(frozen=True)
class ReportRequest:
    """What `chameleon report` was asked for."""

    source: Place  # a folder, or a store
    store: Place | None = None  # where the records of the folder's runs are; None: in the folder
    output: Path | None = None  # None: report.html in the folder or here, unless the page is served
    json_out: Path | None = None
    serve: bool = False
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free


def run_report(request: ReportRequest, console: Console) -> None:
    """Write the page and its figures, and serve the page until Ctrl-C where that was asked for.

    Raises:
        UsageError: if the folder holds no run, or a file cannot be written.
    """
    from chameleon.page.facts import facts_of, to_json
    from chameleon.page.html import render

    runs = facts_of(request.source, request.store)
    folder = request.source if isinstance(request.source, Path) else Path()
    output = request.output or (None if request.serve else folder / "report.html")
    if output is not None and output.is_dir():
        raise UsageError(f"{output} is a folder; give a file, such as -o {output / 'report.html'}")
    for path in (output, request.json_out):
        check_writable(path)
    if output is not None:
        output.write_text(render(runs, request.source))
        console.print(f"wrote {output}", highlight=False, soft_wrap=True)
    if request.json_out is not None:
        request.json_out.write_text(json.dumps(to_json(runs), indent=1) + "\n")
    if request.serve:
        _serve(request, console)


def _serve(request: ReportRequest, console: Console) -> None:
    from chameleon.page.serve import make_server

    with make_server(request.source, request.host, request.port, request.store) as server:
        host = f"[{request.host}]" if ":" in request.host else request.host
        console.print(f"the page is at http://{host}:{server.server_address[1]}/; Ctrl-C ends", highlight=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("ended", highlight=False)
