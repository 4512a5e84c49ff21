"""The browser of both files. One for each: playwright runs one at a time."""
import pytest
from served import Trap, browser


@pytest.fixture(scope="module")
def trap():
    return Trap()


@pytest.fixture(scope="module")
def chrome(trap):
    with browser(trap) as chrome:
        yield chrome
