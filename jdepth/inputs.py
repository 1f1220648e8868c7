"""The data that a config names: its sources, its training streams and what of it is missing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jdepth.data import protocols, sources, streams, transforms
from jdepth.data.sources.subset import Subset
from jdepth.errors import UserError

Config = Mapping[str, Any]

# Classes of the paper's auxiliary sets, for a dry run without them.
PAPER_CLASSES = {
    "ade20k": 150, "sun37": 37, "cityscapes34": 34, "coco_stuff": 171, "voc21": 21, "context59": 59,
}  # fmt: skip


def check(config: Config) -> None:
    """Raise UserError naming every data set that is not there, and files that do not exist."""
    absent = missing(config)
    if absent:
        raise sources.missing_error(absent, config["data_dir"])


def missing(config: Config) -> list[str]:
    """Names of the described data sets whose description is absent."""
    names = [config["data"]["depth"]["name"]]
    if uses_auxiliary(config):
        names.append(config["data"]["auxiliary"]["name"])
    return sources.missing(names, config["data_dir"])


def uses_auxiliary(config: Config) -> bool:
    """Whether the run has an auxiliary task."""
    if config["gamma"] is not None:
        return False
    return config["beta"] is not None or config["alpha"] < 1.0


def _open(config: Config, given: Config, name: str, split: str, rooms: int, limit: int, read: tuple[str, ...]):
    options: dict[str, Any] = {}
    if name == "rooms":
        size = given["rooms_size"]
        if not rooms or not size:
            raise UserError("data set 'rooms' needs numbers: set rooms and rooms_size of config.data (and config.evaluate.rooms)")
        options = {"size": rooms, "height": int(size[0]), "width": int(size[1])}
    else:
        options = {"read": read}
    source = sources.open_source(
        name, split=split, path=given["path"] or None, data_dir=config["data_dir"], **options
    )
    return Subset(source, limit) if limit and limit < len(source) else source


def depth_source(config: Config, split: str | None = None):
    """The depth set, its training split by default; `evaluate.split` for evaluation."""
    given = config["data"]["depth"]
    training = split is None or (split == given["split"] and split != config["evaluate"]["split"])
    rooms = given["rooms"] if training else config["evaluate"]["rooms"]
    limit = given["limit"] if training else config["evaluate"]["limit"]
    return _open(config, given, given["name"], split or given["split"], rooms, limit, ("depth",))


def auxiliary_sources(config: Config, split: str | None = None) -> list:
    """Members of the auxiliary mixture; `split` None is the training split."""
    given = config["data"]["auxiliary"]
    members = sources.MIXTURES.get(given["name"], (given["name"],))
    read = () if config["task"] == "reconstruction" else ("label",)
    rooms, limit = (given["rooms"], given["limit"]) if split is None else (config["evaluate"]["rooms"], 0)
    return [_open(config, given, m, split or given["split"], rooms, limit, read) for m in members]


def _optional(value):
    return tuple(value) or None


def depth_augmentation(config: Config) -> transforms.DepthAugmentation:
    """The depth stream's augmentation."""
    given = dict(config["data"]["depth"]["augmentation"])
    for key in ("resize", "fixed_crop", "crop"):
        given[key] = _optional(given[key])
    return transforms.DepthAugmentation(**given)


def auxiliary_augmentation(config: Config) -> transforms.AuxiliaryAugmentation:
    """The auxiliary stream's augmentation, for members without one of their own."""
    return transforms.AuxiliaryAugmentation(**config["data"]["auxiliary"]["augmentation"])


def member_augmentations(config: Config) -> tuple[transforms.AuxiliaryAugmentation, ...]:
    """One augmentation per member of the mixture: its own where the published pipelines differ."""
    name = config["data"]["auxiliary"]["name"]
    own = transforms.AUXILIARY_AUGMENTATIONS if name in sources.MIXTURES else {}
    given = auxiliary_augmentation(config)
    return tuple(own.get(member, given) for member in sources.MIXTURES.get(name, (name,)))


def depth_stream(config: Config) -> streams.DepthStream:
    """Source and augmentation of the depth step."""
    return streams.DepthStream(depth_source(config), depth_augmentation(config))


def auxiliary_stream(config: Config, split: str | None = None) -> streams.AuxiliaryStream | None:
    """The auxiliary mixture, or None where the run has no auxiliary task."""
    if not uses_auxiliary(config):
        return None
    members = auxiliary_sources(config, split)
    return streams.AuxiliaryStream(tuple(members), member_augmentations(config), config["task"])


def protocol(config: Config) -> protocols.Protocol:
    """The named evaluation protocol, with the config's network input size."""
    named = protocols.protocol(config["evaluate"]["protocol"])
    size = _optional(config["evaluate"]["input_size"])
    area = config["data"]["depth"]["augmentation"]["resize_area"]
    return dataclasses.replace(named, resize=size, resize_area=area) if size else named


def class_counts(config: Config) -> tuple[int, ...]:
    """Classes of each auxiliary member without reading data, for a dry run of the paper's mixtures."""
    name = config["data"]["auxiliary"]["name"]
    counts = [PAPER_CLASSES.get(m) for m in sources.MIXTURES.get(name, (name,))]
    if None in counts or not missing(config):
        return tuple(len(source.classes) for source in auxiliary_sources(config))
    return tuple(counts)


def description_paths(config: Config) -> dict[str, Path | None]:
    """Where each described set of the config is, or None where it is absent."""
    names = [config["data"]["depth"]["name"]]
    if uses_auxiliary(config):
        given = config["data"]["auxiliary"]["name"]
        names += sources.MIXTURES.get(given, (given,))
    return {name: sources.find(name, config["data_dir"]) for name in names if name in sources.DESCRIBED}
