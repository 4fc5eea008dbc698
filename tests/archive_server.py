"A server on this machine that plays an archive of files, with the faults that archives and connections have."
import dataclasses
import email.utils
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Archive:
    "What is served, how, and what was asked for"
    files: dict = field(default_factory=dict)  # bytes by name
    first: list = field(default_factory=list)  # (status, headers, body) that come before anything else
    states: bool = True  # the server names the state of a file, by ETag
    ranges: bool = True  # the server goes on in the middle
    announces: bool = True  # the server says how long the file is
    breaks_after: list = field(default_factory=list)  # bytes of each answer after which the connection breaks
    pause: float = 0  # seconds after each 16 kB
    asked: list = field(default_factory=list)  # (path, Range) of each question
    served: int = 0  # bytes of files
    answering: set = field(default_factory=set)  # threads that are sending
    address: str = ''

    def url(self, name): return f'{self.address}/{name}'

    def count_anew(self):
        "Forget what was served, once no answer to a client that has gone is under way"
        deadline = time.monotonic() + 10
        while self.answering and time.monotonic() < deadline: time.sleep(0.01)
        assert not self.answering
        self.served = 0


def handler_of(archive):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass

        def answer(self, status, headers, body=b''):
            self.send_response(status)
            for name, value in headers.items(): self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            archive.answering.add(threading.get_ident())
            try: self.send()
            finally: archive.answering.discard(threading.get_ident())

        def send(self):
            archive.asked.append((self.path, self.headers['Range']))
            if archive.first: return self.answer(*archive.first.pop(0))
            content = archive.files.get(self.path.rsplit('/', 1)[-1])
            if content is None: return self.answer(404, {})
            state = f'"{sha256(content).hexdigest()[:16]}"'
            start, same = 0, self.headers['If-Range'] in (None, state)
            if archive.ranges and self.headers['Range'] and same:
                start = int(self.headers['Range'].removeprefix('bytes=').rstrip('-'))
                if start >= len(content): return self.answer(416, {'Content-Range': f'bytes */{len(content)}'})
            headers = {'Content-Type': 'application/octet-stream', 'Date': email.utils.formatdate(usegmt=True)}
            if archive.states: headers['ETag'] = state
            if archive.announces: headers['Content-Length'] = str(len(content) - start)
            if start: headers['Content-Range'] = f'bytes {start}-{len(content)-1}/{len(content)}'
            end = start + archive.breaks_after.pop(0) if archive.breaks_after else len(content)
            self.answer(206 if start else 200, headers)
            for i in range(start, min(end, len(content)), 2**14):
                block = content[i:min(i + 2**14, end)]
                try: self.wfile.write(block)
                except OSError: return
                archive.served += len(block)
                time.sleep(archive.pause)
    return Handler


@contextmanager
def serving(**settings):
    "An archive on a free port"
    archive = Archive(**settings)
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler_of(archive))
    server.daemon_threads = True
    archive.address = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
    try: yield archive
    finally:
        server.shutdown()
        server.server_close()


def on_archive(model, archive, folder, hashed, prefix=''):
    "A published model whose files the archive serves from a folder; of those in `hashed` the sha256 is known"
    def local(file):
        content = (folder/file.name).read_bytes()
        archive.files[prefix + file.name] = content
        known = sha256(content).hexdigest() if file.name in hashed else None
        return dataclasses.replace(file, url=archive.url(prefix + file.name), sha256=known, n_bytes=None)
    test_files = {part: local(file) for part, file in model.test_files.items()}
    return dataclasses.replace(model, files=tuple(map(local, model.files)), test_files=test_files)
