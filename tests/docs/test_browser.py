"""Every page as a browser shows it: at 1200 and at 400 pixels, light and dark."""

from __future__ import annotations

import functools
import http.server
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

from tests import support
from tests.docs.site import build
from tests.support.extras import need

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1200, 400)
THEMES = ("light", "dark")
SECONDS = 60

# Each page is loaded once, in a frame that is then as wide as the window would be.
LOOK = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>look</title><script>
const [pages, widths, themes] = %s;
const found = [], wrong = [];
const look = page => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.style = "border: 0; height: 900px; width: 1200px";
  frame.onload = () => {
    const shown = frame.contentDocument;
    for (const image of shown.images)
      if (!image.alt.includes(" ") || !image.complete || !image.naturalWidth) wrong.push(page + ": " + image.src);
    for (const theme of themes) {
      shown.body.dataset.theme = theme;
      for (const width of widths) {
        frame.style.width = width + "px";
        const wide = [...shown.querySelectorAll("html, body, .page, .main, .content")]
          .filter(box => box.scrollWidth > box.clientWidth).map(box => box.tagName + "." + box.className);
        found.push({page, theme, width, wide,
                    words: shown.body.innerText.length, background: getComputedStyle(shown.body).backgroundColor});
      }
    }
    frame.remove();
    done();
  };
  frame.src = page;
  document.body.append(frame);
});
onload = async () => {
  for (const page of pages) await look(page);
  await fetch("/found", {method: "POST", body: JSON.stringify({found, wrong})});
};
</script><body></body>"""


def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise unittest.SkipTest(f"there is no browser: none of {', '.join(BROWSERS)}")
    return found


def told(each):
    return f"{each['page']} at {each['width']}, {each['theme']}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/look":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(self.server.look.encode())
        else:
            super().do_GET()

    def send_error(self, code, *arguments):
        self.server.missing.append((code, self.path))
        super().send_error(code, *arguments)

    def do_POST(self):
        self.server.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class TestPages(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        need("sphinx", "docs")
        need("furo", "docs")
        command = browser()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        html = build("html")
        cls.pages = sorted(str(page.relative_to(html)) for page in html.rglob("*.html"))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(html)))
        server.look = LOOK % json.dumps([cls.pages, WIDTHS, THEMES])
        server.found, server.missing = queue.Queue(), []
        cls.missing = server.missing
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cls.addClassCleanup(thread.join)
        cls.addClassCleanup(server.server_close)
        cls.addClassCleanup(server.shutdown)
        log = pathlib.Path(folder.name) / "browser.log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                [command, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
                + [f"--user-data-dir={folder.name}/profile", "--no-first-run", "--window-size=1300,1000"]
                + (["--no-sandbox"] if os.geteuid() == 0 else [])
                + [f"http://127.0.0.1:{server.server_port}/look"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                cls.found, cls.wrong = server.found.get(timeout=SECONDS).values()
            except queue.Empty:
                raise AssertionError(f"the browser did not come to an end:\n{log.read_text()}") from None
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # its helpers too
                process.wait(support.DEADLINE_SECONDS)
        cls.said = [line for line in log.read_text(errors="replace").splitlines() if "CONSOLE" in line]

    def test_every_page_was_looked_at_in_every_way(self):
        self.assertEqual(len(self.found), len(self.pages) * len(WIDTHS) * len(THEMES))
        self.assertGreater(len(self.pages), 15)
        self.assertEqual([], [told(each) for each in self.found if each["words"] < 20])

    def test_no_page_scrolls_sideways(self):
        # Neither as a whole, nor in a box that holds more than one thing: code and tables scroll by themselves.
        self.assertEqual([], [f"{told(each)}: {each['wide']}" for each in self.found if each["wide"]])

    def test_dark_is_darker_than_light(self):
        def brightness(each):
            return sum(map(int, re.findall(r"\d+", each["background"])[:3]))

        for light in (each for each in self.found if each["theme"] == "light"):
            (dark,) = (
                each
                for each in self.found
                if each["theme"] == "dark" and (each["page"], each["width"]) == (light["page"], light["width"])
            )
            self.assertLess(brightness(dark), brightness(light), light)

    def test_every_picture_is_shown_and_told_in_words(self):
        self.assertEqual([], self.wrong)

    def test_nothing_is_wrong_in_the_console(self):
        self.assertEqual([], self.said)

    def test_nothing_that_a_page_asks_for_is_missing(self):
        self.assertEqual([], self.missing)


if __name__ == "__main__":
    unittest.main()
