"""What tests of the native decoder's operations share."""

import pytest


@pytest.fixture
def library(isa):
    """Its functions, on every instruction set of this machine."""
    from qlinear.backends.cpu import native_decoder

    return native_decoder.decoder_library()
