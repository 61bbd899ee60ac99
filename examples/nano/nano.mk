# The parts of dps-nano and what each of them needs; `make nano` calls this file. Finished parts are not made again,
# and an interrupted one continues. The image encoder and the image tokenizer train side by side, each on half of the
# processors.

python ?= python3
half := $(shell $(python) -c 'import os; print(max(1, (os.cpu_count() or 1) // 2))')
recipes := examples/recipes/nano

.DELETE_ON_ERROR:

runs/nano/model.safetensors: runs/nano_text_tokenizer/tokenizer.json runs/nano_image_tokenizer/model.safetensors \
		runs/nano_vision_tower/model.safetensors
	$(python) examples/train.py --config $(recipes)/model.yaml

runs/nano_vision_tower/model.safetensors:
	OMP_NUM_THREADS=$(half) $(python) examples/nano/train_vision_tower.py --config $(recipes)/vision_tower.yaml

runs/nano_image_tokenizer/model.safetensors:
	OMP_NUM_THREADS=$(half) $(python) examples/train_image_tokenizer.py --config $(recipes)/image_tokenizer.yaml

runs/nano_text_tokenizer/tokenizer.json:
	$(python) examples/train_text_tokenizer.py --config $(recipes)/text_tokenizer.yaml
