# %% [markdown]
# # Layers {#sec-layers}
#
# > One convolution with a scale, one activation with a constant, two ways to change the size: the networks of this book are made of nothing else.
#
# **You will build** `EqualizedConv2d` and `EqualizedLinear`, whose weights are scaled at run time so that every layer learns at the same speed; a readable FIR resampler
# `upfirdn`; and `Resample`, the fast form that doubles or halves a picture without inventing patterns. **Needs** PyTorch and a little Fourier intuition; no earlier chapter.
# **Runs in** about 10 s on a laptop CPU.

# %%
#| default_exp layers

# %%
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_fail
from scipy import signal
from torch.testing import assert_close

from gfpgan_edu.examples import draw_map, example_faces, show
from gfpgan_edu.faces import to_tensor

# %% [markdown]
# @sec-degradation and @sec-faces made the network's input. Now the network: GFP-GAN [@wang2021gfpgan] is a U-Net, a StyleGAN2 generator and the branches between them. All three use the layers below, so @fig-layers-map lights all three boxes.
# These layers matter because the prior was trained with them: a layer that scales its weights differently, or filters differently when it doubles the size, computes another function from the same checkpoint.

# %%
#| label: fig-layers-map
#| fig-cap: "The method. The layers of this chapter are the building material of the three lit boxes."
#| fig-alt: "Boxes and arrows of the method with the U-Net, the scale and shift branch and the StyleGAN2 box coloured."
draw_map("unet", "csft", "stylegan2");

# %% [markdown]
# ## A signal through twenty layers
#
# A restorer is deep: at 512 px a face passes dozens of convolutions in a row. If each of them made its features 30 % smaller, nothing would be left at the end,
# and the gradient on the way back would fare no better. So the first question is how large random weights must be for the signal to keep its size.
#
# Take one output before the activation, $z=\sum_{i=1}^{n} w_i x_i$, with $n$ inputs (the *fan-in*) and independent weights of mean 0 and standard deviation $\sigma$.
# Its mean square is $n\sigma^2\,\overline{x^2}$, where $\overline{x^2}$ is the mean square of the inputs. The leaky ReLU $\varphi$ keeps positive values and multiplies negative ones by the slope
# $s=0.2$. As $z$ is symmetric about 0, half of its mean square is kept and half is multiplied by $s^2$:
#
# $$ \overline{\varphi(z)^2} = \tfrac{1+s^2}{2}\; n\,\sigma^2\; \overline{x^2}. $$ {#eq-layers-square}
#
# Weights with $\sigma=g/\sqrt n$ therefore multiply the mean square by $g^2(1+s^2)/2$ per layer. With $g=1$ that is 0.52, with $g=\sqrt2$ it is 1.04. The method uses $\sqrt2$ everywhere: simple, and close enough.

# %%
#| export
import math

import torch
import torch.nn.functional as F
from torch import nn

# %%
#| export
SLOPE = 0.2             # negative slope of every leaky ReLU of the method
SQRT2 = math.sqrt(2.0)  # keeps the mean square through a leaky ReLU close to 1 (@eq-layers-square)

# %% [markdown]
# The check sends a million values through one layer, then 256 random vectors through twenty.

# %%
torch.manual_seed(0)
x, w = torch.randn(1024, 1024), torch.randn(1024, 1024) / 32      # sigma = 1 / sqrt(fan-in)
square = F.leaky_relu(x @ w, SLOPE).square().mean()
assert_close(square, torch.tensor((1 + SLOPE**2) / 2), rtol=0.01, atol=0)

def sizes(gain, depth=20, width=512):
    "Root mean square of the features after each of `depth` random layers."
    x, out = torch.randn(256, width), []
    for _ in range(depth):
        x = F.leaky_relu(x @ torch.randn(width, width) * gain / width**0.5, SLOPE)
        out.append(x.square().mean().sqrt().item())
    return out

measured = {gain: sizes(gain) for gain in (1.0, SQRT2)}
for gain, values in measured.items():
    predicted = (gain**2 * (1 + SLOPE**2) / 2) ** 10              # 20 layers, square root
    assert 0.7 < values[-1] / predicted < 1.4
    print(f"gain {gain:.2f}: size after 20 layers {values[-1]:.1e}, predicted {predicted:.1e}")
assert measured[1.0][-1] < 0.01 < 0.5 < measured[SQRT2][-1] < 2

# %%
#| label: fig-layers-depth
#| fig-cap: "Size of the features after each of twenty random layers. Dots: measured; lines: the prediction of the mean-square rule."
#| fig-alt: "On a logarithmic axis the curve without gain falls by three orders of magnitude; the curve with gain root two stays near one."
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
n = np.arange(1, 21)
for (gain, values), colour, name in zip(measured.items(), ("#D55E00", "#0072B2"),
                                        ("gain 1", "gain √2")):
    ax.plot(n, (gain**2 * (1 + SLOPE**2) / 2) ** (n / 2), color=colour)
    ax.plot(n, values, "o", color=colour, label=name)
ax.set(yscale="log", xlabel="layer", ylabel="root mean square", xticks=range(0, 21, 5))
ax.legend();

# %% [markdown]
# @fig-layers-depth shows the cost of a missing constant: after twenty layers the signal without gain has fallen to a thousandth. With $\sqrt2$ it has grown by less than a factor of 1.6.
#
# ## The gain moves inside the activation
#
# The usual code computes $\sqrt2\,\varphi(\mathrm{conv}(x)+b)$: one more multiplication over every feature map. It is not needed. A leaky ReLU is *positively homogeneous*: for every $g>0$
#
# $$ \varphi(g\,z) = g\,\varphi(z), $$ {#eq-layers-homogeneous}
#
# because multiplying by a positive number changes no sign. The gain can thus be multiplied into the weights and the bias, which are small, before the convolution. Note the word bias: it too
# must carry the gain. A residual block may fold its own constants in the same way, which @sec-unet does.

# %%
z = torch.linspace(-3, 3, 13, dtype=torch.float64)
for g in (0.1, 1.0, SQRT2, 7.0):
    assert_close(F.leaky_relu(g * z, SLOPE), g * F.leaky_relu(z, SLOPE), rtol=1e-12, atol=0)
# fails for g < 0, so the sign matters
assert not torch.allclose(F.leaky_relu(-1.0 * z, SLOPE), -1.0 * F.leaky_relu(z, SLOPE))


# %% [markdown]
# ## Equalised weights
#
# The scale $\sigma=g/\sqrt{n}$ can be used in two ways. The common one draws weights of that size and forgets about it. Progressive growing [@karras2018progressive], and StyleGAN after it, store weights of size 1 and
# multiply them by the constant in every forward pass: the *equalised learning rate*. For a convolution with $c_{in}$ input channels and a $k\times k$ kernel
#
# $$ y = \varphi\big(\,(c\,W) * x + g\,b\,\big),\qquad c=\frac{g}{\sqrt{c_{in}k^2}},\qquad W_{oiuv}\sim\mathcal N(0,1). $$ {#eq-equalized}
#
# $W$ and $b$ are what the optimiser sees and what a checkpoint stores; $cW$ and $gb$ are what the picture sees; $g$ is the gain: $\sqrt2$ before an activation, 1 where there is none.
# `equalized=False` stores the products themselves, as the released "clean" models do.

# %%
#| export
class EqualizedConv2d(nn.Module):
    """k×k convolution, same padding: x (b, cin, h, w) -> leaky_relu?(conv(x, c·W) + g·bias),
    (b, cout, h/stride, w/stride).

    `equalized=True` stores W ~ N(0, 1) and multiplies it at run time by c = gain/√(cin·k²)
    (@eq-equalized), so that Adam moves every layer at the same relative speed; `equalized=False`
    stores the product (c = g = 1). Both start as the same function. `gain` is applied inside the
    activation: leaky_relu(g·z) = g·leaky_relu(z) for g > 0.
    """

    def __init__(self, cin, cout, kernel=3, *, bias=True, bias_init=0.0, gain=1.0, activate=False,
                 equalized=True):
        super().__init__()
        std = gain / math.sqrt(cin * kernel**2)
        self.weight_gain, self.bias_gain = (std, gain) if equalized else (1.0, 1.0)
        weight_size, bias_size = (1.0, 1.0) if equalized else (std, gain)
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel) * weight_size)
        self.bias = nn.Parameter(torch.full((cout,), bias_init * bias_size)) if bias else None
        self.activate = activate

    def forward(self, x, stride=1, padding=None):
        pad = self.weight.shape[-1] // 2 if padding is None else padding
        bias = self.bias if self.bias is None else self.bias * self.bias_gain
        y = F.conv2d(x, self.weight * self.weight_gain, bias, stride=stride, padding=pad)
        return F.leaky_relu(y, SLOPE) if self.activate else y


# %% [markdown]
# The check writes out the textbook order, with `torch.nn.Conv2d`, the activation after the bias and the factor last, and copies the weights. The bias is set to random numbers first:
# it starts at zero, and a zero bias would hide a missing gain.

# %%
torch.manual_seed(0)
conv = EqualizedConv2d(5, 7, 3, gain=SQRT2, activate=True).double()
nn.init.normal_(conv.bias)
plain = nn.Conv2d(5, 7, 3, padding=1).double()
with torch.no_grad():
    plain.weight.copy_(conv.weight / math.sqrt(5 * 3 * 3))
    plain.bias.copy_(conv.bias)
x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
textbook = F.leaky_relu(plain(x), 0.2) * 2**0.5
assert_close(conv(x), textbook, rtol=1e-12, atol=1e-12)
# a stride only skips samples
assert_close(conv(x, stride=2), textbook[:, :, ::2, ::2], rtol=1e-12, atol=1e-12)


# %% [markdown]
# ## Why scale at run time?
#
# Both ways start as the same function, so what does the multiplication buy? The answer lies in the optimiser. Adam [@kingma2015adam] divides the running mean of the gradient by its running root mean
# square. Multiply the gradient by a thousand and the quotient stays: an entry of the weight moves by about the learning rate $\eta$ per step, *however large its gradient is*. In the first step it
# moves by exactly $\eta$ towards the smaller loss, but for Adam's tiny $\epsilon$.

# %%
def adam_step(gradient, lr=0.002):
    "Where one Adam step takes a weight that starts at 0."
    w = nn.Parameter(torch.zeros_like(gradient))
    w.grad = gradient
    torch.optim.Adam([w], lr=lr).step()
    return w.data

g = torch.tensor([-3.0, -0.01, 0.5, 20.0])
assert_close(adam_step(g), -0.002 * g.sign(), rtol=1e-4, atol=0)
assert_close(adam_step(1000 * g), adam_step(g), rtol=1e-4, atol=0)


# %% [markdown]
# What matters for learning is the step *relative* to the weight. Let $\sigma_{used}$ be the size of the weights in use and $\delta$ the step they take; with the baked form both weight and step are the stored ones,
# with the equalised form both are multiplied by $c$:
#
# $$ \frac{\delta}{\sigma_{used}} \approx \begin{cases}\eta\,/\,c = \eta\sqrt{c_{in}k^2}/g & \text{baked: the weights have size } c\\ \eta\,c\,/\,c=\eta & \text{equalised}\end{cases} $$ {#eq-layers-speed}
#
# Baked layers thus move at different speeds. The widest one, 512 channels under a 3×3 kernel, goes first, and a learning rate that suits it starves the 1×1 layer that reads the RGB picture.
# The next cell measures the speed of one Adam step for fan-ins that occur in the network.

# %%
def speed(cin, kernel, equalized, lr=0.002):
    "Relative change of the weights in use after one Adam step on a random regression."
    conv = EqualizedConv2d(cin, 16, kernel, gain=SQRT2, equalized=equalized)
    before = conv.weight.detach() * conv.weight_gain
    opt = torch.optim.Adam(conv.parameters(), lr=lr)
    (conv(torch.randn(4, cin, 8, 8)) - torch.randn(4, 16, 8, 8)).square().mean().backward()
    opt.step()
    return ((conv.weight.detach() * conv.weight_gain - before).norm() / before.norm()).item()

torch.manual_seed(0)
layers = [(3, 1), (16, 1), (16, 3), (64, 3), (256, 3), (512, 3)]
fan = np.array([cin * k**2 for cin, k in layers])
equal, baked = (np.array([speed(*layer, flag) for layer in layers]) for flag in (True, False))
# @eq-layers-speed; 15 %: 48 random weights at fan-in 3
np.testing.assert_allclose(equal, 0.002, rtol=0.15)
np.testing.assert_allclose(baked, 0.002 * np.sqrt(fan) / SQRT2, rtol=0.15)
print(f"fastest / slowest layer: equalised {equal.max() / equal.min():.1f}, "
      f"baked {baked.max() / baked.min():.0f}; "
      f"widest baked layer moves {baked[-1]:.0%} in one step")

# %%
#| label: fig-layers-speed
#| fig-cap: "Relative change of a layer's weights in one Adam step (learning rate 0.002) against its fan-in. Lines: the formula."
#| fig-alt: "Both axes logarithmic. Equalised layers lie on a flat line at 0.002; baked layers rise with the square root of the fan-in to above 0.09."
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.plot(fan, 0.002 * np.sqrt(fan) / SQRT2, color="#D55E00")
ax.plot(fan, baked, "s", color="#D55E00", label="baked")
ax.axhline(0.002, color="#0072B2")
ax.plot(fan, equal, "o", color="#0072B2", label="equalised")
ax.set(xscale="log", yscale="log", xlabel="fan-in  $c_{in}k^2$", ylabel="relative step")
ax.legend();

# %% [markdown]
# In @fig-layers-speed the baked layers spread over more than one order of magnitude and the equalised ones sit on one level. That level is the whole purpose of the run-time multiplication.
#
# ## Same start, different place
#
# Now it is clear what `equalized=False` means for training. The two forms are the same function at the start. Under Adam they then part, because the layers move at other speeds. And the difference is
# *only* one of speed: a baked layer whose learning rate is multiplied by its own $c$ (and Adam's $\epsilon$ divided by it) must follow the equalised layer step by step. The next cell trains
# three copies of a small network on the same task and tests all of this.

# %%
shape = [(3, 16, 1), (16, 64, 3), (64, 3, 3)]

def stack(equalized):
    return nn.Sequential(*(EqualizedConv2d(*s, gain=SQRT2, activate=True, equalized=equalized)
                           for s in shape)).double()

def train(net, groups, steps=100):
    opt, losses = torch.optim.Adam(groups), []
    for _ in range(steps):
        opt.zero_grad()
        losses.append((net(x) - target).square().mean())
        losses[-1].backward()
        opt.step()
    return net(x).detach(), torch.stack(losses).detach()

torch.manual_seed(0)
x, reference = torch.randn(2, 3, 12, 12, dtype=torch.float64), stack(True)
target, start = stack(True)(x).detach(), reference.state_dict()


# %%
def copies():
    "The reference network as an equalised and a baked copy, with c and g per layer."
    a, b = stack(True), stack(False)
    a.load_state_dict(start)
    with torch.no_grad():
        for p, q in zip(a, b):
            q.weight.copy_(p.weight * p.weight_gain)
            q.bias.copy_(p.bias * p.bias_gain)
    return a, b

lr, eps, (a, b), (_, c) = 2e-3, 1e-8, copies(), copies()
assert_close(a(x), b(x), rtol=1e-12, atol=1e-12)       # the same function
slowed = [dict(params=[q], lr=lr * s, eps=eps / s) for p, layer in zip(a, c)
          for q, s in ((layer.weight, p.weight_gain), (layer.bias, p.bias_gain))]
ya, la = train(a, [dict(params=a.parameters(), lr=lr, eps=eps)])
yb, lb = train(b, [dict(params=b.parameters(), lr=lr, eps=eps)])
yc, lc = train(c, slowed)
assert_close(yc, ya, rtol=1e-6, atol=1e-6)             # only the speeds differ
assert (yb - ya).abs().mean() > 0.1 * ya.abs().mean()  # and they matter

# %%
rates = (0.0025, 0.01, 0.04, 0.16)
final = np.array([[train(net, [dict(params=net.parameters(), lr=r)])[1][-10:].mean()
                   for net in copies()] for r in rates])
best_equalised, best_baked = (rates[i] for i in final.argmin(0))
assert best_equalised >= 4 * best_baked

# %%
#| label: fig-layers-train
#| fig-cap: "Copies of one network under Adam. Left: loss at learning rate 0.002. Right: loss after 100 steps for four learning rates."
#| fig-alt: "Left, the circles of the slowed baked copy lie on the equalised curve and the plain baked copy falls faster. Right, the baked curve has its minimum at a much smaller learning rate and then rises steeply."
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
left.plot(la, color="#0072B2", label="equalised")
left.plot(lb, color="#D55E00", label="baked")
left.plot(range(0, len(lc), 8), lc[::8], "o", mfc="none", color="#009E73",
          label="baked, rate × c per layer")
left.set(yscale="log", xlabel="step", ylabel="loss", ylim=(None, 5))
left.legend(fontsize=8)
right.plot(rates, final[:, 0], "o-", color="#0072B2", label="equalised")
right.plot(rates, final[:, 1], "s-", color="#D55E00", label="baked")
right.set(xscale="log", yscale="log", xlabel="learning rate")
right.legend(fontsize=8);


# %% [markdown]
# @fig-layers-train makes the statements visible. On the left the curves begin at the same point, the circles stay on the equalised curve, and the plain baked copy goes elsewhere; at this small rate it is even ahead, because its layers move
# faster. On the right its advantage has an end: its widest layers are the first to run away, so its best learning rate is several times smaller. A learning rate belongs to a form. The 0.002 of the paper goes with the equalised one.
#
# ## Linear layers, and a slower mapping
#
# The latent codes pass through fully connected layers (@sec-stylegan2, @sec-gfpgan). They are scaled in the same way with $n=c_{in}$. StyleGAN trains its mapping network a hundred times slower than
# the rest [@karras2019stylegan]. Equalised layers make this a matter of one more constant, $\lambda$ (`lr_mul`): store the weight $1/\lambda$ times larger, use it $\lambda$ times smaller. The function at the start is the same, a step of $\eta$
# on the larger stored weight is a relative step of $\lambda\eta$:
#
# $$ y=\varphi\big((c\lambda W)\,x+g\lambda\, b\big),\qquad W_{oi}\sim\mathcal N(0,1/\lambda^2). $$ {#eq-layers-mul}

# %%
#| export
class EqualizedLinear(nn.Module):
    """Fully connected layer, x (..., cin) -> (..., cout), scaled as `EqualizedConv2d`.

    `lr_mul` slows a layer down further (@eq-layers-mul): W is stored 1/lr_mul larger and used
    lr_mul smaller, the bias likewise (StyleGAN's mapping network uses 0.01).
    """

    def __init__(self, cin, cout, *, bias_init=0.0, gain=1.0, lr_mul=1.0, activate=False,
                 equalized=True):
        super().__init__()
        std = gain / math.sqrt(cin)
        if equalized:
            self.weight_gain, self.bias_gain = std * lr_mul, gain * lr_mul
            weight_size, bias = 1.0 / lr_mul, bias_init / lr_mul
        else:
            self.weight_gain, self.bias_gain = 1.0, 1.0
            weight_size, bias = std, bias_init * gain
        self.weight = nn.Parameter(torch.randn(cout, cin) * weight_size)
        self.bias = nn.Parameter(torch.full((cout,), bias))
        self.activate = activate

    def forward(self, x):
        y = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return F.leaky_relu(y, SLOPE) if self.activate else y


# %% [markdown]
# The check compares with `F.linear` in the textbook order. The same seed must give the same function for every `lr_mul` and for the baked form, and one Adam step must be slower by exactly `lr_mul`.

# %%
def linear(**kwargs):
    torch.manual_seed(0)
    return EqualizedLinear(256, 128, bias_init=0.5, gain=SQRT2, activate=True, **kwargs).double()

x, base = torch.randn(4, 256, dtype=torch.float64), linear()
assert_close(base(x), F.leaky_relu(F.linear(x, base.weight / 16, base.bias), 0.2) * 2**0.5,
             rtol=1e-6, atol=1e-6)
for other in (linear(lr_mul=0.01), linear(equalized=False)):
    # the same function at the start
    assert_close(other(x), base(x), rtol=1e-5, atol=1e-5)
for lr_mul in (1.0, 0.01):
    layer = linear(lr_mul=lr_mul)
    before = layer.weight.detach().clone()
    layer(x).square().mean().backward()
    torch.optim.Adam(layer.parameters(), lr=0.002).step()
    relative = (layer.weight.detach() - before).norm() / before.norm()
    assert_close(relative.item(), 0.002 * lr_mul, rtol=0.02, atol=0)


# %% [markdown]
# ## Halving a picture: aliasing
#
# A U-Net halves the size of its features again and again. The obvious way keeps every second sample. That goes wrong for fine detail: a wave of more than a quarter of a cycle per pixel has
# fewer than two samples per cycle left. It does not vanish. It comes back as a *coarser* wave that was never there, which is called aliasing. For a restorer this is more than a blemish: noise and JPEG
# blocks are full of such fine waves, and an encoder that turns them into coarse shapes asks the rest of the network to tell those shapes from a face.
#
# Let $f$ be a frequency in cycles per pixel, at most $\tfrac12$. At every second pixel only even positions $x=2n$ remain, where
#
# $$ \cos(2\pi f\cdot 2n)=\cos\big(2\pi\,(1-2f)\,n\big). $$ {#eq-layers-alias}
#
# The left side advances $2f$ cycles per new pixel, the right side $1-2f$. They agree at every integer $n$, so no later layer can tell them apart. For $f>\tfrac14$ the right side is the slower one, and
# that is what one sees: 0.45 cycles per pixel look like 0.1 cycles per new pixel.

# %%
def strided(x):
    "The obvious way: keep every second sample of x (b, c, h, w)."
    return x[:, :, ::2, ::2]

def wave(f, n=64, size=16):
    "cos and sin of frequency f along the width, as two channels: (1, 2, size, n), float64."
    phase = 2 * math.pi * f * torch.arange(n, dtype=torch.float64)
    return torch.stack([phase.cos(), phase.sin()])[None, :, None].expand(1, 2, size, n)

coarse = wave(0.1, n=32, size=8)
assert_close(strided(wave(0.45))[:, 0], coarse[:, 0], rtol=0, atol=1e-12)   # @eq-layers-alias
assert_close(strided(wave(0.45))[:, 1], -coarse[:, 1], rtol=0, atol=1e-12)  # and it runs backwards


# %% [markdown]
# ## FIR resampling
#
# The cure is to remove what the coarse grid cannot carry *before* samples are dropped, by a weighted mean over neighbours: a filter with finite impulse response, FIR for short. Enlarging has the mirrored problem: new samples must be
# filled in, and a bad filling adds fine patterns. Both are one operation. In one dimension, with $U$ the factor up, $D$ the factor down, $p$ zeros in front of the signal and taps $f_0,\dots,f_{K-1}$:
#
# $$ z_m=\begin{cases}x_{(m-p)/U}&\text{if there is such a sample}\\0&\text{otherwise}\end{cases}\qquad\quad y_n=\sum_{k=0}^{K-1} f_k\; z_{nD+K-1-k}. $$ {#eq-fir}
#
# In words: put $U-1$ zeros after each sample, pad, convolve, keep every $D$-th result. In two dimensions the taps act along both axes, which is one convolution with their outer product.
# StyleGAN2 [@karras2020stylegan2] uses the taps 1, 3, 3, 1, normalised to sum 1.

# %%
#| export
def fir_kernel(taps=(1, 3, 3, 1)):
    "Two-dimensional low-pass kernel (k, k), float64: outer product of `taps`, normalised to sum 1."
    t = torch.tensor(taps, dtype=torch.float64)
    return torch.outer(t, t) / t.sum()**2


def upfirdn(x, kernel, up=1, down=1, pad=(0, 0)):
    """Readable reference of FIR resampling (@eq-fir): insert `up`-1 zeros after each sample, pad
    both axes, convolve, keep every `down`-th.

    x (b, c, h, w), kernel (k, k) -> (b, c, h', w') with
    h' = (h·up + pad[0] + pad[1] - k) // down + 1.
    """
    b, c, h, w = x.shape
    z = x.new_zeros(b, c, h, up, w, up)
    z[:, :, :, 0, :, 0] = x
    z = F.pad(z.reshape(b, c, h * up, w * up), (*pad, *pad))
    # conv2d correlates; a filter convolves
    flipped = kernel.to(x).flip(0, 1).expand(c, 1, *kernel.shape)
    return F.conv2d(z, flipped, groups=c)[:, :, ::down, ::down]


# %% [markdown]
# Two independent versions check it, each along one axis and then along the other: the equation letter by letter, and `scipy.signal.upfirdn`, which starts where the first tap meets the first sample, so that ours is a slice of it.
# The taps of the check are lopsided on purpose: symmetric taps cannot reveal a filter that runs backwards.

# %%
def by_letter(v, taps, U, D, pad):
    p, K, n_out = pad[0], len(taps), (len(v) * U + sum(pad) - len(taps)) // D + 1
    f = [t / sum(taps) for t in taps]
    z = lambda m: v[(m - p) // U] if (m - p) % U == 0 and 0 <= (m - p) // U < len(v) else 0.0
    return [sum(f[k] * z(n * D + K - 1 - k) for k in range(K)) for n in range(n_out)]

def by_scipy(v, taps, U, D, pad):
    full = np.pad(signal.upfirdn(np.array(taps) / sum(taps), v, U), 50)
    start = 50 + len(taps) - 1 - pad[0]
    return full[start:start + len(v) * U + sum(pad) - len(taps) + 1:D]

torch.manual_seed(0)
x, taps = torch.randn(1, 2, 9, 7, dtype=torch.float64), (1, 2, 3, 5)
for U, D, pad in [(1, 1, (2, 2)), (1, 2, (1, 1)), (2, 1, (2, 1)), (3, 2, (3, 0))]:
    ours = upfirdn(x, fir_kernel(taps), U, D, pad)[0, 1]
    for one_axis in (by_letter, by_scipy):
        rows = np.apply_along_axis(one_axis, 1, x[0, 1].numpy(), taps, U, D, pad)
        np.testing.assert_allclose(ours, np.apply_along_axis(one_axis, 0, rows, taps, U, D, pad),
                                   rtol=0, atol=1e-12)


# %% [markdown]
# ## The fast forms, and bilinear as a filter
#
# The reference is clear and wasteful. Going down it computes four results and keeps one; going up, three of four samples that it filters are zeros. A strided convolution and a transposed convolution do the same without the waste, on each channel
# alone. That is the whole of `Resample(mode="fir")`. Its third method only smooths: where a 3×3 convolution with stride 2 follows, as in the U-Net's blocks, the convolution drops the samples itself.
#
# The released clean models use plain bilinear resizing instead, `mode="bilinear"`, because it runs everywhere without special operators. Is that something else?

# %%
#| export
def float32_on_cpu(f):
    """f(x), a strided depthwise convolution, in float32 where x is on a CPU, whatever autocast
    says: its bfloat16 kernels there are many times slower. The result has the type of
    x (b, c, h, w)."""
    def wide(x):
        if x.device.type != "cpu":
            return f(x)
        with torch.autocast("cpu", enabled=False):
            return f(x.float() if x.dtype == torch.bfloat16 else x).to(x.dtype)
    return wide


# %%
#| export
class Resample(nn.Module):
    """The two ways this network changes resolution: `mode="fir"` (the paper's model) or
    `"bilinear"` (the clean models).

    `up(x)` doubles and `down(x)` halves the size of x (b, c, h, w); `smooth(x, pad, gain)` only
    low-passes, for use beside a strided convolution.
    """

    def __init__(self, mode):
        super().__init__()
        if mode not in ("fir", "bilinear"):
            raise ValueError(f"resample is {mode!r}, needs 'fir' or 'bilinear'")
        self.mode = mode
        # symmetric: correlation and convolution agree
        self.register_buffer("kernel", fir_kernel(), persistent=False)

    def _depthwise(self, x, gain=1.0):
        return (self.kernel * gain).to(x).expand(x.shape[1], 1, *self.kernel.shape)

    def smooth(self, x, pad, gain=1.0):
        return F.conv2d(x, self._depthwise(x, gain), padding=pad, groups=x.shape[1])

    def _strided(self, conv, x, gain=1.0):
        return float32_on_cpu(lambda x: conv(x, self._depthwise(x, gain), stride=2, padding=1,
                                             groups=x.shape[1]))(x)

    def up(self, x):
        if self.mode == "bilinear":
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self._strided(F.conv_transpose2d, x, 4.0)  # 4 makes up for the zeros

    def down(self, x):
        if self.mode == "bilinear":
            # the mean of each 2×2 block
            return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return self._strided(F.conv2d, x)


# %%
fir, bilinear = Resample("fir"), Resample("bilinear")
x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
assert_close(fir.down(x), upfirdn(x, fir_kernel(), down=2, pad=(1, 1)), rtol=0, atol=1e-12)
assert_close(fir.up(x), upfirdn(x, 4 * fir_kernel(), up=2, pad=(2, 1)), rtol=0, atol=1e-12)
assert_close(fir.smooth(x, 2, 4.0), upfirdn(x, 4 * fir_kernel(), pad=(2, 2)), rtol=0, atol=1e-12)
test_fail(lambda: Resample("nearest"), exc=ValueError, contains="'nearest'")


# %% [markdown]
# Later chapters train on CPUs in bfloat16, numbers of 16 bits. For a strided convolution of each channel alone the kernels of CPUs are slow in that format, so `up` and `down` compute in float32 there and return the type they were given; `float32_on_cpu` does it, also for networks of other people that judge ours (@sec-train-restorer). To the caller the filter is exact: only the input and the result are rounded, to 8 bits, and no autocast around it changes anything.
# A penalty on gradients (@sec-losses) differentiates twice, so the second derivative has to survive the detour as well.

# %%
def slopes(resample, v):
    """The gradient of the sum of squares of resample(v), and the gradient of *its* sum of squares,
    as R1 needs it."""
    v = v.requires_grad_()
    (first,) = torch.autograd.grad(resample(v).float().square().sum(), v, create_graph=True)
    return first, *torch.autograd.grad(first.float().square().sum(), v)

narrow = torch.randn(2, 3, 12, 16).bfloat16()
wide = narrow.float()
for resample in (fir.up, fir.down):
    with torch.autocast("cpu", torch.bfloat16):
        got, same = resample(narrow), resample(wide)
        half = slopes(resample, narrow.clone())
    assert got.dtype == torch.bfloat16 and torch.equal(got, resample(narrow))
    # half a step of 8 bits, no more
    assert_close(got.float(), resample(wide), rtol=2**-8, atol=0)
    assert same.dtype == torch.float32 and torch.equal(same, resample(wide))
    for of_narrow, of_wide in zip(half, slopes(resample, wide.clone())):
        atol = 2**-6 * of_wide.abs().max().item()
        assert_close(of_narrow.float(), of_wide, rtol=2**-6, atol=atol)

# %% [markdown]
# Halving bilinearly lands exactly between two samples on each axis, so both weights are one half: the taps are 1, 1. Doubling puts each new sample a quarter of a pixel beside an old one; its weights are $\tfrac34$ and $\tfrac14$. Seen from one old
# sample, the four new ones around it take $\tfrac14,\tfrac34,\tfrac34,\tfrac14$ of it: the taps 1, 3, 3, 1 again. The two modes enlarge with the *same* filter. They differ in the frame only, where FIR resampling sees zeros outside the picture and
# bilinear resizing repeats the last pixel.

# %%
assert_close(bilinear.down(x), upfirdn(x, fir_kernel((1, 1)), down=2), rtol=0, atol=1e-12)
# by hand
assert_close(bilinear.down(x)[0, 0, 1, 2], x[0, 0, 2:4, 4:6].mean(), rtol=0, atol=1e-12)
# the same filter …
assert_close(bilinear.up(x)[..., 1:-1, 1:-1], fir.up(x)[..., 1:-1, 1:-1], rtol=0, atol=1e-12)
repeated = F.pad(x, (1, 1, 1, 1), mode="replicate")
# … with another border
assert_close(bilinear.up(x), fir.up(repeated)[..., 2:-2, 2:-2], rtol=0, atol=1e-12)
white = torch.ones(1, 1, 8, 8, dtype=torch.float64)
for name, y in dict(up=fir.up(white), down=fir.down(white)).items():
    print(f"FIR {name} of a white picture: centre {y[0, 0, 2, 2]:.3f}, edge {y[0, 0, 0, 2]:.3f}, "
          f"corner {y[0, 0, 0, 0]:.3f}")

# %% [markdown]
# The printed numbers are the price of the zeros: FIR resampling darkens a frame of one pixel. A network is trained with it and learns to live with it. So the frame
# is one reason why weights of one family do not fit the code of the other. Further ones are the filter on the way *down*, which comes next, and the way in which the prior doubles its features (@sec-stylegan2).
#
# ## How much of a wave survives
#
# A filter is judged by what it does to a wave of frequency $f$. The two taps 1, 1 give $\tfrac12(1+e^{-2\pi i f})$, whose size is $|\cos\pi f|$. The taps 1, 3, 3, 1 are this two-sample mean applied three times, so
#
# $$ |H_{1,1}(f)|=|\cos \pi f|,\qquad |H_{1,3,3,1}(f)|=|\cos \pi f|^3. $$ {#eq-layers-response}
#
# Below $f=\tfrac14$ one would like 1, as these waves fit on the coarse grid; above it one would like 0, as all that is left there aliases. The next cell sends waves through the real `down` methods and measures what comes out.

# %%
np.testing.assert_allclose(np.convolve(np.convolve([1, 1], [1, 1]), [1, 1]), [1, 3, 3, 1])
# way, power of the cosine, colour
ways = {"strided": (strided, 0, "#D55E00"), "bilinear": (bilinear.down, 1, "#E69F00"),
        "fir": (fir.down, 3, "#0072B2")}

def survives(down, f):
    "Amplitude of a wave of amplitude 1 after halving, away from the border."
    return down(wave(f))[0, :, 2:-2, 2:-2].square().sum(0).sqrt()

probes = np.arange(0.02, 0.5, 0.04)
for down, power, _ in ways.values():
    for f in probes:
        got = survives(down, f)
        want = torch.full_like(got, abs(math.cos(math.pi * f)) ** power)
        assert_close(got, want, rtol=0, atol=1e-12)

# %%
#| label: fig-layers-response
#| fig-cap: "What is left of a wave after halving the size. Lines: the formula; dots: measured. In the grey half, all that is left aliases."
#| fig-alt: "Strided stays at one for all frequencies; bilinear falls as a cosine; FIR falls as the cosine cubed and is close to zero above 0.4."
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
f = np.linspace(0, 0.5, 200)
for name, (down, power, colour) in ways.items():
    ax.plot(f, np.cos(np.pi * f) ** power, color=colour)
    ax.plot(probes, [survives(down, p).mean() for p in probes], "o", color=colour, label=name)
ax.axvspan(0.25, 0.5, color="#dddddd", zorder=0)
ax.set(xlabel="frequency, cycles per pixel", ylabel="amplitude after halving", xlim=(0, 0.5),
       ylim=(-0.03, 1.1))
ax.legend(loc="lower left");

# %% [markdown]
# In @fig-layers-response the strided way passes everything, so all of the grey half turns into false detail. Bilinear halving lets a good part through. The FIR filter stops most of it, and pays with blur below
# $\tfrac14$. How much in total? Take white noise, the hardest case, split it at $f=\tfrac14$ by a Fourier transform, halve both parts and compare the power.

# %%
noise = torch.randn(1, 1, 1, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
spectrum, freq = torch.fft.rfft(noise), torch.fft.rfftfreq(4096)
low, high = (torch.fft.irfft(spectrum * m).expand(1, 1, 16, 4096)
             for m in (freq < 0.25, freq >= 0.25))

def power_ratio(down, x):
    return (down(x)[..., 2:-2, 2:-2].square().mean() / x.square().mean()).item()

# frequencies from 0 to 1/2
grid = (np.arange(4000) + 0.5) / 8000
for name, (down, power, _) in ways.items():
    kept, leaked = power_ratio(down, low), power_ratio(down, high)
    response = np.cos(np.pi * grid) ** (2 * power)
    want = [response[grid < 0.25].mean(), response[grid > 0.25].mean()]
    np.testing.assert_allclose([kept, leaked], want, rtol=0.1, atol=0.003)
    print(f"{name:9} keeps {kept:4.0%} of the power that fits, "
          f"lets {leaked:4.0%} of the rest alias")
assert power_ratio(fir.down, high) < power_ratio(bilinear.down, high) / 8


# %% [markdown]
# Against bilinear halving the FIR filter lets eight times less aliased power through, and costs about a quarter of the power that would have fitted. That blur can be undone: a 3×3 convolution follows and can learn to sharpen. Aliasing cannot be undone by anything
# (@eq-layers-alias). Now the picture. A zone plate is a set of rings whose frequency grows with the radius, here from 0 at the centre to $\tfrac12$ in the corners. Outside the dashed circle it is too fine for the halved picture and ought to be grey.

# %%
def zone_plate(size=96):
    "Rings in [-1, 1], (1, 1, size, size), float64: r/(size·√2) cycles per pixel at radius r."
    t = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.cos(math.pi * (t[:, None] ** 2 + t**2) / (size * SQRT2))[None, None]

plate = zone_plate()
t = torch.arange(48, dtype=torch.float64) - 23.5
# well outside the circle of radius 48/√8
outside = (t[:, None] ** 2 + t**2).sqrt() > 48 * 0.42
ghost = {name: way[0](plate)[0, 0][outside].std().item() for name, way in ways.items()}
print({name: f"{g:.2f}" for name, g in ghost.items()})
assert ghost["fir"] < ghost["bilinear"] / 2 < ghost["strided"] / 2

# %%
#| label: fig-layers-zone
#| fig-cap: "A zone plate of 96 px and its halved versions, drawn with larger pixels. All rings outside the dashed circle are false."
#| fig-alt: "The strided version shows full false ring systems in the corners and at the edges; bilinear weaker ones; FIR is grey outside the circle."
panels = {"original, 96 px": plate}
panels |= {f"{name}, 48 px": way[0](plate) for name, way in ways.items()}
fig = plt.figure(figsize=(8.1, 2.2), dpi=100)
for i, (title, image) in enumerate(panels.items()):
    # 192 screen pixels: a whole number per picture pixel
    ax = fig.add_axes([i * 204 / 810, 0, 192 / 810, 192 / 220])
    ax.imshow(image[0, 0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.axis("off")
    if i:
        ax.add_patch(plt.Circle((23.5, 23.5), 48 / 8**0.5, fill=False, ls="--", lw=1.5,
                                color="#E69F00"))


# %% [markdown]
# In @fig-layers-zone the strided version grows complete new ring systems at the edges and corners, as strong as the true one. Bilinear halving weakens them, FIR halving leaves next to nothing.
#
# ## A picture that moves by one pixel
#
# Aliasing has a second face. A restorer should treat a face and the same face one pixel to the right alike; in a video, what it does not treat alike flickers. Strided networks do not have this property, and filtering before the stride repairs much of it [@zhang2019shift].
# A shift by *two* pixels is a shift by one coarse pixel for every method. The interesting one is a shift by a single pixel: a bright line should then move by half a coarse pixel.
# The cell below moves a line across the picture and computes, from the halved picture, where it seems to be: the centre of mass, in pixels of the original.

# %%
def seen_at(down, position, offset):
    "Centre of mass of a bright vertical line after halving, in fine pixels; nan if it is gone."
    x = torch.zeros(1, 1, 8, 32, dtype=torch.float64)
    x[..., position] = 1
    row = down(x)[0, 0, 2]
    moment = ((2 * torch.arange(16) + offset) * row).sum().item()
    return moment / row.sum().item() if row.sum() > 0 else math.nan

# strided keeps pixel 2j, the others are centred on 2j + 1/2
positions = np.arange(10, 22)
seen = {name: np.array([seen_at(way[0], p, 0.0 if name == "strided" else 0.5) for p in positions])
        for name, way in ways.items()}
np.testing.assert_allclose(seen["fir"], positions, atol=1e-12)   # FIR: exactly where it is
assert np.abs(seen["bilinear"] - positions).min() == 0.5         # bilinear: always half a pixel off
assert np.isnan(seen["strided"][1::2]).all()                     # strided: gone every other time
# two pixels: exact for everybody, away from the border
for way, *_ in ways.values():
    assert_close(way(torch.roll(plate, 2, -1))[..., 3:-3], torch.roll(way(plate), 1, -1)[..., 3:-3],
                 rtol=0, atol=1e-12)

# %%
#| label: fig-layers-shift
#| fig-cap: "Error of the place of a bright line after halving, as it moves by one pixel at a time. Where a mark is missing, the line is gone."
#| fig-alt: "FIR lies on zero everywhere; bilinear swings between plus and minus half a pixel; strided has marks at even positions only."
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
for (name, way), marker in zip(ways.items(), ("x", "s", "o")):
    ax.plot(positions, seen[name] - positions, marker + "-", color=way[2],
            ms=8 if marker == "x" else 6, mew=2, label=name)
ax.set(xlabel="position of the line, px", ylabel="seen at − is at, px", xticks=positions,
       ylim=(-1, 1.3))
ax.legend(ncols=3, loc="upper right");

# %% [markdown]
# In @fig-layers-shift the strided line is seen at every other position and gone in between. The bilinear one is off by half a pixel, now to one side, now to the other: it rests, then jumps by two pixels. Only the FIR one moves as the line does.
#
# ## Put together
#
# One face, 128 px, goes down to 16 px in the three ways and comes back up through `Resample("fir").up`. Then it passes six random equalised layers at full size: the features keep their size although nothing was trained.

# %%
face = to_tensor(example_faces(1, 128))
pictures = {}
for name, (down, *_) in ways.items():
    small = down(down(down(face)))
    pictures[name] = small, fir.up(fir.up(fir.up(small)))

torch.manual_seed(0)
h, sizes_seen = face / face.square().mean().sqrt(), []
for cin in (3, 32, 32, 32, 32, 32):
    h = EqualizedConv2d(cin, 32, gain=SQRT2, activate=True)(h)
    sizes_seen.append(h.square().mean().sqrt().item())
assert 0.3 < min(sizes_seen) and max(sizes_seen) < 3
print("size of the features:", " ".join(f"{s:.1f}" for s in sizes_seen))

# %%
#| label: fig-layers-face
#| fig-cap: "A face of 128 px halved three times in the three ways, the FIR version doubled three times again, and one feature after six random layers."
#| fig-alt: "The strided 16 px version is jagged, bilinear and FIR are smooth; the enlarged version is blurred with a grey frame; the feature shows edges of the face."
show([face[0], *(s[0] for s, _ in pictures.values()), pictures["fir"][1][0], h[0, 0]],
     ["face", *(f"{name}, 16 px" for name in pictures), "fir, back at 128 px", "a random feature"],
     cols=3, height=1.7);

# %% [markdown]
# In @fig-layers-face the strided version picks single pixels, so hair and eyes break into blocks that belong to no feature of the face; the other two average. The frame that turns grey on the way up is the border of zeros, as 0 is mid-grey in $[-1,1]$.
#
# ## Paper, official code, ours
#
# The paper names none of these layers; it refers to StyleGAN2. The comparison is therefore with the official code.
#
# | | official code | ours | why |
# |---|---|---|---|
# | scale of the weights | at run time in the paper's model and in the bilinear one, baked into the weights in the clean models: separate classes | one class, `equalized=True` or `False` | one network to read, test and convert |
# | $\sqrt2$ after the activation | a fused CUDA operator, or a multiplication of the feature map | folded into weights and bias | same function, one pass over memory less, no compiler needed |
# | bias of an activated layer | a parameter of the activation | a parameter of the convolution | one place for it |
# | FIR resampling | compiled `upfirdn2d` with a slow twin in PyTorch | strided and transposed depthwise convolutions; `upfirdn` as the reference | runs on every device, differentiable twice |
# | halving beside a 1×1 convolution | filters at full size, then a strided convolution | filters only the samples that stay | a quarter of the work, equal results |
# | border of FIR resampling | zeros | zeros | the weights were trained with it |
# | resampling in bfloat16 on a CPU | no case for it | in float32 | many times quicker, and exact |
# | a baked model in training | the clean models are offered for inference only | trains, at other speeds (@fig-layers-train) | it is the form in which v1.2 to v1.4 exist |
#
# : Layers: official code and ours. {#tbl-layers}
#
# ## What users trip over
#
# ::: {.callout-warning}
# The official repository holds three generations of the network: the paper's model with FIR resampling, a bilinear one, and the clean one with baked weights. Its conversion script turns *bilinear* weights into clean ones. It accepts the paper's weights as well, since all keys
# and shapes agree, and then produces red or distorted faces (GFPGAN #217 is one report). This chapter shows why: the keys agree, the filters do not. Our loader (@sec-weights) reads the family and builds the matching `resample` and `equalized`.
#
# The most frequent error messages after installation, such as `fused_act_ext is not defined`, come from the two CUDA operators that were not compiled. There is nothing to compile here.
# :::
#
# ## Summary
#
# * Weights of size $\sqrt2/\sqrt{\text{fan-in}}$ keep the mean square of a signal through a leaky ReLU within 4 % per layer.
# * The $\sqrt2$ belongs to the activation, but can be multiplied into weights and bias, because a leaky ReLU is positively homogeneous.
# * Adam moves every stored weight by about the learning rate. Storing weights of size 1 and scaling them at run time makes that the same relative speed in every layer; baking the scale in keeps the function and changes the speeds.
# * Dropping every second sample turns fine waves into coarse ones for good. A filter before it prevents this: the taps 1, 3, 3, 1 pass an eighth of the aliased power that the taps 1, 1 pass.
# * Enlarging is the same filter in both modes, up to a frame of one pixel.
#
# Next: @sec-unet makes the first network out of these layers.
#
# ## Exercises
#
# 1. **Compute.** Which gain makes @eq-layers-square exact for slope 0.2? By which factor does $\sqrt2$ then enlarge the features after 45 layers? Check both with the function `sizes`.
# 2. **Modify.** Give `Resample` a mode with the taps 1, 5, 10, 10, 5, 1. Predict its curve in @fig-layers-response, find the paddings that keep the sizes exact, and measure kept and aliased power of white noise.
# 3. **Break.** Take the `bias_gain` out of `EqualizedConv2d.forward`. Which check turns red, and why does it stay green if the bias is left at its initial value?
#
# Worked solutions: [nbs/solutions/04_layers.ipynb](solutions/04_layers.ipynb).
#
# ## References
#
# The equalised learning rate comes from progressive growing [@karras2018progressive], the slowed mapping network from StyleGAN [@karras2019stylegan], the filter and the residual blocks that use it from StyleGAN2 [@karras2020stylegan2]. The argument for filtering before
# every stride is [@zhang2019shift]; the optimiser is [@kingma2015adam].
