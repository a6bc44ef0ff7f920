#!/usr/bin/env bash
# scheduler.sh submit NAME THREADS MEGABYTES MINUTES GPUS JOBSCRIPT   prints the job's id
# scheduler.sh status ID                                              prints running, success or failed
# scheduler.sh cancel ID...
# Two minutes before its time is over a job gets SIGUSR1. Snakemake would die of it, so it is told to ignore it; a
# training takes it up again, saves, and goes on when Snakemake submits it once more.
set -euo pipefail
logs=.snakemake/cluster_logs
mkdir -p "$logs"
what=${BECO_SCHEDULER:-local}-${1:?submit, status or cancel}
shift
if [[ $what == *-submit ]]; then
  name=$1 threads=$2 megabytes=$3 minutes=$4 gpus=$5
  job="trap '' USR1; exec bash '$6'"
fi

case $what in
  sge-submit)
    limits="h_rt=$((minutes * 60)),s_rt=$((minutes * 60 - 120)),h_vmem=$((megabytes / threads))M"
    if ((gpus)); then limits+=",gpu=$gpus"; fi
    qsub -terse -cwd -V -j y -o "$logs" -N "$name" -pe smp "$threads" -l "$limits" <<<"$job" ;;
  sge-status)
    if qstat -j "$1" &>/dev/null; then echo running
    elif qacct -j "$1" 2>/dev/null | grep -Eq '^exit_status +0 *$'; then echo success
    else echo failed; fi ;;
  sge-cancel) qdel "$@" ;;

  lsf-submit)
    if ((gpus)); then set -- -gpu "num=$gpus"; else set --; fi
    bsub -J "$name" -o "$logs/%J.log" -n "$threads" -R "span[hosts=1] rusage[mem=${megabytes}MB]" \
      -W "$minutes" -wt 2 -wa USR1 "$@" <<<"$job" | grep -oE '<[0-9]+>' | head -1 | tr -d '<>' ;;
  lsf-status)
    case $(bjobs -noheader -o stat "$1") in
      DONE) echo success ;;
      EXIT | ZOMBI | "") echo failed ;;
      *) echo running ;;
    esac ;;
  lsf-cancel) bkill "$@" ;;

  local-submit)  # at once, on this machine; its status goes to a file
    file=$(mktemp "$logs/$name.XXXXXX")
    setsid bash -c 'bash -c "$1"; echo $? >"$2"' job "$job" "$file.status" >"$file.log" 2>&1 </dev/null &
    echo "$!:$file" ;;
  local-status)
    if [ -s "${1#*:}.status" ]; then
      if [ "$(cat "${1#*:}.status")" = 0 ]; then echo success; else echo failed; fi
    elif kill -0 "${1%%:*}" 2>/dev/null; then echo running
    else echo failed; fi ;;
  local-cancel) for id in "$@"; do kill -- "-${id%%:*}" || true; done ;;
  *) echo "scheduler.sh: $what: unknown; BECO_SCHEDULER is sge, lsf or local" >&2; exit 1 ;;
esac
