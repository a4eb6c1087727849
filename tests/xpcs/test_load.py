"""Files of the three layouts give back the matrices that were written, in whole and by blocks; bad ones say why."""

import h5py
import numpy as np
import pytest

from tessera.xpcs.dataset import ArrayC2
from tessera.xpcs.errors import DataQualityError, SelectionError, XpcsFileError, XpcsInputError
from tessera.xpcs.load import Selection
from tessera.xpcs.load import load as load_file
from tessera.xpcs.npz_cache import write_cache
from tessera.xpcs.select import AngleRange
from tessera.xpcs.units import check_units
from tessera.xpcs.write_files import write_aps_old, write_aps_u

PHI = np.array([-90.0, -5.0, 0.0, 8.0, 95.0, 175.0])
N, DT, Q = 37, 0.1, 0.0054


def load(path, **selection):
    return load_file(path, Selection(**selection))


def store_again(path, **options):
    """Store the matrices of a file in another way."""
    with h5py.File(path, "a") as handle:
        maps = handle["xpcs/twotime/correlation_map"]
        for name in list(maps):
            values = maps[name][()]
            del maps[name]
            maps.create_dataset(name, data=values, **options)


@pytest.fixture(scope="module")
def c2():
    random = np.random.default_rng(1).normal(1.2, 0.1, (PHI.size, N, N))
    return random + random.transpose(0, 2, 1) - 1.2


@pytest.fixture(params=["aps_u", "aps_u_whole", "aps_u_tiles", "aps_old", "npz", "npz_plain"])
def file(request, tmp_path, c2):
    """The same matrices in each layout, among others of another wavevector."""
    path = tmp_path / ("data.npz" if request.param.startswith("npz") else "data.h5")
    if request.param.startswith("aps_u"):
        compression = "lzf" if request.param == "aps_u_whole" else None  # as boost_corr writes
        write_aps_u(path, [*(c2 + 3), *c2], PHI, np.array([0.003, Q]), compression=compression)
        if request.param == "aps_u_tiles":
            store_again(path, chunks=(10, 7), compression="gzip")
    elif request.param == "aps_old":
        order = np.arange(2 * PHI.size).reshape(2, -1).T.ravel()  # the two rings mixed
        both = np.concatenate([c2, c2 + 3])[order]
        q = np.repeat([Q, 0.003], PHI.size)[order]
        write_aps_old(path, both, np.tile(PHI, 2)[order], q)
    else:
        write_cache(path, c2, PHI, DT * np.arange(N), Q, compression=request.param == "npz")
    return path


def test_all_layouts_give_back_what_was_written(file, c2):
    data = load(file, q=0.0055, dt=DT)
    np.testing.assert_array_equal(data.phi, PHI)
    np.testing.assert_allclose(data.times, DT * np.arange(1, N), rtol=1e-14)
    assert (data.q, data.dt, data.frames) == (Q, pytest.approx(DT), (2, N))
    assert data.n_points == PHI.size * (N - 1) * (N - 2) // 2
    for angle in range(PHI.size):
        np.testing.assert_allclose(data.matrix(angle), c2[angle, 1:, 1:], rtol=1e-15)


def test_frames_and_angles_are_selected(file, c2):
    ranges = (AngleRange(-10, 10), AngleRange(170, 190))
    data = load(file, q=Q, dt=DT, start_frame=5, end_frame=20, ranges=ranges)
    np.testing.assert_array_equal(data.phi, [-5, 0, 8, 175])
    assert data.frames == (6, 20)
    np.testing.assert_allclose(data.times, DT * np.arange(1, 16), rtol=1e-12)
    for k, angle in enumerate([1, 2, 3, 5]):
        np.testing.assert_allclose(data.matrix(k), c2[angle, 5:20, 5:20], rtol=1e-15)
    assert data.notes == ("4 of 6 angles lie in the ranges of phi_filtering",)


@pytest.mark.parametrize(("first", "end"), [(0, 1), (3, 17), (0, 36), (35, 36)])
def test_a_block_of_rows_is_a_block_of_the_matrix(file, c2, first, end):
    data = load(file, q=Q, dt=DT)
    block = data.rows.rows(2, first, end)
    np.testing.assert_allclose(block, c2[2, 1:, 1:][first:end, first:], rtol=1e-15)


@pytest.mark.parametrize("keep", [np.triu, np.tril, lambda m: m])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_whichever_half_is_stored(tmp_path, c2, keep, compression):
    path = tmp_path / "data.h5"
    write_aps_u(path, c2, PHI, np.array([Q]), compression=compression)
    with h5py.File(path, "a") as handle:
        for number, matrix in enumerate(c2, start=1):
            handle[f"xpcs/twotime/correlation_map/c2_{number:05d}"][...] = keep(matrix)
    data = load(path, dt=DT)
    np.testing.assert_allclose(data.matrix(3), c2[3, 1:, 1:], rtol=1e-15)
    np.testing.assert_allclose(data.rows.rows(3, 5, 9), c2[3, 6:10, 6:], rtol=1e-15)


def test_float32_stays_float32(tmp_path, c2):
    path = tmp_path / "data.h5"
    write_aps_u(path, c2.astype(np.float32), PHI, np.array([Q]))
    assert load(path, dt=DT).rows.dtype == np.float32


@pytest.mark.parametrize(("compression", "most"), [("lzf", 1.1), (None, 0.8)])
def test_little_more_is_read_than_is_needed(tmp_path, bytes_read, compression, most):
    """A chunk that is larger than HDF5's cache is decoded once; without chunks the empty half is not read."""
    path, n = tmp_path / "data.h5", 1100
    noise = np.random.default_rng(3).normal(1.2, 0.1, (2, n, n))
    write_aps_u(path, noise, PHI[:2], np.array([Q]), compression=compression)
    whole, before = path.stat().st_size, bytes_read()
    rows = load(path, dt=DT).rows
    for first in range(0, rows.n_t, 32):
        for angle in range(2):
            block = rows.rows(angle, first, min(first + 32, rows.n_t))
            np.testing.assert_array_equal(block[0], noise[angle, 1 + first, 1 + first :])
    assert bytes_read() - before < most * whole


@pytest.mark.parametrize(("name", "remedy"), [("data.h5", "h5repack"), ("data.npz", "the HDF5 file")])
def test_what_memory_has_no_room_for_is_not_unpacked(tmp_path, c2, monkeypatch, name, remedy):
    path = tmp_path / name
    if name.endswith("h5"):
        write_aps_u(path, c2, PHI, np.array([Q]), compression="lzf")
    else:
        write_cache(path, c2, PHI, DT * np.arange(N), Q)
    monkeypatch.setattr("tessera.xpcs.memory._available", lambda: 1000)
    with pytest.raises(XpcsFileError, match=rf"{name}: .* unpacked once per node, .* available here; .*{remedy}"):
        load(path, dt=DT)


def test_chunks_that_cannot_be_decoded_say_why(tmp_path, c2):
    path = tmp_path / "data.h5"
    write_aps_u(path, c2, PHI, np.array([Q]), compression="gzip")
    with h5py.File(path) as handle:
        chunk = handle["xpcs/twotime/correlation_map/c2_00002"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 100 : chunk.byte_offset + 200] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(XpcsFileError, match=r"data\.h5: .* of /xpcs/\S*/c2_00002 cannot be read .*copy it again"):
        load(path, dt=DT)


def test_a_filter_that_is_not_installed_is_named(tmp_path, c2, store_with_filter):
    path = tmp_path / "data.h5"
    write_aps_u(path, c2[:1], PHI[:1], np.array([Q]))
    store_with_filter(path, "xpcs/twotime/correlation_map/c2_00001", 32999)
    with pytest.raises(XpcsFileError, match=r"c2_00001 is compressed by filter 32999 .*HDF5_PLUGIN_PATH"):
        load(path, dt=DT)


def test_an_array_is_averaged_with_its_transpose():
    lopsided = np.random.default_rng(2).normal(size=(2, 9, 9))
    mean = 0.5 * (lopsided + lopsided.transpose(0, 2, 1))
    np.testing.assert_allclose(ArrayC2(lopsided).rows(1, 2, 5), mean[1, 2:5, 2:], rtol=1e-15)
    with pytest.raises(XpcsInputError, match=r"\(n_phi, n_t, n_t\)"):
        ArrayC2(lopsided[0])


def test_old_layout_takes_a_ring_of_wavevectors(tmp_path, c2):
    path = tmp_path / "data.h5"
    q = np.array([0.0050, 0.0052, 0.0054, 0.0056, 0.0058, 0.0070])
    write_aps_old(path, c2, PHI, q)
    data = load(path, q=0.0054, dt=DT)
    assert data.q == pytest.approx(0.0054)
    assert data.rows.n_phi == 5
    assert "differ by up to 7.4 %" in data.notes[0]
    assert load(path, q=0.0054, dt=DT, q_tolerance=0.0).rows.n_phi == 1


def test_a_cut_off_file_says_so(tmp_path, c2):
    path = tmp_path / "data.h5"
    write_aps_u(path, c2, PHI, np.array([Q]))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(XpcsFileError, match="cut off"):
        load(path, q=Q, dt=DT)
    path.write_bytes(b"no such thing")
    with pytest.raises(XpcsFileError, match="not a readable HDF5"):
        load(path, q=Q, dt=DT)
    npz = tmp_path / "data.npz"
    write_cache(npz, c2, PHI, DT * np.arange(N), Q)
    npz.write_bytes(npz.read_bytes()[:5000])
    with pytest.raises(XpcsFileError, match="damaged"):
        load(npz)


def test_missing_datasets_are_named_beside_those_there(tmp_path, c2):
    path = tmp_path / "data.h5"
    write_aps_u(path, c2[:2], PHI[:2], np.array([Q]))
    with h5py.File(path, "a") as handle:
        del handle["xpcs/qmap/dynamic_v_list_dim1"]
    with pytest.raises(XpcsFileError, match=r"lacks xpcs/qmap/dynamic_v_list_dim1; it holds .*c2_00001 \(37, 37\)"):
        load(path, q=Q, dt=DT)
    with h5py.File(path, "w") as handle:
        handle["entry/data"] = np.zeros((3, 4))
    with pytest.raises(XpcsFileError, match=r"neither .* it holds entry/data \(3, 4\)"):
        load(path, q=Q, dt=DT)
    np.savez(tmp_path / "data.npz", t1=np.arange(3.0), c2_exp=c2)
    with pytest.raises(XpcsFileError, match=r"lacks wavevector_q_list, phi_angles_list, t2; it holds c2_exp, t1"):
        load(tmp_path / "data.npz")


def test_lists_and_matrices_must_agree(tmp_path, c2):
    path = tmp_path / "data.h5"
    write_aps_old(path, c2[:3], PHI, np.full(6, Q))
    with pytest.raises(XpcsFileError, match="6 entries, xpcs/dphilist 6 and exchange/C2T_all 3 matrices"):
        load(path, q=Q, dt=DT)
    write_aps_u(path, c2, PHI[:2], np.array([Q]))
    with pytest.raises(XpcsFileError, match="holds bin 3, and the lists of both make 2 bins"):
        load(path, q=Q, dt=DT)


def test_bins_that_were_left_out_shift_no_angles(tmp_path, c2):
    """boost_corr counts only bins with pixels; the mapping says where in the grid they lie."""

    def file(mapping):
        path = tmp_path / f"{'_'.join(map(str, mapping))}.h5"
        write_aps_u(path, c2[:5], PHI, np.array([0.003, Q]))
        with h5py.File(path, "a") as handle:
            handle["xpcs/qmap/dynamic_index_mapping"] = np.array(mapping, np.uint8)
        return path

    data = load(file([1, 3, 6, 8, 11]), q=Q, dt=DT)
    np.testing.assert_array_equal(data.phi, PHI[[0, 2, 5]])
    np.testing.assert_allclose(data.matrix(1), c2[3, 1:, 1:], rtol=1e-15)
    np.testing.assert_array_equal(load(file([0, 1, 3, 8, 11]), q=0.003, dt=DT).phi, PHI[[0, 1, 3]])
    with pytest.raises(XpcsFileError, match=r"bin 5, and .*mapping has 4 entries"):
        load(file([1, 3, 6, 8]), q=Q, dt=DT)
    with pytest.raises(XpcsFileError, match=r"mapping puts bin 5 at 12, .* places 0 … 11"):
        load(file([1, 3, 6, 8, 12]), q=Q, dt=DT)


def test_python_objects_are_not_loaded(tmp_path, c2):
    path = tmp_path / "data.npz"
    np.savez(
        path, wavevector_q_list=[Q], phi_angles_list=PHI, t1=np.arange(N), t2=np.arange(N), c2_exp=c2.astype(object)
    )
    with pytest.raises(XpcsFileError, match="could run code"):
        load(path)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"q": 0.02}, r"no wavevector near 0\.02 1/Å; the nearest is 0\.0054"),
        ({"q": 0.054}, "looks like 1/nm"),
        ({"q": Q, "start_frame": 0}, r"frames 0 … -1 are asked for and there are 1 … 37"),
        ({"q": Q, "end_frame": 38}, r"frames 1 … 38 .* there are 1 … 37"),
        ({"q": Q, "start_frame": 9, "end_frame": 11}, "at least 4"),
        (
            {"q": Q, "ranges": (AngleRange(40, 60),)},
            r"no angle lies in 40 … 60 deg; there are -90, -5, 0, 8, 95, 175 deg",
        ),
        ({"q": Q, "ranges": ()}, r"no angle lies in \(none\)"),
    ],
)
def test_what_is_not_in_the_file_is_named(file, keywords, words):
    with pytest.raises(SelectionError, match=words):
        load(file, dt=DT, **keywords)


def test_several_wavevectors_need_a_choice_and_hdf5_needs_a_time_step(tmp_path, c2):
    path = tmp_path / "data.h5"
    write_aps_u(path, [*c2, *c2], PHI, np.array([0.003, Q]))
    with pytest.raises(SelectionError, match=r"from 0\.003 to 0\.0054"):
        load(path, dt=DT)
    with pytest.raises(SelectionError, match="does not hold the time between frames"):
        load(path, q=Q)


def test_a_cache_keeps_its_own_time_step(tmp_path, c2):
    path = tmp_path / "data.npz"
    write_cache(path, c2, PHI, DT * np.arange(N), Q)
    assert load(path).dt == pytest.approx(DT)
    with pytest.raises(SelectionError, match=r"0\.1 s apart, and job.analyzer_parameters.dt is 0\.2 s"):
        load(path, dt=0.2)
    times = DT * np.arange(N)
    times[20:] += 0.05
    write_cache(path, c2, PHI, times, Q)
    with pytest.raises(DataQualityError, match="not evenly spaced"):
        load(path)


def test_a_cache_that_starts_after_zero_keeps_its_first_frame(tmp_path, c2):
    path = tmp_path / "data.npz"
    write_cache(path, c2, PHI, DT * np.arange(1, N + 1), Q, start_frame=11)
    data = load(path)
    np.testing.assert_allclose(data.times, DT * np.arange(1, N + 1))
    assert data.frames == (11, 10 + N)


@pytest.mark.parametrize(
    ("q", "dt", "gap", "words"),
    [
        (54.0, 0.1, 2e6, r"wavevector_q is 54 1/Å.*another unit"),
        (0.0054, -0.1, 2e6, "dt is -0.1; it must be above zero"),
        (0.0054, 0.1, 200.0, r"stator_rotor_gap is 200 Å.*1 µm is 1e4 Å"),
        (float("nan"), 0.1, 2e6, "wavevector_q is nan"),
    ],
)
def test_impossible_units_are_refused(q, dt, gap, words):
    with pytest.raises(XpcsInputError, match=words):
        check_units(q, dt, gap)


def test_unusual_units_are_said():
    assert check_units(0.0054, 0.1, 2e6) == []
    assert check_units(0.0054, 0.1, None) == []
    (warning,) = check_units(0.9, 0.1, 2e6)
    assert "unusual" in warning
