"""Your own photographs with depth, and labels beside them, at a size that a laptop trains.

Command:  python -m jdepth.main --config configs/folder.py \
              --config.data.depth.path=my/dataset.json --config.data.auxiliary.path=my/dataset.json
Data:     one or two description files (README, "Your own data"); the numbers below are for images of
          480×640 with a white border, as NYU Depth v2 has.
Hardware: 2 CPU cores.
"""

from jdepth import config, recipe

CROP = (112, 140)
INPUT = (126, 168)


def get_config():
    return config.wrap(
        recipe.released(
            workdir="runs/folder",
            steps=1000,
            batch={"depth": 8, "auxiliary": 4},
            precision="float32",
            backbone={"name": "vit_nano14", "train": "full", "lr_ratio": 1.0},
            decoder={"channels": 64},
            optimizer={"rate": 6e-4, "warmup_fraction": 0.1, "clip": 1.0, "beta2": 0.99},
            data={
                "depth": {
                    "name": "folder",
                    # Border of NYU's frames cut off, as the released recipe does at full size.
                    "augmentation": {
                        "resize": INPUT, "resize_area": True, "fixed_crop": (12, 124, 11, 160), "crop": CROP,
                        # The released gamma is too strong for a network that starts from nothing.
                        "colour_probability": 0.0,
                    },
                },
                "auxiliary": {
                    "name": "folder",
                    "eval_split": "val",
                    "augmentation": {"scale": (168, 126), "crop": CROP, "canvas": CROP},
                },
            },
            evaluate={"protocol": "nyu", "input_size": INPUT, "every": 100, "batch": 4},
            checkpoint={"every": 50},
            log={"every": 10},
        )
    )  # fmt: skip
