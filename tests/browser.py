"""Helpers for tests that look at built pages in a real browser."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import pathlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pdf
import pytest


def executable() -> str:
    """Path of Chromium or Chrome. Without one the test is skipped, or fails if KDSEC_REQUIRE_BROWSER=1."""
    found = pdf.browser()
    if found is None:
        reason = f"no browser found (looked for {', '.join(pdf.BROWSERS)})"
        if os.environ.get("KDSEC_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serve(folder: pathlib.Path) -> Iterator[str]:
    """Serve ``folder`` on a free local port; gives the address, without a slash at its end."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Trouble:
    """What a page complained about, or asked for elsewhere, since it was opened."""

    home: str
    notes: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.notes.append(f"exception: {error}"))
        page.on("requestfailed", lambda request: self.notes.append(f"failed: {request.url}"))
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.notes.append(f"console {message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.home + "/", "data:", "blob:")):
            self.notes.append(f"outside host: {request.url}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.notes.append(f"status {response.status}: {response.url}")
