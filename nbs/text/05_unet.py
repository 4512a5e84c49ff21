# %% [markdown]
# # The degradation removal module {#sec-unet}

# %%
#| default_exp unet

# %%
#| export

from torch import nn

from gfpgan_edu.layers import SQRT2, EqualizedConv2d, Resample

# %%
#| export
class DownBlock(nn.Module):
    """Residual block that halves the size: (b, cin, h, w) -> (b, cout, h/2, w/2). The 1/√2 of the sum sits in the gains."""

    def __init__(self, cin, cout, *, resample="fir", equalized=True):
        super().__init__()
        self.conv1 = EqualizedConv2d(cin, cin, gain=SQRT2, activate=True, equalized=equalized)
        self.conv2 = EqualizedConv2d(cin, cout, gain=1.0, activate=True, equalized=equalized)  # √2 of the activation · 1/√2 of the sum
        self.skip = EqualizedConv2d(cin, cout, 1, bias=False, gain=1 / SQRT2, equalized=equalized)
        self.resample = Resample(resample)

    def forward(self, x):
        h = self.conv1(x)
        if self.resample.mode == "fir":
            h = self.conv2(self.resample.smooth(h, pad=2), stride=2, padding=0)  # h+1 samples -> h/2
        else:
            h = self.conv2(self.resample.down(h))
        return h + self.skip(self.resample.down(x))


# %%
#| export
class UpBlock(nn.Module):
    """Residual block that doubles the size: (b, cin, h, w) -> (b, cout, 2h, 2w). Bilinear in every family of official models."""

    def __init__(self, cin, cout, *, equalized=True):
        super().__init__()
        self.conv1 = EqualizedConv2d(cin, cin, gain=SQRT2, activate=True, equalized=equalized)
        self.conv2 = EqualizedConv2d(cin, cout, gain=1.0, activate=True, equalized=equalized)
        self.skip = EqualizedConv2d(cin, cout, 1, bias=False, gain=1 / SQRT2, equalized=equalized)
        self.resample = Resample("bilinear")

    def forward(self, x):
        return self.conv2(self.resample.up(self.conv1(x))) + self.resample.up(self.skip(x))  # a 1×1 convolution commutes with resizing


# %%
#| export
class UNet(nn.Module):
    """Degradation removal (Eq. 1): x (b, 3, S, S) -> F_latent (b, C4, 4, 4), F_spatial [8..S: (b, Cs, s, s)], pyramid [8..S: (b, 3, s, s)].

    `channels` maps each resolution 4, 8, …, S to its width. log2(S) - 2 blocks go down and as many up (7 + 7 at 512 px); the
    skips are additive: each up-block receives the running feature plus the encoder's feature of that size.
    """

    def __init__(self, channels, *, resample="fir", equalized=True):
        super().__init__()
        sizes = sorted(channels)                       # 4, 8, …, S
        eq = dict(equalized=equalized)
        self.first = EqualizedConv2d(3, channels[sizes[-1]], 1, gain=SQRT2, activate=True, **eq)
        self.down = nn.ModuleList(DownBlock(channels[s], channels[s // 2], resample=resample, **eq) for s in sizes[:0:-1])
        self.last = EqualizedConv2d(channels[4], channels[4], gain=SQRT2, activate=True, **eq)
        self.up = nn.ModuleList(UpBlock(channels[s // 2], channels[s], **eq) for s in sizes[1:])
        self.to_rgb = nn.ModuleList(EqualizedConv2d(channels[s], 3, 1, **eq) for s in sizes[1:])

    def forward(self, x):
        h, skips = self.first(x), []
        for block in self.down:
            h = block(h)
            skips.append(h)                            # S/2, …, 4
        latent = h = self.last(h)
        spatial, pyramid = [], []
        for block, to_rgb, skip in zip(self.up, self.to_rgb, reversed(skips)):
            h = block(h + skip)
            spatial.append(h)
            pyramid.append(to_rgb(h))
        return latent, spatial, pyramid
