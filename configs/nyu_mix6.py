"""The paper's main recipe: NYUv2 depth with multi-label dense classification on MIX6, ViT-g/14 frozen.

Command:  python -m jdepth.main --config configs/nyu_mix6.py \
              --config.backbone.weights=weights/dinov2_vitg14_pretrain.pth
Data:     data/nyu and the six members of MIX6 (data/ade20k, sun37, cityscapes34, coco_stuff, voc21,
          context59), from python -m jdepth.prepare.
Hardware: the paper used 2 GPUs with 2 + 2 images each; --dry_run tells the memory of a single one.
Time:     not yet measured on a GPU; --dry_run prints the FLOPs of a step.
Expected: AbsRel 0.0696 ± 0.0003 on the 654 test images, against 0.0809 ± 0.0010 with alpha=1
          (the paper's tables, four seeds; not yet run here).
"""

from jdepth import config, recipe


def get_config():
    # Every number is the released recipe's: jdepth/recipe.py.
    return config.wrap(recipe.released())
