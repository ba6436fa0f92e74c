#!/bin/sh
# Builds the MPI program. Usage: build.sh SOURCE
set -eu
"${MPICC:-mpicc}" -O2 -o heat "$1"
