"""Set the repository's address in pyproject.toml, in every badge and in every install cell: python tools/links.py owner/name"""

import argparse
import re
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo", help="owner/name, as in the address of the repository")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    args = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[\w.-]+", args.repo):
        print(f"REPO={args.repo!r} must have the form owner/name; try: make links REPO=ada/gemma_colab", file=sys.stderr)
        return 2
    pyproject = args.root / "pyproject.toml"
    old = re.search(r'^Repository = "https://github\.com/([^"]+)"', pyproject.read_text(), flags=re.MULTILINE).group(1)
    for path in [pyproject, args.root / "README.md", *sorted((args.root / "notebooks").glob("*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        new = text.replace(f"github.com/{old}", f"github.com/{args.repo}").replace(
            f"com/github/{old}/", f"com/github/{args.repo}/"
        )
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(args.root)}: {text.count(old)} links")
    return 0


if __name__ == "__main__":
    sys.exit(main())
