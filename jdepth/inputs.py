"""The data that a config names: its sources, its training streams and what of it is missing."""

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from jdepth import config as config_module, population
from jdepth.data import protocols, sources, streams, transforms
from jdepth.data.sources.subset import Part, Subset
from jdepth.errors import BadItem, UserError

Config = Mapping[str, Any]

# Classes of a set that is not published and not there, for a dry run.
ASSUMED_CLASSES = 100


def check(config: Config) -> None:
    """Raise UserError naming every data set that is not there, or where the evaluation protocol does not fit."""
    check_members(config)
    depth = config["data"]["depth"]["name"]
    if sources.is_mixture(depth):
        raise UserError(f"config.data.depth.name: {depth} is a mixture for the auxiliary task; name one data set")
    auxiliary = config["data"]["auxiliary"]
    if auxiliary["path"] and sources.is_mixture(auxiliary["name"]) and uses_auxiliary(config):
        raise UserError(
            f"config.data.auxiliary.path: {auxiliary['name']} is a mixture, whose members have their own "
            "descriptions; set config.data.auxiliary.name=folder to use this one"
        )
    for key in ("depth", "auxiliary") if uses_auxiliary(config) else ("depth",):
        given = config["data"][key]
        if given["name"] == "folder" and not given["path"]:
            without = ", or train depth only with config.alpha=1" if key == "auxiliary" else ""
            raise UserError(f"config.data.{key}.path: name the dataset.json of your own images{without}")
    chosen = protocol(config)
    absent = missing(config)
    if absent:
        mixture = auxiliary_names(config) if config["data"]["depth"]["name"] not in absent else ()
        raise sources.missing_error(absent, config["data_dir"], mixture)
    # One image tells whether the protocol's crop is meant for this set, long before the first evaluation.
    item = depth_source(config, config["evaluate"]["split"])[0]
    protocols.valid_mask(chosen, protocols.prepare(chosen, item["image"], item["depth"])[1])


def check_members(config: Config) -> None:
    """Raise UserError for a population with a member whose config is wrong."""
    for member in population.members(config) if any(config["population"].values()) else ():
        try:
            config_module.check(member.config)
        except UserError as error:
            raise UserError(f"config.population: member {member.name}: {error}") from None


def check_parts(config: Config, shards: int) -> None:
    """Raise UserError where a batch on so many shards cannot be computed in `accumulate` parts with the same result."""
    parts = config["accumulate"]
    if parts == 1:
        return
    used = ("depth", "auxiliary") if uses_auxiliary(config) else ("depth",)
    for name, size in ((key, config["batch"][key]) for key in used):
        group = config["loss"]["silog_group"] if name == "depth" else 1
        if size % (parts * shards * group):
            groups = f" in groups of {group} images (config.loss.silog_group)" * (group > 1)
            raise UserError(
                f"config.accumulate={parts}: config.batch.{name}={size} does not divide into {parts} parts on {shards} "
                f"devices{groups}: use a multiple of {parts * shards * group}"
            )


# Sets of at most so many images are decoded completely before the first step.
READ_BEFORE_START = 1000


def read_small_sets(config: Config) -> None:
    """Decode every file of the small sets, trained or evaluated on, so that a damaged one is told before the start.

    Raises UserError for more than `config.data.bad_share` of a training set, and for any of an evaluation set.
    """
    found = [(source, config["data"]["bad_share"]) for _, source in opened(config) if not isinstance(source, UserError)]
    found.append((depth_source(config, config["evaluate"]["split"]), 0.0))
    held_out = config["data"]["auxiliary"]["eval_split"]
    if held_out and uses_auxiliary(config):
        found += [(source, 0.0) for source in auxiliary_sources(config, held_out)]
    for source, share in found:
        if source.name != "rooms" and len(source) <= READ_BEFORE_START:
            bad = []
            for index in range(len(source)):
                try:
                    source[index]
                except BadItem as error:
                    bad.append(str(error))
                    if len(bad) > share * len(source):
                        limit = f" ({len(bad)} of {len(source)} items; config.data.bad_share allows {share:g} of a set)"
                        raise UserError("; ".join(bad) + limit * (share > 0)) from None


def content(depth: streams.DepthStream, auxiliary: streams.AuxiliaryStream | None, evaluation) -> dict[str, str]:
    """What each set holds, trained on or evaluated on, as a text that changes with its items: "count checksum" by
    use and name."""
    members = auxiliary.members if auxiliary else ()
    held = [("depth", depth.source), *(("auxiliary", member) for member in members), ("evaluation", evaluation)]
    return {f"{stream}/{source.name}": f"{len(source)} {_checksum(source)}" for stream, source in held}


def _checksum(source) -> str:
    """Of the content, where it is known; otherwise of the ids: a damaged file may be mended and the run go on."""
    known = getattr(source, "checksum", None)
    if known is None:
        digest = hashlib.sha256()
        for index in range(len(source)):
            digest.update(source.item_id(index).encode() + b"\n")
        known = digest.hexdigest()
    return known[:16]


def missing(config: Config) -> list[str]:
    """Names of the described data sets whose description is absent."""
    given = [config["data"]["depth"]] + ([config["data"]["auxiliary"]] if uses_auxiliary(config) else [])
    # A path of its own takes the place of {data_dir}/{name}/dataset.json.
    return sources.missing([part["name"] for part in given if not part["path"]], config["data_dir"])


def uses_auxiliary(config: Config) -> bool:
    """Whether the run, or a member of it, has an auxiliary task."""
    return bool(population.tasks(config))


def _open(config: Config, given: Config, name: str, split: str, rooms: int, limit: int, read: tuple[str, ...]):
    options: dict[str, Any] = {}
    if name == "rooms":
        size = given["rooms_size"]
        if not rooms or not size:
            raise UserError(
                "data set 'rooms': set rooms and rooms_size in config.data, and config.evaluate.rooms, above 0"
            )
        options = {"size": rooms, "height": int(size[0]), "width": int(size[1])}
    else:
        options = {"read": read}
    source = sources.open_source(
        name, split=split, path=given["path"] or None, data_dir=config["data_dir"], **options
    )
    fraction = 1.0 if split != given["split"] else given.get("fraction", 1.0)
    if fraction < 1:
        source = Part(source, fraction, given["fraction_seed"])
        if not len(source):
            raise UserError(f"config.data.depth.fraction: {fraction:g} of the images leaves none")
    return Subset(source, limit) if limit and limit < len(source) else source


def depth_source(config: Config, split: str | None = None):
    """The depth set: its training split, or the `split` to evaluate on, with evaluation's number of images.

    Evaluating on the training split scores the share of it that is trained on (`fraction`).
    """
    given = config["data"]["depth"]
    numbers = config["evaluate"] if split else given
    return _open(
        config, given, given["name"], split or given["split"], numbers["rooms"], numbers["limit"], ("depth",)
    )


def auxiliary_sources(config: Config, split: str | None = None) -> list:
    """Members of the auxiliary mixture; `split` None is the training split."""
    return [_auxiliary_source(config, member, split) for member in auxiliary_names(config)]


def auxiliary_names(config: Config) -> tuple[str, ...]:
    """Data sets of the auxiliary mixture, in the order of their ids."""
    return sources.members(config["data"]["auxiliary"]["name"])


def _auxiliary_source(config: Config, member: str, split: str | None = None):
    given = config["data"]["auxiliary"]
    rooms, limit = (config["evaluate"]["rooms"], 0) if split else (given["rooms"], given["limit"])
    own = partial(_open, config, given, member, split or given["split"], rooms, limit)
    if population.tasks(config) == ("reconstruction",):
        # Images will do; where there are labels they choose the crops, as for every other task.
        bare = own(())
        return own(("label",)) if bare.classes else bare
    return own(("label",))


def _optional(value):
    return tuple(value) or None


def depth_augmentation(config: Config) -> transforms.DepthAugmentation:
    """The depth stream's augmentation."""
    given = dict(config["data"]["depth"]["augmentation"])
    for key in ("resize", "fixed_crop", "crop"):
        given[key] = _optional(given[key])
    return transforms.DepthAugmentation(**given)


def auxiliary_augmentation(config: Config) -> transforms.AuxiliaryAugmentation:
    """The auxiliary stream's augmentation."""
    given = config["data"]["auxiliary"]["augmentation"]
    return transforms.AuxiliaryAugmentation(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def member_augmentations(config: Config) -> tuple[transforms.AuxiliaryAugmentation, ...]:
    """One augmentation per member: the config's, changed for data sets whose published pipeline differs.

    A config whose scale or crop is not the released one keeps it for every member.
    """
    given, released = auxiliary_augmentation(config), transforms.AuxiliaryAugmentation()

    def own(member: str) -> transforms.AuxiliaryAugmentation:
        changes = transforms.SET_CHANGES.get(member, {})
        kept = {k: v for k, v in changes.items() if getattr(given, k) == getattr(released, k)}
        return dataclasses.replace(given, **kept)

    return tuple(own(member) for member in auxiliary_names(config))


def depth_stream(config: Config) -> streams.DepthStream:
    """Source and augmentation of the depth step."""
    return streams.DepthStream(depth_source(config), depth_augmentation(config))


def auxiliary_stream(config: Config, split: str | None = None) -> streams.AuxiliaryStream | None:
    """The auxiliary mixture, or None where the run has no auxiliary task."""
    if not uses_auxiliary(config):
        return None
    members = auxiliary_sources(config, split)
    weights = _optional(config["data"]["auxiliary"]["weights"])
    return streams.AuxiliaryStream(tuple(members), member_augmentations(config), population.tasks(config), weights)


def protocol(config: Config) -> protocols.Protocol:
    """The named evaluation protocol, with the config's network input size."""
    named = protocols.protocol(config["evaluate"]["protocol"])
    size = _optional(config["evaluate"]["input_size"])
    area = config["data"]["depth"]["augmentation"]["resize_area"]
    return dataclasses.replace(named, resize=size, resize_area=area) if size else named


def opened(config: Config) -> list[tuple[str, Any]]:
    """(name, training source, or the UserError that keeps it from opening) of every set, depth first."""
    openers = [(config["data"]["depth"]["name"], lambda: depth_source(config))]
    if uses_auxiliary(config):
        openers += [(name, partial(_auxiliary_source, config, name)) for name in auxiliary_names(config)]
    found = []
    for name, opener in openers:
        try:
            found.append((name, opener()))
        except UserError as error:
            found.append((name, error))
    return found


def class_counts(config: Config, task: str) -> tuple[int, ...]:
    """Classes of each auxiliary member for a task of a dry run, assumed where the data is not there."""
    if task == "reconstruction":
        return (3,) * len(auxiliary_names(config))
    return tuple(
        len(_published_classes(name)) or ASSUMED_CLASSES if isinstance(source, UserError) else len(source.classes)
        for name, source in opened(config)[1:]
    )


def _published_classes(name: str) -> tuple[str, ...]:
    return sources.raw_set(name).classes if name in sources.RAW_SETS else ()
