"""The official code as a fixture."""
import pytest
from official import HOW, load_official


@pytest.fixture(scope="session")
def official():
    "The official classes by name; fails with the instruction when they are not installed."
    try:
        return load_official()
    except ImportError as e:
        pytest.fail(f"{HOW} ({e})")
