"""The original's numbers, quantity by quantity; tools/parity.py prints them."""

import parity
import pytest


@pytest.fixture(scope="module")
def reference():
    return parity.reference()


@pytest.mark.parametrize("part", parity.PARTS)
def test_equal_to_the_original(part, reference):
    rows = list(parity.PARTS[part](reference))
    assert rows
    too_far = [row for row in rows if not row.difference <= row.tolerance]  # NaN is too far
    assert not too_far


@pytest.mark.slow
@pytest.mark.parametrize("size", parity.SIMCLRV2)
def test_parameters_of_simclrv2(size):
    assert round(parity.parameters(*size) / 1e6) == parity.SIMCLRV2[size]
