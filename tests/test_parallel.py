"""Data parallelism changes nothing but the order of sums."""

import json
import os
import subprocess
import sys

from tiny_config import ROOT


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
