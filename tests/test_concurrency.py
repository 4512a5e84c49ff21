"""One loaded model, many threads: the same pictures bit for bit, the process as it was before; and
no memory lost over many calls."""
import gc
import json
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gfpgan_edu.examples import astronaut
from gfpgan_edu.inference import fuse
from gfpgan_edu.photos import restore
from gfpgan_edu.pictures import write_image
from gfpgan_edu.weights import load_weights

THREADS = 8
# bytes that 100 calls may add to the resident memory: allocators keep a few pieces
SLACK = 8 * 2**20


@pytest.fixture(autouse=True)
def one_thread_of_torch():
    """Each call on one processor: many threads that each ask for all processors only wait for one
    another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def resident():
    "Bytes of memory in use by this process."
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def photos(n):
    "Different small photos, about 95 px wide, each with the astronaut's face somewhere else."
    photo = cv2.resize(astronaut(), (256, 256), interpolation=cv2.INTER_AREA)
    corners = np.random.default_rng(0).integers((0, 45), (12, 75), (n, 2))
    return [np.ascontiguousarray(photo[y:y + 85 + i, x:x + 95]) for i, (y, x) in enumerate(corners)]


def state():
    "What a call must leave as it was, for all threads."
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
    return (torch.get_num_threads(), *modes, cv2.getNumThreads(), warnings.filters[:],
            np.geterr())


def same(a, b):
    faces = (zip(pair, other) for pair, other in zip(a.faces, b.faces))
    return (np.array_equal(a.image, b.image) and np.array_equal(a.landmarks, b.landmarks)
            and a.boxes == b.boxes and a.notes == b.notes
            and all(np.array_equal(x, y) for pair in faces for x, y in pair))


def in_threads(work, items):
    "work(item) of all items, one thread each, begun at once; twice over, in different orders."
    gate = threading.Barrier(len(items))

    def one(i):
        gate.wait()
        return work(items[i]), work(items[i - 1])

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(one, range(len(items))))


def test_threads_give_what_one_after_another_gives(tmp_path):
    net, taken, before = fuse(load_weights()), photos(THREADS), state()
    for i, photo in enumerate(taken):
        write_image(tmp_path / f"{i}.png", photo)
    paths = [tmp_path / f"{i}.png" for i in range(THREADS)]
    work = lambda i: restore(paths[i], net, upscale=1 + i % 2, fidelity=0.1 * i)
    serial = [work(i) for i in range(THREADS)]
    assert all((r.image[:len(p)] != p).any() for r, p in zip(serial[::2], taken[::2]))
    assert len({r.image.tobytes() for r in serial}) == THREADS
    both = in_threads(work, range(THREADS))
    for i, (first, second) in enumerate(both):
        assert same(first, serial[i]) and same(second, serial[i - 1])
    assert state() == before


COLD = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
from test_concurrency import THREADS, in_threads, photos
import torch
torch.set_num_threads(1)
# nothing is imported before the threads begin but what the test itself needs
from gfpgan_edu import load, restore
net, taken = load(), photos(THREADS)
work = lambda i: hashlib.sha256(restore(taken[i], net).image.tobytes()).hexdigest()
found = in_threads(work, range(THREADS))
from gfpgan_edu.faces import _mtcnn
print(json.dumps([[first for first, _ in found], [work(i) for i in range(THREADS)]]))
"""


def test_the_first_call_of_a_process_may_be_in_threads():
    """The detector is built on first use: eight threads that all come first must not disturb one
    another."""
    words = [sys.executable, "-c", COLD, str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    threaded, serial = json.loads(done.stdout.splitlines()[-1])
    assert threaded == serial and len(set(serial)) == THREADS


def growth(calls, warm=10):
    """Bytes by which the resident memory grows over `calls` calls of `restore` (the bundled model,
    photos in turn), after `warm` calls."""
    net, taken = fuse(load_weights()), photos(THREADS)
    for i in range(warm + calls):
        if i == warm:
            gc.collect()
            begin = resident()
        restore(taken[i % THREADS], net)
    gc.collect()
    return resident() - begin


def test_memory_does_not_grow_over_100_calls():
    assert growth(100) < SLACK
