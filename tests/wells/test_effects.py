"A faulty well and an effect of the edge are named, each once and nothing else; a plate without faults has no findings."
import numpy as np
import pytest

from hpa_fastai.wells.effects import TRAITS, plate_effects, simulate_fields

FAULTS = dict(dim=dict(red=-2., blue=-2.), blurred=dict(focus=-2.), flagged=dict(flagged=1.), unread=dict(failed=1.))


def kinds(effects): return set(effects.effects.kind[effects.effects.named])


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('n, place, name', [(96, (3, 5), 'C05'), (384, (16, 24), 'P24')])
def test_a_faulty_well_and_an_edge_are_named_and_nothing_else(fault, n, place, name):
    found = plate_effects(simulate_fields(n, 4, seed=3, edge=-.3, bad={place: FAULTS[fault]}))
    assert found.faulty == [name] and kinds(found) == {'edge'}
    edge, well = found.sentences()
    assert edge.startswith('Outer wells differ from inner wells: ') and 'nuclei' in edge and 'darker' in edge
    assert name in well


@pytest.mark.parametrize('n', [6, 24, 96, 384])
def test_nothing_is_named_where_nothing_is(n):
    for seed in range(2):
        found = plate_effects(simulate_fields(n, 4, seed=seed))
        assert found.sentences() == [] and found.faulty == []


def test_the_size_of_the_edge_is_that_which_was_planted():
    found = plate_effects(simulate_fields(384, 4, seed=1, edge=-.3)).effects.set_index(['kind', 'what'])['size']['edge']
    assert all(abs(found[channel]+.3) < .08 for channel in ('red', 'blue', 'yellow')) and abs(found['focus']) < .08


def test_a_gradient_is_named_along_its_side():
    table = simulate_fields(96, 4, seed=2)
    for trait in TRAITS: table[trait] += .6*(table.column-1)/11*(trait in ('blue', 'red'))
    found = plate_effects(table)
    assert kinds(found) == {'columns'} and found.faulty == []
    assert found.sentences()[0].startswith('Along the columns, from 1 to 12: microtubules')


def test_another_protein_is_no_fault():
    table = simulate_fields(96, 4, seed=4)
    table.loc[table.row.eq(4) & table.column.eq(4), 'green'] += 4
    assert plate_effects(table).sentences() == []


def test_a_well_of_one_field_may_differ_more():
    "The same distance is chance for one field, and none for nine"
    table = simulate_fields(96, 9, seed=5)
    well = table.row.eq(4) & table.column.eq(4)
    table.loc[well, 'blue'] = table.blue.median()-1.5
    assert plate_effects(table).faulty == ['D04']
    assert plate_effects(table.drop(table.index[well][1:])).faulty == []


def test_flags_of_the_whole_edge_are_an_effect_and_no_fault_of_each_well():
    table = simulate_fields(96, 4, seed=6)
    outer = table.row.isin([1, 8]) | table.column.isin([1, 12])
    table.loc[outer, 'flagged'] = np.random.default_rng(0).random(outer.sum()) < .5
    found = plate_effects(table)
    assert kinds(found) == {'edge'} and found.faulty == [] and 'of the pictures flagged' in found.sentences()[0]


def test_plates_without_pictures_without_an_edge_or_without_a_field_are_compared_as_far_as_they_go():
    table = simulate_fields(96, 4, seed=7, edge=-.5, bad={(4, 4): dict(flagged=1.)})
    assert plate_effects(table.drop(columns=list(TRAITS))).faulty == ['D04']
    inner = table[table.row.between(2, 7) & table.column.between(2, 11)]
    assert plate_effects(inner).faulty == ['D04'] and kinds(plate_effects(inner)) == set()
    few = plate_effects(table.head(20))
    assert few.sentences() == [] and not few.is_compared
    lost = table.assign(failed=True, flagged=False, **dict.fromkeys(TRAITS, np.nan))
    assert len(plate_effects(lost).unread) == 96 and 'and 84 more' in plate_effects(lost).sentences()[0]
