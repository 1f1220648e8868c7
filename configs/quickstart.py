"""Train, evaluate and predict depth on rendered rooms, from nothing, on a laptop.

Command:  bash launch/local.sh            (or: python -m jdepth.main --config configs/quickstart.py)
Hardware: 2 CPU cores.
Time:     about 5 minutes, evaluation and pictures included.
Expected: AbsRel on 64 unseen rooms about 0.55 × that of the best constant depth (measured: 0.22 against
          0.40).
"""

from jdepth import config, recipe

# Rooms are rendered at the size that the network sees: nothing is lost to crops.
SIZE = (84, 112)


def get_config():
    return config.wrap(
        recipe.released(
            workdir="runs/quickstart",
            steps=900,
            alpha=0.9,
            task="mldc",
            batch={"depth": 8, "auxiliary": 4},
            precision="float32",
            backbone={"name": "vit_nano14", "train": "full", "lr_ratio": 1.0},
            decoder={"channels": 32},
            # From nothing and in few steps: a tight clip and a short memory of gradients' sizes.
            optimizer={"rate": 6e-4, "warmup_fraction": 0.1, "clip": 1.0, "beta2": 0.99},
            data={
                "depth": {
                    "name": "rooms",
                    "rooms": 16384,
                    "rooms_size": SIZE,
                    # Brightness tells distance in rooms lit by a flash: colours stay as they are.
                    "augmentation": {"fixed_crop": (), "crop": SIZE, "colour_probability": 0.0},
                },
                "auxiliary": {
                    "name": "rooms",
                    "split": "auxiliary",
                    "eval_split": "val",
                    "rooms": 2048,
                    "rooms_size": SIZE,
                    "augmentation": {"scale": (112, 84), "crop": SIZE, "canvas": SIZE},
                },
            },
            evaluate={
                "split": "val", "protocol": "rooms", "rooms": 64, "batch": 16, "every": 300, "during_limit": 64,
            },
            checkpoint={"every": 300},
            log={"every": 20},
        )
    )  # fmt: skip
