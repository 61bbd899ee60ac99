"""DPS behind servers: GGUF files for llama.cpp, and a client of the OpenAI protocol."""
