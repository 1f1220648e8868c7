"""The recipe that runs: every number, against the one that DINOv2 released and the paper's Appendix A."""

import dataclasses

import pytest
from test_data_augmentation import KITTI, NYU

from jdepth import experiment, inputs, optim, recipe
from jdepth.data.transforms import AuxiliaryAugmentation

# What is left to the user, or is a matter of the machine.
OPEN = {
    "workdir": "", "data_dir": "data", "seed": 0, "init_seed": -1, "gamma": None, "beta": None, "look_ahead": 1,
    "accumulate": 1, "mesh.fsdp": 1, "population.alpha": (), "population.beta": (), "population.gamma": (),
    "population.seed": (), "population.task": (), "init_from": "", "backbone.weights": "", "backbone.attention": "auto",
    "backbone.float8": (), "data.workers": 0, "data.bad_share": 0.001, "data.depth.path": "", "data.depth.limit": 0,
    "data.depth.fraction_seed": 0, "data.depth.rooms": 0, "data.depth.rooms_size": (), "data.auxiliary.path": "",
    "data.auxiliary.limit": 0, "data.auxiliary.rooms": 0, "data.auxiliary.rooms_size": (),
    "data.auxiliary.eval_split": "", "evaluate.input_size": (), "evaluate.during_limit": 654,
    "evaluate.cache_gib": 16.0, "evaluate.limit": 0, "evaluate.rooms": 0, "evaluate.batch": 1, "evaluate.pictures": 8, "log.tensorboard": True,
}  # fmt: skip
RELEASED = {
    "steps": 38_400, "alpha": 0.9, "task": "mldc", "batch.depth": 4, "batch.auxiliary": 4, "precision": "bfloat16",
    "backbone.name": "dinov2_vitg14", "backbone.train": "frozen", "backbone.lr_ratio": 0.1, "decoder.channels": 256,
    "depth_range.min": 0.001, "depth_range.max": 10.0,
    "loss.silog": 1.0, "loss.silog_warmup_fraction": 100 / 38_400, "loss.silog_group": 2, "loss.gradient": 0.0,
    "data.depth.name": "nyu", "data.depth.split": "train", "data.depth.fraction": 1.0,
    "data.auxiliary.name": "mix6", "data.auxiliary.split": "train", "data.auxiliary.weights": (),
    "evaluate.split": "test", "evaluate.protocol": "nyu", "evaluate.every": 800, "checkpoint.every": 800,
    "log.every": 50,
}  # fmt: skip
OPTIMIZER = {
    "rate": 1e-4, "decay": "cosine", "final_ratio": 1e-8, "warmup_fraction": 12_800 / 38_400, "warmup_ratio": 1e-3,
    "beta1_cycle": True, "beta1": 0.9, "beta1_high": 0.95, "beta1_low": 0.85, "beta1_turn": 0.3, "beta2": 0.999,
    "eps": 1e-8, "weight_decay": 0.01, "clip": 35.0,
}  # fmt: skip
DEPTH = {
    "resize": (), "resize_area": False, "fixed_crop": (45, 472, 43, 608), "kb_crop": False, "rotate_probability": 0.5,
    "rotate_degrees": 2.5, "flip_probability": 0.5, "crop": (416, 544), "max_depth": 0.0, "colour_probability": 0.5,
    "gamma": (0.9, 1.1), "brightness": (0.75, 1.25), "colour": (0.9, 1.1),
}  # fmt: skip
AUXILIARY = {
    "scale": (2048, 512), "ratio": (0.5, 2.0), "crop": (512, 512), "crop_attempts": 10, "cat_max_ratio": 0.75,
    "flip_probability": 0.5, "photometric_probability": 0.5, "brightness": 32.0, "contrast": (0.5, 1.5),
    "saturation": (0.5, 1.5), "hue": 18, "canvas": (512, 512),
}  # fmt: skip
_WHOLE = {"data.depth.augmentation.fixed_crop": ()}
_FIRST = _WHOLE | {"data.depth.augmentation.resize": (480, 640)}
CHANGES = {
    "nyu": {},
    "sun": {"data.depth.name": "sun", "evaluate.protocol": "sun"} | _FIRST,
    "matterport": {
        "steps": 76_800, "data.depth.name": "matterport", "evaluate.protocol": "matterport", "evaluate.split": "val",
    } | _FIRST,
    "taskonomy": {
        "batch.depth": 16, "batch.auxiliary": 16, "data.depth.name": "taskonomy", "data.depth.fraction": 0.1,
        "data.depth.augmentation.crop": (416, 512), "evaluate.protocol": "taskonomy", "evaluate.split": "val",
    } | _WHOLE,
    "diode_indoor": {
        "data.depth.name": "diode_indoor", "evaluate.protocol": "diode_indoor", "evaluate.split": "val",
    } | _WHOLE,
    "diode_outdoor": {
        "data.depth.name": "diode_outdoor", "evaluate.protocol": "diode_outdoor", "evaluate.split": "val",
        "depth_range.max": 80.0, "data.depth.augmentation.max_depth": 80.0,
    } | _WHOLE,
    "kitti": {
        "data.depth.name": "kitti", "evaluate.protocol": "kitti", "depth_range.max": 80.0,
        "data.depth.augmentation.kb_crop": True, "data.depth.augmentation.crop": (352, 704),
        "data.depth.augmentation.brightness": (0.9, 1.1),
    } | _WHOLE,
}  # fmt: skip


def flat(tree, prefix=""):
    result = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def under(prefix, values):
    return {f"{prefix}.{key}": value for key, value in values.items()}


WHOLE = OPEN | RELEASED | under("optimizer", OPTIMIZER)
WHOLE |= under("data.depth.augmentation", DEPTH) | under("data.auxiliary.augmentation", AUXILIARY)


def test_every_number_of_the_released_recipe():
    assert flat(recipe.RELEASED) == WHOLE
    assert not (OPEN.keys() & RELEASED.keys())


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_number_of_a_depth_sets_recipe(name):
    assert flat(recipe.released(**recipe.DEPTH_SETS[name])) == WHOLE | CHANGES[name]


def test_there_is_no_other_depth_set():
    assert recipe.DEPTH_SETS.keys() == CHANGES.keys()


def test_the_numbers_reach_what_computes_with_them():
    assert experiment.optimizer_settings(recipe.RELEASED) == optim.OptimizerSettings(steps=38_400)
    assert dataclasses.asdict(optim.OptimizerSettings(steps=38_400)) == {"steps": 38_400} | OPTIMIZER
    assert inputs.depth_augmentation(recipe.RELEASED) == NYU
    assert inputs.depth_augmentation(recipe.released(**recipe.DEPTH_SETS["kitti"])) == KITTI
    assert inputs.auxiliary_augmentation(recipe.RELEASED) == AuxiliaryAugmentation()
    assert dataclasses.asdict(AuxiliaryAugmentation()) == AUXILIARY
    scales = experiment.scales(recipe.RELEASED)
    assert (scales.depth, scales.auxiliary) == (0.9, pytest.approx(0.1))
