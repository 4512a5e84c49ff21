from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser()
cfg.read("settings.ini", encoding="utf-8")
lines = {k: [x for x in cfg["DEFAULT"][k].splitlines() if x.strip()] for k in ("requirements", "dev_requirements", "judges_requirements", "onnx_requirements", "web_requirements")}
setup(version=cfg["DEFAULT"]["version"], install_requires=lines["requirements"], extras_require={"dev": lines["dev_requirements"], "judges": lines["judges_requirements"], "onnx": lines["onnx_requirements"], "web": lines["web_requirements"]})
