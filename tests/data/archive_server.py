"""A web server on 127.0.0.1 that serves one file, honestly or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server does; every request is noted in ``ranges`` (its Range header or '')."""

    content: bytes
    ranges_served: bool = True  # answers a Range with 206
    break_after: list[int] = field(default_factory=list)  # body bytes sent per request, then cut
    announced: int | None = None  # a lie about the total length
    without_length: bool = False
    chunked: bool = False  # in pieces of stated length, as pages made on request are sent
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    wrong_range: bool = False
    ranges: list[str] = field(default_factory=list)
    url: str = ''


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[Behaviour]:
    class Handler(BaseHTTPRequestHandler):
        # By default the connection's end is the body's end.
        protocol_version = 'HTTP/1.1' if behaviour.chunked else 'HTTP/1.0'

        def do_GET(self) -> None:
            asked = self.headers.get('Range', '')
            behaviour.ranges.append(asked)
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            total = len(behaviour.content) if behaviour.announced is None else behaviour.announced
            start = int(asked.removeprefix('bytes=').rstrip('-')) if asked else 0
            if asked and behaviour.ranges_served and start >= len(behaviour.content):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(behaviour.content)}')
                self.end_headers()
                return
            if asked and behaviour.ranges_served:
                self.send_response(206)
                stated = start + 1 if behaviour.wrong_range else start
                self.send_header('Content-Range', f'bytes {stated}-{total - 1}/{total}')
            else:
                start = 0
                self.send_response(200)
            self.send_header('Connection', 'close')
            if behaviour.chunked:
                self.send_header('Transfer-Encoding', 'chunked')
            elif not behaviour.without_length:
                self.send_header('Content-Length', str(total - start))
            self.end_headers()
            body = behaviour.content[start:]
            if behaviour.break_after:
                cut = behaviour.break_after.pop(0)
                self.wfile.write(b'%x\r\n' % len(body) * behaviour.chunked + body[:cut])
                return
            if behaviour.chunked:
                body = b'%x\r\n%b\r\n0\r\n\r\n' % (len(body), body)
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    behaviour.url = f'http://127.0.0.1:{server.server_address[1]}/archive.zip'
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
