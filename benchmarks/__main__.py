"""All benchmarks, briefly: `python -m benchmarks --weights FOLDER --photos FOLDER [NAME ...]`, which is `make bench`.

Each writes its rows, with their bars, to `results/NAME.json`; at the end it says which fall short. A benchmark called by
its own name takes more pairs: `python -m benchmarks.training --help`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="training, serve, folder, inference")
    parser.add_argument("--weights", type=Path, help="a Hugging Face image classifier's folder")
    parser.add_argument("--photos", type=Path, help="class folders of photos")
    arguments = parser.parse_args()
    weights, photos = ["--weights", str(arguments.weights)], ["--photos", str(arguments.photos)]
    commands = {
        "training": [*weights, *photos, "--pairs", "1", "--count", "5000"],
        "serve": ["pairs=1", "seconds=2"],
        "folder": [*weights, *photos, "--rounds", "1", "--count", "1000"],
        "inference": [*weights, "--rounds", "3"],
    }
    for name in arguments.names or commands:
        command = commands[name]
        if "None" in command:
            print(f"{name} is left out: it needs WEIGHTS=FOLDER and PHOTOS=FOLDER", flush=True)
            continue
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *command], check=True)
    return report.main()


if __name__ == "__main__":
    sys.exit(main())
