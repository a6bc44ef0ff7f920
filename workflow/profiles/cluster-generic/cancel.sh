#!/usr/bin/env bash
# Snakemake takes one word for this command, hence a file of its own.
exec bash "$(dirname "$0")/scheduler.sh" cancel "$@"
