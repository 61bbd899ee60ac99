#!/bin/sh
# Serves dps-nano, or another checkpoint, with `transformers serve`: installs, starts and asks.
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

# Ask. The server itself applies the guidance.
python examples/serve/ask.py http://127.0.0.1:8001/v1 --checkpoint "$checkpoint" --guidance 1.5
