"""Score a model on a data set, with the protocol beside the numbers.

    python -m jdepth.evaluate --workdir RUN
    python -m jdepth.evaluate --checkpoint PATH --dataset NAME [--path DESCRIPTION] [--protocol NAME]
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jdepth import command_line, logbook
from jdepth.errors import UserError

if TYPE_CHECKING:
    from jdepth.data.protocols import Protocol
    from jdepth.predictor import Predictor

USAGE = """Score a depth model: AbsRel, SqRel, RMSE, RMSE log, SILog, log10, δ1 to δ3; with a run's auxiliary task
also mIoU and pixel accuracy, mAP, or accuracy.

  python -m jdepth.evaluate --workdir runs/quickstart
  python -m jdepth.evaluate --checkpoint runs/quickstart --dataset rooms --split test
  python -m jdepth.evaluate --checkpoint dinov2_vits14_nyu.safetensors --path my/dataset.json

Relative models are scored after a scale and a shift have been fitted to each image in disparity (--align)."""

DEPTH_ROW = ("AbsRel", "SqRel", "RMSE", "RMSElog", "SILog", "log10", "d1", "d2", "d3")
# Images and their height and width for --dataset=rooms, where neither --limit nor a run says it.
ROOMS, ROOMS_SIZE = 64, (168, 224)
NO_RUN = "is not a run; use --checkpoint with --dataset for a weights file"
ALIGNED = "scale and shift of each image fitted in disparity"
HEADINGS = {"RMSElog": "RMSE log", "d1": "δ1", "d2": "δ2", "d3": "δ3"}


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "a run: scored on its own evaluation set", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "run's workdir or weights file", flag_values=values)
    flags.DEFINE_string("dataset", None, "data set, such as rooms, folder or nyu", flag_values=values)
    flags.DEFINE_string("path", None, "description file of your own images (--dataset=folder)", flag_values=values)
    flags.DEFINE_string("data_dir", "data", "folder of the named data sets", flag_values=values)
    flags.DEFINE_string("split", None, "split of --dataset; by default its held-out one", flag_values=values)
    flags.DEFINE_string("protocol", None, "evaluation protocol; by default the data set's own", flag_values=values)
    flags.DEFINE_integer(
        "limit", 0, "at most so many images; 0 = all (64 of --dataset=rooms)", lower_bound=0, flag_values=values
    )
    flags.DEFINE_enum(
        "align", "auto", ["auto", "disparity"], "fit scale and shift of each image in disparity before scoring; auto: "
        "for relative models only", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("batch", 1, "images at once", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("kind", "best", ["best", "last"], "which checkpoint of a run", flag_values=values)
    flags.DEFINE_string("backbone", None, "frozen backbone's file, where the checkpoint lacks it", flag_values=values)
    flags.DEFINE_string("model", None, "which released model the file is, where that is open", flag_values=values)
    flags.DEFINE_string(
        "out", None, "JSON file; by default in the run, or here for a weights file", flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Score what the flags name."""
    command_line.no_arguments(arguments)
    if bool(values.workdir) == bool(values.checkpoint):
        raise UserError("give --workdir RUN, or --checkpoint PATH with --dataset NAME")
    if values.checkpoint and values.path and not values.dataset:
        values["dataset"].value = "folder"
    if values.checkpoint and not values.dataset:
        raise UserError("--dataset: --checkpoint needs a data set, such as --dataset rooms")
    if values.workdir:
        for name in ("dataset", "path", "split", "protocol", "data_dir"):
            if values[name].present:
                raise UserError(f"--{name}: a run is scored as its config says; to choose, give --checkpoint RUN")
        if not Path(values.workdir).exists():
            raise UserError(f"--workdir: {values.workdir}: no such file or folder; expected a run's folder")
        if not Path(values.workdir).is_dir():
            raise UserError(f"--workdir: {values.workdir} {NO_RUN}")
    if values.out and (not Path(values.out).parent.is_dir() or Path(values.out).is_dir()):
        raise UserError(f"--out: {values.out}: expected a file in an existing folder")
    from jdepth import compilation, predictor

    compilation.keep_programs()
    path = values.workdir or values.checkpoint
    model = predictor.load(path, backbone=values.backbone, model=values.model, kind=values.kind)
    if values.workdir and model.config is None:
        raise UserError(f"--workdir: {path} {NO_RUN}")
    result = score_run(model, values) if values.workdir else score_dataset(model, values)
    print(table(result))
    out = Path(values.out or _default_out(values, result["dataset"]))
    logbook.write_atomically(out, logbook.to_json(result, indent=1) + "\n")
    print(f"written to {out}")
    return 0


def score_run(model: "Predictor", values: flags.FlagValues) -> dict[str, Any]:
    """The run's own evaluation: full depth protocol, and its auxiliary task on held-out data."""
    from jdepth import experiment, inputs, scoring
    from jdepth.data.evaluation import auxiliary_evaluation_batches

    config = model.config
    source = inputs.depth_source(config, config["evaluate"]["split"])
    result = _score(model, source, inputs.protocol(config), values)
    split = config["data"]["auxiliary"]["eval_split"]
    stream = inputs.auxiliary_stream(config, split) if split else None
    if stream is not None:
        task = experiment.build_tasks(config, model.model, stream.classes)[1]
        scorer = scoring.AuxiliaryScorer(model.model, task, stream.classes)
        result["auxiliary"] = {"task": task.name, "dataset": config["data"]["auxiliary"]["name"], "split": split}
        result["auxiliary"] |= scorer.score(
            model.params, auxiliary_evaluation_batches(stream, values.batch, values.limit or None)
        )
    return result


def score_dataset(model: "Predictor", values: flags.FlagValues) -> dict[str, Any]:
    """Depth scores on a named data set."""
    from jdepth import predictor
    from jdepth.data import protocols, sources

    options = {"read": ("depth",)}
    if values.dataset == "rooms":
        size = (predictor.trained_size(model.config) if model.config else None) or ROOMS_SIZE
        options = {"size": values.limit or ROOMS, "height": size[0], "width": size[1]}
    source = sources.open_source(
        values.dataset, split=_split(values), path=values.path, data_dir=values.data_dir, **options
    )
    protocol = protocols.protocol(values.protocol or protocols.default(values.dataset))
    if model.config and protocol.resize is None:
        protocol = dataclasses.replace(
            protocol, resize=predictor.trained_size(model.config), resize_area=model.preparation.shrink_by_area
        )
    place = {"split": _split(values)} | ({"path": str(values.path)} if values.path else {})
    return _score(model, source, protocol, values) | place


def _score(model: "Predictor", source, protocol: "Protocol", values: flags.FlagValues) -> dict[str, Any]:
    from jdepth import scoring
    from jdepth.data import protocols
    from jdepth.data.evaluation import evaluation_batches

    low, high = protocol.prediction_range
    relative = model.max_depth is None
    align = relative or values.align == "disparity"
    align_note = [ALIGNED] if align else []
    bring = None
    if model.preparation.least:  # a model with a pre-processing of its own sees images as they are
        protocol, bring = dataclasses.replace(protocol, resize=None), model.preparation
    limits = (None, None) if relative else (low, min(high, model.max_depth))
    forward = scoring.depth_forward(model.model, *limits, protocol.flip, model.align_corners)
    program = scoring.programs(forward, model.name)

    def depth(params, images, size):
        return program(params, images, size)(params, images)

    def disparity(params, images, size):
        predicted = depth(params, images, size)
        return predicted if relative else 1 / predicted

    def batches(size, bring=None):
        return evaluation_batches(source, protocol, size, values.limit or None, bring=bring)

    total = min(values.limit or len(source), len(source))
    scores = scoring.score_depth(
        disparity if align else depth,
        model.params,
        batches(values.batch, bring),
        total_images=total,
        align=(low, high) if align else None,
    )
    if not scores["images"]:
        raise UserError(f"data set '{source.name}': no image has a valid pixel under protocol {protocol.name}")
    return {
        "model": model.name,
        "dataset": source.name,
        "protocol": ", ".join([protocols.describe(protocol), *([bring.describe()] if bring else []), *align_note]),
        "depth": scores,
        **scoring.score_constant(batches(1)),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as text, the protocol above the numbers."""
    lines = [f"{result['model']} on {result['dataset']}, {result['depth']['images']} images", result["protocol"], ""]
    lines.append("  ".join(f"{HEADINGS.get(k, k):>8}" for k in DEPTH_ROW))
    lines.append("  ".join(f"{result['depth'][k]:8.4f}" for k in DEPTH_ROW))
    lines.append(f"(best constant depth, {result['constant']:.2f} m: AbsRel {result['constant_AbsRel']:.4f})")
    auxiliary = result.get("auxiliary")
    if auxiliary:
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in auxiliary.items() if isinstance(v, float))
        lines.append(f"{auxiliary['task']} on {auxiliary['dataset']} {auxiliary['split']}: {numbers}")
    return "\n".join(lines)


def _split(values: flags.FlagValues) -> str:
    from jdepth.data import sources

    return values.split or sources.held_out(values.dataset)


def _default_out(values: flags.FlagValues, dataset: str) -> Path:
    """A file for each model, data set by its own name, split, and protocol, alignment and limit that were asked for."""
    asked = ("" if values.align == "auto" else "_aligned") + (f"_{values.limit}_images" if values.limit else "")
    dataset = re.sub(r"[^\w.+-]+", "_", dataset)
    protocol = f"_{values.protocol}" if values.protocol else ""
    if values.workdir:
        return Path(values.workdir) / f"evaluation_{values.kind}{asked}.json"
    checkpoint = Path(values.checkpoint)
    if (checkpoint / "checkpoints").is_dir():
        return checkpoint / f"evaluation_{values.kind}_{dataset}_{_split(values)}{protocol}{asked}.json"
    checkpoint = Path(os.path.abspath(checkpoint))  # links stay: Hugging Face's cache has all files in one folder
    name = checkpoint.name if checkpoint.is_dir() else checkpoint.stem
    # Its files are called the same in every folder.
    alike = name.removesuffix(".index").removesuffix(".safetensors").removesuffix(".bin") in ("model", "pytorch_model")
    name = checkpoint.parent.name if alike else name
    return Path(f"evaluation_{name}_{dataset}_{_split(values)}{protocol}{asked}.json")


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
