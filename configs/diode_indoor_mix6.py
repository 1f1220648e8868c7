"""DIODE indoor depth with multi-label dense classification on MIX6, ViT-g/14 frozen: crops of 416x544.

Command:  python -m jdepth.main --config configs/diode_indoor_mix6.py \
              --config.backbone.weights=weights/dinov2_vitg14_pretrain.pth
Data:     data/diode_indoor and the six members of MIX6, from python -m jdepth.prepare.
Hardware: as configs/nyu_mix6.py.
Time:     not yet measured on a GPU; --dry_run prints the FLOPs of a step.
Expected: AbsRel 0.3239 ± 0.0026 on 325 validation images, against 0.3588 ± 0.0019 with alpha=1
          (the paper's tables, four seeds; not yet run here).
"""

from jdepth import config, recipe


def get_config():
    # What differs from the released recipe stands in jdepth/recipe.py, DEPTH_SETS.
    return config.wrap(recipe.released(**recipe.DEPTH_SETS["diode_indoor"]))
