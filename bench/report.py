"""What a benchmark reports: figures with their baseline measured in the same run, and the machine they come from."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Measurement", "machine"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure. ``ratio`` is value / baseline (or baseline / value for latencies) of the same run."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    check: str = ""
    """How the run proved that its result was right: a hash, a sum, a count."""
    detail: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {name: item.item() if isinstance(item, np.generic) else item for name, item in asdict(self).items()}


def machine() -> dict[str, Any]:
    """The machine and its load now; printed with every figure because these machines are shared."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
