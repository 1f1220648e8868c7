"""Data parallelism changes nothing but the order of sums."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from tiny_config import ROOT

from jdepth import communication, parallel
from jdepth.errors import UserError


def _sharded(*kinds) -> dict:
    """What `sharded_steps` finds, by kind of run."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "tests/sharded_steps.py", *kinds], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == 8
    return result


def _assert_equal(found) -> None:
    print(found)
    assert found["bits"] == 64 and found["arrays"] > 100
    assert 0 < found["clipped"] < 20
    assert max(found["params"], found["optimizers"]) <= 1e-10


@pytest.fixture(scope="module")
def sharded():
    return _sharded("frozen")["frozen"]


@pytest.fixture(scope="module")
def shared():
    return _sharded("frozen, shared parameters")["frozen, shared parameters"]


def test_twenty_steps_on_eight_devices_equal_those_on_one_in_double_precision(sharded):
    _assert_equal(sharded)


@pytest.mark.slow
def test_twenty_steps_with_parameters_shared_out_equal_those_on_one(shared):
    _assert_equal(shared)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "full, shared parameters", "a batch of 4, two steps ahead", "in parts, on four"])
def test_every_way_to_divide_the_work_equals_one_device(kind):
    _assert_equal(_sharded(kind)[kind])


def test_only_gradients_cross_devices(sharded):
    """The bytes of both updates' gradients, and next to nothing besides."""
    assert sharded["traffic"]["all-reduce"] == pytest.approx(sharded["reduced"], rel=0.05)
    others = {kind: size for kind, size in sharded["traffic"].items() if kind != "all-reduce"}
    assert sum(others.values()) <= 0.05 * sharded["reduced"], others


@pytest.mark.slow
def test_divided_parameters_are_gathered_once(shared):
    assert shared["traffic"]["all-gather"] > 0
    assert shared["traffic"]["all-reduce"] == pytest.approx(shared["reduced"], rel=0.05)


# ---- The mesh ---------------------------------------------------------------------------------------


def _shape(count, look_ahead=1, fsdp=1, **batches):
    devices = [SimpleNamespace(id=i) for i in range(count)]
    return tuple(parallel.training_mesh(look_ahead, fsdp, devices, **batches).shape.values())


def test_devices_that_a_batch_cannot_employ_share_the_steps_ahead(monkeypatch):
    monkeypatch.setattr(parallel, "Mesh", lambda array, names, **kinds: SimpleNamespace(shape=dict(zip(names, array.shape))))
    assert _shape(8, depth=8, auxiliary=16) == (8, 1, 1)
    assert _shape(8, 8, depth=4, auxiliary=4) == (4, 1, 2)
    assert _shape(8, 4, 2, depth=4, auxiliary=8) == (2, 2, 2)
    assert _shape(6, 6, depth=2, auxiliary=4) == (2, 1, 3)
    with pytest.raises(UserError, match="batch.depth=4 does not divide among 8 devices.*look_ahead a multiple of 2"):
        _shape(8, depth=4, auxiliary=8)
    with pytest.raises(UserError, match="look_ahead a multiple of 8"):
        _shape(8, 4, depth=3, auxiliary=8)
    with pytest.raises(UserError, match="config.mesh.fsdp=3 does not divide 8 devices"):
        _shape(8, 1, 3, depth=8)


def test_traffic_is_read_from_a_programs_text():
    text = """
      %a = (f32[3,3]{1,0}, /*index=1*/f32[]) all-reduce(%x, %y), replica_groups={}
      %b = bf16[8,4]{1,0} all-gather(%z), dimensions={0}
      %c = (f32[2]{0}, f32[16]{0}) all-gather-start(%q), dimensions={0}
      %d = f32[16]{0} all-gather-done(%c)
      %e = f32[5]{0} add(%f, %g)
    """
    found = communication.traffic(text)
    assert found["all-reduce"] == 40 and found["all-gather"] == 64 + 64 and sum(found.values()) == 168


def device(process: int, number: int) -> SimpleNamespace:
    """What a mesh asks of a device."""
    return SimpleNamespace(process_index=process, id=number)


def test_processes_with_different_numbers_of_devices_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device(0, 0), device(0, 1), device(1, 2)])
    with pytest.raises(UserError, match=r"process 0 has 2, process 1 has 1\): give every process the same number"):
        parallel.all_devices()


def test_devices_of_a_process_lie_side_by_side(monkeypatch):
    """A TPU counts its chips by their place in the torus, not by host."""
    monkeypatch.setattr(jax, "devices", lambda: [device(number % 2, number) for number in range(4)])
    assert [(d.process_index, d.id) for d in parallel.all_devices()] == [(0, 0), (0, 2), (1, 1), (1, 3)]
