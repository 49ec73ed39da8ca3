"""A CONNECT proxy on loopback that is every host it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from stand_in.certificates import Authority
from stand_in.rest import Request, Response

Answer = Callable[[Request], Response]


class Proxy:
    """The proxy, listening from `start` to `stop`; `answer` gets every request of every host."""

    def __init__(self, authority: Authority, answer: Answer) -> None:
        handler = type("Handler", (_Handler,), {"authority": authority, "answer": staticmethod(answer)})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that hangs up is no error of the stand-in's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one piece: otherwise every answer waits for the client's delayed ACK.
    wbufsize = -1
    authority: Authority
    answer: Answer
    host = ""

    def do_CONNECT(self) -> None:
        self.host = self.path.rpartition(":")[0].lower()
        self.send_response_only(200, "Connection established")
        self.end_headers()
        self.wfile.flush()
        tls = self.authority.context(self.host).wrap_socket(self.connection, server_side=True)
        self.connection = tls
        self.rfile, self.wfile = tls.makefile("rb"), tls.makefile("wb")
        self.close_connection = False

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            host=self.host or (parts.hostname or ""),
            path=parts.path,
            query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers=cast("Mapping[str, str]", self.headers),
            body=self._body(),
        )
        response = self.answer(request)
        content, content_type = response.content()
        headers = {"Content-Type": content_type, "Content-Length": str(len(content))} | dict(response.headers)
        self.send_response_only(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the stand-in keeps its own log, without the secrets that URLs carry."""
