#!/usr/bin/env bash
# Everything in the project that waits for a GPU, in one go. Leaves four Markdown files in OUT, and ends with 1 if a bar was missed.
#     benchmarks/on_gpu.sh OUT [WHEELS]
# WHEELS: a folder with wheels of what the machine lacks, for one without a network.
set -euo pipefail
out=$1 wheels=${2:-}
cd "$(dirname "$0")/.."
[ -z "$wheels" ] || python3 -m pip install -q --no-index --find-links "$wheels" bitsandbytes trl datasets peft transformers
export PYTHONPATH=$PWD
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv > "$out/gpu.md"
python3 benchmarks/float16.py > "$out/float16.md"
checkpoints=$(mktemp -d) status=0
python3 benchmarks/memory.py --sizes 270m,1b,4b --keep "$checkpoints" > "$out/memory.md" || status=1
python3 benchmarks/training.py --sizes 270m,1b,4b --keep "$checkpoints" > "$out/training.md" || status=1
exit $status
