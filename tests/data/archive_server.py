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
    etag: str = ''
    if_range: bool = True  # answers a Range of another ETag with the whole file
    redirects: list[str] = field(default_factory=list)  # addresses answered first, one a request
    content_type: str = ''
    stall_after: list[int] = field(default_factory=list)  # body bytes sent per request, then quiet
    files: dict[str, bytes] = field(default_factory=dict)  # served instead, by name
    ranges: list[str] = field(default_factory=list)
    url: str = ''  # of the folder: any name below it is the one file, or one of ``files``
    done: threading.Event = field(default_factory=threading.Event)


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
            if behaviour.redirects:
                self.send_response(302)
                self.send_header('Location', behaviour.redirects.pop(0))
                self.end_headers()
                return
            content = behaviour.files.get(self.path.rpartition('/')[2], behaviour.content)
            if (
                behaviour.if_range
                and self.headers.get('If-Range', behaviour.etag) != behaviour.etag
            ):
                asked = ''
            total = len(content) if behaviour.announced is None else behaviour.announced
            start = int(asked.removeprefix('bytes=').rstrip('-')) if asked else 0
            if asked and behaviour.ranges_served and start >= len(content):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(content)}')
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
            for name, value in (('ETag', behaviour.etag), ('Content-Type', behaviour.content_type)):
                if value:
                    self.send_header(name, value)
            if behaviour.chunked:
                self.send_header('Transfer-Encoding', 'chunked')
            elif not behaviour.without_length:
                self.send_header('Content-Length', str(total - start))
            self.end_headers()
            body = content[start:]
            if not behaviour.chunked and not behaviour.without_length:
                body = body[: max(0, total - start)]
            if behaviour.stall_after:
                self.wfile.write(body[: behaviour.stall_after.pop(0)])
                self.wfile.flush()
                behaviour.done.wait()
                return
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
    behaviour.url = f'http://127.0.0.1:{server.server_address[1]}/files'
    try:
        yield behaviour
    finally:
        behaviour.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
