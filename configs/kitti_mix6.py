"""KITTI depth (Eigen split) with multi-label dense classification on MIX6, ViT-g/14 frozen: crops of 352x704.

Command:  python -m jdepth.main --config configs/kitti_mix6.py \
              --config.backbone.weights=weights/dinov2_vitg14_pretrain.pth
Data:     data/kitti and the six members of MIX6, from python -m jdepth.prepare.
Hardware: as configs/nyu_mix6.py.
Time:     not yet measured on a GPU; --dry_run prints the FLOPs of a step.
Expected: AbsRel 0.0609 ± 0.0007 on 652 test images, Garg crop, against 0.0605 ± 0.0005 with alpha=1
          (the paper's tables, four seeds; not yet run here).
"""

from jdepth import config, recipe


def get_config():
    # What differs from the released recipe stands in jdepth/recipe.py, DEPTH_SETS.
    return config.wrap(recipe.released(**recipe.DEPTH_SETS["kitti"]))
