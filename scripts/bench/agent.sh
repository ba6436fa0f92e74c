#!/usr/bin/env bash
# Stands where mpirun expects ssh: runs a command in the network namespace that stands for a host.
#
#   SEEDBED_LINK='10.0.0.1=ns-a 10.0.0.2=ns-b' agent.sh 10.0.0.2 orted ...
set -euo pipefail

readonly EX_USAGE=64
host=${1:-}
shift || :
for pair in ${SEEDBED_LINK:-}; do
  if [[ ${pair%%=*} == "$host" ]]; then
    # mpirun quotes its words for a shell, as ssh wants them.
    exec ip netns exec "${pair#*=}" bash -c "$*"
  fi
done
printf "agent: no namespace stands for '%s': SEEDBED_LINK is '%s'\n" "$host" "${SEEDBED_LINK:-}" >&2
exit "$EX_USAGE"
