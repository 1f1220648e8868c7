"""Scripts that start runs: on this machine, on Slurm, on TPU pods, on Kubernetes."""

import os
import shutil
import subprocess

import pytest
from tiny_config import ROOT

from jdepth import multihost


@pytest.mark.parametrize("name", ["slurm.sh", "tpu_pod.sh", "local.sh", "test.sh", "environment.sh"])
def test_launch_scripts_are_bash(name):
    subprocess.run(["bash", "-n", ROOT / "launch" / name], check=True)


def test_the_jobset_tells_each_pod_its_place():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((ROOT / "launch" / "k8s" / "jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    variables = {entry["name"]: entry for entry in container["env"]}
    assert set(variables) == set(multihost.VARIABLES)
    assert pods["parallelism"] == pods["completions"] == int(variables["JDEPTH_PROCESSES"]["value"])
    name = jobset["metadata"]["name"]
    host, port = variables["JDEPTH_COORDINATOR"]["value"].split(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert [int(port), int(port) + 1] == [entry["containerPort"] for entry in container["ports"]]
    assert container["command"] == ["python", "-m", "jdepth.main"]


GCLOUD = """#!/usr/bin/env bash
# Stands for gcloud: a slice that is preempted during the first run.
echo "$*" >>"$LOG"
case "$4" in
describe)
    [ -z "${REFUSED:-}" ] || { echo "ERROR: $REFUSED" >&2 && exit 1; }
    cat "$LOG.state" 2>/dev/null || { echo "ERROR: NOT_FOUND: no such resource" >&2 && exit 1; } ;;
create) echo READY >"$LOG.state" ;;
delete) rm "$LOG.state" ;;
ssh)
    case "$*" in
    *jdepth.main*)
        [ -e "$LOG.again" ] && exit 0
        touch "$LOG.again" && echo PREEMPTED >"$LOG.state" && exit 255 ;;
    esac ;;
esac
"""


def test_a_preempted_tpu_slice_is_made_again(tmp_path):
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    fake = tmp_path / "gcloud"
    fake.write_text(GCLOUD)
    fake.chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "TPU_TYPE": "v5litepod-16", "TPU_VERSION": "v",
    }  # fmt: skip
    command = ["bash", "launch/tpu_pod.sh", "pod", "zone", "--config", "a b.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    calls = [line.split()[3] for line in log.read_text().splitlines() if "describe" not in line]
    assert calls == ["create", "scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert r"-m jdepth.main --multihost --config a\ b.py" in log.read_text()
    (tmp_path / "log.state").unlink()
    del environment["TPU_TYPE"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "is ABSENT; create it, or set TPU_TYPE" in done.stderr
    environment["REFUSED"] = "UNAUTHENTICATED: log in first"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "ABSENT" not in done.stderr
    assert "UNAUTHENTICATED: log in first" in done.stderr and "cannot tell the state" in done.stderr


def test_a_misspelt_extra_installs_nothing(tmp_path):
    script = ROOT / "launch" / "environment.sh"
    done = subprocess.run(["bash", "-c", f". {script} test,cuda"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "no extra cuda; there are cuda12, cuda13" in done.stderr
