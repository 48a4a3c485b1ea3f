#!/usr/bin/env bash
# Everything about a GPU in one run of less than six minutes: the tests on it, scans beside cuDNN's LSTM, training loops
# beside the CPU's, and a page of the figures.
#
#     benchmarks/gpu.sh FOLDER
#
# FOLDER gets figures.jsonl (a line for each figure, written as soon as it is known), log.txt and gpu.md, the page that
# belongs in docs/gpu.md. A part that fails or takes too long does not stop the next one.
#
# Python 3.11 or newer as `python3`, or as $PYTHON says, with: torch (of CUDA), numpy, numba, llvmlite, gymnasium,
# stable-baselines3, minigrid, pygame, filelock, safetensors, rich, tyro, typeguard, docstring-parser, tomli-w, tqdm,
# matplotlib, pillow, tensorboard, pytest, hypothesis; pytest-xdist makes the tests faster. $COMMIT is written into the
# figures where the tree is a copy without its history.
set -u
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
