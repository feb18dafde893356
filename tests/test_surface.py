"""Surface distances: areas by hand, known answers, values of the library surface-distance, and a slow reference."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import distance_transform_edt

from nnunet_semi.evaluation.crop import CroppedPair
from nnunet_semi.evaluation.surface import region_hausdorff, surface_areas, surface_codes, surface_distances


def ellipsoid(shape, centre, radii):
    grid = np.ogrid[tuple(slice(0, size) for size in shape)]
    return sum(((x - c) / r) ** 2 for x, c, r in zip(grid, centre, radii, strict=True)) <= 1


def noise(seed, shape, share):
    return np.random.default_rng(seed).random(shape) < share


PAIRS = {
    "shifted": (
        ellipsoid((20, 24, 28), (9, 11, 13), (6, 8, 10)),
        ellipsoid((20, 24, 28), (10, 12, 13), (6, 7, 10)),
        (2.5, 0.8, 0.8),
    ),
    "touching the border": (
        ellipsoid((8, 9, 10), (0, 4, 9), (5, 5, 6)),
        ellipsoid((8, 9, 10), (1, 3, 9), (4, 6, 5)),
        (1.0, 1.0, 1.0),
    ),
    "noise": (noise(0, (9, 8, 7), 0.4), noise(1, (9, 8, 7), 0.5), (1.2, 0.7, 3.0)),
    "2D": (ellipsoid((40, 50), (20, 25), (11, 15)), ellipsoid((40, 50), (22, 24), (12, 13)), (1.5, 0.5)),
    "2D noise": (noise(2, (12, 15), 0.4), noise(3, (12, 15), 0.1), (1.0, 2.0)),
}
# NSD at 1 mm, HD95, HD, mean distance from reference and from prediction, both areas: surface-distance 0.1 with its
# use of names that NumPy 2 removed put right
PUBLISHED = {
    "shifted": (0.761162531068, 2.4, 2.96816441593, 0.64456288288, 0.57754331428, 1252.97163624, 1185.20656181),
    "touching the border": (0.995817614785, 1, 3**0.5, 0.135453913853, 0.109361440596, 192.40983982, 183.72294186),
    "noise": (0.984726189564, 0.7, 1.84390889146, 0.0218426306132, 0.0814298162499, 977.778923686, 1320.38279890),
    "2D": (0.57437692786, 3.35410196625, 4.52769256907, 1.08855080755, 1.25983968169, 85.7587202229, 87.7587202229),
    "2D noise": (0.510609563733, 6, 6.0827625303, 2.12619803501, 0.191355184945, 228.816554492, 57.193495505),
}  # fmt: skip


def corners_of(mask):
    """The surface points, found the slow way: corners whose 8 (4) voxels differ."""
    padded = np.pad(mask, 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2,) * mask.ndim)
    windows = windows.reshape(*windows.shape[: mask.ndim], -1)
    return windows.any(axis=-1) & ~windows.all(axis=-1)


def reference_distances(here, there, spacing):
    """From the surface of one mask to the other by a whole distance map, ascending."""
    return np.sort(distance_transform_edt(~corners_of(there), sampling=spacing)[corners_of(here)])


# --- areas ---


def area(*corners, spacing=(1.0, 1.0, 1.0)):
    """The area of the surface between the given corners of a cube and the others."""
    cube = np.zeros((2,) * len(spacing), bool)
    for corner in corners:
        cube[corner] = True
    return surface_areas(spacing)[surface_codes(cube)[(1,) * len(spacing)]]


def test_pieces_of_surface_have_the_areas_of_marching_cubes():
    triangle = math.sqrt(3) / 8  # sides of √½, between the middles of three edges
    assert area((0, 0, 0)) == pytest.approx(triangle)
    assert area((0, 0, 0), (1, 1, 1)) == pytest.approx(2 * triangle)
    assert area((0, 0, 0), (0, 1, 1)) == pytest.approx(2 * triangle)  # an edge is shared, yet they stay apart
    assert area((0, 0, 0), (0, 0, 1)) == pytest.approx(math.sqrt(0.5))  # cuts two edges: a rectangle of 1 × √½
    assert area(*product((0,), (0, 1), (0, 1))) == pytest.approx(1)
    assert area((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)) == pytest.approx(math.sqrt(3) * 0.75)  # a hexagon


def test_lengths_of_contours_are_those_of_marching_squares():
    two = (3.0, 4.0)
    assert area((0, 0), spacing=two) == area((0, 1), (1, 0), (1, 1), spacing=two) == 2.5
    assert area((0, 0), (1, 1), spacing=two) == 5
    assert area((0, 0), (0, 1), spacing=two) == 4  # along the second axis
    assert area((0, 0), (1, 0), spacing=two) == 3


def test_areas_of_anisotropic_voxels():
    spacing = (2.0, 3.0, 5.0)
    assert area(*product((0,), (0, 1), (0, 1)), spacing=spacing) == pytest.approx(15)
    assert area(*product((0, 1), (0,), (0, 1)), spacing=spacing) == pytest.approx(10)
    assert area(*product((0, 1), (0, 1), (0,)), spacing=spacing) == pytest.approx(6)


@pytest.mark.parametrize("spacing", [(1.3, 2.1, 5.0), (0.7, 3.0)])
def test_areas_do_not_depend_on_inside_and_outside_mirroring_or_the_order_of_axes(spacing):
    dimension = len(spacing)
    table = surface_areas(spacing)
    np.testing.assert_allclose(table, table[::-1], rtol=1e-12)
    cubes = [np.array([code >> bit & 1 for bit in range(2**dimension)], bool) for code in range(len(table))]
    for order, steps in product(permutations(range(dimension)), product((1, -1), repeat=dimension)):
        turned = surface_areas(tuple(spacing[axis] for axis in order))
        for cube in cubes:
            cube = cube.reshape((2,) * dimension)
            other = cube.transpose(order)[tuple(slice(None, None, step) for step in steps)]
            middle = (1,) * dimension
            assert turned[surface_codes(other)[middle]] == pytest.approx(table[surface_codes(cube)[middle]], rel=1e-12)


def test_the_sum_of_all_areas_is_that_of_surface_distance():
    assert surface_areas((1.0, 2.0, 3.5)).sum() == pytest.approx(1092.9946322840478, rel=1e-13)


# --- distances ---


@pytest.mark.parametrize("name", PAIRS)
def test_measures_are_those_of_surface_distance(name):
    found = surface_distances(*PAIRS[name])
    nsd, hd95, hd, from_reference, from_prediction, reference_area, prediction_area = PUBLISHED[name]
    total = from_reference * reference_area + from_prediction * prediction_area
    measured = (found.nsd(1.0), found.hausdorff(95), found.hausdorff(), found.average())
    assert measured == pytest.approx((nsd, hd95, hd, total / (reference_area + prediction_area)), rel=1e-10)
    assert found.reference.weights.sum() == pytest.approx(reference_area, rel=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_distances_are_those_of_a_distance_map(name):
    reference, prediction, spacing = PAIRS[name]
    found = surface_distances(reference, prediction, spacing)
    for ours, expected in (
        (found.reference, reference_distances(reference, prediction, spacing)),
        (found.prediction, reference_distances(prediction, reference, spacing)),
    ):
        np.testing.assert_allclose(np.sort(ours.distances), expected, rtol=1e-12)


def test_distances_along_an_axis_are_exact_so_that_a_tolerance_can_equal_them():
    reference, prediction = np.zeros((2, 9, 3, 3), bool)
    reference[:4], prediction[:7] = True, True
    found = surface_distances(reference, prediction, (0.1, 1.0, 1.0))
    assert found.hausdorff() == 3 * 0.1  # not .3, and not what the difference of two coordinates would give
    assert found.nsd(3 * 0.1) == 1


def test_a_shift_by_one_slice_is_one_slice():
    reference, prediction = np.zeros((2, 12, 9, 9), bool)
    reference[3:7, 2:7, 2:7], prediction[4:8, 2:7, 2:7] = True, True
    found = surface_distances(reference, prediction, (2.5, 1.0, 1.0))
    assert found.hausdorff() == found.hausdorff(95) == 2.5
    assert found.nsd(2.5) == 1 and 0.5 < found.nsd(2.4) < 1


def test_hd95_is_the_larger_percentile_of_the_two_directions_and_weighs_by_area():
    reference, prediction = np.zeros((2, 40, 60), bool)
    reference[10:30, 10:30] = True
    prediction[10:30, 10:30] = prediction[19:21, 30:50] = True  # a spike: far from the reference, not the other way
    found = surface_distances(reference, prediction, (1.0, 1.0))
    order = np.argsort(found.prediction.distances)
    share = np.cumsum(found.prediction.weights[order]) / found.prediction.weights.sum()
    expected = found.prediction.distances[order][np.flatnonzero(share >= 0.95)[0]]
    assert found.hausdorff(95) == found.prediction.percentile(95) == expected > 10
    assert found.reference.percentile(95) == 0
    assert found.hausdorff() == 20


@pytest.mark.parametrize("name", PAIRS)
def test_swapping_reference_and_prediction_changes_nothing(name):
    reference, prediction, spacing = PAIRS[name]
    one, other = surface_distances(reference, prediction, spacing), surface_distances(prediction, reference, spacing)
    for measure in (lambda d: d.nsd(1.0), lambda d: d.hausdorff(95), lambda d: d.hausdorff(), lambda d: d.average()):
        assert measure(one) == pytest.approx(measure(other), rel=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_twice_the_spacing_is_twice_the_distance(name):
    reference, prediction, spacing = PAIRS[name]
    one = surface_distances(reference, prediction, spacing)
    two = surface_distances(reference, prediction, [2 * size for size in spacing])
    assert two.average() == pytest.approx(2 * one.average())
    assert two.hausdorff(95) == pytest.approx(2 * one.hausdorff(95))
    assert two.nsd(2.0) == pytest.approx(one.nsd(1.0))
    assert two.reference.weights.sum() == pytest.approx(2 ** (len(spacing) - 1) * one.reference.weights.sum())


@pytest.mark.parametrize("name", PAIRS)
def test_a_mask_is_at_no_distance_from_itself(name):
    mask, _, spacing = PAIRS[name]
    found = surface_distances(mask, mask, spacing)
    assert (found.nsd(0.0), found.hausdorff(), found.average()) == (1, 0, 0)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_empty_masks(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    spacing = (1.0,) * len(shape)
    neither = surface_distances(empty, empty, spacing)
    assert all(math.isnan(value) for value in (neither.nsd(1.0), neither.hausdorff(), neither.average()))
    for masks in ((empty, full), (full, empty)):
        one = surface_distances(*masks, spacing)
        assert one.nsd(100.0) == 0
        assert all(math.isnan(value) for value in (one.hausdorff(), one.hausdorff(95), one.average()))


def test_a_mask_that_fills_the_image_has_the_surface_of_the_image():
    found = surface_distances(np.ones((10, 20, 30), bool), np.ones((10, 20, 30), bool), (1.0, 1.0, 1.0))
    sides = 2 * (10 * 20 + 10 * 30 + 20 * 30)
    assert found.reference.weights.sum() == pytest.approx(sides, rel=0.05)  # edges and corners are cut off


# --- cropping ---


@pytest.mark.parametrize("label", [1, (1, 2), 3])
@pytest.mark.parametrize("shift", [(0, 0, 0), (5, 0, 2), (7, 8, 9)])
def test_cropping_and_where_it_lies_change_nothing(label, shift):
    """Labels 1 and 3 touch the border of the image without a shift, and the far one with the largest."""
    small = np.random.default_rng(5).integers(0, 4, (2, 6, 7, 8))
    reference, prediction = np.zeros((2, 13, 15, 17), np.uint8)
    inside = tuple(slice(start, start + size) for start, size in zip(shift, small.shape[1:], strict=True))
    reference[inside], prediction[inside] = small
    spacing = (3.0, 0.5, 0.7)
    cropped = CroppedPair(reference, prediction, spacing).distances(label)
    whole = surface_distances(*(np.isin(array, label) for array in small), spacing)
    np.testing.assert_array_equal(cropped.reference.distances, whole.reference.distances)
    np.testing.assert_array_equal(cropped.prediction.weights, whole.prediction.weights)


def test_cropping_to_slices_closes_the_surface_there():
    reference = np.zeros((9, 5, 5), np.uint8)
    reference[1:8, 1:4, 1:4] = 2
    pair = CroppedPair(reference, reference, (1.0, 1.0, 1.0))
    part = reference[3:6] == 2
    expected = surface_distances(part, part, (1.0, 1.0, 1.0))
    assert len(pair.distances(2, (slice(3, 6),)).reference.weights) == len(expected.reference.weights)
    assert not pair.distances(2, (slice(0, 1),)).defined
    assert not pair.distances(7).defined


# --- regions ---


@pytest.mark.parametrize("name", ["shifted", "touching the border", "2D", "2D noise"])
def test_the_distance_of_regions_is_that_of_itk(name):
    reference, prediction, spacing = PAIRS[name]
    images = []
    for mask in (reference, prediction):
        image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        images.append(image)
    itk = SimpleITK.HausdorffDistanceImageFilter()
    itk.Execute(*images)
    assert region_hausdorff(reference, prediction, spacing) == pytest.approx(itk.GetHausdorffDistance(), rel=1e-6)


def test_distances_of_regions_are_measured_from_pixels_that_are_not_in_the_other():
    disc = ellipsoid((41, 41), (20, 20), (15, 15))
    pierced = disc.copy()
    pierced[20, 20] = False
    assert region_hausdorff(disc, pierced, (1.0, 1.0)) == 1  # contours would be 14 apart
    assert surface_distances(disc, pierced, (1.0, 1.0)).hausdorff() > 13
    assert math.isnan(region_hausdorff(disc, np.zeros_like(disc), (1.0, 1.0)))
