"The chart of counts: what it counts, and what its numbers say"
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pandas as pd, pytest
from hpa_fastai.cli.main import main
from hpa_fastai.data.labels import HPA28, LabelSet
from hpa_fastai.interpret.counts import plot_counts

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def table_of(names, flags=None, error=None, labels=HPA28):
    "Predictions as `predict` writes them"
    n = len(names)
    p = {c: [.9 if c in o.split('|') else .1 for o in names] for c in labels.classes}
    predicted = [labels.format(labels.parse(o.split('|') if o else [])) for o in names]
    return pd.DataFrame({'Id': [f'f{i}' for i in range(n)], 'Predicted': predicted, 'Names': names, **p,
                         'flags': flags or ['']*n, 'error': error or ['']*n})

def texts(fig): return [t.get_text() for t in fig.axes[0].texts]

def test_flags_failures_and_images_without_a_location_are_apart(tmp_path):
    t = table_of(['Cytosol', 'Cytosol|Nucleoli', 'Cytosol', '', ''], ['', '', 'uncertain', 'no-location', ''],
                 ['']*4+['no such file'])
    fig = plot_counts(t, tmp_path/'n.svg')
    said = texts(fig)
    assert said[said.index('Cytosol')+1]=='2 + 1' and said[said.index('Nucleoli')+1]=='1'
    assert said[said.index('no location')+1]=='1' and said[said.index('no prediction')+1]=='1'
    assert 'n = 5' in fig.axes[0].get_xlabel()
    caption = (tmp_path/'n.txt').read_text()
    assert '3 of them have a location, 1 of them more than one' in caption and '1 could not be read' in caption

OWN = LabelSet('own', ('a phenotype', 'Another with a rather long name of its own'))

@pytest.mark.parametrize('labels', [HPA28, OWN])
@pytest.mark.parametrize('width', [60, 120, 180])
def test_no_word_lies_on_another(labels, width):
    names = [c for i,c in enumerate(labels.classes) for _ in range(7*i+1)]
    flags = ['uncertain', '']*(len(names)//2)+['']*(len(names)%2)
    fig = plot_counts(table_of(names, flags, labels=labels), width=width)
    fig.canvas.draw()
    boxes = [t.get_window_extent() for t in fig.axes[0].texts]
    for i,a in enumerate(boxes):
        assert a.x0>=-1 and a.x1<=fig.bbox.x1+1, fig.axes[0].texts[i].get_text()
        assert not any(a.x0<b.x1-1 and b.x0<a.x1-1 and a.y0<b.y1-1.5 and b.y0<a.y1-1.5 for b in boxes[i+1:])

def test_by_count_the_largest_first():
    said = texts(plot_counts(table_of(['Nucleoli', *['Cytosol']*3, *['Mitochondria']*2]), by='count'))
    assert [t for t in said if t in HPA28.classes]==['Cytosol', 'Mitochondria', 'Nucleoli']

def test_a_run_that_failed_as_a_whole_is_a_line(tmp_path, capsys):
    table_of(['', ''], error=['no such file']*2).to_csv(tmp_path/'p.csv', index=False)
    assert main(['figure', str(tmp_path/'p.csv'), '--kind', 'counts', '--out', str(tmp_path/'n.pdf')])==2
    said = capsys.readouterr().err
    assert 'no row has a prediction; the first says: no such file' in said and said.count('\n')==1

def test_the_pale_parts_of_the_bars_are_what_the_caption_counts():
    t = table_of(['Cytosol', 'Cytosol', 'Nucleoli', '', '', ''],
                 ['', 'uncertain', 'uncertain out-of-focus', 'no-location', 'no-location', 'blank-protein no-location'])
    fig = plot_counts(t)
    said = texts(fig)
    assert [said[said.index(name)+1] for name in ('Cytosol', 'Nucleoli', 'no location')]==['1 + 1', '0 + 1', '2 + 1']
    assert 'those with a flag other than no-location (3 in all)' in fig.caption
    assert 'a flag (1 in all)' in plot_counts(t.iloc[:2]).caption
    assert 'pale' not in plot_counts(t.iloc[[0, 3, 4]]).caption
