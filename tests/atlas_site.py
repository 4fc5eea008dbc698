"A server on this machine that plays the Human Protein Atlas, with its faults, and counts who asks for what."
import gzip
import io
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.etree.ElementTree import tostring

import numpy as np
from PIL import Image

from hpa_fastai.atlas.small_site import COLOURS, entry_element


@dataclass
class Atlas:
    "What is served, and what was asked for"
    files: dict = field(default_factory=dict)  # bytes by path
    first: dict = field(default_factory=dict)  # by path: (status, headers, body) that come before anything else
    genes: list = field(default_factory=list)  # of the search: symbol, Ensembl id, older symbols
    withdrawn: set = field(default_factory=set)  # antibodies whose TIFF are answered with 400
    pause: float = 0  # seconds before each picture
    asked: list = field(default_factory=list)  # (method, path, User-Agent) of each question
    open: int = 0  # questions that wait for their answer
    most_open: int = 0
    address: str = ''
    lock: threading.Lock = field(default_factory=threading.Lock)

    def paths(self, method='GET', part='/images/'):
        "What was asked for, in order"
        return [path for how, path, _ in self.asked if how == method and part in path]

    def url(self, name): return f'{self.address}/images/{name}'

    def add_gene(self, symbol, ensembl, antibodies, older=()):
        "Serve the entry of a gene; antibodies: by name, a list of (name of the field, cell line, locations)"
        shots = {name: [(self.url(f), line, locations) for f, line, locations in o] for name, o in antibodies.items()}
        entry = entry_element(symbol, ensembl, shots, older)
        self.files[f'/{ensembl}.xml'] = b'<proteinAtlas>' + tostring(entry) + b'</proteinAtlas>'
        self.genes.append((symbol, ensembl, list(older)))
        for name in {f for o in antibodies.values() for f, *_ in o}: self.add_pictures(name)
        return entry

    def add_pictures(self, name):
        "Serve the four channels of a field of view, as coloured JPG and as TIFF of 16 bits"
        for k, colour in enumerate(COLOURS):
            seed = sum(map(ord, name)) * 10 + k
            grey = np.random.default_rng(seed).integers(20, 200, (8, 8))
            grey = grey.repeat(6, 0).repeat(6, 1).astype(np.uint16)
            coloured = Image.fromarray((grey[..., None] * np.array(COLOURS[colour])).astype(np.uint8))
            self.files[f'/images/{name}_{colour}.jpg'] = content(coloured, 'JPEG')
            self.files[f'/images/{name}_{colour}.tif.gz'] = gzip.compress(content(Image.fromarray(grey * 257), 'TIFF'))

    def all_xml(self):
        "The file of all genes"
        entries = [o.removeprefix(b'<proteinAtlas>').removesuffix(b'</proteinAtlas>') for path, o in self.files.items()
                   if path.endswith('.xml')]
        return b'<proteinAtlas>' + b''.join(entries) + b'</proteinAtlas>'


def content(picture, kind):
    "The bytes of a picture"
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def handler_of(atlas):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'  # connections stay open
        def log_message(self, *args): pass

        def handle(self):
            try: super().handle()
            except OSError: pass  # the client was killed

        def answer(self, status, headers=(), body=b''):
            with atlas.lock: atlas.open -= 1  # before the client can ask the next question
            self.send_response(status)
            for header in {'Content-Length': str(len(body)), **dict(headers)}.items(): self.send_header(*header)
            self.end_headers()
            if self.command != 'HEAD': self.wfile.write(body)

        def do_HEAD(self): self.do_GET()

        def do_GET(self):
            path = urlsplit(self.path).path
            with atlas.lock:
                atlas.open += 1
                atlas.most_open = max(atlas.most_open, atlas.open)
                atlas.asked.append((self.command, path, self.headers['User-Agent']))
                special = atlas.first.get(path)
                special = special.pop(0) if special else None
            if special: return self.answer(*special)
            if path == '/api/search_download.php':
                word = parse_qs(urlsplit(self.path).query)['search'][0].lower()
                rows = [{'Gene': symbol, 'Ensembl': ensembl, 'Gene synonym': older}
                        for symbol, ensembl, older in atlas.genes
                        if any(word in name.lower() for name in (symbol, ensembl, *older))]
                return self.answer(200, {'Content-Type': 'application/json'}, json.dumps(rows).encode())
            if '/images/' in path and self.command == 'GET': time.sleep(atlas.pause)
            if path.startswith('/images/') and path.endswith('.tif.gz'):  # they lie elsewhere
                if path.split('/')[2] in atlas.withdrawn: return self.answer(400)
                return self.answer(302, {'Location': path.replace('/images/', '/stored/')})
            path = path.replace('/stored/', '/images/')
            body = atlas.files.get(path)
            self.answer(404) if body is None else self.answer(200, {'ETag': f'"{hash(body)}"'}, body)
    return Handler


@contextmanager
def serving():
    "An empty atlas on a free port"
    atlas = Atlas()
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler_of(atlas))
    server.daemon_threads = True
    atlas.address = f'http://127.0.0.1:{server.server_port}'
    atlas.files['/about/licence'] = b'under the <a>Creative Commons Attribution-ShareAlike 3.0</a> License'
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    try: yield atlas
    finally:
        server.shutdown()
        server.server_close()


def add_two_genes(atlas):
    "Two genes with four antibodies: eight fields of view in three spellings of two cell lines, one with a suffix"
    one = {'HPA000001': [('1/10_A1_1', 'U2OS', ['cytosol']), ('1/10_A1_2', 'U-2 OS', ['cytosol', 'vesicles'])],
           'HPA000002': [('2/11_B2_1', 'A-431', ['nucleoli rim']), ('2/11_B2_2_cr5af971a', 'A-431', ['Nucleoli'])]}
    two = {'HPA000003': [('3/12_C3_1', 'u-2os', ['plasma membrane']), ('3/12_C3_2', 'U-2 OS', ['midbody ring'])],
           'CAB000004': [('4/if13_D4_1', 'A431', ['golgi apparatus']), ('4/if13_D4_2', 'A-431', ['golgi apparatus'])]}
    atlas.add_gene('GENE1', 'ENSG00000000001', one, older=('OLD1', 'OLDER'))
    atlas.add_gene('GENE2', 'ENSG00000000002', two, older=('OLD2', 'OLDER'))
    return atlas
