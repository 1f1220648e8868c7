"""Data parallelism changes nothing but the order of sums; devices that do not fit together are refused."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from tiny_config import ROOT

from jdepth import parallel
from jdepth.errors import UserError


def test_twenty_steps_on_eight_devices_equal_those_on_one_in_double_precision():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "tests/sharded_steps.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert result["devices"] == 8
    for kind in ("frozen", "full"):
        assert result[kind]["bits"] == 64 and result[kind]["arrays"] > 100
        assert 0 < result[kind]["clipped"] < 20
        assert max(result[kind]["params"], result[kind]["optimizers"]) <= 1e-10


def device(process: int, number: int) -> SimpleNamespace:
    """What a mesh asks of a device."""
    return SimpleNamespace(process_index=process, id=number)


def test_processes_with_different_numbers_of_devices_are_refused():
    with pytest.raises(UserError, match=r"process 0 has 2, process 1 has 1\): give every process the same number"):
        parallel.make_mesh([device(0, 0), device(0, 1), device(1, 2)])


def test_devices_of_a_process_lie_side_by_side(monkeypatch):
    """A TPU counts its chips by their place in the torus, not by host."""
    found = [device(number % 2, number) for number in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: found)
    monkeypatch.setattr(parallel, "Mesh", lambda devices, *names, **types: devices)
    assert [(d.process_index, d.id) for d in parallel.make_mesh()] == [(0, 0), (0, 2), (1, 1), (1, 3)]
