#!/bin/sh
# Print the first Python that runs, is 3.11 or newer and can make virtual environments.
# usage: find_python.sh [INTERPRETER]   with an interpreter named, that one or none.
# A name found on the PATH may still not run (a version manager's shim for a version that is not
# selected), so each is tried.
set -u
probe='import sys; sys.exit(sys.version_info < (3, 11) and 3 or 0)'
venv='import ensurepip, venv'
without_venv=
for name in ${1:-python3.11 python3.12 python3.13 python3.14 python3}; do
  "$name" -c "$probe" >/dev/null 2>&1 || continue
  if ! "$name" -c "$venv" >/dev/null 2>&1; then
    without_venv=$name
    continue
  fi
  echo "$name"
  exit 0
done
if [ -n "$without_venv" ]; then
  echo "error: $without_venv lacks the venv module. Debian and Ubuntu: apt install python3-venv" >&2
elif [ -n "${1:-}" ]; then
  echo "error: PYTHON=$1 does not run, or is older than 3.11" >&2
else
  echo "error: no Python 3.11 or newer on the PATH. Install one, or name it:" >&2
  echo "       make PYTHON=/path/to/python3 ..." >&2
fi
exit 1
