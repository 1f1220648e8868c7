"""Does a trained model look at the image, or has it learnt where depth usually is?

    python benchmarks/looking.py runs/quickstart

Prints, on the run's evaluation set and as multiples of the best constant depth's AbsRel: the model; the
mean and the median depth map of the training images; and the model when it is shown the next image of the
set instead of the right one. A model that looks has a low first number, and the others are about 1 or more.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from jdepth import inputs, metrics, predictor
from jdepth.data.evaluation import evaluation_batches
from jdepth.errors import UserError


def mean_maps(source, size: tuple[int, int], most: int = 512) -> dict[str, np.ndarray]:
    """Mean and median over training images of depth (H, W), from valid pixels only."""
    stack = []
    for index in range(min(most, len(source))):
        depth = source[index]["depth"]
        rows = (np.arange(size[0]) + 0.5) * depth.shape[0] // size[0]
        columns = (np.arange(size[1]) + 0.5) * depth.shape[1] // size[1]
        shown = depth[rows.astype(int)][:, columns.astype(int)]
        stack.append(np.where(shown > 0, shown, np.nan))
    return {"mean": np.nanmean(stack, axis=0), "median": np.nanmedian(stack, axis=0)}


def abs_rel(predictions, batches) -> float:
    """Mean over images of AbsRel on the protocol's pixels."""
    total = metrics.DepthSum.zero()
    for prediction, batch in zip(predictions, batches, strict=True):
        total = total.add(metrics.depth_errors(prediction[None], batch["depth"], batch["mask"]), batch["weight"])
    return total.compute()["AbsRel"]


def main(workdir: str) -> None:
    model = predictor.load(Path(workdir))
    config = model.config
    if config is None:
        raise UserError(f"{workdir}: is not a run")
    source, protocol = inputs.depth_source(config, config["evaluate"]["split"]), inputs.protocol(config)
    batches = list(evaluation_batches(source, protocol, 1))
    valid = [b["depth"][b["mask"]] for b in batches]
    constant, floor = metrics.best_constant(v[:: max(1, len(v) // 20_000)] for v in valid)
    predictions = [model(b["image"][0], flip=protocol.flip).values for b in batches]
    native = [b["depth"].shape[1:] for b in batches]
    if any(p.shape != n for p, n in zip(predictions, native, strict=True)):
        from jdepth.data import geometry

        predictions = [geometry.resize_map(p, n) for p, n in zip(predictions, native, strict=True)]
    rows = {
        "model": abs_rel(predictions, batches),
        "model, shown the next image": abs_rel(predictions[1:] + predictions[:1], batches),
    }
    maps = mean_maps(inputs.depth_source(config), native[0])
    rows |= {f"{name} depth map of the training images": abs_rel([m] * len(batches), batches) for name, m in maps.items()}
    print(f"{len(batches)} images; best constant {constant:.2f} m: AbsRel {floor:.4f}")
    for name, value in rows.items():
        print(f"{name:<42} AbsRel {value:.4f}   {value / floor:.3f} × the best constant")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="workdir of a run, such as runs/quickstart")
    try:
        main(parser.parse_args().run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
