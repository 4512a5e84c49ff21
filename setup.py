from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser()
cfg.read("settings.ini", encoding="utf-8")


def lines(key):
    return [x for x in cfg["DEFAULT"][key].splitlines() if x.strip()]


setup(version=cfg["DEFAULT"]["version"], install_requires=lines("requirements"),
      extras_require={k: lines(f"{k}_requirements") for k in ("dev", "judges", "onnx", "web")})
