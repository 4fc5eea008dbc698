"""How fast the XML of all genes is read, and in how much memory, beside the bare parsers of Python.

A file of the shape of proteinatlas.xml.gz is made: entries with much about tissues and a little about cells, 1 GB once
it is unpacked. Each way of reading runs in a process of its own, which reports its largest memory: expat with empty
functions, iterparse with each entry cleared, all entries by this package, and two genes by this package.

    python benchmarks/atlas_xml.py [--gb 1]
"""
import argparse
import gzip
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from xml.etree.ElementTree import iterparse, tostring
from xml.parsers import expat

from hpa_fastai.atlas.entries import read_entries
from hpa_fastai.atlas.genes import entries_of_file
from hpa_fastai.atlas.small_site import entry_element

TISSUE = ('<data><tissue organ="Brain" ontologyTerms="UBERON:0001869">cerebral cortex</tissue><level type="expression">'
          'medium</level><tissueCell><cellType ontologyTerms="CL:0000115">endothelial cells</cellType><level '
          'type="staining">not detected</level><level type="intensity">negative</level></tissueCell><patient><sex>'
          'female</sex><age>45</age><patientId>2523</patientId><sample><assayImage><image><imageUrl>'
          'http://images.proteinatlas.org/1/2_A_1_3.jpg</imageUrl></image></assayImage></sample></patient></data>')


def write_file(path, n_bytes):
    "Write entries of about 600 kB each, as the atlas has them; return the bytes once unpacked"
    tissues = f'<tissueExpression source="HPA" technology="IHC">{TISSUE*600}</tissueExpression>'.encode()
    written, n = 0, 0
    with gzip.open(path, 'wb', compresslevel=4) as f:
        def add(text):
            nonlocal written
            written += len(text)
            f.write(text)
        add(b'<?xml version="1.0" encoding="UTF-8"?><proteinAtlas>')
        while written < n_bytes:
            n += 1
            shots = [(f'http://images.proteinatlas.org/{n}/10_A{k}_1', 'U2OS', ['cytosol']) for k in range(1, 10)]
            entry = entry_element(f'GENE{n}', f'ENSG{n:011}', {f'HPA{n:06}': shots})
            head, antibody = tostring(entry).split(b'<antibody ', 1)
            add(head + tissues + b'<antibody ' + antibody.replace(b'</antibody>', tissues + b'</antibody>'))
        add(b'</proteinAtlas>')
    return written, n


def bare_expat(path):
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: None
    parser.EndElementHandler = lambda name: None
    with gzip.open(path) as f: parser.ParseFile(f)


def bare_iterparse(path):
    with gzip.open(path) as f:
        for _, element in iterparse(f):
            if element.tag == 'entry': element.clear()


def all_entries(path): return sum(1 for _ in read_entries(path))
def two_genes(path): return len(entries_of_file(path, ['GENE1', 'GENE3']).entries)


def measure(way, path, results):
    began, used = time.perf_counter(), time.process_time()
    found = way(path)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)
    results.put((time.perf_counter() - began, time.process_time() - used, memory, found))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gb', type=float, default=1.)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'proteinatlas.xml.gz'
        n_bytes, n = write_file(path, args.gb*1e9)
        print(f'{n_bytes/1e6:.0f} MB of XML, {path.stat().st_size/1e6:.0f} MB compressed, {n} entries')
        print(f'{"way":16}{"MB/s":>8}{"MB/CPU s":>10}{"seconds":>9}{"memory, MB":>12}   found')
        results = multiprocessing.get_context('spawn').Queue()
        for way in (bare_expat, bare_iterparse, all_entries, two_genes):
            process = multiprocessing.get_context('spawn').Process(target=measure, args=(way, path, results))
            process.start()
            seconds, cpu, memory, found = results.get()
            process.join()
            speeds = f'{n_bytes/1e6/seconds:8.1f}{n_bytes/1e6/cpu:10.1f}'
            print(f'{way.__name__:16}{speeds}{seconds:9.1f}{memory:12.0f}   {found or ""}')
