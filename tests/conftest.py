"""What several test files share."""
import os

import pytest

# Under `make test`, a make started by a test would take itself for a part of that run: other output
# (it names its folder), and -n or -k inherited.
for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(_name, None)


@pytest.fixture
def one_thread():
    "Small nets on one thread, which is quickest and does not depend on the machine, from one seed."
    import torch

    n = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(n)
