"""Looks at the built site in a browser: `make docs-check` builds it and runs this. Needs chromium.

Serves site/ on this machine, and opens each page in a frame as wide as a phone: whether it renders, whether it is wider
than the frame, whether something is loaded from elsewhere; and at the end whether the search finds a word. Prints what
is wrong, with what the browser wrote to its console, and exits with 1 where something is.
"""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SITE = Path(__file__).parents[1] / "site"
PHONE_WIDTH = 390
SEARCHED = "interleave"
_CHECK = """<!doctype html><title>check</title><iframe id="frame" width="%(width)s" height="800"></iframe><script>
const frame = document.getElementById("frame"), found = [], pages = %(pages)s;
const loaded = url => new Promise(done => { frame.onload = () => setTimeout(done, 150); frame.src = url; });
const until = async test => { for (let n = 0; n < 100 && !test(); n++) await new Promise(r => setTimeout(r, 100)); };
async function look(page) {
  await loaded(page);
  const inside = frame.contentDocument, width = inside.documentElement.scrollWidth;
  if (!inside.querySelector("article h1")) found.push(page + ": no heading");
  if (width > %(width)s) found.push(page + ": " + width + " pixels wide");
  for (const img of inside.querySelectorAll("article img"))
    if (!img.naturalWidth) found.push(page + ": no image " + img.src);
  for (const one of frame.contentWindow.performance.getEntriesByType("resource"))
    if (!one.name.startsWith(location.origin)) found.push(page + ": loads " + one.name);
}
async function search() {
  await loaded("/?q=%(searched)s");
  const results = () => frame.contentDocument.querySelectorAll(".md-search-result__item").length;
  await until(results);
  if (!results()) found.push("search finds nothing for %(searched)s");
}
(async () => {
  for (const page of pages) await look(page);
  await search();
})()
  .catch(error => found.push(String(error)))
  .then(() => fetch("/found", {method: "POST", body: JSON.stringify(found)}));
</script>"""
_FINDS_WITHIN_S = 240
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--remote-debugging-port=0")


class _Server(ThreadingHTTPServer):
    """Serves a folder, and takes what the page in the browser has found."""

    def __init__(self, folder: str) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=folder))
        self.found: queue.Queue[list[str]] = queue.Queue()


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.server.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Writes nothing."""


def main() -> None:
    """Prints what is wrong with the site."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium: install it, as with `apt-get install chromium`")
    pages = ["/" + str(page.parent.relative_to(SITE)).replace(".", "") for page in sorted(SITE.rglob("index.html"))]
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(SITE, f"{parent}/site")
        values = {"width": PHONE_WIDTH, "pages": json.dumps(pages), "searched": SEARCHED}
        Path(folder, "check.html").write_text(_CHECK % values)
        problems = _look(browser, folder)
    print("\n".join(problems) or f"{len(pages)} pages and the search are as they should be")
    sys.exit(bool(problems))


def _look(browser: str, folder: str) -> list[str]:
    with _Server(folder) as server, tempfile.TemporaryFile("w+") as log:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/check.html"
        command = [browser, *_OPTIONS, f"--user-data-dir={folder}.browser", url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        try:
            found = server.found.get(timeout=_FINDS_WITHIN_S)
        except queue.Empty:
            found = [f"the browser did not get through all pages in {_FINDS_WITHIN_S} s"]
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            server.shutdown()
        log.seek(0)
        return [*re.findall(r"CONSOLE[^\]]*\] (.*)", log.read()), *found]


if __name__ == "__main__":
    main()
