"""How fast the training step is: beside the official one on a CPU, and at full size on a GPU.

# CPU, ten minutes; needs the official packages (tests/peer/README.md):
python tests/bench/training.py                       # writes figures/bench/training.json
# one GPU; said again, it goes on:
python tests/bench/training.py --gpu --minutes 8     # writes figures/gpu/bench-gpu.json

Judges and prior are random: what a step costs does not depend on what was learned. The step is the
mean of 16 iterations, of which one has R1. `--tiny` runs the same code on networks of a few
channels (for the tests; its numbers mean nothing).
"""
import argparse
import datetime
import gc
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/peer"), str(ROOT / "figures")]

import torch  # noqa: E402

from official import leaky_relu_with_bias  # noqa: E402

from gfpgan_edu.engine import Run  # noqa: E402
from gfpgan_edu.faces import PARTS  # noqa: E402
from gfpgan_edu.full_scale import Cost, Tally, step_cost  # noqa: E402
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig  # noqa: E402
from gfpgan_edu.train_restorer import RestorerConfig, RestorerTrainer  # noqa: E402

EVERY = 16                                                                  # of R1
median = statistics.median


# ---------------------------------------------------------------- what is measured

def config_of(size, narrow, batch, official_crops=False, **run):
    """The paper's config with random judges; `official_crops`: 80, 80 and 120 px at every size, as
    the official code has them."""
    crops = (80, 80, 120)
    if official_crops:
        crops = tuple(n * 512 // size for n in crops)
    return RestorerConfig(model=GFPGANConfig(size=size, narrow=narrow), narrow_d=narrow,
                          features="random", embedder="random", crops=crops,
                          run=Run(batch=batch, workers=0, **run))


def ours(config, device):
    torch.manual_seed(0)
    return RestorerTrainer(config, [], init_from=GFPGAN(config.model), device=device)


def batch_of(size, n, device):
    "Noise will do, and boxes where eyes and mouth are."
    g = torch.Generator().manual_seed(0)
    gt, lq = (torch.rand(n, 3, size, size, generator=g) * 2 - 1 for _ in range(2))
    boxes = torch.tensor([[155.0, 200, 230, 275], [285, 200, 360, 275], [200, 330, 310, 430]])
    batch = dict(gt=gt, lq=lq, boxes=(boxes * size / 512).repeat(n, 1, 1))
    return {k: v.to(device) for k, v in batch.items()}


def our_step(trainer, batch):
    def step(it):
        trainer.it = it
        trainer.iteration(trainer.place(batch))
    return step


def official_options(size, narrow, gpus):
    """options/train_gfpgan_v1.yml, but for sizes and the VGG style term, which the paper has not
    (weight 0: not computed)."""
    adam, part = dict(type="Adam", lr=2e-3), dict(type="FacialComponentDiscriminator")
    generator = dict(
        type="GFPGANv1", out_size=size, num_style_feat=512, channel_multiplier=1,
        decoder_load_path=None, fix_decoder=True, num_mlp=8, input_is_latent=True,
        different_w=True, narrow=narrow, sft_half=True)
    judge = dict(
        type="StyleGAN2Discriminator", out_size=size, channel_multiplier=1, narrow=narrow)
    features = dict(
        type="PerceptualLoss", vgg_type="vgg19", use_input_norm=True, range_norm=True,
        perceptual_weight=1.0, style_weight=0, criterion="l1",
        layer_weights=dict(conv1_2=0.1, conv2_2=0.1, conv3_4=1, conv4_4=1, conv5_4=1))
    train = dict(
        optim_g=dict(adam), optim_d=dict(adam), optim_component=dict(adam),
        scheduler=dict(type="MultiStepLR", milestones=[700000, 750000], gamma=0.5),
        pixel_opt=dict(type="L1Loss", loss_weight=0.1), L1_opt=dict(type="L1Loss", loss_weight=1),
        pyramid_loss_weight=1, remove_pyramid_loss=50000, perceptual_opt=features,
        gan_opt=dict(type="GANLoss", gan_type="wgan_softplus", loss_weight=0.1), r1_reg_weight=10,
        gan_component_opt=dict(type="GANLoss", gan_type="vanilla", real_label_val=1.0,
                               fake_label_val=0.0, loss_weight=1.0),
        comp_style_weight=200, identity_weight=10, net_d_iters=1, net_d_init_iters=0,
        net_d_reg_every=EVERY)
    return dict(
        num_gpu=gpus, is_train=True, dist=False, manual_seed=0, path={}, network_g=generator,
        network_d=judge, **{f"network_d_{p}": dict(part) for p in PARTS},
        network_identity=dict(type="ResNetArcFace", block="IRBlock", layers=[2, 2, 2, 2],
                              use_se=False),
        train=train)


def official_class(device):
    """(the official GFPGANModel, by which path its two special operations run). ImportError where
    the packages are missing."""
    import torchvision.transforms._functional_tensor as tensor_ops
    from official import PEER, load_official_trainer

    if PEER.is_dir() and str(PEER) not in sys.path:
        sys.path.append(str(PEER))
    sys.modules.setdefault("torchvision.transforms.functional_tensor", tensor_ops)
    fused, resampling = (import_module(f"basicsr.ops.{name}.{name}")
                         for name in ("fused_act", "upfirdn2d"))
    own = fused.FusedLeakyReLUFunction
    model = load_official_trainer()             # puts the pure activation in its place
    if device.type != "cuda":
        return model, "pure PyTorch (its extensions need a GPU)"
    try:
        compile_extensions(fused, resampling, own, device)
        return model, "its CUDA extensions, compiled here"
    except Exception as e:
        from basicsr.archs import stylegan2_arch

        def native(x, kernel, up=1, down=1, pad=(0, 0)):
            return resampling.upfirdn2d_native(x, kernel, up, up, down, down, *pad, *pad)

        pure = dict(apply=staticmethod(leaky_relu_with_bias))
        fused.FusedLeakyReLUFunction = type("F", (), pure)
        stylegan2_arch.upfirdn2d = native
        why = type(e).__name__
        return model, f"pure PyTorch (its extensions did not compile or do not work: {why})"


def compile_extensions(fused, resampling, own, device):
    """Build the two operations that the network needs, put them where the official code looks for
    them, and compare them with plain PyTorch."""
    from torch.utils.cpp_extension import load

    sources = {
        "fused_act_ext": (fused, "fused_bias_act.cpp", "fused_bias_act_kernel.cu"),
        "upfirdn2d_ext": (resampling, "upfirdn2d.cpp", "upfirdn2d_kernel.cu"),
    }
    for name, (module, *files) in sources.items():
        folder = Path(module.__file__).parent / "src"
        setattr(module, name, load(name, [str(folder / f) for f in files]))
    fused.FusedLeakyReLUFunction = own
    x, bias = torch.randn(2, 3, 8, 8, device=device), torch.randn(3, device=device)
    kernel = torch.rand(4, 4, device=device)
    plain = leaky_relu_with_bias(x, bias, 0.2, 2**0.5)
    torch.testing.assert_close(fused.fused_leaky_relu(x, bias), plain, rtol=1e-3, atol=1e-3)
    plain = resampling.upfirdn2d_native(x, kernel, 2, 2, 1, 1, 2, 1, 2, 1)
    quick = resampling.upfirdn2d(x, kernel, 2, 1, (2, 1))
    torch.testing.assert_close(quick, plain, rtol=1e-3, atol=1e-3)


def official_step(model_class, size, narrow, batch, device):
    torch.manual_seed(0)
    model = model_class(official_options(size, narrow, int(device.type == "cuda")))
    model.opt["network_g"]["out_size"] = 512            # it cuts crops of 0 px below 512

    def step(it):
        names = {f"loc_{p}": batch["boxes"][:, i].cpu() for i, p in enumerate(PARTS)}
        model.feed_data(dict(lq=batch["lq"].clone(), gt=batch["gt"].clone(), **names))
        model.optimize_parameters(it)
    return step


def quick_filter(x, kernel, up=1, down=1, pad=(0, 0)):
    """What the official upfirdn2d computes, without the inserted zeros: a stand-in for its CUDA
    extension on a CPU."""
    F, c, side = torch.nn.functional, x.shape[1], kernel.shape[0]
    k = kernel.flip(0, 1).expand(c, 1, *kernel.shape)
    if up == 1:
        return F.conv2d(F.pad(x, (*pad, *pad)), k, stride=down, groups=c)
    first, n = side - 1 - pad[0], [s * up + sum(pad) - side + 1 for s in x.shape[2:]]
    y = F.conv_transpose2d(x, k.flip(2, 3), stride=up, groups=c)
    return y[:, :, first : first + n[0] : down, first : first + n[1] : down]


def with_quick_filter(step):
    arch = sys.modules["basicsr.archs.stylegan2_arch"]

    def quick(it):
        own, arch.upfirdn2d = arch.upfirdn2d, quick_filter
        try:
            step(it)
        finally:
            arch.upfirdn2d = own
    return quick


def counted(step):
    "Operations of a mean step, counted while it runs."
    flops = []
    for it in (1, EVERY):
        with Tally() as t:
            step(it)
        flops.append(sum(t.cost.values(), Cost()).flops)
    return flops[0] + (flops[1] - flops[0]) / EVERY


# ---------------------------------------------------------------- clocks

def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(work, device):
    sync(device)
    start = time.perf_counter()
    work()
    sync(device)
    return time.perf_counter() - start


def best(work, device, n=5):
    work()
    return min(clock(work, device) for _ in range(n))


def machine_rates(device, n, kinds=("fp32",)):
    """Operations/s of a matrix product of side n for each kind (on a CPU: or of a convolution, what
    is more), and bytes/s of a copy."""
    out = {}
    for kind in kinds:
        exact(kind)
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        out[kind] = 2 * n**3 / best(lambda: a @ b, device)
        if device.type == "cpu":            # on some CPUs convolutions have the better library
            c = n // 8
            x, w = torch.randn(1, c, 64, 64), torch.randn(c, c, 3, 3)
            seconds = best(lambda: torch.nn.functional.conv2d(x, w, padding=1), device)
            out[kind] = max(out[kind], 2 * 9 * c * c * 64 * 64 / seconds)
    big = torch.empty(n * n * (16 if device.type == "cuda" else 8), device=device)
    other = torch.empty_like(big)
    return out, 2 * big.numel() * 4 / best(lambda: other.copy_(big), device)


def exact(kind):
    "float32 sums are float32, or tf32 where the card has it."
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind != "fp32"


def alternately(steps, rounds, device):
    """Each of {name: step} in turn -> {name: seconds of a mean step}: medians of `rounds` plain
    iterations and of two with R1."""
    took = {(name, r1): [] for name in steps for r1 in (False, True)}
    for name, step in steps.items():
        step(1)
    for k in range(rounds + 2):
        for name, step in steps.items():
            r1 = k in (1, 3) or rounds < 3 and k < 2
            took[name, r1].append(clock(lambda: step(EVERY if r1 else 1), device))
    plain, lazy = ({n: median(took[n, r1]) for n in steps} for r1 in (False, True))
    return {n: plain[n] + (lazy[n] - plain[n]) / EVERY for n in steps}


def places(x, n=3):
    return float(f"{x:.{n}g}")


def about(device):
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    model, threads = models[0] if models else "", torch.get_num_threads()
    cpu = f"{model or platform.machine()}, {os.cpu_count()} cores, {threads} thread used"
    return dict(machine=card or cpu, torch=torch.__version__, python=platform.python_version(),
                date=datetime.date.today().isoformat())


# ---------------------------------------------------------------- on a CPU, beside the official one

def measure_cpu(rows, rounds, side):
    "Our step, the same in channels_last, and the official one, in turns."
    device = torch.device("cpu")
    torch.set_num_threads(1)
    rate, bandwidth = machine_rates(device, side)
    model_class, path = official_class(device)
    out = dict(**about(device), rate=places(rate["fp32"]), bandwidth=places(bandwidth),
               official=path, picture_seconds=places(picture_seconds(512 if side > 100 else 64)),
               rows=[])
    for size, narrow, n in rows:
        config, batch = config_of(size, narrow, n, official_crops=True), batch_of(size, n, device)
        last = replace(config, run=replace(config.run, channels_last=True))
        steps = dict(ours=our_step(ours(config, "cpu"), batch),
                     channels_last=our_step(ours(last, "cpu"), batch),
                     official=official_step(model_class, size, narrow, batch, device))
        steps["official_quick_filter"] = with_quick_filter(steps["official"])
        flops = {k: counted(steps[k]) for k in ("ours", "official")}
        s = alternately(steps, rounds, device)
        ratios = dict(ratio=s["official"] / s["ours"],
                      ratio_channels_last=s["official"] / s["channels_last"],
                      ratio_quick_filter=s["official_quick_filter"] / s["ours"])
        out["rows"].append(dict(size=size, narrow=narrow, batch=n,
                                seconds={k: places(v) for k, v in s.items()},
                                flops={k: places(v, 4) for k, v in flops.items()},
                                **{k: places(v) for k, v in ratios.items()}))
        del steps
        gc.collect()
    return out


def picture_seconds(size):
    "Seconds in which one process loads and degrades a picture of the training set."
    import cv2

    from gfpgan_edu.degradation import PRESETS
    from gfpgan_edu.examples import astronaut
    from gfpgan_edu.faces import FaceFolder

    with tempfile.TemporaryDirectory() as folder:
        for i in range(4):
            face = cv2.resize(astronaut(), (size, size))
            cv2.imwrite(f"{folder}/{i}.png", face[:, :: -1 if i % 2 else 1, ::-1])
        data = FaceFolder(folder, size, ranges=PRESETS["paper"], boxes="template")
        data[0, 0]
        return median(clock(lambda: data[0, i % 4], torch.device("cpu")) for i in range(12))


# ---------------------------------------------------------------- on a GPU

def variants():
    """What is measured, the most telling first: rows of the queue's job, {implementation,
    precision, channels_last, compiled, narrow, batch}."""
    def row(impl="ours", precision="bf16", last=True, compiled=False, narrow=1.0, batch=12):
        return dict(impl=impl, precision=precision, channels_last=last, compiled=compiled,
                    narrow=narrow, batch=batch)

    yield row()
    yield row("official", "tf32", False)
    yield row("official", "fp32", False)
    for precision, last in ("bf16", False), ("tf32", True), ("tf32", False), ("fp32", False):
        yield row(precision=precision, last=last)
    yield row(compiled=True)
    for batch, precision in itertools.product((3, 32), ("bf16", "fp32")):
        yield row(precision=precision, batch=batch, last=precision == "bf16")
    yield from (row("official", "tf32", False, batch=b) for b in (3, 32))
    yield from (row(narrow=1 / 16, precision=p) for p in ("bf16", "fp32"))
    yield row("official", "tf32", False, narrow=1 / 16)
    yield from (row(precision=p, compiled=True) for p in ("tf32", "fp32"))


def measure_training(v, size, official, device, rates, rounds):
    """One row: seconds of a mean step, pictures/s, peak memory, operations, share of the measured
    matrix rate."""
    exact(v["precision"])
    batch = batch_of(size, v["batch"], device)
    precision = "bf16" if v["precision"] == "bf16" else "fp32"
    config = config_of(size, v["narrow"], v["batch"],
                       official_crops=size < 512 and official is not None, precision=precision,
                       channels_last=v["channels_last"], compile=v["compiled"])
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if v["impl"] == "ours":
        step = our_step(ours(config, device), batch)
    else:
        step = official_step(official, size, v["narrow"], batch, device)
    step(1), step(EVERY)                            # warm up; a compiled net translates here
    seconds = alternately({"it": step}, rounds, device)["it"]
    if v["impl"] == "ours":
        flops = step_cost(replace(config, run=replace(config.run, compile=False))).total.flops
    else:
        flops = counted(step)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return dict(v, seconds=places(seconds), images_per_second=places(v["batch"] / seconds),
                peak_bytes=peak, flops=places(flops, 4),
                share_of_matrix_rate=places(flops / seconds / rates[v["precision"]]))


def measure_inference(v, size, official, device, rounds):
    "Seconds of the generator alone, without gradients."
    exact(v["precision"])
    x, half = batch_of(size, v["batch"], device)["lq"], v["precision"] == "bf16"
    if v["impl"] == "ours":
        layout = torch.channels_last if v["channels_last"] else torch.preserve_format
        net = GFPGAN(GFPGANConfig(size=size, narrow=v["narrow"])).eval()
        net = net.to(device, memory_format=layout)
        if v["compiled"]:
            net = torch.compile(net)
        if v["channels_last"]:
            x = x.contiguous(memory_format=layout)
    else:
        net = official(official_options(size, v["narrow"], int(device.type == "cuda"))).net_g_ema
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        net(x)
        seconds = median(clock(lambda: net(x), device) for _ in range(rounds))
    return dict(v, seconds=places(seconds), images_per_second=places(v["batch"] / seconds))


def measure_gpu(path, minutes, size, device, rounds, side, shrink=lambda v: v):
    """Every row that is not in the file yet, until the time is up. The file is written after each;
    a row that did not fit into memory says so."""
    deadline = time.monotonic() + 60 * minutes
    if path.exists():
        found = json.loads(path.read_text())
    else:
        found = dict(**about(device), size=size, command="python tests/bench/training.py --gpu",
                     training=[], inference=[])
    try:
        official, found["official"] = official_class(device)
    except ImportError as e:
        official, found["official"] = None, f"not installed ({e})"
    if "rates" not in found:
        rates, bandwidth = machine_rates(device, side, ("bf16", "tf32", "fp32"))
        found |= dict(rates={k: places(v) for k, v in rates.items()}, bandwidth=places(bandwidth))
    queue = [("training", shrink(v)) for v in variants()]
    cases = (("ours", "bf16", False), ("official", "tf32", False), ("ours", "tf32", False),
             ("ours", "bf16", True))
    forward = [dict(impl=i, precision=p, channels_last=i == "ours", compiled=c, narrow=1.0, batch=b)
               for i, p, c in cases for b in (1, 12)]
    queue[8:8] = [("inference", shrink(v)) for v in forward]
    found["left_out"] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind, v in queue:
        if any(v.items() <= row.items() for row in found[kind]):
            continue
        if v["impl"] == "official" and official is None or time.monotonic() > deadline:
            found["left_out"].append(v)
            continue
        try:
            if kind == "training":
                row = measure_training(v, size, official, device, found["rates"], rounds)
            else:
                row = measure_inference(v, size, official, device, 3 * rounds)
        except torch.OutOfMemoryError:
            row = dict(v, error="does not fit into memory")
        found[kind].append(row)
        gc.collect()
        path.write_text(json.dumps(found, indent=1) + "\n")
        print({k: v for k, v in row.items() if k != "flops"}, flush=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def tiny(v):
    "A row of `variants` on networks of a few channels."
    compiled = v["compiled"] and v["precision"] == "bf16"
    return dict(v, narrow=1 / 16, batch=min(v["batch"], 2), compiled=compiled)


def main(args=None):
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--gpu", action="store_true")
    ap.add_argument("--minutes", type=float, default=8)
    ap.add_argument("--out", type=Path)
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--rounds", type=int, default=6)
    ap.add_argument("--tiny", action="store_true")
    ap.add_argument("--rows", nargs="+", default=["256:0.5:1", "256:0.25:2", "128:0.5:2"],
                    help="CPU: size:narrow:batch")
    a = ap.parse_args(args)
    if a.gpu:
        out, device = a.out or ROOT / "figures/gpu/bench-gpu.json", torch.device(a.device)
        if a.tiny:
            measure_gpu(out, a.minutes, 32, device, a.rounds, 64, tiny)
        else:
            measure_gpu(out, a.minutes, 512, device, a.rounds, 8192)
    else:
        out = a.out or ROOT / "figures/bench/training.json"
        try:
            official_class(torch.device("cpu"))
        except ImportError as e:
            print(f"the official code is not installed; tests/peer/README.md tells how ({e})",
                  file=sys.stderr)
            sys.exit(2)
        wanted = [(int(s), float(w), int(b)) for s, w, b in (r.split(":") for r in a.rows)]
        result = measure_cpu(wanted, a.rounds, 64 if a.tiny else 2048)
        rows = lambda r: {(x["size"], x["narrow"], x["batch"]): x for x in r["rows"]}
        # rows can be measured one at a time
        old = rows(json.loads(out.read_text())) if out.exists() else {}
        merged = list((old | rows(result)).values())
        result |= dict(rows=merged, command="python tests/bench/training.py")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(out.read_text())
    if out.is_relative_to(ROOT / "figures") and not a.tiny:
        from manifest import record

        command = "python tests/bench/training.py" + " --gpu" * a.gpu
        record(out.relative_to(ROOT / "figures"), command, dict(rounds=a.rounds))


if __name__ == "__main__":
    main()
