"""Rows of a benchmark: ratios of pairs measured in one run, their bar, and where they are written."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("ray", "torch", "lightning", "transformers", "onnxruntime", "pillow", "numpy")


def row(what: str, pairs: Sequence[tuple[float, float]], *, peer: str, bar: str | None) -> dict[str, Any]:
    """A row of a table.

    Args:
        what: what was measured, with its unit.
        pairs: (ours, peer's), each measured side by side.
        peer: whom we are beside.
        bar: what the ratio should be, ">= 1.5" or "<= 0.6"; None where nothing is promised.
    """
    ratios = [ours / theirs for ours, theirs in pairs]
    made = {
        "what": what,
        "ours": round(statistics.median(ours for ours, _ in pairs), 3),
        "peer": round(statistics.median(theirs for _, theirs in pairs), 3),
        "peer_name": peer,
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "pairs": len(pairs),
        "bar": bar,
    }
    spread = f"({made['ratio_min']:.2f} to {made['ratio_max']:.2f}, {len(pairs)} pairs)"
    verdict = "" if bar is None else f"  bar {bar}: {'met' if meets(made) else 'MISSED'}"
    print(
        f"{what}: {made['ours']:g} vs {made['peer']:g} {peer}, x{made['ratio_median']:.2f} {spread}{verdict}",
        flush=True,
    )
    return made


def meets(measured: dict[str, Any]) -> bool:
    """Whether a row's median ratio is on the right side of its bar; true where there is none."""
    if not measured["bar"]:
        return True
    sign, number = str(measured["bar"]).split()
    ratio = float(measured["ratio_median"])
    return ratio >= float(number) if sign == ">=" else ratio <= float(number)


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into `results/NAME.json`; those of the same name are replaced, others stay as they were measured."""
    file = RESULTS / f"{name}.json"
    fresh = {each["what"] + each["peer_name"] for each in rows}
    kept = json.loads(file.read_text())["rows"] if file.is_file() else []
    stamp = {"date": datetime.now(UTC).date().isoformat(), "load_1m": round(os.getloadavg()[0], 1)}
    document = {
        "rows": [each for each in kept if each["what"] + each["peer_name"] not in fresh]
        + [dict(each) | stamp for each in rows],
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {package: version(package) for package in _PACKAGES},
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def main() -> int:
    """Say which rows of all results fall short of their bar."""
    missed = 0
    for file in sorted(RESULTS.glob("*.json")):
        for measured in json.loads(file.read_text()).get("rows", []):
            if not meets(measured):
                missed += 1
                print(f"{file.stem}: {measured['what']}: x{measured['ratio_median']:.2f}, bar {measured['bar']}")
    print(f"{missed} rows fall short of their bar." if missed else "Every row meets its bar.")
    return 0


if __name__ == "__main__":
    main()
