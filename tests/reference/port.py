"""transformers' DINOv2 and DPT as references: configurations, and position tables as the original's."""

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
)


# Zero-based blocks whose output the published DPT depth heads take, by number of blocks: written here from the release,
# so that a wrong one of ours is not wrong on both sides.
PUBLISHED_TAPS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}


def taps_of(config):
    """The published taps of a backbone; those of one that was never published are the test's own."""
    return PUBLISHED_TAPS.get(config.depth, config.taps)


def _settings(config, **extra):
    return dict(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        mlp_ratio=4,
        use_swiglu_ffn=config.ffn == "swiglu",
        image_size=14 * config.grid,
        patch_size=14,
        layer_norm_eps=1e-6,
        **extra,
    )


def backbone(config):
    """The port's model of one of our `ViTConfig`s, in evaluation mode."""
    if config.registers:
        settings = _settings(config, num_register_tokens=config.registers)
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**settings)).eval()
    return Dinov2Model(Dinov2Config(**_settings(config))).eval()


def depth_model(config, channels=256):
    """The port's DPT depth model on one of our (register-free) `ViTConfig`s."""
    inner = Dinov2Config(
        **_settings(config, out_indices=[tap + 1 for tap in taps_of(config)]),
        apply_layernorm=False,
        reshape_hidden_states=False,
    )
    width = config.width
    return DPTForDepthEstimation(
        DPTConfig(
            backbone_config=inner,
            neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
            fusion_hidden_size=channels,
            readout_type="project",
            add_projection=True,
            use_bias_in_fusion_residual=False,
            is_hybrid=False,
        )
    ).eval()


def depth_anything(config, taps, channels, levels, max_depth=None):
    """The port's Depth Anything on one of our (register-free) `ViTConfig`s; `taps` are zero-based blocks."""
    inner = Dinov2Config(
        **_settings(config, out_indices=[tap + 1 for tap in taps]), apply_layernorm=True, reshape_hidden_states=False
    )
    kind = {} if max_depth is None else {"depth_estimation_type": "metric", "max_depth": int(max_depth)}
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=inner,
            patch_size=14,
            reassemble_hidden_size=config.width,
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_sizes=list(levels),
            fusion_hidden_size=channels,
            head_hidden_size=32,
            **kind,
        )
    ).eval()


def original_table(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Position table (1, 1 + n², D) as the original register-free DINOv2 resizes it for an input of
    height×width pixels: bicubic by scale factors with 0.1 added to the patch counts."""
    n = round((table.shape[1] - 1) ** 0.5)
    grid = (height // 14, width // 14)
    if grid == (n, n):
        return table
    patches = torch.nn.functional.interpolate(
        table[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2),
        scale_factor=tuple((size + 0.1) / n for size in grid),
        mode="bicubic",
        antialias=False,
    )
    assert tuple(patches.shape[-2:]) == grid
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def use_original_tables(embeddings) -> None:
    """Make a register-free port's embeddings resize their table as the original does."""
    embeddings.interpolate_pos_encoding = lambda _, height, width: original_table(
        embeddings.position_embeddings, height, width
    )
