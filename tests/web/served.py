"""The page in a process of its own, and a browser that cannot leave the machine unseen."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# What the server does to the network is written down by Python itself: an audit hook sees every
# connection and look-up of a name.
SERVER = """
import sys
port, max_mb, log = int(sys.argv[1]), float(sys.argv[2]), open(sys.argv[3], "a", buffering=1)
def hook(event, args):
    if event == "socket.getaddrinfo":
        print(args[0], file=log)
    elif event in ("socket.connect", "socket.sendto", "socket.bind"):
        print(args[1][0] if isinstance(args[1], tuple) else f"unix:{args[1]}", file=log)
from gfpgan_edu.web import launch, only_this_machine
with only_this_machine():           # its hook comes first: what it refuses is not written down
    sys.addaudithook(hook)
    launch(port=port, max_mb=max_mb, open_browser=False)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def chromium():
    "Path of the browser: $CHROMIUM, or the first of the usual names."
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = os.environ.get("CHROMIUM") or next(filter(None, found), None)
    if not path:
        sys.exit("no Chromium on this machine: sudo apt-get install chromium, "
                 "or CHROMIUM=/path/to/it make test-web")
    return path


class Server:
    "The page at `url`; `temporary` is its $TMPDIR, `spoken_to` the addresses its process named."

    def __init__(self, folder, max_mb=20):
        folder = Path(folder)
        self.temporary, self.log = folder / "tmp", folder / "addresses.txt"
        self.port = free_port()
        self.temporary.mkdir()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = open(folder / "output.txt", "w+")
        env = {k: v for k, v in os.environ.items() if not k.startswith("GRADIO")}
        env |= dict(TMPDIR=str(self.temporary), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        words = [sys.executable, "-c", SERVER, str(self.port), str(max_mb), str(self.log)]
        self.process = subprocess.Popen(words, env=env, stdout=self.output,
                                        stderr=subprocess.STDOUT)
        while True:
            try:
                urllib.request.urlopen(self.url).close()
                return
            except OSError:
                assert self.process.poll() is None, self.said()
                time.sleep(0.2)

    def said(self):
        self.output.flush()
        return Path(self.output.name).read_text()

    def spoken_to(self):
        return set(self.log.read_text().split("\n")) - {""}

    def files(self):
        "What lies in the folder of the page, empty files left out: gradio makes some."
        found = self.temporary.glob("gfpgan_edu-web-*/**/*")
        return sorted(p for p in found if p.is_file() and p.stat().st_size)

    def stop(self, how=signal.SIGINT):
        "Interrupt the server and wait for its end -> exit code."
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait()


class Trap:
    """A proxy that lets nothing through and notes who was asked for. Browsers do not use a proxy
    for 127.0.0.1, so it must stay empty."""

    def __init__(self):
        self.seen, self.socket = [], socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            with self.socket.accept()[0] as caller:
                self.seen.append(caller.recv(4096).split(b"\r\n")[0].decode(errors="replace"))


@contextmanager
def browser(trap=None):
    "Headless Chromium from the system, driven by playwright."
    from playwright.sync_api import sync_playwright

    args = [f"--proxy-server=http://{trap.address}"] if trap else []
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        args.insert(0, "--no-sandbox")
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=chromium(), args=args)
        yield chrome
        chrome.close()
