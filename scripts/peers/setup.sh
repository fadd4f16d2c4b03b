#!/usr/bin/env bash
# Makes a Python environment for each peer (another runtime that we compare with): FOLDER/tflite and so on.
# Usage: scripts/peers/setup.sh FOLDER [tflite|executorch|ort ...]
# The environments are apart from each other and from TVM's, since the runtimes need different versions of the same
# packages. Together they take several GB.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="${1:?usage: setup.sh FOLDER [tflite|executorch|ort ...]}"
shift
[ $# -gt 0 ] || set -- tflite executorch ort
for name in "$@"; do
  requirements="$here/requirements-$name.txt"
  [ -f "$requirements" ] || { echo "no peer $name: expected tflite, executorch or ort" >&2; exit 2; }
  "${PYTHON:-python3.11}" -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip install --quiet -r "$requirements"
done
echo "now: python -m scripts.memory.table$(for name in "$@"; do printf ' --peer %s=%s' "$name" "$folder/$name/bin/python"; done)"
