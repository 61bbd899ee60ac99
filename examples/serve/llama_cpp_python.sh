#!/bin/sh
# Serves dps-nano, or another checkpoint, with the server of llama-cpp-python: installs, converts, starts and asks.
#   sh examples/serve/llama_cpp_python.sh [CHECKPOINT]
# Needs cmake and a C++ compiler; installing takes about 15 minutes on 2 cores.
set -eu
checkpoint=${1:-dps_hf/checkpoints/dps-nano}
gguf=outputs/gguf
name=$(basename "$checkpoint")

# Install.
pip install ".[serve]" "llama-cpp-python[server]==0.3.36"

# Convert. With --prefer_words, answers hold no image codes, whatever the client.
python -m dps_hf.serving.gguf "$checkpoint" "$gguf" --type f16 --prefer_words

# Start. To think before answers, add: --chat_template_kwargs '{"enable_thinking": true}'
python -m llama_cpp.server --model "$gguf/$name-f16.gguf" --chat_format mtmd \
    --clip_model_path "$gguf/mmproj-$name-f16.gguf" --n_ctx 1024 --port 8081 &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail http://127.0.0.1:8081/v1/models > outputs/health.json; do kill -0 $server || exit 1; sleep 1; done

# Ask.
python examples/serve/ask.py http://127.0.0.1:8081/v1 --checkpoint "$checkpoint"
