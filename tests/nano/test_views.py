import numpy as np
import pytest

from dps_hf.model.image_processing_dps import to_rgb, to_square
from dps_hf.nano.scenes import is_held_out, shows
from dps_hf.nano.views import SIDES, sample_view


def make_views(number: int, **options):
    rng = np.random.default_rng(0)
    return [sample_view(rng, "train", **options) for _ in range(number)]


def test_views_have_all_geometries_and_grounds():
    views = make_views(200)
    shapes = {(picture.width > picture.height) - (picture.width < picture.height) for picture, _ in views}
    assert shapes == {-1, 0, 1}
    assert {picture.mode for picture, _ in views} == {"RGB", "RGBA"}
    corners = [to_rgb(picture).getpixel((0, 0)) for picture, _ in views]
    assert any(sum(corner) < 150 for corner in corners) and any(sum(corner) > 750 for corner in corners)
    assert {thing.size for _, scene in views for thing in scene.things} == {*SIDES}


def test_things_are_where_the_scene_says_after_the_picture_has_become_square():
    for picture, scene in make_views(100, count=1):
        square = np.asarray(to_square(to_rgb(picture), "pad-edge", 64).resize((64, 64)), dtype=int)
        ground = np.median(square.reshape(-1, 3), axis=0)
        there = np.abs(square - ground).sum(-1) > 150
        if not there.any():
            continue  # a thing as large as most of the picture
        rows, columns = np.nonzero(there)
        thing = scene.things[0]
        if there.mean() < 0.3:
            assert abs(columns.mean() - thing.x) < 6 and abs(rows.mean() - thing.y) < 6


def test_views_are_of_their_split_and_have_no_unseen_pair():
    assert not any(is_held_out(scene) or not shows(scene, None) for _, scene in make_views(100))
    rng = np.random.default_rng(0)
    assert all(is_held_out(sample_view(rng, "validation")[1]) for _ in range(10))
    with pytest.raises(ValueError, match="split must be"):
        sample_view(rng, "test")


def test_alike_things_can_be_counted():
    shapes = [[thing.shape for thing in scene.things] for _, scene in make_views(60, count=3, alike=True)]
    assert sum(len({*some}) < 3 for some in shapes) > 40
