import pytest
import torch

from diffusion_lib import figures


def test_mosaic_puts_every_image_in_its_place():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 3) / 10
    picture = figures.mosaic(images, columns=3, gap=1)
    assert picture.shape == (1, 1, 2 * 3 + 1, 3 * 4 + 1)
    for n in range(6):
        row, column = divmod(n, 3)
        cell = picture[0, 0, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
        assert torch.equal(cell[1:, 1:], images[n, 0])
        assert (cell[0] == -0.5).all() and (cell[:, 0] == -0.5).all()
    assert (picture[..., -1] == -0.5).all() and (picture[..., -1, :] == -0.5).all()


def test_image_grid_shows_each_row_on_one_grey_scale():
    rows = {"x_t": torch.zeros(3, 1, 4, 4), "x̂₀": torch.ones(3, 1, 4, 4)}
    figure = figures.image_grid(rows, titles=["a", "b", "c"])
    shown = [ax.images[0] for ax in figure.axes]
    assert len(shown) == 6 and {image.get_clim() for image in shown} == {(-1, 1)}
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]
    assert figure.axes[3].get_ylabel() == "x̂₀"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": torch.zeros(2, 1, 4, 4), "b": torch.zeros(3, 1, 4, 4)}, r"\{'a': 2, 'b': 3\}"),
        ({"a": torch.zeros(2, 3, 4, 4)}, r"a must have shape \(N, 1, H, W\), got \(2, 3, 4, 4\)"),
    ],
)
def test_bad_rows_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        figures.image_grid(rows)
