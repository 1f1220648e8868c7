"""SUN RGB-D depth with multi-label dense classification on MIX6, ViT-g/14 frozen: whole frames at 480x640.

Command:  python -m jdepth.main --config configs/sun_mix6.py \
              --config.backbone.weights=weights/dinov2_vitg14_pretrain.pth
Data:     data/sun and the six members of MIX6, from python -m jdepth.prepare.
Hardware: as configs/nyu_mix6.py.
Time:     not yet measured on a GPU; --dry_run prints the FLOPs of a step.
Expected: AbsRel 0.1024 ± 0.0010 on 5,050 test images, against 0.1128 ± 0.0011 with alpha=1
          (the paper's tables, four seeds; not yet run here).
"""

from jdepth import config, recipe


def get_config():
    # What differs from the released recipe stands in jdepth/recipe.py, DEPTH_SETS.
    return config.wrap(recipe.released(**recipe.DEPTH_SETS["sun"]))
