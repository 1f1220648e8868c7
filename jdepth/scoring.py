"""Scores of a model on evaluation images, shared by training, `evaluate` and prediction.

Depth follows DINOv2's whole-image protocol: predict on the image (and its mirror), clamp each
prediction to the depth range, resize it to the image's own size, average, compare per image.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdepth import colour, memory, metrics
from jdepth.kept_taps import KeptTaps
from jdepth.models import heads, resize
from jdepth.models.depth_model import DepthModel
from jdepth.tasks import Task

Params = Mapping[str, Any]
# Pixels per image that the best constant is computed from, evenly spaced; fewer than twice as many, or all.
CONSTANT_PIXELS = 20_000
PROGRESS_SECONDS = 10.0
# Each image size has compiled code of its own, 20 MB and more: a folder of photos, each cropped by hand, adds up.
MOST_COMPILED = 32


def depth_forward(
    model: DepthModel, min_depth: float | None, max_depth: float | None, flip: bool, align_corners: bool = False
) -> Callable[[Params, jax.Array, tuple[int, int]], jax.Array]:
    """(params, images (B, H, W, 3) RGB, 0 to 255, size) -> depth (B, *size) float32 metres, or disparity.

    `params` holds "backbone", "decoder" and "depth_head". Clamped to min_depth and max_depth unless None.
    `size` is a compile-time constant, `align_corners` how the map is resized to it.
    """

    def once(params, images, size):
        depth = jnp.clip(model(params, images), min_depth, max_depth)
        return resize.bilinear(depth[..., None], size, align_corners)[..., 0]

    def forward(params, images, size):
        images = colour.normalise(images)
        depth = once(params, images, size)
        if flip:
            mirrored = once(params, images[:, :, ::-1], size)[:, :, ::-1]
            depth = 0.5 * (depth + mirrored)
        return depth

    return jax.jit(forward, static_argnums=2)


def depth_forward_in_two(
    model: DepthModel, min_depth: float, max_depth: float, where: jax.sharding.Sharding | None = None
) -> tuple[Callable, Callable]:
    """`depth_forward` without mirror image for a frozen backbone, cut where its features may be kept:

    (params, images) -> taps, and (params, taps, size) -> depth. `where`: how taps are placed, the same whether they
    were computed or kept, so that one program takes both.
    """

    def taps(params, images):
        return model.features(params["backbone"], colour.normalise(images))

    def depth(params, taps, size):
        depth = model.depth(params["depth_head"], model.decode(params["decoder"], taps))
        return resize.bilinear(jnp.clip(depth, min_depth, max_depth)[..., None], size, False)[..., 0]

    return jax.jit(taps, out_shardings=where), jax.jit(depth, static_argnums=2)


def programs(forward: Callable, name: str) -> Callable[..., jax.stages.Compiled]:
    """(params, images (B, H, W, 3), size) -> `forward` of `depth_forward`, compiled for just that and `size` built in.

    Only the images' shape and type count. Raises UserError, which calls the model `name`, for a program that needs
    more memory than is free; keeps the last `MOST_COMPILED`.
    """
    kept = {}

    def program(params, images, size):
        key = images.shape, images.dtype, size
        if key not in kept:
            if len(kept) >= MOST_COMPILED:
                del kept[next(iter(kept))]
            batch = jax.ShapeDtypeStruct(images.shape, images.dtype)
            compiled = forward.lower(params, batch, size).compile()
            memory.check(compiled, images.shape[0], size, name)
            kept[key] = compiled
        return kept[key]

    return program


def score_depth(
    forward: Callable,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    place: Callable = jax.device_put,
    fetch: Callable = jax.device_get,
    total_images: int = 0,
    align: tuple[float, float] | None = None,
    kept: KeptTaps | None = None,
) -> dict[str, float]:
    """Mean of the per-image depth errors over all images of `batches`.

    Args:
      forward: of `depth_forward`.
      batches: dicts with image (B, H, W, 3) uint8, depth (B, H0, W0) metres, mask (B, H0, W0) bool and
        weight (B,), 0 for entries that only fill up.
      place: puts host arrays on the devices.
      fetch: brings arrays back to the host.
      total_images: for the progress line that is printed every ten seconds; 0 prints none.
      kept: where `forward` is the pair of `depth_forward_in_two`: holds the taps.
      align: (lowest, highest) metres, where `forward` gives disparity, to be fitted to each image's depth first.
    """
    total, began, told, done = metrics.DepthSum.zero(), time.perf_counter(), time.perf_counter(), 0
    for batch in batches:
        size = batch["depth"].shape[1:]
        if kept is None:
            depth = forward(params, place(batch["image"]), size)
        else:
            key = ("depth", batch["image"].shape, batch["index"].tobytes())
            taps = kept.taps(key, lambda images=batch["image"]: forward[0](params, place(images)), place, fetch)
            depth = forward[1](params, taps, size)
        target, mask = place(batch["depth"]), place(batch["mask"])
        if align:
            depth = _align(depth, target, mask, *align)
        errors = fetch(_errors(depth, target, mask))
        total = total.add(errors, batch["weight"])
        done += int(batch["weight"].sum())
        now = time.perf_counter()
        if total_images and now - told > PROGRESS_SECONDS:
            rate, told = done / (now - began), now
            print(f"evaluated {done}/{total_images} images  {rate:.2f} images/s  ETA {(total_images - done) / rate:.0f} s")
    return total.compute() | {"images": int(total.count)}


_errors = jax.jit(metrics.depth_errors)
_align = jax.jit(metrics.align_disparity)


def score_constant(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The best constant depth of an evaluation set and its AbsRel: what any model has to beat.

    From every n-th valid pixel of each image, so that at least `CONSTANT_PIXELS` remain, or all of them.
    """

    def valid_depths():
        for batch in batches:
            for depth, mask, weight in zip(batch["depth"], batch["mask"], batch["weight"], strict=True):
                if weight:
                    values = depth[mask]
                    yield values[:: max(1, len(values) // CONSTANT_PIXELS)]

    constant, error = metrics.best_constant(valid_depths())
    return {"constant": constant, "constant_AbsRel": error}


class AuxiliaryScorer:
    """Held-out loss and metrics of an auxiliary task.

    mIoU and pixel accuracy for segmentation, mAP beside that of class frequencies for multi-label,
    accuracy for single-label; per member of a mixture, averaged over members.
    """

    def __init__(
        self,
        model: DepthModel,
        task: Task,
        classes: tuple[int, ...],
        place: Callable = jax.device_put,
        fetch: Callable = jax.device_get,
        kept: KeptTaps | None = None,
        where: jax.sharding.Sharding | None = None,
    ):
        """`place` puts a batch on the devices, `fetch` brings results back, `kept` holds taps of a frozen backbone,
        `where` is how they are placed, computed or kept."""
        self._task, self._classes, self._kept = task, classes, kept or KeptTaps(0)
        self._place, self._fetch = place, fetch

        def taps(params, batch):
            return model.features(params["backbone"], task.prepare(batch)["images"])

        def outputs(params, batch, taps):
            inputs = task.prepare(batch)
            head, features = params[task.head], model.decode(params["decoder"], taps)

            def loss(features, inputs):  # of one sample: those that only fill a batch up must not count
                one = jax.tree.map(lambda x: x[None], (features, inputs))
                return task.loss(head, *one, jnp.zeros((), jnp.int32))[0]

            losses = jax.vmap(loss)(features, {k: v for k, v in inputs.items() if k != "images"})
            prediction = task.predict(head, features, inputs)
            if task.name == "segmentation":
                prediction = self._pixel_classes(prediction, inputs)
            elif task.name == "reconstruction":
                prediction = jnp.zeros(())
            return losses, prediction

        self._taps, self._outputs = jax.jit(taps, out_shardings=where), jax.jit(outputs)

    def _pixel_classes(self, logits, inputs):
        mask = heads.class_mask(self._classes, inputs["dataset_id"])
        size = inputs["label"].shape[1:3]
        logits = resize.bilinear(logits, size, align_corners=False)
        return jnp.argmax(jnp.where(mask[:, None, None], logits, -jnp.inf), axis=-1)

    def score(self, params: Params, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """Scores over all samples of `batches` (those of `data.evaluation.auxiliary_evaluation_batches`)."""
        losses, sizes = [], []
        states = [self._zero(count) for count in self._classes]
        for filled in batches:
            own = filled["weight"] > 0
            given = self._place({k: v for k, v in filled.items() if k not in ("weight", "index")})
            key = ("auxiliary", filled["dataset_id"].tobytes(), filled["index"].tobytes())
            taps = self._kept.taps(key, lambda given=given: self._taps(params, given), self._place, self._fetch)
            found, prediction = self._fetch(self._outputs(params, given, taps))
            batch = {k: v[own] for k, v in filled.items() if k not in ("weight", "index")}
            losses += found[own].tolist()
            sizes += self._units(batch).tolist()
            prediction = prediction[own] if prediction.ndim else prediction
            for member in np.unique(batch["dataset_id"]):
                rows = batch["dataset_id"] == member
                values = {k: v[rows] for k, v in batch.items()}
                states[member] = self._add(states[member], prediction, rows, values, self._classes[member])
        scores = {"loss": float(np.average(losses, weights=sizes)) if sum(sizes) else float("nan")}
        computed = [state.compute() for state in states if state is not None]
        for key in computed[0] if computed else ():
            values = [c[key] for c in computed if not np.isnan(c[key])]
            scores[key] = float(np.mean(values)) if values else float("nan")
        return scores

    def _units(self, batch) -> np.ndarray:
        """(B,) of what the task's loss of a sample is a mean over: pooled over all samples, as in a batch."""
        return {
            "segmentation": lambda: (batch["label"] != 255).sum((1, 2)),
            "single_label": lambda: batch["class_id"] >= 0,
            "reconstruction": lambda: batch["valid_size"].prod(axis=1, dtype=np.int64),
        }.get(self._task.name, lambda: np.ones(len(batch["image"])))()

    def _zero(self, count: int):
        return {
            "segmentation": lambda: metrics.ConfusionSum.zero(count),
            "mldc": lambda: metrics.ScoreList.zero(count),
            "single_label": metrics.AccuracySum.zero,
            "reconstruction": lambda: None,
        }[self._task.name]()

    def _add(self, state, prediction, own, rows, count: int):
        if self._task.name == "segmentation":
            return state.merge(metrics.ConfusionSum.of(prediction[own], rows["label"], count))
        if self._task.name == "mldc":
            return state.merge(metrics.ScoreList.of(prediction[own, :count], rows["classes"][:, :count]))
        if self._task.name == "single_label":
            mask = np.ones((len(rows["class_id"]), count), bool)
            return state.merge(metrics.AccuracySum.of(prediction[own, :count], rows["class_id"], mask))
        return None
