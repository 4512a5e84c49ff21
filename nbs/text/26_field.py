# %% [markdown]
# # Where the field went {#sec-field}
#
# > The prior changed three times; the question of how to hold it to the input stayed.
#
# **You will build** two small experiments that carry most of what came after GFP-GAN: a codebook that snaps damaged features back, and a transport that turns a blurred best guess into a sharp one. Besides, a map of nine methods and their published numbers, with their sources.
# **Needs** the prior of @sec-stylegan2, the measures of @sec-metrics, the caution of @sec-evaluation.
# **Runs in** about 15 s on a laptop CPU.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_fail
from IPython.display import Markdown
from matplotlib.patches import FancyBboxPatch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

from gfpgan_edu.examples import show
from gfpgan_edu.weights import load_prior

# %% [markdown]
# ## Nine methods, one drawing
#
# Every method of this family has the same three parts: something that *reads* the damaged face, something that *knows* faces, and a place where they *meet*. What changed is the middle part, and how often the big network runs.
#
# - **GPEN** [@yang2021gpen], of the same year as GFP-GAN, also puts a pretrained GAN behind an encoder. The encoder's features enter where StyleGAN2 has its noise, and the whole is finetuned, prior included.
# - **VQFR** [@gu2022vqfr] replaces the GAN by a *codebook* [@oord2017vqvae; @esser2021vqgan]: a list of feature vectors learned from sharp faces. A second decoder brings back the fidelity that codes lose.
# - **CodeFormer** [@zhou2022codeformer] predicts *which* codes belong to the face with a transformer, as words of a sentence, and blends features of the input in with a knob between quality and fidelity.
# - **RestoreFormer** [@wang2022restoreformer] and **RestoreFormer++** [@wang2023restoreformerpp] let features of the input ask and dictionary entries answer, by cross-attention; the second at several scales and with a wider damage model.
# - **DR2** [@wang2023dr2] uses a *diffusion* model [@ho2020ddpm] as a filter: add noise to the input until damage and noise cannot be told apart, walk back while its low frequencies guide, then sharpen with a second network.
# - **DifFace** [@yue2024difface] starts the way back in the middle, from a noised first estimate, so that a pretrained diffusion model need not be trained again.
# - **DiffBIR** [@lin2024diffbir] removes damage first and lets a large text-to-image model draw, steered by the cleaned picture.
# - **PMRF** [@ohayon2025pmrf] computes the best guess in mean square error and *transports* it to the distribution of sharp faces. The second experiment below is about that.
# - **OSDFace** [@wang2025osdface] distils the large model into a single step, with an identity loss and a discriminator: back to one pass, as in GFP-GAN.

# %%
#| label: fig-field-methods
#| fig-cap: "What reads the input, what knows faces, where they meet, and how often the large network runs. Colours mark the kind of prior."
#| fig-alt: "Ten rows of three boxes joined by arrows: GFP-GAN and GPEN in blue with a GAN, three rows in orange with a codebook, four in green with diffusion, one in pink with a flow; at the right the number of runs, one or many."
ROWS = [
    ("GFP-GAN", "U-Net", "GAN, frozen", "scale and shift half the features", "1", 0),
    ("GPEN", "encoder", "GAN, finetuned", "features in place of noise", "1", 0),
    ("VQFR", "encoder", "codebook", "nearest code; second decoder", "1", 1),
    ("CodeFormer", "encoder", "codebook", "transformer predicts the codes", "1", 1),
    ("RestoreFormer(++)", "encoder", "codebook", "attention: input asks, codes answer", "1", 1),
    ("DR2", "blur + noise", "diffusion", "low frequencies guide; sharpener", "many", 2),
    ("DifFace", "restorer", "diffusion", "start in the middle of the way", "many", 2),
    ("DiffBIR", "restorer", "text-to-image diffusion", "control network", "many", 2),
    ("OSDFace", "encoder", "text-to-image diffusion", "prompt from the input; one step", "1", 2),
    ("PMRF", "restorer", "flow", "transport of the best guess", "many", 3)]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
for i, (name, reads, knows, meets, runs, kind) in enumerate(ROWS):
    y = -i
    ax.text(0, y, name, va="center", fontsize=9, weight="bold")
    parts = ((2.2, 1.5, reads, False), (4.1, 2.4, knows, True), (6.9, 3.6, meets, False))
    for x0, w, text, on in parts:
        box = FancyBboxPatch((x0, y - 0.3), w, 0.6, boxstyle="round,pad=0.04",
                             fc=COLOURS[kind] if on else "#f2f2f2", ec="#444444", lw=0.7)
        ax.add_patch(box)
        ink = "white" if on and kind == 0 else "#222222"
        ax.text(x0 + w / 2, y, text, ha="center", va="center", fontsize=8, color=ink)
    for a, b in ((3.75, 4.05), (6.55, 6.85)):
        ax.annotate("", (b, y), (a, y), arrowprops=dict(arrowstyle="-|>", color="#444444"))
    ax.text(11.1, y, runs, ha="center", va="center", fontsize=8)
for x0, text in ((2.95, "reads"), (5.3, "knows"), (8.7, "where they meet"), (11.1, "runs")):
    ax.text(x0, 0.75, text, ha="center", fontsize=9, style="italic")
ax.set(xlim=(-0.1, 11.6), ylim=(-9.5, 1.1)), ax.axis("off");

# %% [markdown]
# @fig-field-methods reads from top to bottom in time, roughly. GANs gave way to codebooks, because a GAN's codes cannot hold an unseen face and a codebook's can. Codebooks gave way to diffusion models, because these know far more pictures. Diffusion is now distilled to one step, because nobody wants to wait.

# %% [markdown]
# ## Snap to what is known: a codebook
#
# Take the features of a generator at some resolution, $c$ numbers at each place. From many clean faces collect such vectors and cluster them into $K$ codes $e_1,\dots,e_K$. A damaged feature $h$ is then replaced by the nearest code:
#
# $$q(h)=e_{k^\star},\qquad k^\star=\arg\min_k\lVert h-e_k\rVert^2$$ {#eq-field-codebook}
#
# Damage that moves $h$ a little changes nothing at all: the nearest code stays the nearest. The price is paid without damage, since $h$ itself is not in the list.

# %%
torch.set_num_threads(1)
prior = load_prior("prior32").requires_grad_(False)
g = torch.Generator().manual_seed(26)
w_mean = prior.mean_w(generator=torch.Generator().manual_seed(0))
BLOCK = 0                                               # features of 8 × 8 places


def some_codes(n):
    "Codes of n faces that the prior draws, with truncation 0.7."
    w = prior.mapping(torch.randn(n, prior.config["style_dim"], generator=g))
    return prior.codes(w_mean + 0.7 * (w - w_mean))


def draw(w, change):
    "Faces of the codes w, with `change` applied to the features of `BLOCK`: the restorer's hook."
    return prior.synthesis(w, modulate=lambda h, k: change(h) if k == BLOCK else h)


def features(w):
    "The features (b, c, 8, 8) that `draw` would change."
    seen = []
    draw(w, lambda h: seen.append(h) or h)
    return seen[0]


def nearest(h, book):
    "Every vector of h (b, c, s, s) replaced by the nearest row of book (K, c), @eq-field-codebook."
    rows = h.permute(0, 2, 3, 1)
    owner = torch.cdist(rows.flatten(0, 2), book).argmin(1)
    return book[owner].view(rows.shape).permute(0, 3, 1, 2)


def codebook(vectors, k, rounds=8):
    "k codes (k, c) for vectors (n, c): Lloyd's algorithm; a code nobody wants stays where it is."
    book = vectors[:k].clone()
    for _ in range(rounds):
        owner = torch.cdist(vectors, book).argmin(1)
        n = torch.bincount(owner, minlength=k)[:, None]
        sums = torch.zeros_like(book).index_add_(0, owner, vectors)
        book = torch.where(n > 0, sums / n.clamp_min(1), book)
    return book


# %%
def misfit(book):
    "Mean squared distance of the vectors to their nearest codes."
    snapped = nearest(vectors[:, :, None, None], book)[:, :, 0, 0]
    return (vectors - snapped).square().sum(1).mean().item()


F = features(some_codes(256))
vectors = F.permute(0, 2, 3, 1).flatten(0, 2)
vectors = vectors[torch.randperm(len(vectors), generator=g)[:6000]]
books = {k: codebook(vectors, k) for k in (64, 512)}
# by hand: two groups, two means
two = codebook(torch.tensor([[0.0], [10], [1], [11]]), 2)
torch.testing.assert_close(two, torch.tensor([[0.5], [10.5]]))
h, tiny = torch.randn(2, 3, 2, 2, generator=g), torch.randn(5, 3, generator=g)
by_loop = h.clone()
for b, i, j in np.ndindex(2, 2, 2):                     # independent: one vector at a time
    far = [float((code - h[b, :, i, j]).square().sum()) for code in tiny]
    by_loop[b, :, i, j] = tiny[far.index(min(far))]
torch.testing.assert_close(nearest(h, tiny), by_loop, rtol=0, atol=0)
snapped = nearest(F[:4], books[64])                     # snapping twice is snapping once
torch.testing.assert_close(nearest(snapped, books[64]), snapped, rtol=0, atol=1e-4)
assert misfit(books[512]) < misfit(books[64]) < misfit(vectors[:64])

# %%
w = some_codes(48)                                      # faces that the books have not seen
clean, spread = draw(w, lambda h: h), F.std(dim=(0, 2, 3))[None, :, None, None]
psnr = lambda a: (10 * torch.log10(4 / (a - clean).square().mean((1, 2, 3)))).mean().item()


def noisy(h, strength):
    return h + strength * spread * torch.randn(h.shape, generator=torch.Generator().manual_seed(1))


# %%
strengths, results, pictures = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3), {}, {}
repairs = {"as it is": lambda h: h, "64 codes": lambda h: nearest(h, books[64]),
           "512 codes": lambda h: nearest(h, books[512])}
for name, repair in repairs.items():
    drawn = [draw(w, lambda h: repair(noisy(h, s))) for s in strengths]
    results[name], pictures[name] = [psnr(d) for d in drawn], drawn
    print(f"{name:9}", " ".join(f"{v:5.1f}" for v in results[name]), "dB")
assert results["as it is"][0] > results["512 codes"][0] + 5         # the price,
assert results["as it is"][4] < results["512 codes"][4] - 2         # and the gain
assert abs(results["64 codes"][0] - results["64 codes"][2]) < 0.5
assert results["512 codes"][7] < results["512 codes"][0] - 4

# %%
#| label: fig-field-codebook
#| fig-cap: "PSNR of faces drawn from damaged features, without and with snapping to a codebook (48 faces that the codebook has not seen)."
#| fig-alt: "One curve falls steadily; the curve of 64 codes is level and then falls; that of 512 codes is level on a higher value, crosses the first and falls."
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, v), colour in zip(results.items(), ("#444444", "#56B4E9", "#E69F00")):
    ax.plot(strengths, v, "o-", ms=3, color=colour, label=name)
ax.set(xlabel="noise in the features, in standard deviations", ylabel="PSNR (dB)")
ax.legend(fontsize=8);

# %%
#| label: fig-field-codebook-faces
#| fig-cap: "Three faces: clean, from features with noise of 1 and 2 standard deviations, and the same snapped to 512 codes."
#| fig-alt: "Three rows of five small faces; the noisy ones are blotched, the snapped ones are calmer and at the stronger noise other faces."
columns = [clean, *(pictures[n][strengths.index(s)]
                    for s in (1, 2) for n in ("as it is", "512 codes"))]
cells = [column[i] for i in range(3) for column in columns]
show(cells, ["clean", "noise 1", "snapped", "noise 2", "snapped"], cols=5, height=1.0);

# %% [markdown]
# The level parts of @fig-field-codebook are the reason for the success of codebooks: up to some strength, damage does not get through. Their height is the reason for all that was added later. It is the best that $K$ codes can say, so VQFR needs a second decoder and CodeFormer its knob to let the input speak beside the codes. And where the curves fall, wrong codes are chosen: @fig-field-codebook-faces shows clean pieces of other faces. CodeFormer's transformer chooses codes by looking at all places together, which moves this point to the right.

# %% [markdown]
# ## A best guess, then a transport
#
# @sec-baselines found that the best answer in L1 or L2 is blurred, since many faces fit one input. Is there an answer that looks sharp and is still as near as a sharp one can be? In two dimensions everything can be computed. Let a "face" be a point $x$ on one of five islands, and its damaged picture $y=x+n$ with Gaussian noise. There are three natural answers:
#
# $$x^\star=\mathbb E[x\,|\,y],\qquad \tilde x\sim p(x\,|\,y),\qquad \hat x=T(x^\star)$$ {#eq-field-answers}
#
# the posterior mean, a draw from the posterior, and the mean moved by $T$, the optimal transport from the distribution of $x^\star$ to that of $x$: of all maps between them the one that moves least, in mean square. Two facts are known. A draw has *twice* the error of the mean. And the transported mean has the smallest error that any answer with the right distribution can have [@freirich2021tradeoff]:
#
# $$\mathbb E\lVert x-\hat x\rVert^2=\mathbb E\lVert x-x^\star\rVert^2+W_2^2(p_{x^\star},p_x)\ \le\ \mathbb E\lVert x-\tilde x\rVert^2=2\,\mathbb E\lVert x-x^\star\rVert^2$$ {#eq-field-transport}
#
# $W_2$ is the Wasserstein distance, the root of the mean squared way of the best assignment.

# %%
rng, NOISE, N = np.random.default_rng(26), 0.45, 700
# the five take turns
island = 2 * np.pi * np.arange(4000) / 5 + rng.normal(0, 0.12, 4000)
# all the faces there are
world = np.stack([np.cos(island), np.sin(island)], 1) * (1 + rng.normal(0, 0.04, (4000, 1)))
# as many of each island: less scatter
some = lambda n: world[5 * rng.integers(0, 800, n) + np.arange(n) % 5]


def posterior(y):
    "Probabilities (n, 4000) of every face of the world, given y (n, 2)."
    log = -np.square(y[:, None] - world).sum(2) / (2 * NOISE**2)
    p = np.exp(log - log.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def assignment(a, b):
    "Squared Wasserstein distance of two sets of equal size, and b in the order that goes with a."
    cost = np.square(a[:, None] - b).sum(2)
    rows, columns = linear_sum_assignment(cost)
    return cost[rows, columns].mean(), b[columns]


# %%
x = some(N)
y = x + NOISE * rng.normal(size=x.shape)
p = posterior(y)
picks = [rng.choice(len(world), p=q) for q in p]
answers = {"input": y, "posterior mean": p @ world, "posterior draw": world[picks]}
answers["transport"] = assignment(answers["posterior mean"], some(N))[1]
far = some(1)                                   # by hand: one far measurement, one nearest face
assert np.linalg.norm(posterior(100 * far) @ world - far) < 0.3 and np.allclose(p.sum(1), 1)
# a shift by 3 costs 9, whatever the order
assert abs(assignment(x, x[::-1] + [3, 0])[0] - 9) < 1e-9

# %% [markdown]
# PMRF learns $T$ instead of solving an assignment: a *rectified flow* [@liu2023rectified], a network $v(z,t)$ that is trained to say in which direction, on straight lines from $x^\star$ to $x$, the point $z$ moves at time $t$. At use one starts at $x^\star$ and follows $v$ in small steps.

# %%
torch.manual_seed(0)
v = torch.nn.Sequential(torch.nn.Linear(3, 96), torch.nn.SiLU(), torch.nn.Linear(96, 96),
                        torch.nn.SiLU(), torch.nn.Linear(96, 2))
many = some(12000)
means = np.concatenate([posterior(part + NOISE * rng.normal(size=part.shape)) @ world
                        for part in np.split(many, 12)])
x1, x0 = (torch.tensor(a, dtype=torch.float32) for a in (many, means))
optimizer = torch.optim.Adam(v.parameters(), 3e-3)
for step in range(1500):
    optimizer.param_groups[0]["lr"] = 3e-3 if step < 1000 else 5e-4
    j, t = torch.randint(len(x1), (512,)), torch.rand(512, 1)
    # a little noise, as in the paper: equal means may have to part
    start = x0[j] + 0.05 * torch.randn(512, 2)
    way = x1[j] - start
    loss = (v(torch.cat([start + t * way, t], 1)) - way).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    z = torch.tensor(answers["posterior mean"], dtype=torch.float32) + 0.05 * torch.randn(N, 2)
    for k in range(30):
        z = z + v(torch.cat([z, torch.full((N, 1), k / 30)], 1)) / 30
answers["flow"] = z.numpy()

# %%
other = some(N)
error = {name: np.square(a - x).sum(1).mean() for name, a in answers.items()}
distance = {name: assignment(a, other)[0] for name, a in answers.items()}
floor = assignment(some(N), other)[0]
for name in answers:
    print(f"{name:15} error {error[name]:.2f}, distance to the distribution {distance[name]:.3f}")
print(f"{'two true sets':15} {'':10}  distance to the distribution {floor:.3f}")
assert abs(error["posterior draw"] / error["posterior mean"] - 2) < 0.15        # twice
right = error["posterior mean"] + assignment(answers["posterior mean"], answers["transport"])[0]
assert abs(error["transport"] / right - 1) < 0.08                               # the sum of squares
assert error["posterior mean"] < error["flow"] < error["posterior draw"]
assert error["transport"] < 0.85 * error["posterior draw"]
assert distance["flow"] < distance["posterior mean"]

# %%
#| label: fig-field-transport
#| fig-cap: "Left: truths (grey) and four answers to the same inputs. Right: error against distance to the true distribution, with the line of the best compromises."
#| fig-alt: "Four small scatter plots; the posterior mean fills the space between the islands, the other three lie on them. A plane with points: mean at small error and larger distance, transport and flow to its right and lower, posterior draw far right."
fig, axes = plt.subplots(1, 5, figsize=(9, 2.1), layout="constrained",
                         width_ratios=(1, 1, 1, 1, 1.9))
colours = {"posterior mean": "#0072B2", "posterior draw": "#D55E00", "transport": "#009E73",
           "flow": "#CC79A7"}
for ax, (name, colour) in zip(axes, colours.items()):
    ax.plot(*x.T, ".", ms=1, color="#bbbbbb")
    ax.plot(*answers[name].T, ".", ms=1.5, color=colour)
    ax.set(aspect="equal", title=name, xticks=[], yticks=[], xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    ax.title.set_fontsize(8)
share = np.linspace(0, 1, 11)[:, None, None]
between = answers["posterior mean"] + share * (answers["transport"] - answers["posterior mean"])
errors = [np.square(a - x).sum(1).mean() for a in between]
distances = [assignment(a, other)[0] for a in between]
axes[4].plot(errors, distances, color="#444444", lw=1)
for name, colour in colours.items():
    axes[4].plot(error[name], distance[name], "o", color=colour)
axes[4].axhline(floor, ls=":", color="#444444")
axes[4].set(xlabel="mean square error", ylabel="distance");


# %% [markdown]
# The posterior mean of @fig-field-transport lies between the islands: the blurred face. The draw lies on them and pays double. The transported mean lies on them too, for a good deal less. The flow is a learned transport: it ends between mean and transport, a little above the line, and leaves some points on their way. The line joins compromises between perception and distortion [@blau2018perception]; no answer can lie below it, up to the scatter of 700 points.
#
# Where is GFP-GAN in this plane? Its L1 and identity terms pull to the left, the adversarial term pulls down, and the weights of @eq-total choose the place. Nothing makes sure that the place lies on the line. That is what the transport adds.

# %% [markdown]
# ## Two test sets with one name
#
# Now the published numbers. None of them is ours. Both tables below are headed "CelebA-Test" by their sources, and they must not be mixed: the damaged faces of the first are the mild ones of GFP-GAN and VQFR, those of the second the much harder ones that came with DAEFR [@tsai2024daefr]. @tbl-field-mild is from the repository of PMRF [@ohayon2025pmrf], whose authors ran all methods again; FID is against the 70,000 faces of FFHQ. @tbl-field-hard is from the repository of OSDFace [@wang2025osdface], with two references of FID.

# %%
#| label: tbl-field-mild
#| tbl-cap: "CelebA-Test, mild damage. Source: table in the repository of PMRF [@ohayon2025pmrf]. Lower is better but for PSNR and SSIM."
def table(head, text):
    rows = [line.split("|") for line in text.strip().splitlines()]
    values = {r[0].strip(): dict(zip(head, map(float, r[1:]))) for r in rows}
    lines = ["| method | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head),
             *("| " + " | ".join(c.strip() for c in r) + " |" for r in rows)]
    return values, "\n".join(lines)


mild, markdown = table(["FID", "NIQE", "PSNR", "SSIM", "LPIPS", "Deg.", "LMD"], """
GFP-GAN | 46.72 | 4.415 | 24.99 | .6774 | .3643 | 36.05 | 2.443
VQFR | 41.79 | 3.693 | 24.07 | .6446 | .3515 | 35.75 | 2.429
CodeFormer | 53.16 | 4.649 | 25.15 | .6700 | .3432 | 37.28 | 2.470
RestoreFormer | 42.30 | 4.405 | 24.62 | .6460 | .3655 | 32.13 | 2.299
RestoreFormer++ | 41.15 | 4.187 | 25.31 | .6703 | .3441 | 29.63 | 2.043
DifFace | 38.43 | 4.288 | 24.80 | .6726 | .3999 | 45.79 | 2.965
DiffBIR | 59.06 | 6.084 | 25.39 | .6536 | .3878 | 32.94 | 2.006
PMRF | 37.46 | 4.118 | 26.37 | .7073 | .3470 | 30.67 | 2.030""")
Markdown(markdown)

# %%
#| label: tbl-field-hard
#| tbl-cap: "CelebA-Test, hard damage of DAEFR. Source: table in the repository of OSDFace [@wang2025osdface]. FID against FFHQ and against the clean faces of the set. Lower is better but for MUSIQ."
head = ["LPIPS", "DISTS", "MUSIQ", "NIQE", "Deg.", "LMD", "FID (FFHQ)", "FID (clean)"]
hard, markdown = table(head, """
RestoreFormer++ | .4535 | .2301 | 72.36 | 3.952 | 70.51 | 8.80 | 57.37 | 72.79
VQFR | .3390 | .2131 | 73.30 | 4.837 | 62.26 | 5.73 | 58.10 | 24.91
CodeFormer | .3412 | .2151 | 75.94 | 4.516 | 62.20 | 5.38 | 62.03 | 26.86
DAEFR | .3580 | .2146 | 74.99 | 4.416 | 62.82 | 5.63 | 52.03 | 26.05
DifFace | .3469 | .2126 | 66.75 | 4.638 | 63.45 | 5.48 | 49.81 | 22.24
DiffBIR | .3740 | .2340 | 75.64 | 6.280 | 61.02 | 5.10 | 71.78 | 32.51
OSDFace | .3365 | .1773 | 75.64 | 3.884 | 60.07 | 5.29 | 45.42 | 17.06""")
Markdown(markdown)


# %% [markdown]
# On the same hard set another team (the README of DMDP-FR, 2026) reports for the methods that are missing above: GFP-GAN FID 46.96 and PSNR 19.57, GPEN 56.15 and 20.55, DR2 88.50 and 20.81. @tbl-field-real adds the real photos.
#
# | method | LFW | WebPhoto | WIDER |
# |---|--:|--:|--:|
# | GFP-GAN* | 51.50 | 91.54 | 40.47 |
# | GPEN* | 57.58 | 95.21 | 54.01 |
# | DR2* | 58.41 | 119.80 | 63.43 |
# | VQFR | 49.80 | 84.78 | 37.87 |
# | CodeFormer | 52.34 | 83.20 | 38.77 |
# | RestoreFormer++ | 50.25 | 75.07 | 45.40 |
# | DAEFR | 47.53 | 75.47 | 36.70 |
# | DifFace | 46.13 | 79.56 | 37.10 |
# | DiffBIR | 40.32 | 91.83 | 35.34 |
# | OSDFace | 44.63 | 84.60 | 34.65 |
#
# : Real photos, FID against FFHQ, lower is better. Source: table in the repository of OSDFace [@wang2025osdface]; with a star, README of DMDP-FR (2026). {#tbl-field-real}
#
# What do these tables allow one to say? The next cell lets the numbers speak.

# %%
def best(t, column, largest=False):
    return (max if largest else min)(t, key=lambda name: t[name][column])


def correlation(t, first, second):
    "Rank correlation of two columns."
    return spearmanr([r[first] for r in t.values()], [r[second] for r in t.values()])[0]


both = [name for name in mild if name in hard]
shift = {name: hard[name]["Deg."] - mild[name]["Deg."] for name in both}
two_fids = correlation(hard, "FID (FFHQ)", "FID (clean)")
fid_deg = correlation(mild, "FID", "Deg.")
print("mild: best FID", best(mild, "FID"), "| best Deg.", best(mild, "Deg."),
      "| worst Deg.", best(mild, "Deg.", True), "| best PSNR", best(mild, "PSNR", True))
print("the same methods, hard set: Deg. larger by "
      f"{min(shift.values()):.0f}° to {max(shift.values()):.0f}°")
print(f"rank correlation of the two FIDs: {two_fids:.2f}; "
      f"of FID and Deg. on the mild set: {fid_deg:.2f}")
assert best(mild, "FID") == best(mild, "PSNR", True) == "PMRF"
assert best(mild, "Deg.") == best(hard, "Deg.", True) == "RestoreFormer++"
assert sorted(mild, key=lambda n: mild[n]["FID"])[1] == best(mild, "Deg.", True) == "DifFace"
assert min(shift.values()) > 15 and abs(fid_deg) < 0.5
# a number that is missing stays out
test_fail(lambda: table(["FID"], "GFP-GAN | n/a"), exc=ValueError, contains="n/a")

# %%
#| label: fig-field-tables
#| fig-cap: "FID against the identity angle in both tables; every dot is a method. Nothing can be read across the two panels."
#| fig-alt: "Two scatter plots with labelled points; in the left one RestoreFormer++ and PMRF are low on both axes, in the right one OSDFace is."
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.1), layout="constrained")
panels = ((mild, "FID", "mild set"), (hard, "FID (FFHQ)", "hard set"))
for ax, (t, column, title) in zip(axes, panels):
    for name, r in t.items():
        ax.plot(r["Deg."], r[column], "o", color="#0072B2")
        right = r["Deg."] > max(v["Deg."] for v in t.values()) - 1
        at = -5 if right else 5, -10 if name in ("RestoreFormer++", "VQFR") else 4
        ax.annotate(name, (r["Deg."], r[column]), xytext=at, textcoords="offset points",
                    fontsize=7, ha="right" if right else "left")
    ax.set(xlabel="identity angle (°)", ylabel=column, title=title)
    ax.margins(0.12)

# %% [markdown]
# In @fig-field-tables RestoreFormer++ is best in identity on the left and worst on the right: a method tuned to one range of damage may leave it badly. DifFace is second in FID and last in identity, so FID says little about the person. The paper of GFP-GAN reports FID 42.62 for itself on the mild set, and @tbl-field-mild has 46.72 for the same model and test set; the difference is who measured, with which Inception and which statistics. @sec-evaluation has the remedy: measure all again with one program. And one more number is not in any table: time. One pass against 50, 250 or 1,000 of a far larger network is the reason why GFP-GAN is still in use, and why it is a good first model to understand.

# %% [markdown]
# ## Paper, official code, ours
#
# | | papers | their code | ours | why |
# |---|---|---|---|---|
# | codebook | VQGAN trained with encoder, decoder and discriminator, 1,024 codes | the same | clusters of features of the bundled prior, 64 and 512 codes | the idea in twenty lines |
# | choice of codes | nearest (VQFR), predicted (CodeFormer) | the same | nearest | shows why prediction was needed |
# | PMRF: best guess | a network trained with L2 | the same | the exact posterior mean | in two dimensions it can be computed |
# | PMRF: transport | rectified flow at picture size | the same | assignment, and a flow of some 10,000 weights | both sides of the theorem |
# | numbers | each paper has its own | – | quoted with source, never ours | nothing was run again here |
#
# : The later methods and our two experiments {#tbl-field-versions}
#
# @tbl-field-versions is short on purpose: this chapter implements ideas, not methods.
#
# ::: {.callout-warning}
# ## What users trip over
# - *"My PSNR is five dB off."* Look at the input's PSNR first; then at which of the two sets it is.
# - *A fidelity knob is not a guarantee.* With CodeFormer's weight at its most faithful, identity can still drift; users report changed eyes and doubled eyebrows.
# - *Stages that depend on each other.* Several reports about training CodeFormer come down to a "frozen" codebook that had never been loaded. Our trainers refuse a frozen prior that is random.
# - *Licences differ.* CodeFormer and DifFace are for non-commercial use, PMRF is MIT (@tbl-limits-licences).
# :::

# %% [markdown]
# ## Summary
#
# - Reader, prior, meeting point: GANs, codebooks, diffusion and flows differ in the middle.
# - A codebook lets small damage through not at all and pays with a ceiling (@eq-field-codebook).
# - The posterior mean is blurred, a draw costs double, a transport of the mean is the cheapest sharp answer (@eq-field-transport).
# - Two sets are called CelebA-Test. Identity angles differ by more than 15° between them for the same method.
# - One pass is still a virtue.

# %% [markdown]
# ## Exercises
#
# 1. *Compute.* Show that a draw from the posterior has twice the error of the posterior mean. Where is it used that draw and truth are independent given $y$?
# 2. *Modify.* Choose codes jointly: among the 8 nearest codes of each place take the one that agrees best with its neighbours in the training features. Does the fall in @fig-field-codebook move to the right?
# 3. *Break.* Train the flow from the *inputs* $y$ instead of the posterior means. What happens to error and distance, and what would that mean for a restorer that skips the best guess?
#
# Worked solutions: [nbs/solutions/26_field.ipynb](solutions/26_field.ipynb).

# %% [markdown]
# ## References
#
# The methods: @yang2021gpen, @gu2022vqfr, @zhou2022codeformer, @wang2022restoreformer, @wang2023restoreformerpp, @wang2023dr2, @yue2024difface, @lin2024diffbir, @ohayon2025pmrf, @wang2025osdface. The trade-off is due to @blau2018perception, its geometry to @freirich2021tradeoff, rectified flows to @liu2023rectified.
