"Words that people write for classes and columns: taken apart, compared and proposed."
import pytest

from hpa_fastai.basics.words import loose_form, near_names, split_names
from hpa_fastai.data.labels import HPA19, HPA28, HPA31, LabelError, get_labels


@pytest.mark.parametrize('typed', ['golgi  apparatus', 'Golgi-Apparatus', 'GOLGI_APPARATUS', ' golgi apparatus\n'])
def test_spellings_that_mean_the_same(typed):
    assert loose_form(typed) == loose_form('Golgi apparatus')
    assert all(ls.parse(typed) == ls.parse('Golgi apparatus') for ls in (HPA28, HPA19, HPA31))


@pytest.mark.parametrize('cell', [
    'Nucleoplasm, Golgi apparatus', 'nucleoplasm;golgi apparatus', 'Nucleoplasm|Golgi apparatus',
    'Nucleoplasm / Golgi apparatus', 'Nucleoplasm\nGolgi apparatus', 'Nucleoplasm\r\nGolgi apparatus, ',
    'Nucleoplasm and Golgi apparatus', 'Nucleoplasm + Golgi apparatus', 'Nucleoplasm & Golgi apparatus',
])
def test_words_are_separated_in_any_usual_way(cell):
    for labels in (HPA28, HPA19, HPA31, get_labels(['Golgi apparatus', 'Nucleoplasm'])):
        assert [labels.classes[i] for i in labels.parse(cell)] == ['Nucleoplasm', 'Golgi apparatus'], labels


def test_a_class_is_never_divided():
    own = get_labels(['Golgi, cis', 'ER/Golgi', 'Rods & rings', 'Cytosol'])
    assert own.parse('Cytosol; Golgi, cis') == [3, 0] and own.parse('ER/Golgi, Cytosol') == [1, 3]
    assert own.parse('Golgi, cis, Cytosol') == [0, 3] and own.parse('rods & rings, cytosol') == [2, 3]
    assert HPA19.parse('Vesicles and punctate cytosolic patterns, Cytosol') == [17, 16]


def test_spellings_of_two_classes_stand_for_neither():
    own = get_labels(['Golgi +', 'Golgi -'])
    assert own.parse('golgi +') == [0] and not own.is_class('Golgi')


def test_numbers_are_what_they_were():
    assert HPA28.parse('16 0') == [16, 0] and HPA28.parse('16, 5') == [16, 5] and HPA19.parse('8|5|0') == [8, 5, 0]
    for labels, cell in ((HPA28, '7,0'), (HPA19, '16 0'), (HPA28, '2.5'), (HPA28, '-1')):
        with pytest.raises(LabelError): labels.parse(cell)


@pytest.mark.parametrize('word,meant', [
    ('Golgi', 'Golgi apparatus'), ('ER', 'Endoplasmic reticulum'), ('nucleus', 'Nucleoplasm'),
    ('Nucleolus', 'Nucleoli'), ('mitochondrion', 'Mitochondria'), ('Centrosomes', 'Centrosome'),
    ('Cytoplasm', 'Cytosol'), ('Plasma membrnae', 'Plasma membrane'), ('MTOC', 'Microtubule organizing center'),
])
def test_what_a_word_may_mean(word, meant):
    assert near_names(word, HPA28.classes)[0] == meant and not HPA28.is_class(word)


def test_nothing_is_proposed_where_nothing_is_near():
    assert near_names('xyz', HPA28.classes) == [] and near_names('', HPA28.classes) == []


def test_names_are_divided_by_the_strongest_separator_first():
    assert split_names('a, b; c', str.isalpha) == ['a', 'b', 'c'] and split_names(' , ', str.isalpha) == []


def test_thousands_of_separators_are_split_in_one_pass():
    tried = []
    assert split_names('a,'*2000 + 'b', tried.append) == ['a']*2000 + ['b']
    assert len(tried) < 40_000
