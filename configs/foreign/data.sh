#!/bin/sh
# Points near the line y = 2 x + 1, the same ones every time. Usage: data.sh COUNT
set -eu
awk -v count="$1" 'BEGIN {
  seed = 7
  for (i = 0; i < count; i++) {
    seed = (seed * 16807) % 2147483647
    x = i / count
    printf "%.6f,%.6f\n", x, 2 * x + 1 + 0.1 * (seed / 2147483647 - 0.5)
  }
}' >data.csv
