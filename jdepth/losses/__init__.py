"""Training losses: pure functions that return their scalar and its named terms.

Every loss computes in at least float32 whatever precision it is handed, takes its mask as an
explicit argument, and is finite, with finite gradients, when that mask is empty. Adding one means
one file, one line in `LOSSES` and one test.
"""

from jdepth.losses.classification import multi_label, single_label
from jdepth.losses.gradient import gradient_loss
from jdepth.losses.reconstruction import mse
from jdepth.losses.segmentation import cross_entropy
from jdepth.losses.silog import sig_loss

LOSSES = {
    "silog": sig_loss,
    "gradient": gradient_loss,
    "multi_label": multi_label,
    "single_label": single_label,
    "segmentation": cross_entropy,
    "reconstruction": mse,
}

__all__ = [
    "LOSSES",
    "cross_entropy",
    "gradient_loss",
    "mse",
    "multi_label",
    "sig_loss",
    "single_label",
]
