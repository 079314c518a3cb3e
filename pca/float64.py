"""Where to compute in float64."""

import torch


def float64_device(device: str | torch.device) -> torch.device:
    """The device itself, or the CPU for one without float64, as Apple's and some of Intel's are."""
    device = torch.device(device)
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device
