"A page that is served on this computer, with a small model, its data, and a run of predictions."
import socket
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

import hpa_fastai

pytest.importorskip('gradio')


@pytest.fixture(scope='session')
def predicted(small_atlas, trained, tmp_path_factory):
    "The table and the embeddings of a run on the small atlas"
    folder = tmp_path_factory.mktemp('run')
    table, embeddings = folder/'run.csv', folder/'run.npy'
    hpa_fastai.predict(small_atlas/'train', trained[1], out=table, embeddings=embeddings, progress=False)
    return table, embeddings


@pytest.fixture(scope='session')
def open_page(small_atlas, trained, tmp_path_factory):
    "Opens pages, and closes them at the end of the tests"
    from contextlib import ExitStack
    from hpa_fastai.app.page import make_state, private_folder, serve
    with ExitStack() as stack:
        home = stack.enter_context(private_folder())  # Gradio knows one folder for all uploads of a process
        def open_one(folder=None, images=None, out=None, serving=None, **settings):
            usual = dict(model=str(trained[1]), data=small_atlas, group='antibody', user='anna')
            settings = {**usual, **settings}
            out = out or tmp_path_factory.mktemp('out')
            state = make_state(home, folder=folder, images=images, out=out, **settings)
            with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
            # pages that several processes open at once would all want the first free one from 7860 on
            url = stack.enter_context(serve(state, port=port, **(serving or {})))
            return SimpleNamespace(url=url.rstrip('/'), state=state, home=home)
        yield open_one


@pytest.fixture(scope='session')
def page(open_page, predicted, small_atlas):
    "A page with a model, a run and data to train on"
    return open_page(predicted[0], small_atlas/'train', embeddings=predicted[1])


@pytest.fixture(scope='session')
def ask():
    "Sends a request to a page; returns the status and the text of the answer"
    def send(url, data=None, method=None, **headers):
        request = urllib.request.Request(url, data, {k.replace('_', '-'): v for k, v in headers.items()}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read().decode('utf-8', 'replace')
        except urllib.error.HTTPError as e: return e.code, e.read().decode('utf-8', 'replace')
    return send
