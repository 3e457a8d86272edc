"""Whether this machine may have a GPU, without asking PyTorch, which takes seconds."""

from pathlib import Path

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def has_gpu_driver() -> bool:
    """Whether there is a driver that PyTorch could find a GPU with."""
    return any(Path(driver).exists() for driver in _DRIVERS)
