#!/usr/bin/env bash
# Run by Snakemake inside the new environment, from its own folder: install the lock file, then this package.
set -euo pipefail
root=${BECO_SOURCE:-$PWD}
pip install --require-hashes -r "$root/requirements.lock"
pip install --no-deps --no-build-isolation -e "$root"
