#!/bin/sh
# The mean slope over seeds, and the hottest cell.
set -eu
: "${SEEDBED_NEED_fit:?run it as a stage}" "${SEEDBED_NEED_heat:?}"
number() { sed -n "s/.*\"$2\": *\([-0-9.e+]*\).*/\1/p" "$1/metrics.json" | awk 1; }
printf '%s\n' "$SEEDBED_NEED_fit" | while read -r dir; do number "$dir" slope; done |
  awk -v most="$(number "$SEEDBED_NEED_heat" most)" '
    { sum += $1; n += 1 }
    END {
      printf "{\"slope\": {\"mean\": %.6f, \"n\": %d}, \"hottest\": %.6f}\n", sum / n, n, most >"metrics.json"
      printf "slope %.3f over %d seeds, hottest cell %.3f\n", sum / n, n, most >"summary.txt"
    }'
