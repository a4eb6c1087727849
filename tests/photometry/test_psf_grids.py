import numpy as np
import pytest

from tessera.photometry.psf import PsfField
from tessera.photometry.psf_grids import (
    Bilinear,
    Polynomial,
    analytic_oversampling,
    gaussian_field,
    moffat,
    moffat_field,
    stamp_offsets,
)


def test_bilinear_reproduces_a_bilinear_function_and_clamps_outside():
    x, y = np.array([10.0, 30.0, 70.0]), np.array([5.0, 25.0])
    values = np.array([[1 + 2 * a - 0.5 * b + 0.1 * a * b for a in x] for b in y]).ravel()
    basis = Bilinear(x, y)
    rng = np.random.default_rng(1)
    px, py = rng.uniform(10, 70, 100), rng.uniform(5, 25, 100)
    np.testing.assert_allclose(basis.weights(px, py) @ values, 1 + 2 * px - 0.5 * py + 0.1 * px * py)
    np.testing.assert_allclose(basis.weights([-50, 500], [-50, 500]) @ values, [values[0], values[-1]])
    np.testing.assert_allclose(basis.weights(px * 3 - 40, py * 4 - 40).sum(axis=1), 1)


def test_one_node_is_a_constant():
    assert Bilinear(np.array([3.0]), np.array([4.0])).weights([0, 9], [0, 9]).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("nodes", [[], [2.0, 1.0], [1.0, 1.0]])
def test_nodes_must_ascend(nodes):
    with pytest.raises(ValueError, match="ascending"):
        Bilinear(np.array(nodes), np.array([0.0]))


def test_polynomial_order_is_that_of_psfex():
    flux = np.array([1.0, 0, 0, 0, 0, 0])
    weights = Polynomial(2, (3.0, 4.0), (2.0, 5.0), flux).weights([7.0], [19.0])[0]
    u, v = 2.0, 3.0
    np.testing.assert_allclose(weights, [1, u, u * u, v, u * v, v * v])


def test_polynomial_psf_holds_unit_flux_everywhere():
    rng = np.random.default_rng(2)
    stamps = rng.uniform(0, 1, (3, 5, 5))
    flux = stamps.sum(axis=(1, 2))
    field = PsfField(stamps, 1, Polynomial(1, (0.0, 0.0), (100.0, 100.0), flux))
    np.testing.assert_allclose(field.at([0, 50, 200], [0, 90, 10]).sum(axis=(1, 2)), 1)


@pytest.mark.parametrize(
    ("fwhm", "beta", "e1", "e2"), [(3.0, 2.5, 0, 0), (4.2, 3.5, 0.1, -0.05), (2.0, 6.0, -0.2, 0.1)]
)
def test_moffat_has_unit_flux_its_width_and_its_shape(fwhm, beta, e1, e2):
    step = 0.1
    axis = np.arange(-600, 601) * step
    density = moffat(axis[None, :], axis[:, None], fwhm, beta, e1, e2)
    a = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    outside = (1 + (60.0 / a) ** 2) ** (1 - beta)
    assert density.sum() * step**2 == pytest.approx(1 - outside, abs=2 * outside + 1e-6)
    if e1 == e2 == 0:
        assert moffat(fwhm / 2, 0, fwhm, beta) == pytest.approx(moffat(0, 0, fwhm, beta) / 2)
    xx = (density * axis[None, :] ** 2)[300:-300, 300:-300].sum()
    yy = (density * axis[:, None] ** 2)[300:-300, 300:-300].sum()
    assert np.sign(xx - yy) == np.sign(e1) or (e1 == 0 and xx == pytest.approx(yy))


@pytest.mark.parametrize("fwhm", [1.4, 2.0, 3.5, 6.0])
def test_analytic_fields_hold_the_flux_of_their_stamp(fwhm):
    for field in (moffat_field(fwhm, 3.5, 55), gaussian_field(fwhm, 55)):
        assert field.stamps.shape[1] == 54 * field.oversampling + 1
        assert field.stamps[0].sum() / field.oversampling**2 == pytest.approx(1, abs=2e-3)
        middle = field.stamps.shape[1] // 2
        assert field.stamps[0].argmax() == middle * field.stamps.shape[1] + middle
    assert fwhm * analytic_oversampling(fwhm) >= 2.8


def test_stamp_offsets():
    assert stamp_offsets(5, 2).tolist() == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
