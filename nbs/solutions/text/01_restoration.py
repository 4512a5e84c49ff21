# %% [markdown]
# # Solutions: blind face restoration {#sec-solutions-restoration .unnumbered}
#
# The exercises are those of @sec-restoration.

# %%
import cv2
import numpy as np
import torch

from gfpgan_edu import restore
from gfpgan_edu.examples import astronaut, example_faces, show
from gfpgan_edu.faces import detect, to_tensor
from gfpgan_edu.identity import angle, load_embedder

torch.set_num_threads(1)

photo = astronaut()

# %% [markdown]
# ## 1. Compute: two candidates, one average
#
# *What is the ratio of the risks of a candidate and of the mean, with two candidates?* The mean is half as far from each candidate $a$, $b$ as they are from each other, so its squared error is $\tfrac14(a-b)^2$ whichever is true.
# A candidate pays nothing when it is right and $(a-b)^2$ when it is wrong: $\tfrac12(a-b)^2$ on average. The ratio must be 2 exactly, whatever the picture shows.

# %%
face = example_faces(1, 128)[0].astype(float)


def risks(candidates):
    "Mean squared errors of the first candidate and of the mean, all candidates equally likely."
    risk = lambda answer: ((candidates - answer) ** 2).mean()
    return risk(candidates[0]), risk(candidates.mean(0))


left_right = np.stack([np.roll(face, s, axis=1) for s in (-1, 1)])
noise = np.random.default_rng(0).normal(size=(2, 50, 50))
for name, pair in {"shifted faces": left_right, "pure noise": noise}.items():
    sharp, mean = risks(pair)
    print(f"{name:14} {sharp / mean:.2f}")
    np.testing.assert_allclose(sharp / mean, 2)

# %% [markdown]
# The ratio is 2 for any two candidates. In general the risk of an answer is the spread of the candidates plus the squared distance of the answer from their mean, and with two candidates both terms are equal for a candidate.
#
# ## 2. Modify: smaller and smaller photos
#
# *Shrink a photo before restoring it. When is the face lost, and when the person?* Here the photo is the astronaut. For the person we ask the embedder of @sec-identity: the angle between the face restored from the full photo and the one
# restored from the small photo, beside the angles to people who do not exist.

# %% tags=["volatile"]
embed = load_embedder("bundled")
vector = lambda face: embed(to_tensor(face))
whole = restore(photo)
original = vector(whole.faces[0][0])
others = torch.cat([vector(f) for f in example_faces(8, 64)])
strangers = angle(original, others).min().item()

angles, restored = {}, []
for k in (1, 2, 4, 8, 12):
    small = cv2.resize(photo, None, fx=1 / k, fy=1 / k, interpolation=cv2.INTER_AREA)
    found = detect(small)
    if not found:
        print(f"1/{k}: no face")
        continue
    restored.append(restore(small).faces[0][1])
    angles[k] = angle(original, vector(restored[-1])).item()
    x0, _, x1, _ = found[0].box
    print(f"1/{k}: face {x1 - x0:2.0f} px wide, {angles[k]:2.0f}° from the original "
          f"(nearest of 8 strangers: {strangers:.0f}°)")
assert max(angles) == 8 and angles[1] < angles[4] < angles[8] and angles[2] < strangers

# %%
#| fig-alt: "A row of portraits restored from smaller and smaller photos; the last one is vaguer and has changed."
show(restored, [f"from 1/{k}" for k in angles], height=1.4);


# %% [markdown]
# The detector loses the face between 10 and 7 pixels of width. The embedder keeps the person down to a face of about 20 pixels; at 10 pixels the restored face has moved a good part of the way to a stranger, although it is found and looks like a face.
# Long before nothing is found, the result is a likely face and no longer this one.
#
# ## 3. Break: a blue face
#
# *Reverse the channels of the photo. What does the network do?* If it only copied colours, the blue of the input would come out again. We measure how much bluer than red the middle of the face is, before and after.

# %% tags=["volatile"]
def blueness(face):
    "Mean of blue minus red over the middle of an aligned 64 px face, grey levels."
    middle = face[16:48, 16:48].astype(float)
    return (middle[..., 2] - middle[..., 0]).mean()


natural, blue = whole.faces[0], restore(photo[..., ::-1]).faces[0]
for name, (before, after) in {"natural": natural, "blue": blue}.items():
    print(f"{name:8} blue minus red: {blueness(before):4.0f} in the input, "
          f"{blueness(after):4.0f} in the output")
assert blueness(blue[0]) > 0 and blueness(blue[1]) < 0.85 * blueness(blue[0])
assert abs(blueness(natural[1]) - blueness(natural[0])) < 5

# %%
#| fig-alt: "Four small portraits: a bluish input and its output, the natural input and its output."
show([*blue, *natural], ["blue input", "output", "natural input", "output"], height=1.4);

# %% [markdown]
# The network draws the features of a blue face as usual, and takes part of the blue out of the skin: it has learned from colour jitter that inputs may be tinted, and from its faces that skin is not blue.
# It corrects towards what it has seen, and it does not go all the way, since the maps of the U-Net tell it otherwise.
