"Near-duplicates: the same cells are found however the picture was saved, and nothing else is"

import numpy as np, pytest
from PIL import Image
from hpa_fastai.formats.names import *
from hpa_fastai.data.files import *
from hpa_fastai.data.duplicates import *
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.simulate.atlas import simulate_fov
from microscopes import write_image_xpress


def save(folder, name, fov, ending='png'):
    for channel, plane in zip(CHANNELS, np.ascontiguousarray(fov)):
        Image.fromarray(plane).save(
            folder / f'{name}_{channel}.{ending}', **(dict(quality=85) if ending == 'jpg' else {})
        )


@pytest.fixture(scope='module')
def fovs():
    return [simulate_fov([t], size=128, seed=t, difficulty='easy')[0] for t in range(0, 28, 2)]


def found(folder, **settings):
    pairs = duplicate_pairs(find_images(folder), **settings)
    return {frozenset(p) for p in zip(pairs.Id, pairs.other)}


def test_all_changes_are_seen_through(tmp_path, fovs):
    bright = lambda f: (f * 1.2).clip(0, 255).astype(np.uint8)
    for i, fov in enumerate(fovs):
        save(tmp_path, f'o{i}', fov)
    turns = [np.rot90(f, k, (1, 2)) for k in range(4) for f in (fovs[0], np.flip(fovs[0], 2))]
    for k, f in enumerate(turns[1:]):
        save(tmp_path, f'turn{k}', f)
    save(tmp_path, 'jpg', fovs[1], 'jpg')
    save(tmp_path, 'bright', bright(fovs[2]))
    save(tmp_path, 'all', np.flip(np.rot90(bright(fovs[3]), 1, (1, 2)), 1), 'jpg')
    small = np.stack([np.asarray(Image.fromarray(p).resize((96, 96), Image.LANCZOS)) for p in fovs[4]])
    save(tmp_path, 'small', small)
    groups = duplicate_groups(find_images(tmp_path))
    assert (
        groups['jpg'] == groups['o1']
        and groups['bright'] == groups['o2']
        and groups['all'] == groups['o3']
        and groups['small'] == groups['o4']
    )
    assert {groups[f'turn{k}'] for k in range(7)} == {groups['o0']}
    assert groups[[f'o{i}' for i in range(len(fovs))]].nunique() == len(fovs)


def test_blank_protein_never_joins(tmp_path, fovs):
    rng = np.random.default_rng(0)
    for i in range(6):
        fov = fovs[0].copy()
        fov[1] = 0 if i < 2 else 9 if i < 4 else rng.normal(9, 1, fov[1].shape).clip(0)
        save(tmp_path, f'b{i}', fov)
    assert found(tmp_path) == set()


def test_same_protein_with_other_cells_does_not_join(tmp_path, fovs):
    save(tmp_path, 'a', fovs[0])
    save(tmp_path, 'b', np.stack([fovs[5][0], fovs[0][1], fovs[5][2], fovs[5][3]]))
    save(tmp_path, 'c', np.stack([fovs[0][0], np.rot90(fovs[0][1]), fovs[0][2], fovs[0][3]]))
    assert found(tmp_path) == set()


def test_a_missing_landmark_does_not_hide_a_pair(tmp_path, fovs):
    save(tmp_path, 'a', fovs[0])
    save(tmp_path, 'b', fovs[0])
    (tmp_path / 'b_yellow.png').unlink()
    assert found(tmp_path) == {frozenset('ab')}


def test_broken_files_are_named_and_left_alone(tmp_path, fovs):
    save(tmp_path, 'a', fovs[0])
    save(tmp_path, 'b', fovs[0])
    save(tmp_path, 'c', fovs[0])
    (tmp_path / 'c_blue.png').write_bytes(b'')
    with pytest.warns(UserWarning, match='1 fields could not be read .* c'):
        groups = duplicate_groups(find_images(tmp_path))
    assert groups.to_dict() == {'a': 'a', 'b': 'a', 'c': 'c'}


def test_no_pair_is_lost_in_the_search():
    "The quick search gives the same pairs as a comparison of all positions of all pairs."
    rng = np.random.default_rng(1)
    base = rng.normal(size=(60, 144)).astype(np.float32)
    prints = np.concatenate(
        [base, symmetries(base)[rng.integers(0, 8, 60), np.arange(60)] + rng.normal(scale=0.25, size=base.shape)]
    )
    prints = (prints / np.linalg.norm(prints, axis=1, keepdims=True)).astype(np.float32)
    fp = Fingerprints([f'{i:03}' for i in range(120)], np.repeat(prints[:, None], 4, 1), np.full((120, 4), 9.0))
    pairs = duplicate_pairs(fp, protein=0.9, landmarks=0.9)
    all_pairs = np.einsum('sik,jk->sij', symmetries(prints), prints).max(0)
    i, j = np.nonzero(np.triu(all_pairs >= 0.9, 1))
    assert 20 < len(i) <= 60 and set(zip(pairs.Id, pairs.other)) == {(f'{a:03}', f'{b:03}') for a, b in zip(i, j)}


def test_nothing_to_compare(tmp_path, fovs):
    save(tmp_path, 'a', fovs[0])
    assert len(duplicate_pairs(find_images(tmp_path))) == 0
    assert duplicate_groups(find_images(tmp_path)).to_dict() == {'a': 'a'}


def test_mosaics_differ(real_data):
    table = find_images(real_data / 'mosaic' / 'images').head(60)
    assert len(duplicate_pairs(table)) == 0


def test_copies_among_stacks_are_found_with_the_settings_of_reading(tmp_path):
    write_image_xpress(tmp_path / 'a', ('C03', 'C04'), planes=2)
    write_image_xpress(tmp_path / 'b', ('D05',), planes=2, name='other')  # the pictures of C03
    table, reader = find_images(tmp_path), ImageReader(z='max')
    pairs = duplicate_pairs(table, reader=reader)
    assert [{*pair} for pair in zip(pairs.Id, pairs.other)] == [{'plate7_C03_s1', 'other_D05_s1'}]
    assert duplicate_groups(table, reader=reader).nunique() == 2
    assert fingerprints(table, reader).errors == {} and len(fingerprints(table).errors) == 3
