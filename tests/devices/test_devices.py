"""Nothing depends on the device: an accelerator, simulated, gives what the CPU gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCENARIOS = Path(__file__).with_name("scenarios.py")


def test_an_accelerator_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    """In a process of its own: a simulated accelerator stays torch's own to the end."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, SCENARIOS, tmp_path], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert len(told) > 20
    assert not {row["name"]: row["problem"] for row in told if row["problem"]}


def test_two_devices_that_meet_are_told_of(tmp_path: Path) -> None:
    """The simulation itself: what an accelerator refuses, it refuses."""
    script = f"""
import sys
sys.path.insert(0, {str(SCENARIOS.parent)!r})
import elsewhere, torch
refused = []
with elsewhere.Computing():
    there = torch.ones(3).to("elsewhere")
    for wrong in (
        lambda: there + torch.ones(3),
        lambda: torch.ones(3)[torch.tensor([0], device="elsewhere")],
        lambda: there.numpy(),
        lambda: torch.randn(3, device="elsewhere"),
        lambda: torch.nn.Linear(3, 1)(there),
        lambda: there.double(),
    ):
        try:
            wrong()
        except (RuntimeError, TypeError):
            refused.append(wrong)
    right = [(there * 2 + torch.tensor(1)).cpu(), there[torch.tensor([0])].cpu(), torch.zeros(3).copy_(there)]
print(len(refused), [value.tolist() for value in right])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.strip() == "6 [[3.0, 3.0, 3.0], [1.0], [1.0, 1.0, 1.0]]", ended.stderr
