"Proteins are summarised level by level, and say what disagrees, what labels say and what could not be read."
import warnings

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.cells.layout import fields_of_proteins
from hpa_fastai.cells.proteins import summarise_proteins
from hpa_fastai.cells.variation import cell_variation
from hpa_fastai.cli.main import main
from hpa_fastai.data.labels import HPA28, LabelSet
from hpa_fastai.deploy.tables import ResultError, result_columns, with_labels
from hpa_fastai.interpret.protein_report import protein_report

TWO = LabelSet('two', ('Nucleoli', 'Cytosol'))


def predictions(rows, labels=TWO, **columns):
    "A table of predictions of (Id, probability of each class), decided at one half"
    ids, probs = [row[0] for row in rows], np.array([row[1:] for row in rows], float)
    named = probs>.5
    table = pd.DataFrame(probs, columns=list(labels.classes)).assign(
        Id=ids, Predicted=labels.decode(named), Names=['|'.join(o) for o in labels.to_names(named)], flags='', error='')
    return with_labels(table[result_columns(labels)].assign(**columns), labels)


def test_an_antibody_with_many_pictures_counts_once():
    rows = [(f'1_1_A1_{k}', .9, .1) for k in range(20)] + [('2_1_A1_1', .2, .8)]
    found = summarise_proteins(predictions(rows, gene='TP53'))
    assert found[['Nucleoli', 'Cytosol']].to_numpy().tolist() == [pytest.approx([.55, .45])]
    assert found.loc[0, ['fields', 'antibodies', 'agreement']].tolist() == [21, 2, 0]
    assert 'Nucleoli in 1 of 2 antibodies (1); Cytosol in 1 of 2 antibodies (2)' == found.disagreement[0]


def test_a_protein_with_one_picture_has_its_locations_and_no_interval():
    table = predictions([('a', .9, .6), ('b', .1, .2), ('c', .2, .7)], gene=['A', 'B', 'C'])
    found = summarise_proteins(table).set_index('gene')
    assert found.main.tolist() == ['Nucleoli|Cytosol', '', 'Cytosol']
    assert found.interval['A'] == '-|-' and found[['stability', 'agreement']].isna().all(axis=None)


def test_the_thresholds_of_the_table_are_found():
    rng = np.random.default_rng(0)
    probs = rng.random((400, 2))
    table = predictions([(f'f{k}', *p) for k, p in enumerate(probs)], gene=[f'g{k}' for k in range(400)])
    named = probs>[.3, .8]
    table = table.assign(Predicted=TWO.decode(named), Names=['|'.join(o) for o in TWO.to_names(named)])
    found = summarise_proteins(with_labels(table, TWO))
    ours = (found.main+'|'+found.additional).str.split('|').map(set).map(lambda o: o-{''})
    by_gene = pd.Series([set(filter(None, names.split('|'))) for names in table.Names], table.gene)
    assert (ours.to_numpy() == by_gene[found.gene].to_numpy()).mean() > .98


def test_averages_are_nearer_to_the_truth_than_pictures():
    rng = np.random.default_rng(1)
    true = rng.random((60, 2))<.5
    rows = [(f'{g}{a}_1_A1_{k}', *np.clip(true[g]*.4+.3+rng.normal(0, .3, 2), .01, .99))
            for g in range(60) for a in range(1, 3) for k in range(4)]
    table = predictions(rows, gene=[f'g{k//8:02}' for k in range(480)])
    found = summarise_proteins(table, thresholds=.5)
    ours = np.array([[c in (m+'|'+a).split('|') for c in TWO.classes] for m, a in zip(found.main, found.additional)])
    of_pictures = table[list(TWO.classes)].to_numpy()>.5
    assert (ours==true).mean() > (of_pictures==np.repeat(true, 8, 0)).mean()+.1


def test_labels_are_compared():
    table = predictions([('a', .9, .1), ('b', .9, .1), ('c', .1, .9)], gene=['A', 'A', 'B'], Target=['0', '0 1', '1'])
    found = summarise_proteins(table).set_index('gene')
    assert found.known.to_dict() == {'A': 'Nucleoli|Cytosol', 'B': 'Cytosol'} and found['match'].tolist() == [.5, 1]


def failed(table, rows):
    table.loc[rows, ['Predicted', 'Names', 'error']] = '', '', 'damaged or cut off'
    table.loc[rows, list(TWO.classes)] = np.nan
    return table


def test_fields_that_failed_are_counted_and_not_averaged():
    table = failed(predictions([('a', .9, .1), ('b', .9, .1), ('c', .1, .9)], gene=['A', 'A', 'B']), [1, 2])
    found = summarise_proteins(table).set_index('gene')
    assert found.loc['A', ['main', 'fields', 'failed']].tolist() == ['Nucleoli', 2, 1]
    assert found.loc['B', ['main', 'fields', 'failed']].tolist() == ['', 1, 1] and np.isnan(found.loc['B', 'Cytosol'])
    with pytest.raises(ResultError, match='none of the 3 fields of view has a prediction; the first error: damaged'):
        summarise_proteins(failed(table, [0, 1, 2]))


def test_a_table_without_the_column_says_what_to_do():
    table = predictions([('12_1_A1_1', .9, .1)], Genes='TP53')
    with pytest.raises(ResultError, match="no column 'gene' says which protein .*did you mean 'Genes'"):
        summarise_proteins(table)
    assert summarise_proteins(table, by='Genes').Genes.tolist() == ['TP53']
    assert summarise_proteins(table, by='antibody').antibody.tolist() == ['12']
    with pytest.raises(ResultError, match="the column 'gene' is empty"): summarise_proteins(table.assign(gene=' '))


def test_one_antibody_of_two_genes_counts_for_both():
    table = predictions([('12_1_A1_1', .9, .1), ('13_1_A1_1', .1, .9)])
    layout = pd.DataFrame(dict(antibody=[12, 12, 13], gene=['A', 'B', 'B']))
    with pytest.warns(UserWarning, match='1 antibodies are listed for several proteins, and count for each: 12'):
        fields, _ = fields_of_proteins(table, layout=layout)
    assert fields.groupby('protein').Id.agg(list).to_dict() == {'A': ['12_1_A1_1'], 'B': ['12_1_A1_1', '13_1_A1_1']}


def test_a_layout_of_other_images_is_refused():
    table = predictions([('12_1_A1_1', .9, .1)])
    with pytest.raises(ResultError, match='the layout knows none of the 1 fields of view: it has Id x, and the predic'):
        summarise_proteins(table, layout=pd.DataFrame(dict(Id=['x'], gene='A')))


def test_cells_of_a_field_count_as_one_field():
    columns = dict(cell=[1, 2, 1, 0], mask='', gene='A')
    table = predictions([('a', .9, .1), ('a', .7, .1), ('b', .2, .1), ('c', .1, .1)], **columns)
    found = summarise_proteins(with_labels(table, TWO), thresholds=.4)
    assert found.loc[0, ['fields', 'failed', 'cells']].tolist() == [3, 1, 3]
    assert found.Nucleoli[0] == pytest.approx((.8+.2)/2)


def cells_of(fields, per_field, chance, labels=TWO):
    "A table of cells, decided at one half: each is in the first class with this chance, and else in none"
    rng = np.random.default_rng(0)
    probs = [(.9, .1) if rng.random()<chance else (.1, .1) for _ in range(fields*per_field)]
    rows = [(f'f{k//per_field:02}', *p) for k, p in enumerate(probs)]
    columns = dict(cell=[i+1 for _ in range(fields) for i in range(per_field)], mask='')
    return predictions(rows, labels, gene=[f'g{k//12}' for k in range(len(rows))], **columns)


def test_cells_are_decided_by_the_thresholds_of_the_cells():
    table = cells_of(30, 12, .9)
    found = summarise_proteins(table)
    assert (found.main=='Nucleoli').mean() > .9 and (found.additional=='').all()
    reversed_rows = with_labels(table[::-1].reset_index(drop=True), TWO)
    pd.testing.assert_frame_equal(found, summarise_proteins(reversed_rows))


def test_a_layout_never_replaces_probabilities():
    table = predictions([('a', .9, .1), ('b', .8, .1)])
    layout = pd.DataFrame(dict(Id=['a', 'b'], gene='A', Nucleoli=0, Cytosol=1, Predicted='1', error='lost', cells='x'))
    found = summarise_proteins(table, layout=layout)
    assert found.loc[0, ['main', 'failed', 'cells']].tolist() == ['Nucleoli', 0, 0]


def test_a_layout_counts_more_than_the_predictions_whatever_its_columns_are_called():
    table = predictions([('a', .9, .1), ('b', .1, .9), ('c', .9, .1)], Gene='X')
    layout = pd.DataFrame({'Id': ['a', 'b', 'c'], 'gene': ['A', 'A', 'B'], 'Antibody': ['1', '2', '3'],
                           'Cell line': ['U2OS', 'U-2 OS', 'HeLa']})
    found = summarise_proteins(table, layout=layout).set_index('gene')
    assert found.loc['A', ['antibodies', 'cell_lines', 'agreement']].tolist() == [2, 1, 0]
    assert set(found.index) == {'A', 'B'}


def test_antibodies_are_compared_by_their_numbers():
    table = predictions([('101_7_A1_1', .9, .1), ('102_7_A1_1', .1, .9)])
    layout = pd.DataFrame(dict(antibody=['HPA000101', 'HPA000102'], gene=['A', 'B']))
    assert summarise_proteins(table, layout=layout).main.tolist() == ['Nucleoli', 'Cytosol']


def test_a_field_counts_once_if_the_layout_does_not_know_its_cell_line():
    table = predictions([('101_7_A1_1', .9, .1), ('101_7_A1_2', .7, .1)])
    layout = pd.DataFrame(dict(antibody=['101', '101'], gene='A', cell_line=['U2OS', 'HeLa']))
    with pytest.warns(UserWarning, match='different things about one antibody, such as 101: its cell_line are not'):
        found = summarise_proteins(table, layout=layout)
    assert found.loc[0, ['fields', 'cell_lines']].tolist() == [2, 1]


def test_genes_that_a_spreadsheet_took_for_dates_are_said():
    with pytest.warns(UserWarning, match="gene '1-Mar' looks rewritten by a spreadsheet"):
        summarise_proteins(predictions([('a', .9, .1)], gene='1-Mar'))


@pytest.mark.parametrize('by', ['main', 'Fields', 'cells'])
def test_names_of_the_summary_are_no_proteins(by):
    with pytest.raises(ResultError, match='is the name of a column of the summary'):
        summarise_proteins(predictions([('a', .9, .1)], **{by: 'A'}), by=by)


def test_variation_of_tables_with_odd_columns():
    table = with_labels(cells_of(6, 12, .5).assign(protein='x', cells=3, antibody='1'), TWO)
    assert cell_variation(table).gene.nunique() == 6
    assert protein_report(table).cells.tolist() == [12]*6
    with pytest.raises(ResultError, match='none of the fields of view has cells'):
        cell_variation(with_labels(table.assign(cell=0), TWO))


def test_averages_of_certain_pictures_stay_probabilities():
    rows = [(f'{antibody}_1_A1_{k}', 1., 0.) for antibody in range(10, 27) for k in range(antibody%3+1)]
    found = summarise_proteins(predictions(rows, gene='A'))
    assert found.loc[0, ['main', 'Nucleoli', 'interval']].tolist() == ['Nucleoli', 1, '1.00-1.00']


def test_draws_do_not_depend_on_the_order_of_rows():
    rows = [(f'{k%3}_1_A1_{k}', *p) for k, p in enumerate(np.random.default_rng(0).random((30, 2)))]
    table = predictions(rows, gene=[f'g{k%5}' for k in range(30)])
    shuffled = with_labels(table.sample(frac=1, random_state=1), TWO)
    one, two = summarise_proteins(table), summarise_proteins(shuffled)
    pd.testing.assert_frame_equal(one, two)


def test_the_command_writes_table_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    probs = np.full((4, 28), .02)
    probs[[0, 1, 2, 3], [2, 2, 25, 2]] = .9
    table = predictions([(f'{10+k//2}_1_A1_{k}', *p) for k, p in enumerate(probs)], HPA28)
    table.to_csv('predictions.csv', index=False)
    pd.DataFrame(dict(Id=table.Id, Gene=['<b>A</b>']*2+['B']*2)).to_csv('layout.csv', index=False)
    assert main(['proteins', 'predictions.csv', '--layout', 'layout.csv', '--report', 'page.html']) == 0
    assert '2 proteins of 4 fields of view in proteins.csv' in capsys.readouterr().out
    page = (tmp_path/'page.html').read_text(encoding='utf-8')
    assert '&lt;b&gt;A&lt;/b&gt;' in page and '<b>A</b>' not in page
    assert main(['proteins', 'predictions.csv', '--layout', 'layout.csv']) == 2
    assert 'proteins.csv exists; give another name' in capsys.readouterr().err
    assert main(['proteins', 'predictions.csv', '--by', 'well', '--force']) == 2
    assert 'no column' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['proteins.csv', 'proteins.parquet', 'proteins.xlsx'])
def test_every_format_holds_the_same(tmp_path, name):
    table = predictions([('a', .9, .1), ('b', .1, .9)], gene=['=A', 'B'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = protein_report(table, out=tmp_path/name)
    read = dict(csv=pd.read_csv, parquet=pd.read_parquet, xlsx=pd.read_excel)[name.split('.')[1]](tmp_path/name)
    assert read.main.tolist() == found.main.tolist() and read.gene.tolist()[1] == 'B'
    assert read.gene[0] == ("'=A" if name.endswith('csv') else '=A')  # which a spreadsheet would calculate
