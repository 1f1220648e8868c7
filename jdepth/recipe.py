"""The released recipe's numbers as plain data.

`RELEASED` is the frozen-backbone depth recipe that DINOv2 released for NYU (DPT head), as the paper's
joint training uses it (its Appendix A). Configs start from a copy and change what differs; benchmarks
read it without ml_collections. None marks an optional number that is off.
"""

import copy
from typing import Any

RELEASED: dict[str, Any] = {
    # Where the run's files go; "" derives runs/<config's name>.
    "workdir": "",
    # Folder of the named datasets.
    "data_dir": "data",
    # One seed derives initialisation, data order and augmentation, by named folds.
    "seed": 0,
    # Of the initialisation alone; -1 = as `seed`.
    "init_seed": -1,
    # Global steps; each is one depth and one auxiliary update.
    "steps": 38_400,
    # Decoder rate: α·η in the depth update, (1 − α)·η in the auxiliary one; α = 1 is depth only.
    "alpha": 0.9,
    # Variants, both with alpha = 1: γ scales the depth-only run's decoder rate; β is the auxiliary
    # update's decoder rate beside an unscaled depth update.
    "gamma": None,
    "beta": None,
    # Auxiliary task: mldc, segmentation, single_label or reconstruction.
    "task": "mldc",
    "batch": {"depth": 4, "auxiliary": 4},
    # Steps whose features one pass of a frozen backbone computes together: the same result in fewer, larger calls.
    "look_ahead": 1,
    # Parts of a batch whose gradients are computed one after the other: the same result in less memory.
    "accumulate": 1,
    # Devices among which a backbone's parameters are divided; the batch is divided among all devices anyway.
    "mesh": {"fsdp": 1},
    # Many runs in one, over one pass of the frozen backbone: the i-th value of each list makes member i. A task may be
    # "baseline" (depth only). Members that differ in seed share the data's order: they are no independent runs.
    "population": {"alpha": (), "gamma": (), "beta": (), "seed": (), "task": ()},
    # Matrix products of backbone, decoder and heads; norms, residuals, losses are at least float32. float64 is
    # for checks on a CPU: everything, parameters too, in double precision.
    "precision": "bfloat16",
    # Warm start of the trained parameters from a converted file or a run, by name and shape.
    "init_from": "",
    "backbone": {
        "name": "dinov2_vitg14",
        # Official .pth, Hugging Face or converted file; "" = random (only for train="full").
        "weights": "",
        "train": "frozen",  # or "full"
        "lr_ratio": 0.1,  # of a trained backbone
        "attention": "auto",  # "auto", "plain", "looped" or "cudnn"
        # Matrix products of a frozen backbone that are computed in float8: of qkv, proj, fc1 and fc2 (ViT-g: w12, w3).
        "float8": (),
    },
    "decoder": {"channels": 256},
    "depth_range": {"min": 0.001, "max": 10.0},
    "loss": {
        "silog": 1.0,
        # The first 100 of 38,400 steps fit the overall scale only.
        "silog_warmup_fraction": 100 / 38_400,
        # Two images per GPU in the released training.
        "silog_group": 2,
        # Published with weight 0.5 but inert at two images per GPU, hence off.
        "gradient": 0.0,
    },
    "optimizer": {
        "rate": 1e-4,
        "decay": "cosine",  # or "constant"
        "final_ratio": 1e-8,
        "warmup_fraction": 1 / 3,
        "warmup_ratio": 1e-3,
        "beta1_cycle": True,
        "beta1": 0.9,  # where the cycle is off
        "beta1_high": 0.95,
        "beta1_low": 0.85,
        "beta1_turn": 0.3,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "clip": 35.0,  # global norm; 0 = off
    },
    "data": {
        "workers": 0,  # processes that read and augment; 0 = threads of this one
        # Share of a set's items that may be damaged: each is replaced by the next one, and told.
        "bad_share": 0.001,
        "depth": {
            "name": "nyu",
            "path": "",  # description file of a folder source
            "split": "train",
            # At most so many images, a fixed subset by hash of the id; 0 = all.
            "limit": 0,
            # About this share of the images, chosen by a hash of the id and this seed.
            "fraction": 1.0,
            "fraction_seed": 0,
            # Number of rooms and their height and width: only for name="rooms".
            "rooms": 0,
            "rooms_size": (),
            "augmentation": {
                "resize": (),  # height, width before everything else; () = native
                "resize_area": False,  # average areas, for strong shrinking
                "fixed_crop": (45, 472, 43, 608),  # top, bottom, left, right; () = none
                "kb_crop": False,  # KITTI's benchmark crop
                "rotate_probability": 0.5,
                "rotate_degrees": 2.5,
                "flip_probability": 0.5,
                "crop": (416, 544),
                "max_depth": 0.0,  # metres beyond which depth counts as missing; 0 = none
                "colour_probability": 0.5,
                "gamma": (0.9, 1.1),
                "brightness": (0.75, 1.25),
                "colour": (0.9, 1.1),  # of each channel
            },
        },
        "auxiliary": {
            "name": "mix6",  # or names joined by +
            # One number per member: independent draws; () = each image of the union once per epoch.
            "weights": (),
            "path": "",
            "split": "train",
            "eval_split": "",  # held-out auxiliary metrics; "" = none
            "limit": 0,
            "rooms": 0,
            "rooms_size": (),
            "augmentation": {
                "scale": (2048, 512),  # width, height of the box that ratio multiplies
                "ratio": (0.5, 2.0),
                "crop": (512, 512),
                "crop_attempts": 10,
                "cat_max_ratio": 0.75,
                "flip_probability": 0.5,
                "photometric_probability": 0.5,
                "brightness": 32.0,
                "contrast": (0.5, 1.5),
                "saturation": (0.5, 1.5),
                "hue": 18,
                "canvas": (512, 512),  # all members are padded to it
            },
        },
    },
    "evaluate": {
        "split": "test",
        "protocol": "nyu",
        # Height, width of the network's input; () = native.
        "input_size": (),
        "every": 800,
        # Images of an evaluation during training; the full set is scored at the end.
        "during_limit": 654,
        # With a frozen backbone: host memory, in GiB, in which the features of these images stay between two
        # evaluations; 0 = none, at most half of what is free. NYU's 654 take 12.1 for ViT-g in bfloat16.
        "cache_gib": 16.0,
        "limit": 0,  # images of the full evaluation; 0 = all
        "rooms": 0,
        "batch": 1,
        "pictures": 8,
    },
    "checkpoint": {"every": 800},
    "log": {"every": 50, "tensorboard": True},
}


# The released recipe on the paper's other depth sets, as changes of it. What the paper leaves open (SUN RGB-D's and
# Matterport3D's sizes, Taskonomy's crop, ranges) is chosen as README says, section "Choices".
_NO_FIXED_CROP = {"fixed_crop": ()}
_FIRST_480x640 = {"fixed_crop": (), "resize": (480, 640)}
DEPTH_SETS: dict[str, dict[str, Any]] = {
    "nyu": {},
    "sun": {
        "data": {"depth": {"name": "sun", "augmentation": _FIRST_480x640}},
        "evaluate": {"protocol": "sun"},
    },
    "matterport": {
        "steps": 76_800,
        "data": {"depth": {"name": "matterport", "augmentation": _FIRST_480x640}},
        "evaluate": {"protocol": "matterport", "split": "val"},
    },
    "taskonomy": {
        "batch": {"depth": 16, "auxiliary": 16},
        "data": {
            "depth": {"name": "taskonomy", "fraction": 0.1, "augmentation": {"fixed_crop": (), "crop": (416, 512)}},
        },
        "evaluate": {"protocol": "taskonomy", "split": "val"},
    },
    "diode_indoor": {
        "data": {"depth": {"name": "diode_indoor", "augmentation": _NO_FIXED_CROP}},
        "evaluate": {"protocol": "diode_indoor", "split": "val"},
    },
    "diode_outdoor": {
        "depth_range": {"max": 80.0},
        "data": {"depth": {"name": "diode_outdoor", "augmentation": _NO_FIXED_CROP | {"max_depth": 80.0}}},
        "evaluate": {"protocol": "diode_outdoor", "split": "val"},
    },
    "kitti": {
        "depth_range": {"max": 80.0},
        "data": {
            "depth": {
                "name": "kitti",
                "augmentation": {"fixed_crop": (), "kb_crop": True, "crop": (352, 704), "brightness": (0.9, 1.1)},
            }
        },
        "evaluate": {"protocol": "kitti"},
    },
}  # fmt: skip


def released(**changes: Any) -> dict[str, Any]:
    """A copy of `RELEASED` with nested changes: released(steps=10, batch={"depth": 2}).

    Raises KeyError for a key that the recipe does not have.
    """
    result = copy.deepcopy(RELEASED)
    _merge(result, changes, "")
    return result


def _merge(target: dict, changes: dict, where: str) -> None:
    for key, value in changes.items():
        if key not in target:
            raise KeyError(f"the recipe has no key {where}{key}")
        if isinstance(target[key], dict):
            _merge(target[key], value, f"{where}{key}.")
        else:
            target[key] = value
