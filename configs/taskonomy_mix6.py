"""Taskonomy depth with multi-label dense classification on MIX6, ViT-g/14 frozen: a tenth, 16 + 16 per step.

Command:  python -m jdepth.main --config configs/taskonomy_mix6.py \
              --config.backbone.weights=weights/dinov2_vitg14_pretrain.pth
Data:     data/taskonomy and the six members of MIX6, from python -m jdepth.prepare.
Hardware: the paper used 8 GPUs with 2 + 2 images each.
Time:     not yet measured on a GPU; --dry_run prints the FLOPs of a step.
Expected: AbsRel 0.1481 ± 0.0004 on validation buildings, against 0.1506 ± 0.0013 with alpha=1
          (the paper's tables, four seeds; not yet run here).
"""

from jdepth import config, recipe


def get_config():
    # What differs from the released recipe stands in jdepth/recipe.py, DEPTH_SETS.
    return config.wrap(recipe.released(**recipe.DEPTH_SETS["taskonomy"]))
