# The stages of the SmolLM2 that learns to see and draw, and what each of them needs; `make smol` calls this file.
# Finished stages are not made again, and an interrupted one continues.

python ?= python3
recipes := examples/recipes/smol
out := runs/smol
here := examples/smol
# More arguments for the first two scripts, such as another language model.
model_args ?=
data_args ?=

.DELETE_ON_ERROR:

$(out)/page.html: $(out)/merged/config.json $(out)/names.json $(out)/knowledge.json
	$(python) $(here)/make_page.py --model $(out)/merged --held_out $(out)/data/held_out --output $@ \
		--figures $(out)/names.json $(out)/knowledge.json $(out)/knowledge_before.json

# What it names, and what it still knows beside what the language model knew.
$(out)/names.json: $(out)/merged/config.json
	$(python) examples/evaluate.py --config $(recipes)/names.yaml --output $@

$(out)/knowledge.json: $(out)/merged/config.json
	$(python) examples/evaluate.py --config $(recipes)/knowledge.yaml --model $(out)/parts --output $(out)/knowledge_before.json
	$(python) examples/evaluate.py --config $(recipes)/knowledge.yaml --output $@

$(out)/merged/config.json: $(out)/lora/trainer_state.json
	$(python) examples/merge_adapter.py --adapter $(out)/lora --output $(out)/merged
	$(python) -m dps_hf.serving.gguf $(out)/merged $(out)/gguf --type q8_0

$(out)/lora/trainer_state.json: $(out)/mixture/trainer_state.json
	$(python) examples/sft.py --config $(recipes)/lora.yaml

$(out)/mixture/trainer_state.json: $(out)/connector/trainer_state.json
	$(python) examples/train.py --config $(recipes)/mixture.yaml

$(out)/connector/trainer_state.json: $(out)/data/text.jsonl
	$(python) examples/train.py --config $(recipes)/connector.yaml

$(out)/data/text.jsonl: $(out)/parts/model.safetensors
	$(python) $(here)/make_data.py --model $(out)/parts --output $(out)/data $(data_args)

$(out)/parts/model.safetensors:
	$(python) $(here)/make_model.py --output $(out)/parts $(model_args)
