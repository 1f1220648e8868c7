"""Schedules, clipping and the α-scaled AdamW of one task's update.

The released DINOv2 depth recipe (its NYU DPT configuration) trains with AdamW whose rate follows a
cosine under a linear warm-up and whose β1 cycles. The joint step gives every task its own AdamW;
parameter groups differ only in the factor on the rate, and in the backbone's decay.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class OptimizerSettings:
    """Numbers of one AdamW. `steps` is the number of global steps; all fractions refer to it."""

    steps: int
    rate: float = 1e-4
    decay: str = "cosine"  # or "constant"
    final_ratio: float = 1e-8
    warmup_fraction: float = 1 / 3
    warmup_ratio: float = 1e-3
    beta1_cycle: bool = True
    beta1: float = 0.9  # used when the cycle is off
    beta1_high: float = 0.95
    beta1_low: float = 0.85
    beta1_turn: float = 0.3
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 35.0  # 0 switches clipping off


def _float(step) -> jax.Array:
    # The default float follows jax_enable_x64, so a double-precision run stays double.
    return jnp.asarray(step).astype(jnp.result_type(float))


def learning_rate(settings: OptimizerSettings) -> Schedule:
    """η(t): cosine (or constant) times a linear warm-up from `warmup_ratio`.

    The warm-up multiplies the rate that already decays (MMCV's linear warm-up), so with the default
    numbers the largest rate is 0.75 of `rate`, at the end of the warm-up.
    """
    total, warmup = settings.steps, round(settings.warmup_fraction * settings.steps)

    def schedule(step):
        t = _float(step)
        regular = 1.0
        if settings.decay == "cosine":
            # sin² of the remaining share equals (1 + cos πt/T) / 2 without its cancellation at the end.
            remaining = jnp.sin(0.5 * jnp.pi * (total - t) / total) ** 2
            regular = settings.final_ratio + (1.0 - settings.final_ratio) * remaining
        factor = 1.0
        if warmup:
            below = 1.0 - (1.0 - t / warmup) * (1.0 - settings.warmup_ratio)
            factor = jnp.where(t < warmup, below, 1.0)
        return settings.rate * regular * factor + jnp.zeros_like(t)

    return schedule


def beta1_schedule(settings: OptimizerSettings) -> Schedule:
    """β1(t): cosine from high to low at `beta1_turn` of the steps, and back (MMCV's OneCycle momentum)."""
    turn = max(settings.beta1_turn * settings.steps - 1.0, 1.0)
    last = max(settings.steps - 1.0, turn + 1.0)

    def schedule(step):
        t = _float(step)
        if not settings.beta1_cycle:
            return jnp.full_like(t, settings.beta1)
        down, up = t / turn, (t - turn) / (last - turn)
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.where(t <= turn, down, 1.0 - up)))
        return settings.beta1_low + (settings.beta1_high - settings.beta1_low) * fall

    return schedule


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scale all gradients by min(1, limit / (norm + 1e-6)), as PyTorch's clip_grad_norm_.

    optax's own transformation leaves out the 1e-6.
    """

    def update(gradients, state, params=None):
        del params
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _adamw(settings: OptimizerSettings, scale: float, decays: bool) -> optax.GradientTransformation:
    rate = learning_rate(settings)
    parts = [
        optax.inject_hyperparams(
            optax.scale_by_adam,
            static_args=("b2", "eps", "eps_root", "mu_dtype", "nesterov"),
            hyperparam_dtype=jnp.result_type(float),
        )(b1=beta1_schedule(settings), b2=settings.beta2, eps=settings.eps)
    ]
    if decays and settings.weight_decay:
        parts.append(optax.add_decayed_weights(settings.weight_decay))
    # The scale multiplies step and decay together, never gradients, clipping or moments.
    parts.append(optax.scale_by_learning_rate(lambda step: scale * rate(step)))
    return optax.chain(*parts)


def group_of(path: tuple[str, ...]) -> str:
    """Parameter group of one tensor of the trainable tree, by its path.

    "decoder", "head" (any head), "backbone", or "backbone_plain" (the backbone's norms, position table,
    class and register tokens), which does not decay.
    """
    if path[0] != "backbone":
        return "decoder" if path[0] == "decoder" else "head"
    plain = {"pos_embed", "cls_token", "register_tokens", "norm", "norm1", "norm2"}
    return "backbone_plain" if plain & set(path) else "backbone"


def labels(params: Mapping) -> dict:
    """Tree of group names with the structure of `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: group_of(tuple(key.key for key in path)), params
    )


def task_optimizer(
    settings: OptimizerSettings, *, decoder_scale: float, backbone_scale: float = 0.0
) -> optax.GradientTransformation:
    """AdamW of one task's update over {decoder, head[, backbone]}.

    Args:
      settings: the recipe's numbers.
      decoder_scale: factor on the decoder's rate: α for the depth task, 1 − α for the auxiliary one
        (paper, equations 4 and 5).
      backbone_scale: factor on a trained backbone's rate.

    In this order: clip over all gradients of the update, Adam with bias correction by the current β1,
    decoupled decay, −rate. Equal to PyTorch's clip_grad_norm_ and AdamW.
    """
    groups = optax.multi_transform(
        {
            "decoder": _adamw(settings, decoder_scale, True),
            "head": _adamw(settings, 1.0, True),
            "backbone": _adamw(settings, backbone_scale, True),
            "backbone_plain": _adamw(settings, backbone_scale, False),
        },
        labels,
    )
    return optax.chain(clip_by_norm(settings.clip), groups) if settings.clip else groups
