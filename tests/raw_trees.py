"""What the miniature copies of raw data sets and their tests share."""

from dataclasses import dataclass

import numpy as np
import pytest

from jdepth.errors import UserError

# (height, width): odd, not square, room for every stored id of the largest set.
SIZES = ((15, 17), (21, 13), (17, 19), (13, 23))


@dataclass(frozen=True)
class Expected:
    """What an item must read as: image (H, W, 3) uint8 RGB; values (H, W) float32 metres or uint8 train ids."""

    image: np.ndarray
    values: np.ndarray


Splits = dict[str, dict[str, Expected]]


def refused(call, *parts) -> None:
    """The call raises one line that contains all the parts."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
