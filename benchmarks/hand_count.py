"""FLOPs of the joint step written from the architecture, independently of the traced program; multiply-add = 2.

With jdepth's savings and without the work at the borders left out: every output of a convolution counts its whole
kernel. All sizes are (H, W) of whole patches.
"""

from collections.abc import Sequence

from jdepth.models.vit import ViTConfig

Size = tuple[int, int]


def padded(size: Sequence[int], patch: int = 14) -> Size:
    """(H, W) rounded up to whole patches."""
    height, width = (-(-side // patch) * patch for side in size)
    return height, width


def backbone(config: ViTConfig, size: Size) -> float:
    """Forward pass on one image."""
    d, patches = config.width, (size[0] // config.patch) * (size[1] // config.patch)
    n = 1 + config.registers + patches
    matrices = d * 3 * d + d * d + (3 if config.ffn == "swiglu" else 2) * d * config.hidden
    return 2.0 * patches * config.patch**2 * 3 * d + config.depth * (2.0 * n * matrices + 4.0 * n * n * d)


def decoder(config: ViTConfig, size: Size, channels: int) -> tuple[float, float]:
    """(first layers, all others) of the forward pass on one image: towards the first layers' input, the taps of a
    frozen backbone, no gradient is needed."""
    d, c = config.width, channels
    h, w = size[0] // config.patch, size[1] // config.patch
    n, half = h * w, -(-h // 2) * -(-w // 2)
    widths = (d // 8, d // 4, d // 2, d)
    first = 4 * 2.0 * (n + 1) * d * d
    rest = sum(2.0 * n * d * out for out in widths)
    rest += 2.0 * n * (16 * widths[0] ** 2 + 4 * widths[1] ** 2) + _convolution(half, d, d)
    rest += sum(_convolution(at, i, c) for at, i in zip((16 * n, 4 * n, n, half), widths, strict=True))
    for stage in range(4):  # two residual units of two convolutions each, but one in the first stage
        at = half * 4**stage
        rest += (4 if stage else 2) * _convolution(at, c, c) + 2.0 * at * c * c
    return first, rest + _convolution(256 * half, c, c)


def depth_head(size: Size, channels: int, patch: int = 14) -> float:
    """Forward pass of the convolutions on one image; the last product to one value is no matrix product."""
    at = 256 * -(-size[0] // (2 * patch)) * -(-size[1] // (2 * patch))
    return _convolution(at, channels, channels // 2) + _convolution(4 * at, channels // 2, 32)


def _convolution(pixels: int, inside: int, out: int) -> float:
    return 2.0 * pixels * 9 * inside * out


def joint_step(
    config: ViTConfig, depth: tuple[int, Sequence[int]], auxiliary: tuple[int, Sequence[int]], channels: int = 256
) -> float:
    """One global step, MLDC as the auxiliary task; `depth` and `auxiliary` are (images, crop)."""
    total = 0.0
    for images, crop in (depth, auxiliary):
        size = padded(crop, config.patch)
        first, rest = decoder(config, size, channels)
        total += images * (backbone(config, size) + 2 * first + 3 * rest)
    # The pooled MLDC head: a vector per image, nothing beside this.
    return total + 3 * depth[0] * depth_head(padded(depth[1], config.patch), channels, config.patch)
