"""A step that does not fit the device is refused before it is compiled."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from tiny_config import plain

from jdepth import compilation, memory, peak_memory, train
from jdepth.errors import UserError


def test_too_little_device_memory_is_told_before_compiling(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 2**20)
    monkeypatch.setattr(compilation, "compile_aside", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(UserError) as caught:
        train.train(plain(tmp_path / "run"))
    line = str(caught.value)
    for part in ("too little device memory", "config.batch.depth=2", "config.batch.auxiliary=2", "0.0 GiB are free",
                 "config.decoder.channels=8", "config.precision=bfloat16", "config.backbone.name"):  # fmt: skip
        assert part in line
    assert not (tmp_path / "run").exists()


@pytest.fixture
def traced():
    """1 GiB of argument, and as much again."""
    x = jax.ShapeDtypeStruct((16384, 16384), "float32")
    return jax.jit(lambda x: x @ x).trace(x)


@pytest.mark.parametrize("free, fits", [(1.5, False), (1.8, True), (3.0, True)])
def test_only_what_certainly_does_not_fit_is_refused(free, fits, traced, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: int(free * 2**30))
    needed = memory.step_bytes(traced, 0, 1)
    assert needed == 2 * 2**30
    if fits:
        memory.check_step(plain("x"), needed, 1)
    else:
        with pytest.raises(UserError, match="estimated to need 2.0 GiB on each of 1 devices, and 1.5 GiB are free"):
            memory.check_step(plain("x"), needed, 1)


@pytest.mark.parametrize("free, fits", [(0.9, False), (1.0, True)])
def test_a_gpu_may_need_half_of_the_estimate(free, fits, traced, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: int(free * 2**30))
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(platform="gpu")])
    needed = memory.step_bytes(traced, 0, 1)
    if fits:
        memory.check_step(plain("x"), needed, 1)
    else:
        with pytest.raises(UserError, match="estimated to need 2.0 GiB on each of 1 devices, and 0.9 GiB are free"):
            memory.check_step(plain("x"), needed, 1)


def test_devices_share_what_is_not_held(traced):
    assert memory.step_bytes(traced, 0, 4) == 1.25 * 2**30
    assert memory.step_bytes(traced, 0, 4, held=2**28) == 0.5 * 2**30


def test_what_one_device_holds_counts_for_all():
    """The same program as one, and in a shard_map where shapes are a device's."""
    mesh, split = AbstractMesh((4,), ("data",)), PartitionSpec("data")

    def wide(x):
        return jnp.tanh(x @ jnp.ones((64, 640))) @ jnp.ones((640, 64))

    apart = jax.shard_map(wide, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    rows = jax.ShapeDtypeStruct((8192, 64), jnp.float32)
    # The two kernels, which are made inside, are there once per device.
    assert peak_memory.peak_bytes(apart, rows) == pytest.approx(peak_memory.peak_bytes(wide, rows), rel=0.05)
