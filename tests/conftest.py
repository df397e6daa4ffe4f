"""Eight CPU devices for every test, so that device counts can be compared in one process."""

import os

import pytest

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture
def x64():
    """float64 inside the test, for oracles that need more digits than float32 holds."""
    import jax  # not before the environment is set

    with jax.enable_x64(True):
        yield
