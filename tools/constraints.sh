#!/usr/bin/env bash
# Every version that `make` installs, with the checksums of its files on PyPI. torch has none: its build differs from machine to
# machine (CPU, CUDA), so that pip takes it from where the machine's own settings point to.
# tools/constraints.sh            the newest versions
# tools/constraints.sh FILE       the versions in FILE, such as constraints.txt itself
set -euo pipefail
cd "$(dirname "$0")/.."
options="--universal --python-version 3.11.7 --generate-hashes --no-annotate --no-header --extra verify --extra mutants --no-emit-package torch -q"
{
  echo "# The exact versions the tests ran with (Python 3.11), written by \`make constraints\`. uv refuses a file with another checksum."
  echo "# torch has no checksum: its build differs from machine to machine (CPU, CUDA)."
  torch=$(.venv/bin/python -c 'import torch; print("torch==" + torch.__version__.split("+")[0])')
  echo "$torch"
  .venv/bin/uv pip compile $options ${1:+-c "$1"} pyproject.toml
} > constraints.part
mv constraints.part constraints.txt
