"""What surrounds the training loop in a worker."""

import socket

import pytest

from training.worker import interface_of


def test_the_interface_of_an_address_is_found() -> None:
    """Gloo wants a name; Ray knows an address."""
    names = {name for _, name in socket.if_nameindex()}
    if "lo" not in names:
        pytest.skip("needs Linux: its name for 127.0.0.1 is lo")

    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
