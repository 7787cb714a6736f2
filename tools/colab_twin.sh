#!/usr/bin/env bash
# Colab's machine but for its GPU, to find out what a learner meets there: Debian 13 with Python 3.13 in a folder of its own, and in it
# Colab's version of every package in the table of docs/machines.md. Needs root, Debian or Ubuntu, a network, and 15 GB of disk.
#     tools/colab_twin.sh [COMMAND...]
# Builds it once, in .twin/base (about three minutes), takes a copy (hard links: seconds), so that each run meets an untouched machine,
# and runs the command there, in /content. Without one: the install cell, all notebooks, and the tests that depend on versions.
# Ends with 3, after saying why, where it can't be built.
set -euo pipefail
cd "$(dirname "$0")/.."
twin=$PWD/.twin lists=tools/machines

cannot() { echo "the twin of Colab can't be built here: $*" >&2; exit 3; }

inside() { # run a command in the folder $1; what is mounted for it vanishes with it, whatever happens
  local root=$1
  shift
  # shellcheck disable=SC2016
  unshare --mount --propagation private sh -c '
    mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/dev/shm" && mount -t devpts devpts "$1/dev/pts" &&
    cd "$1" && shift && exec chroot . "$@"' sh "$root" \
    /usr/bin/env -i PATH=/opt/colab/bin:/usr/bin:/bin HOME=~root LANG=C.UTF-8 COLAB_RELEASE_TAG=twin UV_SYSTEM_CERTS=1 \
    JUPYTER_LAB_PYTHON=/opt/lab/bin/python ${OMP_NUM_THREADS:+OMP_NUM_THREADS=$OMP_NUM_THREADS} \
    ${http_proxy:+http_proxy=$http_proxy} ${https_proxy:+https_proxy=$https_proxy} ${no_proxy:+no_proxy=$no_proxy} "$@"
}

build() {
  [ "$(id -u)" = 0 ] || cannot "it needs root"
  if ! command -v debootstrap >/dev/null; then
    (apt-get update -q && apt-get install -qy --no-install-recommends debootstrap) >/dev/null 2>&1 || cannot "it needs debootstrap"
  fi
  unshare --mount true 2>/dev/null || cannot "it needs the right to mount"
  [ "$(df --output=avail -BG . | tail -1 | tr -dc 0-9)" -ge 15 ] || cannot "it needs 15 GB of free disk"
  rm -rf "$twin"
  mkdir -p "$twin"
  echo "building the twin of Colab in $twin (about three minutes)"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,git trixie "$twin/new" >"$twin/log" 2>&1 ||
    cannot "debootstrap failed, see $twin/log"
  cp /etc/resolv.conf "$twin/new/etc/resolv.conf"
  cp /etc/ssl/certs/ca-certificates.crt "$twin/new/etc/ssl/certs/ca-certificates.crt" # its own, of whoever filters the network here
  # CUDA's packages come as torch wants them: without a GPU it doesn't matter which
  grep -viE '^(#|nvidia|cuda)' "$lists/colab.txt" >"$twin/new/tmp/colab.txt"
  echo "$looked_for" >"$twin/new/tmp/looked_for.txt"
  cp "$lists/google_colab.py" "$twin/new/tmp/"
  inside "$twin/new" bash -euo pipefail >>"$twin/log" 2>&1 <<'END' || cannot "a package could not be installed, see $twin/log"
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium
python3 -m venv /opt/colab
pip install -q uv
uv pip install -q --python /opt/colab/bin/python -r /tmp/looked_for.txt -c /tmp/colab.txt
# Its front end: the JupyterLab that shows ipywidgets 7.7.1, on a Python of its own. 3.6 needs y-py, which has no build for 3.13.
python3 -m venv /opt/lab
uv pip install -q --python /opt/lab/bin/python 'jupyterlab>=3.5,<3.6' jupyterlab_widgets==1.1.11
/opt/colab/bin/python -m ipykernel install --prefix /opt/lab --name python3
colab=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/google/colab
mkdir -p /content "$colab" ~/.ipython/profile_default/startup
cp /tmp/google_colab.py "$colab/__init__.py"
echo 'import google.colab' >~/.ipython/profile_default/startup/colab.py
END
  mv "$twin/new" "$twin/base"
  echo "$key" >"$twin/key"
}

exec 9<"$0" # held by whatever runs in there, too
flock -n 9 || cannot "another run of this script goes on"
looked_for=$(sed -n 's/^| `\([^`]*\)` |.*/\1/p' docs/machines.md)
key=$( (echo "$looked_for" && cat "$lists/colab.txt" "$lists/google_colab.py" && declare -f build) | sha256sum)
[ "$(cat "$twin/key" 2>/dev/null)" = "$key" ] || build
rm -rf "$twin/now"
cp -al "$twin/base" "$twin/now"
# The checkout as a repository that has an owner and a release, in the place of the one on the network.
mkdir "$twin/now/repo"
checkout() { # its files, whether or not git will talk about it here
  git ls-files -z --cached --others --exclude-standard 2>/dev/null ||
    find . \( -name .git -o -path './.[tv]*' -o -path ./runs \) -prune -o -type f -print0
}
checkout | tar -c --null -T - --ignore-failed-read 2>/dev/null | tar -x --no-same-owner -C "$twin/now/repo"
inside "$twin/now" bash -euo pipefail <<'END'
cd /repo
python tools/links.py learner/gemma_colab >/dev/null
git config --global user.name learner
git config --global user.email learner@localhost
git config --global url.file:///repo.insteadOf https://github.com/learner/gemma_colab
git init -q
git add -A
git commit -qm release
git tag "v$(sed -n 's/^__version__ = "\(.*\)"/\1/p' gemma_colab/__init__.py)"
END
[ $# -gt 0 ] || set -- python /repo/tools/colab_twin.py
inside "$twin/now" sh -c 'cd /content && exec "$@"' sh "$@"
