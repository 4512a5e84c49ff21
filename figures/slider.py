"""Draw figures/portrait-damaged.jpg and figures/portrait-restored.jpg, the two pictures of the
book's slider: a public-domain portrait.

python figures/slider.py
"""
import json
import pathlib

from demo import DAMAGE
from manifest import record
from PIL import Image

from gfpgan_edu.degradation import degrade
from gfpgan_edu.examples import astronaut
from gfpgan_edu.photos import restore
from gfpgan_edu.weights import BUNDLED

HERE = pathlib.Path(__file__).parent
BOX = 112, 10, 336, 234                     # head and shoulders: left, top, right, bottom
SIZE = 448                                  # the side of the pictures


def main(out=HERE):
    damaged = degrade(astronaut(), DAMAGE)
    for name, photo in (("damaged", damaged), ("restored", restore(damaged).image)):
        path = out / f"portrait-{name}.jpg"
        head = Image.fromarray(photo).crop(BOX)
        head.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path, quality=88)
        print(f"{path.name}: {path.stat().st_size // 1000} kB")
        if out == HERE:
            config = dict(damage=json.loads(DAMAGE.to_json()), weights=BUNDLED, box=BOX, size=SIZE)
            record(path.name, "python figures/slider.py", config)


if __name__ == "__main__":
    main()
