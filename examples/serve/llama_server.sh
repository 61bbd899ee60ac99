#!/bin/sh
# Serves dps-nano, or another checkpoint, with llama-server of llama.cpp: installs, converts, starts and asks.
#   sh examples/serve/llama_server.sh [CHECKPOINT]
# Needs cmake and a C++ compiler; the build takes about 15 minutes on 2 cores and is kept in outputs/llama.cpp.
set -eu
checkpoint=${1:-dps_hf/checkpoints/dps-nano}
build=outputs/llama.cpp/build
gguf=outputs/gguf
name=$(basename "$checkpoint")

# Install. The source package of llama-cpp-python contains llama.cpp.
pip install ".[serve]"
if [ ! -x "$build/bin/llama-server" ]; then
    mkdir -p outputs/llama.cpp
    pip download --no-deps --no-binary :all: --dest outputs/llama.cpp llama-cpp-python==0.3.36
    tar -xzf outputs/llama.cpp/llama_cpp_python-0.3.36.tar.gz -C outputs/llama.cpp
    cmake -S outputs/llama.cpp/llama_cpp_python-0.3.36/vendor/llama.cpp -B "$build" -DCMAKE_BUILD_TYPE=Release \
        -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    cmake --build "$build" --target llama-server llama-mtmd-cli -j
fi

# Convert. With --prefer_words, answers hold no image codes, whatever the client.
python -m dps_hf.serving.gguf "$checkpoint" "$gguf" --type f16 --prefer_words

# Start. The server lets models think by default. The client turns it on or off in each request.
"$build/bin/llama-server" --model "$gguf/$name-f16.gguf" --mmproj "$gguf/mmproj-$name-f16.gguf" --port 8080 &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail http://127.0.0.1:8080/health > outputs/health.json; do kill -0 $server || exit 1; sleep 1; done

# Ask.
python examples/serve/ask.py http://127.0.0.1:8080/v1 --checkpoint "$checkpoint" --guidance 1.5
