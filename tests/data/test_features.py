"""Features of a frozen vision tower, computed once."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dps_hf.data.codes import encode_ahead
from dps_hf.data.features import compute_features_ahead
from dps_hf.data.record import record
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packed_loss import packed_loss
from dps_hf.training.packing import PackingCollator


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
A, B, C, D = map(Image.fromarray, PIXELS)
RECORDS = [
    record("t", [A, "Which?"], ["one"]),
    record("t", ["Hi"], ["Hello"]),
    record("t", [B, C, "The same?"], ["no"]),
    record("t", [D, "make it blue"], [A]),
]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


@pytest.fixture
def frozen(make_model):
    model = make_model()
    model.model.vision_tower.requires_grad_(False)
    return model


@pytest.fixture
def featured(cache, frozen, tiny_processor):
    encoded = encode_ahead(RECORDS, frozen, tiny_processor)
    return compute_features_ahead(encoded, frozen, tiny_processor, batch_size=2)


def test_features_take_the_place_of_pictures_in_their_order(featured, frozen, tiny_processor):
    assert [len(featured[i]["images"]) for i in range(4)] == [1, 0, 2, 1]
    pixels = tiny_processor.image_processor([A, B, C, D], return_tensors="pt")["pixel_values"]
    expected = frozen.model.vision_tower(pixels).last_hidden_state
    found = torch.stack([picture for i in range(4) for picture in featured[i]["images"]])
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_the_loss_and_the_connectors_gradient_are_those_of_pictures(featured, frozen, tiny_processor):
    records = [featured[i] for i in range(4)]
    for collator in (RecordCollator, PackingCollator):
        collate = collator(frozen, tiny_processor)
        losses, gradients = [], []
        for some in (records, encode_ahead(RECORDS, frozen, tiny_processor)):
            batch = collate([some[i] for i in range(4)])
            frozen.train().zero_grad()
            packed = "examples" in batch
            loss = packed_loss(frozen, frozen, batch) if packed else frozen(**batch).loss
            loss.backward()
            losses.append(loss)
            gradients.append(frozen.model.connector.linear_1.weight.grad.clone())
        torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)
        assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[1].norm()


def test_the_tower_runs_once_and_its_features_are_read_from_the_cache(featured, frozen, tiny_processor, monkeypatch):
    runs = []
    frozen.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    again = compute_features_ahead(featured.records, frozen, tiny_processor, batch_size=2)
    frozen.train()(**RecordCollator(frozen, tiny_processor)([again[i] for i in range(4)]))
    assert not runs and again.fingerprint == featured.fingerprint
    with torch.no_grad():
        next(frozen.model.vision_tower.parameters()).add_(1)
    changed = compute_features_ahead(featured.records, frozen, tiny_processor, batch_size=2)
    assert runs and changed.fingerprint != featured.fingerprint


class Cropped:
    """Records whose pictures are other ones at each reading."""

    fingerprint = "cropped"

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        picture = Image.fromarray(PIXELS[index]).rotate(int(self.random.integers(1, 90)))
        return record("t", [picture, "Which?"], ["one"])


def test_what_would_change_between_epochs_is_refused(cache, frozen, make_model, tiny_processor):
    with pytest.raises(ValueError, match="record 0 differ from one reading to the next"):
        compute_features_ahead(Cropped(), frozen, tiny_processor)
    with pytest.raises(ValueError, match="needs a frozen vision tower"):
        compute_features_ahead(RECORDS[:1], make_model(), tiny_processor)
    frozen.config.vision_config.attention_dropout = 0.1
    try:
        with pytest.raises(ValueError, match=r"a tower without dropout; it has 0\.1"):
            compute_features_ahead(RECORDS[:1], frozen, tiny_processor)
    finally:
        frozen.config.vision_config.attention_dropout = 0.0


def test_features_too_large_for_float16_are_refused(cache, frozen, tiny_processor):
    with torch.no_grad():
        frozen.model.vision_tower.post_layernorm.weight.fill_(1e6)
    with pytest.raises(ValueError, match="too large for float16"):
        compute_features_ahead(RECORDS[:1], frozen, tiny_processor)
