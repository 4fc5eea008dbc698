"A real browser for the tests of pages: Chromium without a window, spoken to through its driver."
import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path


def find_browser():
    "Chromium (or Chrome) and its driver; None where one of them is missing"
    first = lambda *names: next((p for n in names if (p := shutil.which(n))), None)
    found = first('chromium', 'chromium-browser', 'google-chrome'), first('chromedriver')
    return found if all(found) else None


class Browser:
    def __init__(self, chromium, driver):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        self.process = subprocess.Popen(
            [driver, f'--port={port}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.base = f'http://127.0.0.1:{port}'
        options = dict(
            binary=chromium,
            args=[
                '--headless=new',
                '--no-sandbox',
                '--disable-gpu',
                '--disable-dev-shm-usage',
                '--window-size=1200,900',
            ],
        )
        for _ in range(100):
            try: self._call('GET', '/status')
            except OSError: time.sleep(.1)
            else: break
        always = {'browserName': 'chrome', 'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}
        self.base += (
            '/session/' + self._call('POST', '/session', dict(capabilities=dict(alwaysMatch=always)))['sessionId']
        )

    def _call(self, method, path, body=None):
        data = None if method == 'GET' else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.base + path, data, {'Content-Type': 'application/json'}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return json.load(answer)['value']

    def open(self, page):
        "Open a file"
        self.errors()
        self._call('POST', '/url', dict(url=Path(page).resolve().as_uri()))

    def leave(self):
        "Leave the page"
        self._call('POST', '/url', dict(url='about:blank'))

    def run(self, script, *args):
        "Run JavaScript in the page; what it returns"
        return self._call('POST', '/execute/sync', dict(script=script, args=args))

    def texts(self, css):
        "The words of all elements of a kind that are shown, in their order"
        return self.run('return [...document.querySelectorAll(arguments[0])].filter(e => !e.closest("[hidden]"))'
                        '.map(e => e.textContent)', css)

    def count(self, css):
        "How many elements of a kind there are"
        return self.run('return document.querySelectorAll(arguments[0]).length', css)

    def style(self, css, name):
        "A computed property of the first element of a kind"
        return self.run('return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]', css, name)

    def errors(self):
        "What the console complained of since the last call"
        return [
            e['message']
            for e in self._call('POST', '/se/log', dict(type='browser'))
            if e['level'] in ('SEVERE', 'WARNING')
        ]

    def _element(self, css): return self._call('POST', '/element', dict(using='css selector', value=css))

    def click(self, css): self._call('POST', f'/element/{next(iter(self._element(css).values()))}/click')

    def type(self, css, text):
        self._call('POST', f'/element/{next(iter(self._element(css).values()))}/value', dict(text=text))

    def hover(self, css):
        "Point at the middle of an element"
        self.run('document.querySelector(arguments[0]).scrollIntoView({block: "center"})', css)
        move = dict(type='pointerMove', duration=0, origin=self._element(css), x=0, y=0)
        self._call(
            'POST',
            '/actions',
            dict(actions=[dict(type='pointer', id='mouse', parameters=dict(pointerType='mouse'), actions=[move])]),
        )

    def emulate(self, width=1200, height=900, dark=False, phone=False):
        "Size of the window, and the reader's taste"
        cdp = lambda cmd, **params: self._call('POST', '/goog/cdp/execute', dict(cmd=cmd, params=params))
        cdp(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        cdp(
            'Emulation.setEmulatedMedia',
            features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')],
        )

    def download(self, css, folder):
        "Click, and wait for the file that is saved into an empty folder"
        params = dict(behavior='allow', downloadPath=str(folder))
        self._call('POST', '/goog/cdp/execute', dict(cmd='Browser.setDownloadBehavior', params=params))
        self.click(css)
        for _ in range(100):
            there = list(Path(folder).iterdir())
            is_under_way = any(file.suffix == '.crdownload' or not file.stat().st_size for file in there)
            if there and not is_under_way: return there[0]
            time.sleep(.1)
        raise AssertionError('nothing was downloaded')

    def screenshot(self, out):
        "The whole page as a picture"
        shot = self._call(
            'POST', '/goog/cdp/execute', dict(cmd='Page.captureScreenshot', params=dict(captureBeyondViewport=True))
        )
        Path(out).write_bytes(base64.b64decode(shot['data']))

    def close(self):
        try: self._call('DELETE', '')
        finally:
            self.process.terminate()
            self.process.wait()
