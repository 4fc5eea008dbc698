"Somebody who uses the page of the app, in a real browser."
import time

HARMLESS = ('"Method not implemented."', 'The input spec uses Vega-Lite')  # Gradio itself, of its uploads and charts


class Visitor:
    "Somebody who uses the page"
    def __init__(self, browser, url):
        self.browser = browser
        browser.emulate()
        browser.errors()
        browser._call('POST', '/url', dict(url=url))
        self.wait('#predict-files input[type=file]')

    def wait(self, css, words='', seconds=60):
        "Wait until an element is there, and says something"
        for _ in range(10*seconds):
            if self.browser.count(css) and words in ' '.join(self.browser.texts(css)): return
            time.sleep(.1)
        raise AssertionError(f'{css} with {words!r} did not come: {self.browser.texts(css)}')

    def go_to(self, tab):
        self.browser.run('[...document.querySelectorAll("button[role=tab]")]'
                         '.find(e => e.textContent.trim() == arguments[0]).click()', tab)

    def drop(self, *files):
        "Drop files in place of those that are there"
        clear = '#predict-files button[aria-label="Clear"]'
        if self.browser.count(clear):
            self.browser.click(clear)
            self.wait('#predict-files input[type=file]')
        self.browser.type('#predict-files input[type=file]', '\n'.join(map(str, files)))

    def choose(self, css, option):
        "Choose from a list that drops down"
        self.browser.click(f'{css} input')
        self.wait('ul[role=listbox] li', option)
        self.browser.run('[...document.querySelectorAll("ul[role=listbox] li")]'
                         '.find(e => e.textContent.trim().endsWith(arguments[0]))'
                         '.dispatchEvent(new MouseEvent("mousedown", {bubbles: true}))', option)

    def said(self, css): return ' '.join(' '.join(self.browser.texts(css)).split())

    def faults(self): return [e for e in self.browser.errors() if not any(words in e for words in HARMLESS)]

    def press(self, key):
        self.browser.run('document.body.dispatchEvent('
                         'new KeyboardEvent("keydown", {key: arguments[0], bubbles: true}))', key)

    def bars(self):
        "The probability of each class, as the page shows it"
        return dict(zip(*(self.browser.texts(f'#predict-words .bar {part}') for part in ('.name', '.value'))))
