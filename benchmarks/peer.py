"""The joint step in PyTorch: transformers' DPTForDepthEstimation on a Dinov2Config backbone, as one would train it.

Frozen backbone in inference mode, a pass for each of the two batches; the released decoder with gradients; SigLoss in
groups of two, MLDC with a 1×1 convolution on the decoder's map; clipping at 35; two AdamW, fused on CUDA; bfloat16 by
autocast with the frozen weights stored in it; scaled_dot_product_attention; channels_last; plain or by torch.compile.

In its favour: images come normalised and padded (jdepth augments colours and normalises within its step), and the
residual stream of its backbone is bfloat16 where jdepth's is float32.
"""

import functools
from collections.abc import Callable
from typing import Any

from measure import Call  # first: puts the checkout on the path

import numpy as np
import torch
import workload
from torch.nn import functional
from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation
from workload import MIX6_CLASSES, Case

from jdepth.colour import MEAN, STD

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network(case: Case, device: str) -> DPTForDepthEstimation:
    """The port's depth model with random weights, its backbone frozen."""
    shape, width, channels = case.shape, case.shape.width, case.channels
    inner = Dinov2Config(
        hidden_size=width, num_hidden_layers=shape.depth, num_attention_heads=shape.heads, mlp_ratio=4,
        use_swiglu_ffn=shape.ffn == "swiglu", image_size=14 * shape.grid, patch_size=14, layer_norm_eps=1e-6,
        out_indices=[tap + 1 for tap in shape.taps], apply_layernorm=False, reshape_hidden_states=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(device):
        model = DPTForDepthEstimation(
            DPTConfig(
                backbone_config=inner, neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
                fusion_hidden_size=channels, readout_type="project", add_projection=True,
                use_bias_in_fusion_residual=False, is_hybrid=False,
            )
        )  # fmt: skip
        if channels != 256:  # which the port takes for granted in this one layer
            model.head.projection = torch.nn.Conv2d(channels, channels, 3, padding=1)
        torch.nn.init.ones_(model.head.head[4].bias)  # in front of a ReLU, which is to be alive
    model.backbone.eval().requires_grad_(False)
    return model


class JointStep:
    """A joint step: `steps(n)` runs n of them and waits.

    Args:
      device: "cuda", "cpu", or "meta" for counting.
    """

    def __init__(self, case: Case, device: str = DEVICE, compiled: bool = False):
        self.half, self.device = device != "cpu", device
        self.model = network(case, device)
        config = workload.config_of(case, "float32")
        self.optimizer_numbers, channels = config["optimizer"], case.channels
        if self.half:
            self.model.backbone.to(torch.bfloat16)
        self.model.to(memory_format=torch.channels_last)
        with torch.device(device):
            self.kernel = torch.nn.Parameter(torch.randn(len(MIX6_CLASSES), max(MIX6_CLASSES), channels) * 0.05)
            self.bias = torch.nn.Parameter(torch.zeros(len(MIX6_CLASSES), max(MIX6_CLASSES)))
        self.batch = {} if device == "meta" else tensors(case, device)
        unused = {id(p) for p in self.model.neck.fusion_stage.layers[0].residual_layer1.parameters()}
        decoder = [p for p in self.model.neck.parameters() if id(p) not in unused]
        decoder += self.model.head.projection.parameters()
        own = {"depth": list(self.model.head.head.parameters()), "auxiliary": [self.kernel, self.bias]}
        alpha = config["alpha"]
        self.optimizers = {
            stream: torch.optim.AdamW(
                [{"params": decoder, "scale": scale}, {"params": own[stream], "scale": 1.0}],
                lr=1e-4, eps=1e-8, weight_decay=0.01, fused=device == "cuda",
            )
            for stream, scale in (("depth", alpha), ("auxiliary", 1 - alpha))
        }  # fmt: skip
        # A program for each of the two image sizes: with free sizes both would be slower.
        wrap: Callable = functools.partial(torch.compile, dynamic=False) if compiled else lambda f: f
        self.features = wrap(self._features)
        self.losses = {"depth": wrap(self._depth_loss), "auxiliary": wrap(self._auxiliary_loss)}

    def _features(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.backbone.forward_with_filtered_kwargs(images).feature_maps)

    def _decode(self, taps: tuple[torch.Tensor, ...], grid: tuple[int, int]) -> torch.Tensor:
        fused = self.model.neck(list(taps), *grid)[-1]
        return torch.relu(self.model.head.projection(fused))

    def _depth_loss(self, taps, grid, batch) -> torch.Tensor:
        depth, group = batch["depth"], 2
        prediction = self.model.head.head(self._decode(taps, grid)).float() + 0.001
        prediction = functional.interpolate(prediction, size=depth.shape[1:], mode="bilinear")[:, 0]
        valid = (depth > 0).float()
        g = (torch.log(prediction + 0.001) - torch.log(depth.clamp_min(1e-3) + 0.001)) * valid
        images = min(group, len(depth))
        g, valid = (x.reshape(-1, images * depth[0].numel()) for x in (g, valid))
        count = valid.sum(1).clamp_min(2)
        mean = g.sum(1) / count
        variance = ((g - mean[:, None]).square() * valid).sum(1) / (count - 1)
        return torch.sqrt(variance + 0.15 * mean.square()).mean()

    def _auxiliary_loss(self, taps, grid, batch) -> torch.Tensor:
        features = self._decode(taps, grid)
        ids = batch["dataset_id"]
        logits = torch.bmm(self.kernel[ids], features.flatten(2)).float().mean(2) + self.bias[ids]
        own = batch["mask"]
        entropy = functional.binary_cross_entropy_with_logits(logits, batch["classes"], reduction="none") * own
        return (entropy.sum(1) / own.sum(1)).mean()

    def loss(self, stream: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Backbone pass and loss of one stream."""
        images = batch["image"]
        kind = "cuda" if self.device == "cuda" else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=self.half):
            with torch.inference_mode():
                taps = self.features(images)
            taps = tuple(tap.clone() for tap in taps)  # out of inference mode: autograd keeps what it is given
            return self.losses[stream](taps, (images.shape[2] // 14, images.shape[3] // 14), batch)

    def steps(self, number: int) -> None:
        """So many joint steps, and wait."""
        for _ in range(number):
            for stream, optimizer in self.optimizers.items():
                optimizer.zero_grad(set_to_none=True)
                self.loss(stream, self.batch[stream]).backward()
                groups = optimizer.param_groups
                clip = self.optimizer_numbers["clip"]
                torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
                for group in groups:  # the schedules' two numbers, as a loop sets them
                    group["lr"], group["betas"] = group["scale"] * 1e-4, (0.9, 0.999)
                optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()


def tensors(case: Case, device: str) -> dict[str, dict[str, torch.Tensor]]:
    """The workload's batch, normalised and padded to whole patches."""
    host = workload.host_batch(case)
    own = np.arange(max(MIX6_CLASSES)) < np.array(MIX6_CLASSES)[host["auxiliary"]["dataset_id"], None]
    result = {
        "depth": {"image": host["depth"]["image"], "depth": host["depth"]["depth"]},
        "auxiliary": {
            "image": host["auxiliary"]["image"], "classes": host["auxiliary"]["classes"],
            "dataset_id": host["auxiliary"]["dataset_id"].astype(np.int64), "mask": own.astype(np.float32),
        },
    }  # fmt: skip
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    placed: dict[str, dict[str, Any]] = {}
    for stream, arrays in result.items():
        image = (arrays.pop("image").astype(np.float32) - MEAN) / STD
        margins = [(-side) % 14 for side in image.shape[1:3]]
        around = [(0, 0), *((m // 2, m - m // 2) for m in margins), (0, 0)]
        image = torch.from_numpy(np.ascontiguousarray(np.pad(image, around).transpose(0, 3, 1, 2)))
        placed[stream] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        placed[stream]["image"] = image.to(device, kind, memory_format=torch.channels_last)
    return placed


def counted(case: Case) -> float:
    """FLOPs of one joint step as PyTorch's own counter sees them; on the meta device, so nothing is computed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    step = JointStep(case, "meta")
    # The shapes of one image, repeated as a view: nothing is allocated either.
    one = tensors(workload.parse(str(case).replace(f"{case.depth}+{case.auxiliary}", "1+1")), "cpu")
    total = 0.0
    for stream, arrays in one.items():
        number = getattr(case, stream)
        batch = {
            name: torch.empty(
                (number, *array.shape[1:]), dtype=torch.bfloat16 if name == "image" else array.dtype, device="meta"
            )
            for name, array in arrays.items()
        }
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step.loss(stream, batch).backward()
        total += counter.get_total_flops()
    return total


def matrix_product() -> tuple[Call, float]:
    """As `measure.matrix_product`, in PyTorch."""
    side = 1024 if DEVICE == "cpu" else 8192
    first, second = (
        torch.randn(side, side, device=DEVICE, dtype=torch.float32 if DEVICE == "cpu" else torch.bfloat16)
        for _ in range(2)
    )

    def call(units: int) -> None:
        for _ in range(units):
            torch.mm(first, second)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return call, 2.0 * side**3
