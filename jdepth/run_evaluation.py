"""How a run is scored: now and then on a part of its evaluation set, at the end on all of it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jdepth import checkpoint, inputs, logbook, multihost, parallel, pictures, record, scoring
from jdepth.data.evaluation import auxiliary_evaluation_batches, evaluation_batches
from jdepth.errors import UserError
from jdepth.kept_taps import KeptTaps

Config = Mapping[str, Any]


def final_evaluation(config, model, last, frozen, step: int, evaluation: "Evaluation", mesh) -> dict[str, Any]:
    """Full protocol on the last and the best parameters, pictures of the best; writes evaluation.json."""
    workdir = Path(config["workdir"])
    lies = parallel.placement(mesh, last)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), last, lies)
    best, best_step = checkpoint.read_params(workdir, "best", like)
    result = {"protocol": evaluation.describe(), **evaluation.constant()}
    result["last"] = {"step": step, **evaluation.full(model, {**last, **frozen}, mesh)}
    result["best"] = {"step": best_step, **evaluation.full(model, {**best, **frozen}, mesh)}
    if multihost.is_first():
        logbook.write_atomically(workdir / "evaluation.json", logbook.to_json(result, indent=1) + "\n")
    print(f"evaluation protocol: {result['protocol']}")
    print(f"best constant depth {result['constant']:.2f} m: AbsRel {result['constant_AbsRel']:.4f}")
    for kind in ("last", "best"):
        line = f"{kind} (step {result[kind]['step']}): {record.shown(result[kind])}"
        if result["constant_AbsRel"] > 0:
            line += f"  ({result[kind]['AbsRel'] / result['constant_AbsRel']:.2f} × the best constant's AbsRel)"
        print(line)
    if config["evaluate"]["pictures"]:
        path = workdir / "pictures.png"
        shown = evaluation.examples(model, {**best, **frozen}, config["evaluate"]["pictures"], mesh)
        if multihost.is_first():
            pictures.depth_sheet(path, *shown)
        print(f"pictures: {path}")
    return result


class Evaluation(NamedTuple):
    """Evaluation sets of a run and how they are scored."""

    config: Config
    depth: Any
    auxiliary: Any
    kept: KeptTaps
    forwards: dict

    @classmethod
    def open(cls, config: Config) -> "Evaluation":
        """Open the sets that the config names."""
        split = config["data"]["auxiliary"]["eval_split"]
        auxiliary = inputs.auxiliary_stream(config, split) if split else None
        frozen = config["backbone"]["train"] == "frozen"
        kept = KeptTaps(config["evaluate"]["cache_gib"] if frozen else 0.0)
        return cls(config, inputs.depth_source(config, config["evaluate"]["split"]), auxiliary, kept, {})

    def describe(self) -> str:
        """The protocol in words."""
        from jdepth.data import protocols

        return protocols.describe(inputs.protocol(self.config))

    def _batches(self, limit: int | None, batch: int):
        return evaluation_batches(self.depth, inputs.protocol(self.config), batch, limit)

    def _forward(self, model, flip: bool):
        if flip not in self.forwards:
            self.forwards[flip] = scoring.depth_forward(model, *self._range(), flip)
        return self.forwards[flip]

    def _range(self) -> tuple[float, float]:
        low, high = inputs.protocol(self.config).prediction_range
        return low, min(high, self.config["depth_range"]["max"])

    def _size(self, mesh) -> int:
        # Rounded up so that the devices share every batch evenly.
        return -(-self.config["evaluate"]["batch"] // mesh.size) * mesh.size

    def during(self, model, todo, params, mesh) -> dict[str, float]:
        """Scores while training: no mirror image, a fixed subset where the set is large."""
        shared = parallel.split(mesh)
        place, fetch = partial(parallel.put, sharding=shared), partial(parallel.fetch, mesh=mesh)
        limit = self.config["evaluate"]["during_limit"]
        forward, kept = self._forward(model, False), None
        if self.config["backbone"]["train"] == "frozen":
            if "in two" not in self.forwards:
                self.forwards["in two"] = scoring.depth_forward_in_two(model, *self._range(), shared)
            forward, kept = self.forwards["in two"], self.kept
        scores = scoring.score_depth(forward, params, self._batches(limit, self._size(mesh)), place, fetch, kept=kept)
        if not scores["images"]:
            raise UserError(f"evaluation set '{self.depth.name}': no image has a valid pixel to score")
        if self.auxiliary is not None and len(todo) > 1:
            task = todo[1]
            if task.name not in self.forwards:
                classes = self.auxiliary.class_counts(task.name)
                scorer = scoring.AuxiliaryScorer(model, task, classes, place, fetch, self.kept, shared)
                self.forwards[task.name] = scorer
            batches = auxiliary_evaluation_batches(self.auxiliary, self._size(mesh), limit)
            auxiliary = self.forwards[task.name].score(params, batches)
            scores |= {"auxiliary_loss" if k == "loss" else k: v for k, v in auxiliary.items()}
        return scores

    def full(self, model, params, mesh) -> dict[str, float]:
        """Scores of the full protocol on all images."""
        place = partial(parallel.put, sharding=parallel.split(mesh))
        forward = self._forward(model, inputs.protocol(self.config).flip)
        batches = self._batches(None, self._size(mesh))
        fetch = partial(parallel.fetch, mesh=mesh)
        return scoring.score_depth(forward, params, batches, place, fetch, total_images=len(self.depth))

    def constant(self) -> dict[str, float]:
        """The best constant depth's score on all images."""
        return scoring.score_constant(self._batches(None, 1))

    def examples(self, model, params, count: int, mesh):
        """Images, true and predicted depth of `count` items."""
        forward = self._forward(model, False)
        images, truths, predictions = [], [], []
        for batch in self._batches(count, 1):
            image = parallel.put(batch["image"], parallel.replicated(mesh))
            depth = parallel.fetch(forward(params, image, batch["depth"].shape[1:]), mesh)
            images.append(batch["image"][0])
            truths.append(batch["depth"][0])
            predictions.append(depth[0])
        return images, truths, predictions
