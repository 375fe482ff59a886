from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ellips.encoders.augmentation import add_noise, cut_out, flip_and_shift, step_generator

CPU = torch.device("cpu")


def draw(*numbers: int) -> list[float]:
    return torch.rand(4, generator=step_generator(CPU, *numbers)).tolist()


def test_a_generator_depends_on_all_its_numbers_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    first = draw(0, 7, 1)
    torch.manual_seed(2)
    assert draw(0, 7, 1) == first
    assert len({tuple(draw(*numbers)) for numbers in [(0, 7, 1), (1, 7, 1), (0, 8, 1), (0, 7, 2), (7, 0, 1)]}) == 5


def test_noise_has_the_deviation_that_is_asked_for_and_is_not_cut_off() -> None:
    images = torch.zeros(50, 3, 16, 16)
    noise = add_noise(images, 0.25, step_generator(CPU, 0))
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.min()) < -0.5
    assert torch.equal(add_noise(images, 0.0, step_generator(CPU, 0)), images)


def test_every_image_is_one_of_the_possible_views_and_all_of_them_occur() -> None:
    image = torch.rand(2, 5, 6)
    images = image.expand(2000, -1, -1, -1)
    moved = flip_and_shift(images, True, 2, step_generator(CPU, 0))
    views = [
        functional.pad(view, (2, 2, 2, 2), mode="reflect")[:, down : down + 5, right : right + 6]
        for view in (image, image.flip(2))
        for down in range(5)
        for right in range(5)
    ]
    counts = [sum(torch.equal(one, view) for one in moved) for view in views]
    assert sum(counts) == 2000
    assert min(counts) > 2000 / len(views) / 3


def test_an_image_is_moved_by_less_than_its_own_size() -> None:
    images = torch.rand(30, 1, 3, 4)
    assert flip_and_shift(images, False, 2, step_generator(CPU, 0)).shape == images.shape
    with pytest.raises(ValueError, match="Expected a shift below 3, the images' shorter side, but got 3"):
        flip_and_shift(images, False, 3, step_generator(CPU, 0))


def test_mirroring_and_moving_can_each_be_left_out() -> None:
    images = torch.rand(20, 1, 3, 3)
    assert flip_and_shift(images, False, 0, step_generator(CPU, 0)) is images
    mirrored = flip_and_shift(images, True, 0, step_generator(CPU, 0))
    which = [torch.equal(new, old.flip(2)) for new, old in zip(mirrored, images, strict=True)]
    assert [torch.equal(new, old) for new, old in zip(mirrored, images, strict=True)] == [not flag for flag in which]
    assert 0 < sum(which) < 20


def test_one_square_of_each_image_is_blank_and_every_pixel_can_be_its_middle() -> None:
    images = torch.rand(800, 2, 6, 5) / 4
    result = cut_out(images, 3, step_generator(CPU, 0))
    blank = result == 0.5
    assert torch.equal(blank[:, 0], blank[:, 1])
    assert torch.equal(result[~blank], images[~blank])
    squares = {tuple(image.flatten().tolist()) for image in blank[:, 0]}
    wanted = set()
    for row in range(6):
        for column in range(5):
            square = torch.zeros(6, 5, dtype=torch.bool)
            square[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
            wanted.add(tuple(square.flatten().tolist()))
    assert squares == wanted
    assert cut_out(images, 0, step_generator(CPU, 0)) is images
