"""Draw figures/web.png: the page of `gfpgan-edu web` in headless Chromium, with a damaged portrait
restored.

.venv-web/bin/python figures/web.py      # `make test-web` makes that environment
"""
import io
import pathlib
import sys
import tempfile

from manifest import record
from PIL import Image

from gfpgan_edu.degradation import DegradationParams, degrade
from gfpgan_edu.examples import astronaut

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "tests/web"))
from served import Server, browser  # noqa: E402

DAMAGE = DegradationParams(sigma_x=1.2, sigma_y=1.2, r=2.5, delta=10.0, q=60, noise_seed=1)
WINDOW, SIZE = (slice(30, 210), slice(130, 310)), (1100, 680)


def main():
    with tempfile.TemporaryDirectory() as folder, browser() as chrome:
        photo = pathlib.Path(folder) / "eileen.jpg"
        Image.fromarray(degrade(astronaut(), DAMAGE)[WINDOW]).save(photo, quality=95)
        server = Server(folder)
        page = chrome.new_page(viewport=dict(width=SIZE[0], height=SIZE[1]))
        page.set_default_timeout(120_000)
        page.goto(server.url)
        page.set_input_files("#photo input[type=file]", photo)
        page.wait_for_function("document.querySelector('#slider img')?.complete && "
                               "document.querySelector('#message textarea').value")
        page.wait_for_timeout(1500)                                         # the page settles
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        page.close()
        server.stop()
    few = picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3)
    few.save(HERE / "web.png", optimize=True)
    window = [[s.start, s.stop] for s in WINDOW]
    record("web.png", ".venv-web/bin/python figures/web.py",
           dict(window=window, size=list(SIZE), damage=vars(DAMAGE)))
    print(f"figures/web.png: {(HERE / 'web.png').stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
