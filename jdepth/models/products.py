"""Matrix products of two arrays of a half type with a wide result."""

import functools

import jax
import jax.numpy as jnp


def wide_product(subscripts: str, a: jax.Array, b: jax.Array, result) -> jax.Array:
    """`jnp.einsum(subscripts, a, b)` summed up in the type `result`, such as "mk,kn->mn".

    Every index occurs in two of the three arrays. JAX's own gradients of such a product of halves are products of wide
    arrays, several times as slow on a GPU; these round the result's gradient to the halves' type, as every other layer
    does, and multiply halves.
    """
    if a.dtype == b.dtype and jnp.finfo(a.dtype).bits < jnp.finfo(result).bits:
        return _of_halves(subscripts, jnp.dtype(result), a, b)
    return jnp.einsum(subscripts, a, b, preferred_element_type=result)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _of_halves(subscripts, result, a, b):
    return jnp.einsum(subscripts, a, b, preferred_element_type=result)


def _forward(subscripts, result, a, b):
    return _of_halves(subscripts, result, a, b), (a, b)


def _backward(subscripts, result, kept, cotangent):
    a, b = kept
    first, second, out = subscripts.replace("->", ",").split(",")
    cotangent = cotangent.astype(a.dtype)
    towards_a = jnp.einsum(f"{out},{second}->{first}", cotangent, b)
    return towards_a, jnp.einsum(f"{first},{out}->{second}", a, cotangent)


_of_halves.defvjp(_forward, _backward)
