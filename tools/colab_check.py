"""What would installing this package change on Colab, on Colab's older runtime, and on Kaggle?

Resolves requirements.txt, with what the notebooks' first cell adds, and the versions there as preferences. Needs PyPI.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
MACHINES = {"colab.txt": "3.13", "colab-2026.07.txt": "3.12", "kaggle.txt": "3.12"}  # in tools/machines -> their Python
UNTOUCHED = ("torch", "numpy", "pandas", "ipywidgets", "ipython", "matplotlib")  # in use from the start, or enormous


def versions(text: str) -> dict[str, str]:
    pins = (line.split("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name.strip()): version.split("+")[0].split(" ")[0] for name, version in pins}


def changes(frozen: str, python: str) -> dict[str, tuple[str, str]]:
    """Name -> (version before, version after) of what an install changes where these versions stand."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gemma-270m"]
    with tempfile.TemporaryDirectory() as folder:
        wanted, out = Path(folder) / "wanted.txt", Path(folder) / "resolved.txt"
        wanted.write_text("\n".join([(ROOT / "requirements.txt").read_text(), *extra]))
        out.write_text(frozen)  # uv keeps a version that stands in its output file wherever it can, as pip keeps an installed one
        options = f"--python-version {python} --python-platform x86_64-unknown-linux-gnu --no-header --no-annotate -q".split()
        command = [Path(sys.executable).parent / "uv", "pip", "compile", wanted, "-o", out, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        before, after = versions(frozen), versions(out.read_text())
    # Colab's torch brings its own CUDA packages under other names: they are no change
    return {
        name: (before.get(name, "not there"), new)
        for name, new in after.items()
        if before.get(name) != new and not name.startswith(("nvidia-", "cuda-"))
    }


def main() -> int:
    broken = []
    for machine, python in MACHINES.items():
        found = changes((ROOT / "tools" / "machines" / machine).read_text(), python)
        print(f"{machine}, Python {python}")
        for name, (before, after) in sorted(found.items()):
            print(f"  {name:<32} {before:<12} -> {after}")
        wrong = [name for name in UNTOUCHED if name in found]
        print(f"  must stay as they are, but change: {', '.join(wrong)}" if wrong else f"  unchanged: {', '.join(UNTOUCHED)}")
        broken += wrong
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
