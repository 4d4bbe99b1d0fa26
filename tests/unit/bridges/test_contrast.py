"""InfoNCE with projections and a learnt temperature."""

import pytest
import torch

from crossdistill.bridges.contrast import Contrast, LearnableTemperature, same_image
from crossdistill.bridges.gather import gather_rows
from crossdistill.losses import info_nce

LEARNER = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
SOURCE = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def names(contrast):
    return {name for name, _ in contrast.named_parameters()}


def test_equal_widths_need_no_projection():
    assert names(Contrast(4, 4)) == {"temperature.logarithm"}


def test_the_learner_is_projected_to_the_sources_width():
    contrast = Contrast(4, 6)
    assert names(contrast) == {"learner_projector.weight", "learner_projector.bias", "temperature.logarithm"}
    assert not contrast.learner_projector.bias.any()
    assert contrast.learner_projector.weight.abs().max() < 0.1
    expected = info_nce(contrast.learner_projector(LEARNER), SOURCE, temperature=0.07)
    torch.testing.assert_close(contrast(LEARNER, SOURCE), expected)


def test_both_sides_are_projected_where_a_width_is_given():
    contrast = Contrast(4, 4, projection_dim=3)
    assert contrast.learner_projector.out_features == contrast.source_projector.out_features == 3
    contrast(LEARNER, SOURCE[:, :4]).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in contrast.parameters())


def test_the_symmetric_loss_adds_the_other_direction():
    both, one = Contrast(4, 4, symmetric=True), Contrast(4, 4)
    source = SOURCE[:, :4]
    expected = one(LEARNER, source) + one(source, LEARNER)
    torch.testing.assert_close(both(LEARNER, source), expected)


def test_an_image_that_is_there_twice_is_left_out_in_both_directions():
    ids = torch.tensor([7, 3, 8, 7, -1])
    excluded = same_image(ids, ids)
    assert excluded.nonzero().tolist() == [[0, 0], [0, 3], [1, 1], [2, 2], [3, 0], [3, 3]]
    both, one, source = Contrast(4, 4, symmetric=True), Contrast(4, 4), SOURCE[:, :4]
    there, back = (
        info_nce(*pair, temperature=0.07, excluded=excluded) for pair in ((LEARNER, source), (source, LEARNER))
    )
    torch.testing.assert_close(both(LEARNER, source, 0, excluded), there + back)
    assert one(LEARNER, source, 0, excluded) < one(LEARNER, source)


def test_ids_below_zero_are_nobodys():
    assert not same_image(torch.tensor([-1, -1]), torch.tensor([-1, -1, 0])).any()


def test_the_temperature_starts_where_it_is_told_and_is_one_element_without_decay():
    temperature = LearnableTemperature(0.07)
    assert temperature().item() == pytest.approx(0.07)
    assert temperature().shape == ()
    assert temperature.logarithm.shape == (1,)


@pytest.mark.parametrize(("bound", "outwards"), [(0.01, 1.0), (1.0, -1.0)])
def test_the_temperature_stays_between_its_bounds_and_comes_back(bound, outwards):
    """A descent that always pushes outwards ends at the bound; the first gradient inwards leaves it again."""
    temperature = LearnableTemperature(0.3)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        (outwards * temperature.logarithm.sum() * 0 + outwards * temperature().log()).backward()
        optimizer.step()
        assert 0.01 * (1 - 1e-6) <= temperature().item() <= 1.0
    assert temperature().item() == pytest.approx(bound)
    for _ in range(2):
        optimizer.zero_grad()
        (-outwards * temperature().log()).backward()
        optimizer.step()
    assert 0.011 < temperature().item() < 0.99


def test_inside_its_bounds_the_gradient_is_the_plain_one():
    temperature = LearnableTemperature(0.3)
    temperature().backward()
    assert temperature.logarithm.grad.item() == pytest.approx(0.3)


def test_alone_a_process_gathers_its_own_rows():
    (first, second), offset = gather_rows([LEARNER, SOURCE])
    assert first is LEARNER
    assert second is SOURCE
    assert offset == 0
    assert gather_rows([]) == ([], 0)
