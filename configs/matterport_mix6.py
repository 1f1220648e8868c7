"""Matterport3D depth with multi-label dense classification on MIX6, ViT-g/14 frozen: frames at 480x640, 76,800 steps.

Command:  python -m jdepth.main --config configs/matterport_mix6.py \
              --config.backbone.weights=weights/dinov2_vitg14_pretrain.pth
Data:     data/matterport and the six members of MIX6, from python -m jdepth.prepare.
Hardware: as configs/nyu_mix6.py, twice the steps.
Time:     not yet measured on a GPU; --dry_run prints the FLOPs of a step.
Expected: AbsRel 0.1728 ± 0.0009 on the validation houses, against 0.1874 ± 0.0019 with alpha=1 (the paper's
          tables, four seeds, on a split of its own that is not known; not yet run here).
"""

from jdepth import config, recipe


def get_config():
    # What differs from the released recipe stands in jdepth/recipe.py, DEPTH_SETS.
    return config.wrap(recipe.released(**recipe.DEPTH_SETS["matterport"]))
