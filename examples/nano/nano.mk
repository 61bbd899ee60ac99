# The parts of dps-nano and what each needs: `make nano` calls this. What is finished is not made again, what was
# interrupted goes on. The image encoder and the image tokenizer learn side by side, each on half of the processors.

python ?= python3
half := $(shell $(python) -c 'import os; print(max(1, (os.cpu_count() or 1) // 2))')
recipe = --config examples/recipes/$(notdir $(@D)).yaml

.DELETE_ON_ERROR:

runs/nano/model.safetensors: runs/nano_text_tokenizer/tokenizer.json runs/nano_image_tokenizer/model.safetensors \
		runs/nano_vision_tower/model.safetensors
	$(python) examples/train.py $(recipe)

runs/nano_vision_tower/model.safetensors:
	OMP_NUM_THREADS=$(half) $(python) examples/train_vision_tower.py $(recipe)

runs/nano_image_tokenizer/model.safetensors:
	OMP_NUM_THREADS=$(half) $(python) examples/train_image_tokenizer.py $(recipe)

runs/nano_text_tokenizer/tokenizer.json:
	$(python) examples/train_text_tokenizer.py $(recipe)
