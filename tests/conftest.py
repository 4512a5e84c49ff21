"""What several test files share."""
import pytest


@pytest.fixture
def one_thread():
    "Small nets on one thread, which is quickest and does not depend on the machine, from one seed."
    import torch

    n = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(n)
