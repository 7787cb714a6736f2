"""What would installing this package change on Colab? Resolves requirements.txt with Colab's versions as preferences (needs PyPI)."""

import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
UNTOUCHED = ("torch", "numpy", "pandas", "ipywidgets", "ipython", "matplotlib")  # imported at start, or enormous


def versions(text: str) -> dict[str, str]:
    pins = (line.split("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name.strip()): version.split("+")[0].split(" ")[0] for name, version in pins}


def main() -> int:
    frozen = (ROOT / "tools" / "colab_freeze.txt").read_text()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "resolved.txt"
        out.write_text(frozen)  # uv keeps a version that stands in its output file wherever it can, as pip keeps an installed one
        options = [
            "--python-version",
            "3.13",
            "--python-platform",
            "x86_64-unknown-linux-gnu",
            "--no-header",
            "--no-annotate",
            "-q",
        ]
        command = [Path(sys.executable).parent / "uv", "pip", "compile", ROOT / "requirements.txt", "-o", out, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        before, after = versions(frozen), versions(out.read_text())
    # Colab's torch brings its own CUDA packages under other names: they are no change
    changes = {n: v for n, v in after.items() if before.get(n) != v and not n.startswith(("nvidia-", "cuda-"))}
    for name, version in sorted(changes.items()):
        print(f"{name:<24} {before.get(name, 'not there'):<12} -> {version}")
    broken = [name for name in UNTOUCHED if name in changes]
    print(f"must stay as they are, but change: {', '.join(broken)}" if broken else f"unchanged: {', '.join(UNTOUCHED)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
