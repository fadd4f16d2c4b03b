"""Serves the page, read anew for every visitor, to this machine only unless told otherwise."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from chameleon.errors import ChameleonError, UsageError
from chameleon.page.facts import facts_of, to_json
from chameleon.page.html import POLICY, render
from chameleon.store.place import Place

REFRESH_S, FINISHED_REFRESH_S = 5, 60
"""How often a browser asks again, while a run goes on and after that: a finished run may be given more trials."""


def make_server(source: Place, host: str, port: int, store: Place | None = None) -> ThreadingHTTPServer:
    """A server of the page at `/` and of its figures at `/report.json`; it listens, and `serve_forever` answers.

    A page of the internet that a browser here shows may not read it: a request must name this server by an address
    or as localhost (DNS rebinding).

    Raises:
        UsageError: if the address cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not _is_own_name(self.headers.get("Host", ""), host):
                self._answer(HTTPStatus.FORBIDDEN, "text/plain", "ask for this page by the server's address\n")
                return
            pages: dict[str, tuple[str, Callable[[], str]]] = {
                "/": ("text/html", lambda: page_of(source, store)),
                "/report.json": ("application/json", lambda: json.dumps(to_json(facts_of(source, store)))),
            }
            kind, make = pages.get(self.path.partition("?")[0], ("", None))
            if make is None:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there are / and /report.json\n")
                return
            try:
                self._answer(HTTPStatus.OK, kind, make())
            except (ChameleonError, OSError) as error:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n")

        def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Visits are not news."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error}); give another --host or --port") from error


def page_of(source: Place, store: Place | None = None) -> str:
    """The page that refreshes itself."""
    runs = facts_of(source, store)
    ended = all(run.state in ("finished", "failed") for run in runs)
    return render(runs, source, refresh_s=FINISHED_REFRESH_S if ended else REFRESH_S)


def _is_own_name(given: str, host: str) -> bool:
    name = given.rpartition(":")[0] if given.rpartition(":")[2].isdigit() else given
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name in ("localhost", host)
    return True
