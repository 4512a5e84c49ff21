# %% [markdown]
# # Solutions: identity {#sec-solutions-identity .unnumbered}
#
# The exercises are those of @sec-identity.

# %%
import math

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.test import test_fail

from gfpgan_edu.degradation import add_noise
from gfpgan_edu.examples import example_faces
from gfpgan_edu.identity import GrayEmbedder, angle, load_embedder, to_gray
from gfpgan_edu.faces import to_tensor
from gfpgan_edu.losses import identity

torch.set_num_threads(1)

embedder = load_embedder("bundled")


# %% [markdown]
# ## 1. Compute: small angles
#
# *Show that $2\arctan(\lVert u-v\rVert/\lVert u+v\rVert)$ is the angle, and compare the errors at 0.001°.* For unit vectors at the angle $\theta$ the sum and the difference are the diagonals of a rhombus: $\lVert u-v\rVert=2\sin\frac\theta2$ and $\lVert u+v\rVert=2\cos\frac\theta2$. The arccosine loses small angles, since
# $\cos\theta=1-\theta^2/2$, and a 32-bit number near 1 has a spacing of $6\cdot10^{-8}$: angles below $\sqrt{2\cdot6\cdot10^{-8}}$ rad, 0.02°, are lost.

# %% tags=["volatile"]
def half_angle(a, b):
    u, v = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


rng = torch.Generator().manual_seed(0)
directions = lambda: F.normalize(torch.randn(200, 256, dtype=torch.float64, generator=rng), dim=-1)
u, w = directions(), directions()
w = F.normalize(w - (u * w).sum(-1, keepdim=True) * u, dim=-1)    # orthogonal to u
for true in (0.001, 0.1, 10, 90, 170):
    v = math.cos(math.radians(true)) * u + math.sin(math.radians(true)) * w
    errors = [(f(u.float(), v.float()) - true).abs().max().item() for f in (angle, half_angle)]
    print(f"{true:7}°: error of arccos {errors[0]:.0e}°, of arctan {errors[1]:.0e}°")
    # in 64 bits they agree
    torch.testing.assert_close(half_angle(u, v), angle(u, v), atol=1e-5, rtol=1e-6)
    assert errors[1] < 1e-4 and (true > 0.001 or errors[0] > 10 * errors[1])
same = u.float() * 3
assert half_angle(same, same).max() == 0


# %% [markdown]
# At 0.001° the arccosine is wrong by more than the angle itself, while the half-angle form is right to a small part of it. For angles of degrees, as faces have them, both are good; equal faces get exactly 0 only from the second.
#
# ## 2. Modify: antialias first
#
# *Write an embedder that antialiases before it resizes. How do the angles of a noisy 512 px face change?* `to_gray` reads one pixel in four per axis (of a 512 px face), and with it that pixel's whole noise; the mean over the pixels that it stands for has much less.

# %%
class Antialiased(GrayEmbedder):
    def forward(self, x):
        size = self.net.config["size"]
        small = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return self.net(to_gray(small, size))


calm, face = Antialiased(embedder.net), example_faces(1, 512)[0]
with torch.no_grad():
    clean = to_tensor(face)
    for delta in (10, 20, 40):
        noisy = torch.from_numpy(add_noise(np.float32(face / 255), delta, 1))
        noisy = noisy.permute(2, 0, 1)[None] * 2 - 1
        turned = [angle(e(clean), e(noisy)).item() for e in (embedder, calm)]
        print(f"noise of {delta} levels turns the face by {turned[0]:.0f}°, "
              f"antialiased by {turned[1]:.1f}°")
        assert turned[1] < 0.6 * turned[0]
    between = angle(embedder(clean), calm(clean)).item()
    small = to_tensor(example_faces(1, 64))
    # nothing to antialias when enlarging
    assert torch.allclose(calm(small), embedder(small), atol=1e-3)
print(f"the two embedders on the clean face: {between:.1f}° apart")

# %% [markdown]
# The noise turns the antialiased vector much less. For judging restored faces that is an advantage; against the official loss it is a deviation, as the official network was trained on what `to_gray` gives it.
#
# ## 3. Break: an embedder in training mode
#
# *Put the embedder into training mode during the descent. Why does the loss jump?* Dropout switches half of the features off, each time others, and batch normalisation takes mean and spread from the batch at hand. With a single picture it even refuses; so the descent runs on two damaged faces.

# %% tags=["volatile"]
true = to_tensor(example_faces(2, 128, seed=2))
damaged = F.interpolate(F.avg_pool2d(true, 4), size=128, mode="bilinear")


def descend(embed, steps=20):
    torch.manual_seed(0)
    free, losses = damaged.clone().requires_grad_(), []
    optimizer = torch.optim.Adam([free], 0.003)
    for _ in range(steps):
        losses.append(identity(embed(free), embed(true)))
        optimizer.zero_grad(), losses[-1].backward(), optimizer.step()
    return np.array([v.item() for v in losses])


# %% tags=["volatile"]
careless = load_embedder("bundled")
careless.train()        # refuses …
assert not careless.net.training
quiet = descend(careless)
careless.net.train()    # … but its inside does not
test_fail(lambda: careless(damaged[:1]), exc=ValueError, contains="more than 1 value")
jumpy = descend(careless)
up = lambda v: (np.diff(v) > 0).mean()
print(f"loss: eval {quiet[0]:.2f} -> {quiet[-1]:.2f}, up in {up(quiet):.0%} of the steps; "
      f"train {jumpy[0]:.2f} -> {jumpy[-1]:.2f}, up in {up(jumpy):.0%}")
with torch.no_grad():
    a, b = (identity(net(damaged), net(damaged)) for net in (careless, embedder))
print(f"distance of a picture from itself: train {a:.2f}, eval {b:.0f}")
assert up(quiet) < 0.1 < 0.2 < up(jumpy) and jumpy[-1] > 3 * quiet[-1]
assert a > 0.2 * jumpy[0] and b == 0

# %% [markdown]
# In training mode a picture is not even equal to itself: two calls see two different networks, so the loss jumps and has a floor that no picture can pass. Its running statistics drift besides. This is why `GrayEmbedder` refuses `.train()`, and why one should not reach behind it.
