"""How fast one face is restored on a CPU: the official networks, ours as written, ours fused, and
our ONNX file, in turns in one process.

    python tests/bench/inference.py [--only FAMILY …] [--part time memory compile] [--rounds 5]

512 px, one picture, two threads, random weights (what a pass costs does not depend on what was
learned), the same in every network. Times are medians over the rounds. The convolution rate is that
of the network's own convolutions through F.conv2d, channels last, in the same process. Peak memory
is that of a process that loads the weights and restores one face; each has a process of its own.
Needs the official packages (tests/peer/README.md) and gfpgan_edu[onnx] with onnxruntime. What is
measured is merged into figures/bench/inference.json. `--tiny` runs the same on networks of a few
channels (for the tests; its numbers mean nothing).
"""
import argparse
import datetime
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/peer"), str(ROOT / "figures")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import conv_flop_count  # noqa: E402

from gfpgan_edu.full_scale import Cost, Tally  # noqa: E402
from gfpgan_edu.gfpgan import GFPGANConfig  # noqa: E402
from gfpgan_edu.inference import export_onnx, fuse  # noqa: E402
from gfpgan_edu.weights import from_official, save  # noqa: E402

OUT = ROOT / "figures" / "bench" / "inference.json"
PAPER, CLEAN = GFPGANConfig.paper(), GFPGANConfig.clean_v1_4()
FAMILIES = {
    "GFPGANv1": ("v1", PAPER),
    "Clean, cm 1": ("clean", CLEAN.replace(channel_multiplier=1)),
    "Clean, cm 2": ("clean", CLEAN),
}
MEMORY = ("import only", "plain", "fused fp32", "fused bf16", "onnxruntime", "official")
PARTS, THREADS = ("time", "memory", "compile"), 2


def official_like(family, config):
    "The official network of this shape, eval mode; its biases and noise strengths are not zero."
    from official import build_like, load_official

    torch.manual_seed(0)
    net = build_like(load_official(), family, config).eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim < 2 or p.numel() == max(p.shape):
                p += 0.1 * torch.randn_like(p)
    return net


def places(x, n=3):
    return float(f"{x:.{n}g}")


def clock(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternately(works, rounds):
    "{name: function} -> {name: seconds, the median over `rounds`}, in turn; the first warms up."
    took = defaultdict(list)
    for _ in range(rounds + 1):
        for name, work in works.items():
            took[name].append(clock(work))
    return {name: statistics.median(t[1:]) for name, t in took.items()}


# ---------------------------------------------------------------- operations

def unwrapped(fused):
    "The pass of a fused network without inference mode, in which nothing could watch it."
    return lambda x: type(fused).forward.__wrapped__(fused, x)


def flops(work, x):
    "Operations of convolutions and matrix products."
    with torch.no_grad(), Tally() as t:
        work(x)
    return sum(t.cost.values(), Cost()).flops


class Convolutions(TorchDispatchMode):
    """Counts the ungrouped convolutions that run within it, by shape: found[x's shape, weight's
    shape, stride, padding, transposed]."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket is torch.ops.aten.convolution and args[8] == 1:
            x, w, _, stride, padding, _, transposed = args[:7]
            key = *(tuple(v) for v in (x.shape, w.shape, stride, padding)), transposed
            self.found[key] += 1
        return func(*args, **(kwargs or {}))


def convolution_rate(found, dtype, rounds):
    "Operations/s of these convolutions alone: the best time of each shape, as often as it occurs."
    work, seconds = 0.0, 0.0
    for (x, w, stride, padding, transposed), n in found.items():
        x, w = (torch.randn(s).to(dtype, memory_format=torch.channels_last) for s in (x, w))
        conv = F.conv_transpose2d if transposed else F.conv2d
        one = lambda: conv(x, w, None, stride, padding)
        y = one()
        work += n * conv_flop_count(x.shape, w.shape, y.shape, transposed)
        seconds += n * min(clock(one) for _ in range(rounds + 1))
    return work / seconds


KINDS = {
    "resizing": ("upsample", "avg_pool", "interpolate"),
    "activations": ("leaky_relu",),
    "convolutions": ("conv",),
}


def kind_of(event):
    """Convolution, resizing (the FIR filters too: one input channel, 4×4), activation, or the rest:
    sums, products, copies, small things."""
    weight = (event.input_shapes[1:2] or [[]])[0]
    if "conv" in event.key and weight[1:] == [1, 4, 4]:
        return "resizing"
    for kind, words in KINDS.items():
        if any(word in event.key for word in words):
            return kind
    return "the rest"


def shares(work):
    "{kind: share of the processor's time} of one call."
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as p:
        work()
    spent = defaultdict(float)
    for event in p.key_averages(group_by_input_shape=True):
        spent[kind_of(event)] += event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: places(spent[kind] / whole) for kind in (*reversed(KINDS), "the rest")}


# ---------------------------------------------------------------- time

def session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure_time(family, config, rounds):
    "Medians, ratios, operations, differences and where the time goes, of one family."
    torch.set_num_threads(THREADS)
    official = official_like(family, config)
    net = from_official(official.state_dict(), family).requires_grad_(False)
    fused, half = fuse(net), fuse(net, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(net, f"{folder}/net.onnx")
        onnx = session(f"{folder}/net.onnx")
    g = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, config.size, config.size, generator=g) * 2 - 1

    def theirs(x):
        return official(x, return_rgb=False, randomize_noise=False)

    def autocast():
        with torch.autocast("cpu", torch.bfloat16):
            return theirs(x)

    works = {
        "official": lambda: theirs(x),
        "official, autocast bf16": autocast,
        "plain": lambda: net(x),
        "fused fp32": lambda: fused(x),
        "fused bf16": lambda: half(x),
        "onnxruntime": lambda: onnx.run(None, {"face": x.numpy()}),
    }
    with torch.no_grad(), Convolutions() as convolutions:
        unwrapped(fused)(x)
    operations = {"official": flops(theirs, x), "plain": flops(net, x),
                  "fused": flops(unwrapped(fused), x)}
    dtypes = dict(fp32=torch.float32, bf16=torch.bfloat16)
    profiled = "official", "plain", "fused fp32", "fused bf16"
    with torch.inference_mode():
        seconds = alternately(works, rounds)
        rates = {k: convolution_rate(convolutions.found, d, rounds) for k, d in dtypes.items()}
        pictures = {name: torch.as_tensor(works[name]()[0]).float() for name in works}
        time_by_kind = {name: shares(works[name]) for name in profiled}
    wanted = pictures["plain"]
    off = {k: picture - wanted for k, picture in pictures.items()}
    scale = (wanted.max() - wanted.min()).item()
    psnr = lambda k: 10 * math.log10(scale ** 2 / off[k].square().mean().item())
    reached = {k: operations["fused"] / seconds[f"fused {k}"] / rates[k] for k in rates}
    exact = "official", "fused fp32", "onnxruntime"
    return dict(seconds={k: places(v) for k, v in seconds.items()},
                ratio={k: places(seconds["official"] / v) for k, v in seconds.items()},
                flops={k: places(v, 4) for k, v in operations.items()},
                convolution_rate={k: places(v) for k, v in rates.items()},
                share_of_rate={k: places(v) for k, v in reached.items()},
                time_by_kind=time_by_kind, range=places(scale),
                largest_difference={k: places(off[k].abs().max().item(), 2) for k in exact},
                psnr={k: places(psnr(k)) for k in ("official, autocast bf16", "fused bf16")})


def measure_compile(family, config, rounds, limit=180):
    """torch.compile of the network as written: seconds until the first picture, and its time beside
    the plain one; in a process of its own, which may be stopped."""
    code = f"""
import json, sys, time, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import inference
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
torch.set_num_threads({THREADS})
net = GFPGAN(GFPGANConfig.from_dict({config.to_dict()!r})).eval().requires_grad_(False)
x, quick = torch.rand(1, 3, {config.size}, {config.size}), torch.compile(net)
with torch.no_grad():
    first = inference.clock(lambda: quick(x))
    took = inference.alternately(dict(plain=lambda: net(x), compiled=lambda: quick(x)), {rounds})
print(json.dumps(dict(first_picture=first, **took)))
"""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              timeout=limit)
    except subprocess.TimeoutExpired:
        return dict(error=f"no picture after {limit} s")
    if done.returncode:
        return dict(error=(done.stderr.strip().splitlines() or ["?"])[-1][:200])
    found = json.loads(done.stdout.splitlines()[-1])
    speedup = places(found["plain"] / found["compiled"])
    return {k: places(v) for k, v in found.items()} | dict(speedup=speedup)


# ---------------------------------------------------------------- memory

SAY = """
import json
from pathlib import Path
def peak():                                     # of memory in use, since it was asked last
    lines = Path("/proc/self/status").read_text().splitlines()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
"""
TORCH = f"""
import torch
torch.set_num_threads({THREADS})
x = torch.rand(1, 3, size, size) * 2 - 1
"""
FUSE = """
from gfpgan_edu.weights import load_weights
from gfpgan_edu.inference import fuse
net = load_weights(file)
before = peak()
"""
CHILDREN = {
    "import only": TORCH + "before = peak()",
    "plain": TORCH + """
from gfpgan_edu.weights import load_weights
net = load_weights(file)
before = peak()
net.requires_grad_(False)(x)
""",
    "fused fp32": TORCH + FUSE + "net = fuse(net, consume=True); net(x)",
    "fused bf16": TORCH + FUSE + "net = fuse(net, torch.bfloat16, consume=True); net(x)",
    "onnxruntime": f"""
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {THREADS}
net = onnxruntime.InferenceSession(file + ".onnx", options, providers=["CPUExecutionProvider"])
before = peak()
net.run(None, {{"face": numpy.zeros((1, 3, size, size), "float32")}})
""",
    "official": TORCH + """
from gfpgan_edu.gfpgan import GFPGANConfig
from official import build_like, load_official
config = GFPGANConfig.from_dict(json.loads(Path(file + ".json").read_text()))
net = build_like(load_official(), family, config)
net.load_state_dict(torch.load(file + ".pth", weights_only=True))
before = peak()
with torch.inference_mode():
    net(x, return_rgb=False, randomize_noise=False)
""",
}


def measure_memory(family, config):
    """{kind: bytes at the peak of a process of its own}, and of its second part, after the weights
    are loaded (fusing and restoring), of one family."""
    whole, after = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.safetensors")
        official = official_like(family, config)
        net = from_official(official.state_dict(), family)
        save(net, file)
        torch.save(official.state_dict(), f"{file}.pth")
        Path(f"{file}.json").write_text(json.dumps(config.to_dict()))
        if "onnxruntime" in MEMORY:
            export_onnx(net, f"{file}.onnx")
        size = file.stat().st_size
        del official, net
        gc.collect()
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "tests/peer"))))
        for kind in MEMORY:
            code = (f"file, family, size = {str(file)!r}, {family!r}, {config.size}\n"
                    + SAY + CHILDREN[kind]
                    + "\nlater = peak()\nprint(json.dumps([max(before, later), later]))")
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True,
                                  text=True, check=True)
            numbers = json.loads(done.stdout.splitlines()[-1])
            whole[kind], after[kind] = (int(places(v)) for v in numbers)
    return dict(weights_bytes=size, peak_bytes=whole, peak_bytes_after_loading=after)


# ---------------------------------------------------------------- the file

def about():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = lambda key: (line.split(":")[1].strip() for line in lines if line.startswith(key))
    model, flags = (next(told(key), "") for key in ("model name", "flags"))
    extensions = "avx2", "avx512f", "avx512_bf16", "amx_bf16"
    has = [f for f in extensions if f in flags.split()]
    packages = "torch", "onnxruntime", "numpy"
    versions = {name: importlib.metadata.version(name) for name in packages}
    cpu = f"{model or platform.machine()}, {os.cpu_count()} cores, {THREADS} threads used"
    return dict(machine=cpu, instructions=has, python=platform.python_version(), **versions,
                date=datetime.date.today().isoformat())


def main(args=None):
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES),
                    metavar="FAMILY", help=", ".join(FAMILIES))
    ap.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--tiny", action="store_true")
    ap.add_argument("--out", type=Path, default=OUT)
    a = ap.parse_args(args)
    small = lambda c: c.replace(size=32, narrow=1 / 16, style_dim=32, n_mlp=2) if a.tiny else c
    found = json.loads(a.out.read_text()) if a.out.exists() else dict(families={})
    found |= dict(**about(), command="python tests/bench/inference.py", size=small(PAPER).size,
                  batch=1, rounds=a.rounds)
    for name in a.only:
        row, (family, config) = found["families"].setdefault(name, {}), FAMILIES[name]
        try:
            measure(family, small(config), a, found, row)
        except ImportError as e:
            print("the official packages or those of gfpgan_edu[onnx] and onnxruntime are "
                  f"missing; tests/peer/README.md tells how ({e})", file=sys.stderr)
            sys.exit(1)
        print(name, json.dumps(row), flush=True)
        write(found, a)                         # after each, for a run may be broken off


def measure(family, config, a, found, row):
    "The parts that are asked for, into `row`; the compiler, tried on one family, into `found`."
    if "time" in a.part:
        row |= measure_time(family, config, a.rounds)
    if "memory" in a.part:
        row |= measure_memory(family, config)
    if "compile" in a.part and family == "v1":
        found["compile"] = measure_compile(family, config, a.rounds)


def write(found, a):
    from manifest import neat, record

    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(neat(found))
    if a.out.resolve().is_relative_to(ROOT / "figures") and not a.tiny:
        settings = dict(size=found["size"], batch=1, rounds=a.rounds, threads=THREADS)
        record(a.out.resolve().relative_to(ROOT / "figures"), found["command"], settings)


if __name__ == "__main__":
    main()
