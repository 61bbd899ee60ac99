#!/bin/sh
# dps-nano through `transformers serve`: install, start, ask. Nothing is converted.
#   sh examples/serve/transformers_serve.sh [CHECKPOINT]
set -eu
checkpoint=${1:-dps_hf/checkpoints/dps-nano}

# Install.
pip install ".[serve]" "transformers[serving]"

# Start.
mkdir -p outputs
transformers serve "$checkpoint" --trust-remote-code --port 8001 &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail http://127.0.0.1:8001/health > outputs/health.json; do kill -0 $server || exit 1; sleep 1; done

# Ask. Here guidance is the server's own.
python examples/serve/ask.py http://127.0.0.1:8001/v1 --checkpoint "$checkpoint" --guidance 1.5
