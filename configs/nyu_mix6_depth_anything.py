"""The paper's second backbone (section 5.2): NYUv2 depth with MLDC on MIX6, Depth Anything's ViT-L encoder frozen.

Command:  python -m jdepth.main --config configs/nyu_mix6_depth_anything.py \
              --config.backbone.weights=weights/depth_anything_vitl14.pth
          With --config.backbone.train=full the encoder is trained too, at backbone.lr_ratio times the rate.
Data:     as in configs/nyu_mix6.py.
Hardware: the paper used 8 GPUs with 2 + 2 images each; --dry_run tells the memory of a single one.
Expected: AbsRel 0.0721 on the 654 test images, against 0.0736 with alpha=1 (the paper's table; not yet run here).
"""

from jdepth import config, recipe


def get_config():
    # The paper does not say which features it takes of the encoder: as with DINOv2, four spread blocks, not
    # normalised, into a DPT decoder that starts at random.
    return config.wrap(
        recipe.released(
            batch={"depth": 16, "auxiliary": 16},
            backbone={"name": "dinov2_vitl14"},
            optimizer={"rate": 1.61e-4, "warmup_fraction": 0.0},
        )
    )
