"""Reading images with depth or class labels, and turning them into batches of NumPy arrays.

Nothing here computes on a device: no module of this package imports jax. `pipeline` needs grain (which
imports jax without starting a backend); the sources, transforms, targets and protocols do not.
"""
