"""Weights that come with the package.

`gfpgan-edu doctor` compares the files with these sums; `sha256sum *.safetensors` makes them again.
"""

SHA256 = {
  "embedder-lfw55.safetensors": "315c436795834e3ff34c8c4c61455140bfc82fc153be903eef2aaefc900d2022",
  "faces64.safetensors": "c1392dfe88a93f3dbc83fa978414403cfb74056aa715d771d8094d2b753e0f84",
  "prior32.safetensors": "11e6fae0d2ed632dd3598d8dbea4deb03d1d6504c6b455ba214e8422930ddabe",
  "prior64.safetensors": "02048fda6f5ece78f06efa6a38c0664cd7f88a5a5df75fba32f754d964e2f9c6",
}
