"""3×3 convolution, and the one place that decides how its gradients are computed.

XLA's CPU backend computes a convolution at the rate of a matrix product, but the gradient of its kernel at a third to a
tenth of that. "winograd" takes that one gradient by Winograd's minimal filtering, F(2×2, 3×3) (Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks"): sixteen matrix products with 2.25 times fewer multiplications. On 2 CPU
cores, float32, 256 -> 256 channels on 128×160 pixels: 2,188 ms as XLA does it, 276 ms so; the convolution itself 219.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("plain", "winograd")
# Smaller ones take no time, and would take longer to compile: least pixels of an image, and least pixels of all images
# × channels in × out.
LEAST_PIXELS, LEAST_PRODUCTS = 256, 2**22


def choose(platform: str | None = None) -> str:
    """The kind for a platform, by default JAX's own: "winograd" on a CPU, elsewhere "plain"."""
    return "winograd" if (platform or jax.default_backend()) == "cpu" else "plain"


def convolve(kind: str, x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Zero padding 1 on every side: (B, H, W, in), (3, 3, in, out) -> (B, ceil(H/stride), ceil(W/stride), out).

    `kind`, one of `KINDS`, changes how the kernel's gradient is computed and its last digits. Half types, whose sums
    Winograd's transform would round, and small convolutions are "plain" in either kind.
    """
    if kind == "plain" or stride != 1 or jnp.finfo(x.dtype).bits < 32:
        return _plain(x, kernel, stride)
    # Only now: in an exported model the number of images is not known.
    if x.shape[1] * x.shape[2] < LEAST_PIXELS or x.size * kernel.shape[-1] < LEAST_PRODUCTS:
        return _plain(x, kernel)
    return _winograd(x, kernel)


def _plain(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    # Explicit padding: "SAME" would pad (0, 1) at stride 2 on even sizes, PyTorch pads (1, 1).
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _winograd(x, kernel):
    return _plain(x, kernel)


def _forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def _backward(kept, cotangent):
    x, kernel = kept
    (towards_x,) = jax.linear_transpose(functools.partial(_plain, kernel=kernel), x)(cotangent)
    return towards_x, kernel_gradient(x, cotangent)


_winograd.defvjp(_forward, _backward)

# The kernel's transform: its values at the points 0, 1, −1 and infinity, along each axis.
_POINTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def kernel_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Gradient of a kernel (3, 3, in, out), from the input (B, H, W, in) and the result's gradient (B, H, W, out).

    The transpose of F(2×2, 3×3): results in tiles of 2×2, each of which sees 4×4 pixels.
    """

    def add(total, image):
        inputs, results = _input_tiles(image[0]), _result_tiles(image[1])
        return total + jnp.einsum("vupi,vupo->vuio", inputs, results), None

    # An image at a time: its sixteen transforms take the room of four images, and stay nearer to the processor.
    nothing = jnp.zeros((4, 4, x.shape[-1], cotangent.shape[-1]), x.dtype)
    products, _ = jax.lax.scan(add, nothing, (x, cotangent))
    points = jnp.asarray(_POINTS, products.dtype)
    return jnp.einsum("ua,vuio,vb->abio", points, products, points, precision=jax.lax.Precision.HIGHEST)


def _input_tiles(x: jax.Array) -> jax.Array:
    """(H, W, C) -> (4, 4, tiles, C): the transform, along columns and rows, of the 4×4 pixels around each 2×2 tile."""
    height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)))

    def transform(a, b, c, d):
        return jnp.stack([a - c, b + c, c - b, b - d])

    # One axis after the other: all sixteen at once would be as fast, and take five times as long to compile.
    x = x.reshape(rows + 1, 2, 2 * columns + 2, channels)
    x = transform(*(x[i // 2 : i // 2 + rows, i % 2] for i in range(4)))
    x = x.reshape(4, rows, columns + 1, 2, channels)
    x = transform(*(x[:, :, j // 2 : j // 2 + columns, j % 2] for j in range(4)))
    return x.reshape(4, 4, -1, channels)


def _result_tiles(cotangent: jax.Array) -> jax.Array:
    """(H, W, C) -> (4, 4, tiles, C): the transform, along columns and rows, of each tile of 2×2."""
    height, width, channels = cotangent.shape
    rows, columns = -(-height // 2), -(-width // 2)
    tiles = jnp.pad(cotangent, ((0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))

    def transform(a, b):
        return jnp.stack([a, a + b, a - b, -b])

    tiles = tiles.reshape(rows, 2, 2 * columns, channels)
    tiles = transform(tiles[:, 0], tiles[:, 1]).reshape(4, rows, columns, 2, channels)
    return transform(tiles[..., 0, :], tiles[..., 1, :]).reshape(4, 4, -1, channels)
